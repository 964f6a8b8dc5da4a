//! Packing, padding, threads and instruction sets must not change results.

use crate::fixture::{
    Golden, Outcome, Sample, forward_backward, forward_backward_of, load, pack, relative_error,
    shared,
};
use hone_model::adapter::{LoraConfig, TargetModules, attach};
use hone_model::{Batch, LayerConfig, Model, Pass, Recompute, Stream, Trained};
use hone_tensor::{
    AdapterId, AdapterRows, Compute, Device, Gradients, Isa, Philox, Sequence, StepKey, Tape,
    Tensor, testing,
};
use std::collections::HashSet;
use std::ops::Range;

const COMPUTE: [Compute; 2] = [Compute::F32, Compute::Bf16];

/// A pass in `compute` with recomputation, and gradients of the summed losses.
fn run(
    model: &Model,
    device: &Device,
    compute: Compute,
    samples: &[Sample],
    pad: usize,
) -> Outcome {
    let batch = pack(&model.decoder.config, samples, pad);
    forward_backward(model, device, (compute, Recompute::Block), &batch, 1.0, None)
}

/// Of the models, in the quick tier, those that have a kind of layer which none before them has.
fn models_of_all_kinds(device: &Device) -> Vec<(Golden, Model)> {
    let mut seen = HashSet::new();
    let mut is_new = |(_, model): &(Golden, Model)| {
        let kinds = model.decoder.config.layers.iter().flat_map(LayerConfig::kinds);
        let num_new = kinds.filter(|kind| seen.insert(kind.clone())).count();
        num_new > 0 || testing::is_full()
    };
    models(device).into_iter().filter(|model| is_new(model)).collect()
}

/// Two models with all weights trained, and all with adapters.
fn models(device: &Device) -> Vec<(Golden, Model)> {
    let adapted = Golden::all().map(|golden| {
        let model = golden.adapted(device);
        (golden, model)
    });
    let full = ["tied_gqa", "untied_bias_linear"].map(|case| {
        let golden = Golden::load(case);
        let model = load(&golden.dir, device, None, Trained::All);
        (golden, model)
    });
    full.into_iter().chain(adapted).collect()
}

/// A row's log-probabilities, and the gradient with respect to what it begins with, have the same
/// bits alone and in any company, whatever is computed again. Gradients of weights are sums over
/// the tokens of a batch: of one cut they have the same bits, and between cuts they round
/// differently. [`Golden::all`] has every kind of layer, which `coverage.rs` holds.
#[test]
fn packed_equals_unpacked() {
    let [one, two] = [1, 2].map(Device::cpu);
    for (golden, model) in models(&two) {
        for compute in COMPUTE {
            let name = format!("{} {compute:?}", golden.dir.display());
            let samples = golden.samples();
            let order: Vec<usize> = (0..samples.len()).collect();
            let run = |device: &Device, order: &[usize], recompute| {
                let samples: Vec<&Sample> = order.iter().map(|&i| &samples[i]).collect();
                rows_of(&model, device, (compute, recompute), &samples)
            };
            let alone: Vec<(Row, Vec<Vec<f32>>)> = order
                .iter()
                .map(|&i| run(&two, &[i], Recompute::Block))
                .map(|(mut rows, gradients)| (rows.remove(0), gradients))
                .collect();
            let (packed, gradients) = run(&one, &order, Recompute::None);
            assert!(packed.iter().eq(alone.iter().map(|(row, _)| row)), "{name}");
            let again = run(&two, &order, Recompute::Block);
            assert!(again == (packed, gradients.clone()), "{name}: recomputed");
            let reversed: Vec<usize> = order.iter().rev().copied().collect();
            let (rows, _) = run(&two, &reversed, Recompute::None);
            assert!(rows.iter().rev().eq(alone.iter().map(|(row, _)| row)), "{name}: reversed");
            for (i, gradient) in gradients.iter().enumerate() {
                let mut sum = vec![0.0; gradient.len()];
                for (_, gradients) in &alone {
                    sum.iter_mut().zip(&gradients[i]).for_each(|(s, g)| *s += g);
                }
                let error = relative_error(gradient, &sum);
                assert!(error < 1e-6, "{name} {i}: {error:e}");
            }
        }
    }
}

/// What a row gives: its log-probabilities, and the gradient with respect to the start of its
/// residual stream.
#[derive(PartialEq)]
struct Row {
    log_probs: Vec<f32>,
    d_x: Vec<f32>,
}

/// The rows of a pass over packed samples, and the gradients of the parameters.
fn rows_of(
    model: &Model,
    device: &Device,
    (compute, recompute): (Compute, Recompute),
    samples: &[&Sample],
) -> (Vec<Row>, Vec<Vec<f32>>) {
    let Model { decoder, params, .. } = model;
    let (config, h) = (&decoder.config, decoder.config.hidden_size);
    let batch = pack(config, samples.iter().copied(), 3);
    let mut tape = Tape::training(device, params, compute, None);
    let x = decoder.embedded(&mut tape, &batch).value().clone();
    let x = tape.leaf(x, true);
    let log_probs = decoder.log_probs_from(&mut tape, x.clone(), &batch, recompute);
    let found = log_probs.value().to_vec_f32();
    let d_root = Tensor::from_f32(&vec![-1.0; found.len()], log_probs.value().shape());
    let mut gradients = Gradients::zeros(device, params).unwrap();
    let leaves = tape.backward(log_probs, d_root, &mut gradients);
    let d_x = leaves.get(&x).unwrap().to_vec_f32();
    let row = |(sequence, targets): (&Sequence, &Range<usize>)| {
        let tokens = sequence.q_start * h..(sequence.q_start + sequence.q_len) * h;
        Row { log_probs: found[targets.clone()].to_vec(), d_x: d_x[tokens].to_vec() }
    };
    let rows = batch.sequences.iter().zip(&batch.target_ranges).map(row).collect();
    (rows, gradients.iter().map(Tensor::to_vec_f32).collect())
}

/// A pass that goes block by block, forward and back, each with a tape of its own, has the bits of
/// one over the whole model: in what it predicts, in gradients, and in what flows beside the
/// residual stream.
#[test]
fn going_block_by_block_changes_no_bit() {
    let device = Device::cpu(2);
    for (golden, model) in models_of_all_kinds(&device) {
        for compute in COMPUTE {
            let (samples, name) = (golden.samples(), golden.dir.display());
            let samples: Vec<&Sample> = samples.iter().collect();
            let (whole, gradients) =
                rows_of(&model, &device, (compute, Recompute::Block), &samples);
            let Model { decoder, params, .. } = &model;
            let batch = pack(&decoder.config, samples.iter().copied(), 3);
            let pass = Pass { device: &device, model: &model, compute };
            let mut streams = pass.begin_all(std::slice::from_ref(&batch)).unwrap();
            let (embedded, mut before) = (streams[0].x.clone(), Vec::new());
            let num_blocks = decoder.config.num_hidden_layers();
            for i in 0..num_blocks {
                before.push(streams[0].clone());
                pass.run_all(i, std::slice::from_ref(&batch), &mut streams, None).unwrap();
            }
            let mut tape = Tape::training(&device, params, compute, None);
            let x = tape.leaf(streams[0].x.clone(), true);
            let log_probs = decoder.log_probs_of(&mut tape, &x, &batch);
            let found = log_probs.value().to_vec_f32();
            let d_root = Tensor::from_f32(&vec![-1.0; found.len()], log_probs.value().shape());
            let mut of_blocks = Gradients::zeros(&device, params).unwrap();
            let leaves = tape.backward(log_probs, d_root, &mut of_blocks);
            let mut gradient = Stream::gradient(leaves.get(&x).unwrap().clone());
            drop(leaves);
            for i in (0..num_blocks).rev() {
                let tape = Tape::second_run(&device, params, compute);
                let of = (&batch, &before[i]);
                gradient = decoder.run_block_back(tape, i, of, gradient, &mut of_blocks);
            }
            let tape = Tape::second_run(&device, params, compute);
            let of = (&batch, embedded);
            let d_x = decoder.begin_back(tape, of, gradient, &mut of_blocks).to_vec_f32();
            let rows: Vec<f32> = whole.iter().flat_map(|row| row.log_probs.clone()).collect();
            assert_eq!(found[..rows.len()], rows, "{name} {compute:?}");
            let rows: Vec<f32> = whole.iter().flat_map(|row| row.d_x.clone()).collect();
            assert_eq!(d_x[..rows.len()], rows, "{name} {compute:?}");
            let of_blocks: Vec<Vec<f32>> = of_blocks.iter().map(Tensor::to_vec_f32).collect();
            assert!(of_blocks == gradients, "{name} {compute:?}");
        }
    }
}

#[test]
fn padding_changes_no_bit() {
    let device = Device::cpu(2);
    for (golden, model) in models_of_all_kinds(&device) {
        for compute in COMPUTE {
            let unpadded = run(&model, &device, compute, &golden.samples(), 0);
            for padding in [7, 64] {
                let padded = run(&model, &device, compute, &golden.samples(), padding);
                assert_eq!(padded, unpadded, "{} {compute:?} {padding}", golden.dir.display());
            }
        }
    }
}

#[test]
fn threads_and_instruction_sets_change_no_bit() {
    for compute in COMPUTE {
        let outcomes = |device: &Device| -> Vec<Outcome> {
            let run = |(golden, model): (Golden, Model)| {
                run(&model, device, compute, &golden.samples(), 5)
            };
            models_of_all_kinds(device).into_iter().map(run).collect()
        };
        let expected = outcomes(&Device::cpu(1));
        assert!(outcomes(&Device::cpu(5)) == expected, "five threads, {compute:?}");
        for isa in Isa::available() {
            let found = outcomes(&Device::cpu_with_isa(2, isa));
            assert!(found == expected, "{isa:?}, {compute:?}");
        }
    }
}

/// Dropout masks of adapters depend on seed and step, not on when or where they are drawn.
#[test]
fn dropout_is_the_same_wherever_it_is_computed() {
    let golden = Golden::load("tied_gqa");
    let outcome = |threads, recompute, step| {
        let device = Device::cpu(threads);
        let mut model = golden.adapted(&device);
        for (_, adapter) in model.decoder.adapters_mut() {
            adapter.dropout = 0.5;
        }
        let batch = pack(&model.decoder.config, &golden.samples(), 5);
        forward_backward(&model, &device, (Compute::F32, recompute), &batch, 1.0, step)
    };
    let key = |step| Some(StepKey { seed: 1, step, micro_batch: 0 });
    let expected = outcome(1, Recompute::None, key(0));
    assert!(outcome(2, Recompute::Block, key(0)) == expected);
    assert!(outcome(1, Recompute::None, key(1)) != expected);
    assert!(outcome(1, Recompute::None, None) != expected);
}

/// Two adapters over one base, each with a sequence of one batch and micro-batches of its own, and
/// a sequence without: log-probabilities and gradients are those of separate passes.
#[test]
fn adapters_side_by_side_have_the_bits_of_each_alone() {
    for golden in ["tied_gqa", "untied_bias_linear"].map(Golden::load) {
        for device in [Device::cpu(1), Device::cpu(3)] {
            let model = with_two_adapters(&golden, &device);
            for (compute, recompute) in
                [(Compute::F32, Recompute::Block), (Compute::Bf16, Recompute::None)]
            {
                check_side_by_side(&golden, &model, &device, (compute, recompute));
            }
        }
    }
}

/// The golden's adapter, and one of another rank on all layers, whose `B` is not zero.
fn with_two_adapters(golden: &Golden, device: &Device) -> Model {
    let mut model = golden.adapted(device);
    let (rank, target_modules) = (5, TargetModules::AllLinear);
    let config = LoraConfig {
        rank,
        alpha: 8.0,
        dropout: 0.5,
        target_modules,
        use_rslora: false,
        share_experts: false,
    };
    attach(&mut model, device, &config, 3).unwrap();
    let mut b_of_second = Vec::new();
    for (_, lora) in model.decoder.adapters_mut() {
        lora.dropout = 0.5;
        if lora.id == AdapterId(1) {
            b_of_second.push(lora.b);
        }
    }
    for (stream, b) in (0..).zip(b_of_second) {
        let (value, random) = (model.params.value_mut(b), Philox::new(2, stream));
        let numbers: Vec<f32> = (0..value.len() as u64).map(|i| 0.1 * random.normal(i)).collect();
        value.copy_from_f32(&numbers);
    }
    model
}

fn check_side_by_side(golden: &Golden, model: &Model, device: &Device, pass: (Compute, Recompute)) {
    let mut samples = golden.samples();
    samples.truncate(3);
    assert_eq!(samples.len(), 3);
    let key = |micro_batch| Some(StepKey { seed: 1, step: 4, micro_batch });
    let of = |rows, id, dropout| AdapterRows { rows, adapter: AdapterId(id), dropout };
    let run = |samples: &[Sample], rows: &[AdapterRows]| {
        let batch = pack(&model.decoder.config, samples, 0);
        forward_backward_of(model, device, pass, &batch, 7.0, rows)
    };
    let [first, second] = [samples[0].ids.len(), samples[0].ids.len() + samples[1].ids.len()];
    let rows = [of(0..first, 1, key(6)), of(first..second, 0, key(0))];
    let together = run(&samples, &rows);
    let alone = [
        run(&samples[..1], &[of(0..usize::MAX, 1, key(6))]),
        run(&samples[1..2], &[of(0..usize::MAX, 0, key(0))]),
        run(&samples[2..], &[]),
    ];
    let log_probs: Vec<f32> = alone.iter().flat_map(|o| o.log_probs.clone()).collect();
    let name = format!("{} {pass:?}", golden.dir.display());
    assert!(together.log_probs == log_probs, "{name}");
    let mut num_trained = [0, 0];
    for (_, projection) in model.decoder.projections() {
        for (lora, pass) in projection.adapters.iter().map(|lora| (lora, 1 - lora.id.0 as usize)) {
            for param in [lora.a.0, lora.b.0] {
                let gradient = &together.gradients[param];
                assert!(*gradient == alone[pass].gradients[param], "{name}, {param}");
                num_trained[pass] += usize::from(gradient.iter().any(|&x| x != 0.0));
            }
        }
    }
    assert!(num_trained.iter().all(|&n| n > 4), "{num_trained:?}");
}

/// A model and a batch large enough that every operation is split into several tasks.
#[test]
fn threads_and_instruction_sets_change_no_bit_of_a_real_step() {
    let Some(shared) = shared() else { return };
    let dir = shared.join("models/stories260k");
    let sample = |len: u32| Sample {
        ids: (0..len).map(|i| (i * i + 7 * i + len) % 512).collect(),
        mask: (0..len).map(|i| u8::from(i > 0 && i % 5 != 0)).collect(),
    };
    let outcome = |device: &Device, compute| {
        let model = load(&dir, device, None, Trained::All);
        run(&model, device, compute, &[sample(200), sample(111), sample(1), sample(64)], 8)
    };
    for compute in COMPUTE {
        let expected = outcome(&Device::cpu(1), compute);
        assert!(outcome(&Device::cpu(2), compute) == expected, "{compute:?}");
        for isa in Isa::available() {
            let found = outcome(&Device::cpu_with_isa(3, isa), compute);
            assert!(found == expected, "{isa:?} {compute:?}");
        }
    }
}

/// Rows with targets come first, unchanged; others pad, each at most once.
#[test]
fn rows_are_rounded_with_rows_that_predict_nothing() {
    let config = Golden::load("tied_gqa").adapted(&Device::cpu(1)).decoder.config;
    for (num_tokens, num_targets, rounded) in
        [(40, 7, 40), (100, 0, 0), (200, 64, 64), (200, 65, 128), (4096, 300, 512), (50, 50, 50)]
    {
        let tokens = vec![1; num_tokens];
        let positions: Vec<u32> = (0..num_tokens as u32).collect();
        // Every third row from the first has a target, and then every row.
        let is_target = |i: usize| match 3 * num_targets <= num_tokens {
            true => i.is_multiple_of(3) && i / 3 < num_targets,
            false => i < num_targets,
        };
        let target = |i: usize| if is_target(i) { 5 } else { u32::MAX };
        let targets: Vec<u32> = (0..num_tokens).map(target).collect();
        let bounds = [0, num_tokens as u32];
        let batch = Batch::new(&config, &tokens, &positions, &bounds, &targets, u32::MAX);
        assert_eq!(batch.num_targets, num_targets);
        let (rows, all) = (batch.rows.clone(), batch.with_rows_rounded());
        assert_eq!(
            (all.rows.len(), all.targets.len(), all.num_targets),
            (rounded, rounded, num_targets)
        );
        assert_eq!(all.rows[..num_targets], rows);
        let mut distinct = all.rows.clone();
        distinct.sort_unstable();
        distinct.dedup();
        assert!(distinct.len() == rounded && distinct.iter().all(|&r| (r as usize) < num_tokens));
    }
}
