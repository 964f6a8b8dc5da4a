//! The plan is what the run takes. What fits a budget is tested with the binary, since it depends
//! on what the process occupies.

use crate::fixture::{LORA, Scene, devices, engine};
use crate::tiny_model::golden_dir;
use hone_data::{Cursor, MicroBatch};
use hone_model::generate::cache_bytes;
use hone_model::{Batch, DecoderConfig, Recompute};
use hone_tensor::cuda::Gpu;
use hone_tensor::{Category, Compute, Cost, Device, Layout, StepKey, Target, Transfer, Work};
use hone_train::engine::StepContext;
use hone_train::loading::{self, Held};
use hone_train::objectives::Metrics;
use hone_train::planner::{self, Plan, Policy};
use hone_train::profile::{DeviceProfile, GpuFigures, catalogue};
use hone_train::sample::{self, Prompt};
use hone_train::scoring::{LabelledBatch, Scorer, log_probs};
use hone_train::setup::Setup;

/// A machine with round figures, so that no test depends on this one's speed.
fn profile() -> DeviceProfile {
    DeviceProfile {
        processor: String::new(),
        threads: 1,
        isa: String::new(),
        version: String::new(),
        measured: "in a test".to_owned(),
        product_f32: 1e11,
        product_bf16: 2e11,
        product_int8: 4e11,
        ceiling_f32: 2e11,
        ceiling_bf16: 4e11,
        ceiling_int8: 8e11,
        product_over_tokens: 1.5e11,
        product_low_rank: 1e11,
        attention: 5e10,
        elementwise: 2.5e10,
        memory: 1e10,
        overhead: 1e-6,
        gpu: None,
    }
}

/// Every kind of work at its own rate; in f32 products and what is made of them are slower.
#[test]
fn work_takes_the_time_of_its_kind() {
    let flops = 3_000_000;
    for (work, bf16, f32) in [
        (Work::Product, 2e11, 1e11),
        (Work::Int8, 4e11, 4e11),
        (Work::OverTokens, 1.5e11, 0.75e11),
        (Work::LowRank, 1e11, 0.5e11),
        (Work::Attention, 5e10, 2.5e10),
        // Where there is one kernel for all.
        (Work::GeneralAttention, 5e10, 2.5e10),
        (Work::Elementwise, 2.5e10, 2.5e10),
    ] {
        let cost = Cost::memory_bound("some", 20_000).with(work, flops);
        for (compute, rate) in [(Compute::Bf16, bf16), (Compute::Int8, bf16), (Compute::F32, f32)] {
            let expected = 1e-6 + flops as f64 / rate + 20_000.0 / 1e10;
            let seconds = profile().seconds_of(&cost, compute);
            assert!((seconds / expected - 1.0).abs() < 1e-9, "{work:?} in {compute:?}: {seconds}");
        }
    }
    // A GPU has slower kernels, which compute in f32, for heads that its tensor cores do not suit.
    let gpu =
        GpuFigures { general_attention: 1e10, ..catalogue::named("t4").unwrap().1.gpu.unwrap() };
    let profile_of_gpu = DeviceProfile { gpu: Some(gpu), ..profile() };
    let cost = Cost::memory_bound("some", 0).with(Work::GeneralAttention, flops);
    for compute in [Compute::Bf16, Compute::F32] {
        let seconds = profile_of_gpu.seconds_of(&cost, compute);
        assert!((seconds - 1e-6 - flops as f64 / 1e10).abs() < 1e-12, "{compute:?}: {seconds}");
    }
    // Padding takes time and is not among the FLOPs; kinds and operations add up.
    let padded = Cost::memory_bound("padded", 0).with_padding(Work::LowRank, 1_000);
    assert!((profile().seconds_of(&padded, Compute::Bf16) - 1e-6 - 1e-8).abs() < 1e-15);
    assert_eq!(padded.flops(), 0);
    let both = Cost::memory_bound("both", 0).with(Work::Product, 2_000).with(Work::Int8, 4_000);
    let seconds = profile().seconds(&[both, both], Compute::Int8);
    assert!((seconds - 2.0 * (1e-6 + 1e-8 + 1e-8)).abs() < 1e-15);
}

fn plan(setup: &Setup) -> Plan {
    planner::plan(setup, &profile()).unwrap().plan
}

#[test]
fn the_arena_is_what_a_step_uses() {
    let scene = Scene::new("tied_gqa");
    for device in devices() {
        for settings in [&LORA[..], &[]] {
            let setup = scene.setup(settings);
            for recompute in [Recompute::None, Recompute::Block] {
                check_arena(&device, &setup, Policy { units: 2, recompute });
            }
        }
    }
}

/// Of every family, whatever its layers: with adapters, and with all weights trained.
#[test]
fn the_arena_is_what_a_step_uses_of_every_family() {
    let device = Device::cpu(1);
    let cases = std::fs::read_dir(golden_dir("")).unwrap().map(|entry| entry.unwrap());
    for case in cases.filter(|case| case.path().is_dir()) {
        let scene = Scene::new(case.file_name().to_str().unwrap());
        let model = scene.dir.path().join("model");
        let config = DecoderConfig::load(&model).unwrap();
        let is_encoder = config.looks_ahead().is_some();
        let Batch { token_types, positions, .. } = Batch::from_sequence(&config, &[0; 7]);
        assert_eq!(config.lookup_bytes(7), 4 * (token_types.len() + positions.len()));
        std::fs::write(
            model.join("tokenizer_config.json"),
            r#"{"eos_token": "</s>", "mask_token": "w5"}"#,
        )
        .unwrap();
        let objective: &[&str] = match is_encoder {
            // One of them has few positions.
            true => {
                &["objective.kind = masked", "data.max_seq_len = 12", "data.overlong = truncate"]
            }
            false => &[],
        };
        for (settings, recompute) in [(&LORA[..], Recompute::None), (&[], Recompute::Block)] {
            let setup = scene.setup(&[settings, objective].concat());
            check_arena(&device, &setup, Policy { units: 2, recompute });
        }
    }
}

/// A GPU takes no more within the operations that ask routers what they will do than is planned.
#[test]
fn asking_routers_is_planned() {
    let Some(gpu) = Gpu::for_tests() else { return };
    let device = Device::cuda(gpu.clone());
    let scene = Scene::new("qwen3_moe");
    let setup = scene.setup(&["train.router_aux_loss_coef = 0.01"]);
    let policy = Policy { units: 2, recompute: Recompute::None };
    let profile = catalogue::named("h100-80g").unwrap().1;
    let planned = planner::plan_with(&setup, &profile, policy).unwrap();
    let engine = engine(&setup, &device);
    let mut scorer = Scorer { pass: engine.pass(), reference: None, plan: None };
    let packed = MicroBatch::assemble(&setup.train, &setup.first_step[..2], 64);
    let batch = LabelledBatch::new(&setup.config, &packed, Target::Cuda);
    let loads = scorer.router_loads(&[batch]).unwrap();
    assert_eq!(loads.len(), 2);
    let (taken, planned) = (gpu.max_scratch_bytes() as u64, planned.scratch_bytes);
    assert!(taken > 0 && taken <= planned, "{taken} of {planned}");
}

fn check_arena(device: &Device, setup: &Setup, policy: Policy) {
    let profile = match device.target() {
        Target::Cpu => profile(),
        Target::Cuda => catalogue::named("h100-80g").unwrap().1,
    };
    let planned = planner::plan_with(setup, &profile, policy).unwrap();
    let (train, eval) =
        (used_by_training(device, setup, policy), used_by_eval(device, setup, policy));
    assert_eq!(planned.train_layout.bytes(), train.bytes());
    assert_eq!(planned.train_layout.num_allocations(), train.num_allocations());
    assert_eq!(planned.eval_layout.bytes(), eval.bytes());
    assert_eq!(planned.plan.arena_bytes as usize, train.bytes().max(eval.bytes()));
}

/// Pages of keys and values are within what is planned for samples, and the dry device, which the
/// plan comes from, plans as much as the real one.
#[test]
fn samples_take_no_more_than_planned() {
    let scene = Scene::new("tied_gqa");
    let setup = scene.setup(&["report.samples = 9", "report.max_new_tokens = 40"]);
    let prompts = sample::prompts_of(&setup).unwrap();
    let planned = |device: &Device| {
        let engine = loading::engine(&setup, device, Held::of(&setup, 0)).unwrap();
        (sample::answer_bytes(engine.pass(), &prompts, 40).unwrap(), engine)
    };
    let (dry, _) = planned(&Device::dry());
    let (real, engine) = planned(&Device::cpu(1));
    assert_eq!(dry, real);
    let (config, compute) = (&setup.config, setup.compute);
    let longest = prompts.iter().map(Prompt::num_tokens).max().unwrap();
    let one = cache_bytes(config, compute, Target::Cpu, 1, longest + 40) as u64;
    assert!(real > prompts.len() as u64 * one, "{real} for answers of {one}");
    let answers = sample::answers(engine.pass(), &setup.tokenizer, &prompts, 40).unwrap();
    assert!(answers.len() == prompts.len() && answers.len() > 4);
    assert_eq!(sample::answer_bytes(engine.pass(), &prompts[..0], 40), Ok(0));
}

/// Each further token costs the same, up to the end of the model's context.
#[test]
fn samples_take_time_by_their_tokens_within_the_context() {
    let scene = Scene::new("tied_gqa");
    let setup = scene.setup(&["report.samples = 3"]);
    let prompts = sample::prompts_of(&setup).unwrap();
    let engine = loading::engine(&setup, &Device::dry(), Held::of(&setup, 0)).unwrap();
    let seconds = |max_new_tokens: usize| {
        let costs = sample::answer_costs(engine.pass(), &prompts, max_new_tokens).unwrap();
        costs.seconds(|costs| profile().seconds(costs, setup.compute))
    };
    let (one, two, five) = (seconds(1), seconds(2), seconds(5));
    assert!(0.0 < one && one < two, "{one} {two}");
    assert!(((five - one) - 4.0 * (two - one)).abs() < 1e-9 * five, "{one} {two} {five}");
    let shortest = prompts.iter().map(Prompt::num_tokens).min().unwrap();
    let longest_answer = setup.config.max_position_embeddings - shortest;
    assert!(seconds(longest_answer - 1) < seconds(longest_answer));
    assert_eq!(seconds(usize::MAX), seconds(longest_answer));
}

/// A GPU's memory holds the model and not the program; its own formats need no more than bf16.
#[test]
fn a_gpu_is_planned_by_what_is_published_of_it() {
    let scene = Scene::new("tied_gqa");
    let on = |key: &str, settings: &[&str]| {
        let profile = catalogue::named(key).unwrap().1;
        planner::plan(&scene.setup(&[&LORA, settings].concat()), &profile).unwrap().plan
    };
    let (slow, fast) = (on("l4", &[]), on("h200", &[]));
    assert!(slow.fits && fast.fits && slow.step_seconds > fast.step_seconds);
    assert_eq!((slow.gpu.as_deref(), slow.arena_bytes), (Some("l4"), fast.arena_bytes));
    assert!(slow.memory.program_and_data == 0 && slow.memory.driver > 0);
    assert!(slow.budget_bytes.unwrap() < 23_612_293_120);
    // Weights in another type than products are converted inside the operation.
    let held = on("h200", &["model.base_precision = bf16", "model.compute = f32"]);
    let workspace = |plan: &Plan| plan.memory.workspace;
    assert!(workspace(&held) > workspace(&fast));
    // No budget is larger than the GPU.
    assert_eq!(on("l4", &["budget.memory = 2000GiB"]).budget_bytes, slow.budget_bytes);
    let tight = on("h200", &["budget.memory = 600MiB"]);
    assert!(!tight.fits && !tight.suggestions.is_empty());
}

/// Where a GPU is too small, blocks stay beside it: as few as possible, and only frozen ones.
#[test]
fn blocks_are_offloaded_as_memory_demands() {
    let scene = Scene::with_blocks("tied_gqa", 12);
    let plan = |settings: &[&str]| {
        let profile = catalogue::named("h200").unwrap().1;
        let shape = ["budget.recompute = block", "budget.micro_batch_tokens = 32"];
        let setup = scene.setup(&[&LORA[..], &shape, settings].concat());
        let planned = planner::plan(&setup, &profile).unwrap();
        check_weights(&setup, &planned.plan);
        planned.plan
    };
    let weights = |plan: &Plan| plan.memory.weights;
    let (all, none) = (plan(&["budget.offload = all"]), plan(&[]));
    assert_eq!((all.offloaded_blocks, none.offloaded_blocks), (12, 0));
    assert_eq!((none.offloaded_bytes, none.copied_bytes_per_step), (0, 0));
    // Ten of twelve are copied twice in each of four micro-batches, since
    // two are there when their turn comes.
    let of_block = all.offloaded_bytes / 12;
    // Where they visit, their matrices are aligned.
    let held = (weights(&none) - weights(&all) + 2 * of_block) / 12;
    assert!(held <= of_block && held + 7 * 64 > of_block);
    assert_eq!(all.copied_bytes_per_step, 4 * 2 * 10 * of_block);
    assert_eq!(all.arena_bytes, none.arena_bytes);
    for kept in [0, 3, 9] {
        let budget = all.needed_bytes() + kept * held + held / 2;
        let tight = format!("budget.memory = {budget}");
        let some = plan(&[&tight]);
        assert!(some.fits && some.needed_bytes() <= budget);
        assert_eq!(some.offloaded_blocks as u64, 12 - kept);
        assert_eq!(weights(&some), weights(&all) + kept * held);
        let refused = plan(&[&tight, "budget.offload = none"]);
        assert!(
            !refused.fits && refused.suggestions[0].contains("budget.offload"),
            "{:?}",
            refused.suggestions
        );
    }
    let hopeless = plan(&[&format!("budget.memory = {}", all.needed_bytes() - 1)]);
    assert!(!hopeless.fits && hopeless.offloaded_blocks == 12);
    // A CPU reads weights where they are.
    let error =
        planner::plan(&scene.setup(&[&LORA[..], &["budget.offload = all"]].concat()), &profile());
    assert!(error.err().unwrap().to_string().contains("budget.offload"));
}

/// What the plan says of weights is what an engine holds.
fn check_weights(setup: &Setup, plan: &Plan) {
    let Some(gpu) = Gpu::for_tests() else { return };
    let device = Device::cuda(gpu);
    let _engine = loading::engine(setup, &device, Held::of(setup, plan.offloaded_blocks)).unwrap();
    assert_eq!(device.persistent_bytes(Category::Weights), plan.memory.weights);
    assert_eq!(device.persistent_bytes(Category::Offloaded), plan.offloaded_bytes);
}

/// Copies go on beside operations, one after the other; what waits for them waits to the end.
#[test]
fn copies_to_a_gpu_cost_what_nothing_hides() {
    let gpu = GpuFigures {
        memory_bytes: 1 << 30,
        free_bytes: None,
        link: 1e9,
        general_attention: 1e10,
        product_fp8: None,
    };
    let profile = DeviceProfile { gpu: Some(gpu), overhead: 0.0, ..profile() };
    let start = |bytes| Cost::transfer("prefetch", Transfer::Start(bytes));
    let (wait, work) =
        (Cost::transfer("await", Transfer::Await), Cost::memory_bound("work", 10_000_000));
    for (costs, seconds) in [
        (vec![start(5_000_000), work, wait], 0.005),
        (vec![work, start(5_000_000), wait], 0.006),
        (vec![start(500_000), work, wait, work], 0.002),
        (vec![start(500_000), start(2_000_000), work, wait], 0.0025),
        (vec![work, start(9_000_000)], 0.001),
    ] {
        let planned = profile.seconds(&costs, Compute::F32);
        assert!((planned - seconds).abs() < 1e-9, "{planned}, expected {seconds}");
    }
}

/// What the second micro-batch of the first step really allocates.
fn used_by_training(device: &Device, setup: &Setup, policy: Policy) -> Layout {
    let mut engine = engine(setup, device);
    let units = setup.order().unwrap().step(&Cursor::default()).to_vec();
    let slots = policy.units * setup.max_seq_len;
    let packed = MicroBatch::assemble(&setup.train, &units[policy.units..2 * policy.units], slots);
    let batch = LabelledBatch::new(&setup.config, &packed, device.target());
    let context =
        StepContext { num_terms: 9, statistics: &Vec::new(), recompute: policy.recompute };
    let metrics = &mut Metrics::default();
    let step = || engine.forward_backward(&batch, context, StepKey::default(), metrics);
    Layout::of(device.trace(step).1)
}

fn used_by_eval(device: &Device, setup: &Setup, policy: Policy) -> Layout {
    let engine = engine(setup, device);
    let (dataset, units) = setup.eval.as_ref().unwrap();
    let slots = policy.units * setup.max_seq_len;
    let packed = MicroBatch::assemble(dataset, &units[..1], slots);
    let batch = LabelledBatch::new(&setup.config, &packed, device.target());
    Layout::of(device.trace(|| log_probs(engine.pass(), &batch.batch)).1)
}

#[test]
fn a_pinned_policy_is_kept() {
    let scene = Scene::new("tied_gqa");
    for (recompute, tokens) in [("none", 64), ("block", 64), ("block", 128), ("none", 32)] {
        let pinned = [
            format!("budget.micro_batch_tokens = {tokens}"),
            format!("budget.recompute = {recompute}"),
        ];
        let planned = plan(&scene.setup(&[&pinned[0], &pinned[1]]));
        let recomputes = planned.recompute == Recompute::Block;
        assert_eq!((recomputes, planned.micro_batch_tokens), (recompute == "block", tokens));
        assert_eq!(planned.micro_batches_per_step, 128 / tokens);
    }
}
