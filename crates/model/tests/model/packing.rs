//! Packing, padding, threads and instruction sets must not change results.

use crate::fixture::{
    Golden, Outcome, Sample, forward_backward, forward_backward_of, load, pack, relative_error,
    shared,
};
use hone_model::adapter::{LoraConfig, TargetModules, attach};
use hone_model::{Batch, Model, Recompute, Trained};
use hone_tensor::{AdapterId, AdapterRows, Compute, Device, Isa, Philox, StepKey};

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

/// The models with adapters, and two with all weights trained.
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
    adapted.chain(full).collect()
}

/// Log-probabilities are bit-identical. Gradients of parameters are sums over the tokens of a batch
/// and round differently when batches are split differently.
#[test]
fn packed_equals_unpacked() {
    let device = Device::cpu(2);
    for (golden, model) in models(&device) {
        for compute in COMPUTE {
            let packed = run(&model, &device, compute, &golden.samples(), 0);
            let alone: Vec<Outcome> = golden
                .samples()
                .into_iter()
                .map(|sample| run(&model, &device, compute, &[sample], 0))
                .collect();
            let log_probs: Vec<f32> = alone.iter().flat_map(|o| o.log_probs.clone()).collect();
            assert_eq!(packed.log_probs, log_probs, "{} {compute:?}", golden.dir.display());
            for (i, gradient) in packed.gradients.iter().enumerate() {
                let mut sum = vec![0.0; gradient.len()];
                for outcome in &alone {
                    sum.iter_mut().zip(&outcome.gradients[i]).for_each(|(s, g)| *s += g);
                }
                let error = relative_error(gradient, &sum);
                assert!(error < 2e-6, "{} {compute:?} {i}: {error:e}", golden.dir.display());
            }
        }
    }
}

#[test]
fn padding_changes_no_bit() {
    let device = Device::cpu(2);
    for (golden, model) in models(&device) {
        for compute in COMPUTE {
            let unpadded = run(&model, &device, compute, &golden.samples(), 0);
            for padding in [1, 7, 64] {
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
            models(device).into_iter().map(run).collect()
        };
        let expected = outcomes(&Device::cpu(1));
        for threads in [2, 5] {
            assert!(outcomes(&Device::cpu(threads)) == expected, "{threads} threads, {compute:?}");
        }
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
    let config = LoraConfig { rank, alpha: 8.0, dropout: 0.5, target_modules, use_rslora: false };
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
