//! The plan is what the run takes, keeps to the budget, and says what would fit where it cannot.

use crate::fixture::{LORA, Scene};
use hone_data::{Cursor, MicroBatch};
use hone_model::Recompute;
use hone_tensor::{Device, Layout, StepKey};
use hone_train::engine::Engine;
use hone_train::evaluate::{log_likelihood, to_batch};
use hone_train::planner::{self, Plan, Policy};
use hone_train::profile::DeviceProfile;
use hone_train::setup::Setup;
use safetensors::SafeTensors;
use serde_json::json;
use std::path::Path;

/// A machine with round figures, so that no test depends on this one's speed.
fn profile() -> DeviceProfile {
    DeviceProfile {
        cpu: String::new(),
        threads: 1,
        isa: String::new(),
        version: String::new(),
        product_f32: 1e11,
        product_bf16: 2e11,
        attention: 5e10,
        memory: 1e10,
        overhead: 1e-6,
    }
}

fn plan(setup: &Setup) -> Plan {
    planner::plan(setup, &profile()).unwrap().plan
}

#[test]
fn the_arena_is_what_a_step_uses() {
    let scene = Scene::new("tied_gqa");
    for settings in [&LORA[..], &[]] {
        let setup = scene.setup(settings);
        for recompute in [Recompute::None, Recompute::Block] {
            let policy = Policy { units: 2, recompute };
            let planned = planner::plan_with(&setup, &profile(), policy).unwrap();
            let (train, eval) = (used_by_training(&setup, policy), used_by_eval(&setup, policy));
            assert_eq!(planned.train_layout.bytes(), train.bytes());
            assert_eq!(planned.train_layout.num_allocations(), train.num_allocations());
            assert_eq!(planned.eval_layout.bytes(), eval.bytes());
            assert_eq!(planned.plan.arena_bytes as usize, train.bytes().max(eval.bytes()));
        }
    }
}

/// What the second micro-batch of the first step really allocates.
fn used_by_training(setup: &Setup, policy: Policy) -> Layout {
    let device = Device::cpu(1);
    let mut engine = Engine::new(setup, &device).unwrap();
    let units = setup.order().unwrap().step(&Cursor::default()).to_vec();
    let slots = policy.units * setup.max_seq_len;
    let packed = MicroBatch::assemble(&setup.train, &units[policy.units..2 * policy.units], slots);
    let batch = to_batch(&setup.config, &packed);
    let step =
        || engine.forward_backward(&batch, 9, StepKey::default(), policy.recompute);
    Layout::of(device.trace(step).1)
}

fn used_by_eval(setup: &Setup, policy: Policy) -> Layout {
    let device = Device::cpu(1);
    let engine = Engine::new(setup, &device).unwrap();
    let (dataset, units) = setup.eval.as_ref().unwrap();
    let slots = policy.units * setup.max_seq_len;
    let packed = MicroBatch::assemble(dataset, &units[..1], slots);
    let batch = to_batch(&setup.config, &packed);
    Layout::of(device.trace(|| log_likelihood(&device, &engine.model, engine.compute, &batch)).1)
}

/// A run whose largest micro-batch takes tens of megabytes of step memory.
const LARGE: [&str; 2] = ["train.batch_tokens = 65536", "data.max_seq_len = 32"];

fn large_scene() -> Scene {
    let scene = Scene::new("tied_gqa");
    let rows = crate::tiny_model::rows(9_000);
    std::fs::write(scene.dir.path().join("train.jsonl"), rows).unwrap();
    scene
}

fn with<'a>(settings: &[&'a str], more: &[&'a str]) -> Vec<&'a str> {
    [settings, more].concat()
}

#[test]
fn a_smaller_budget_takes_a_leaner_policy() {
    let scene = large_scene();
    let free = plan(&scene.setup(&LARGE));
    assert!(free.fits && free.recompute == "none" && free.micro_batch_tokens == 65536, "{free:?}");
    let mut last = free.arena_bytes;
    for share in [80, 20, 5] {
        // Apart from step memory everything stays.
        let budget = free.needed_bytes() - free.arena_bytes + free.arena_bytes * share / 100;
        let budget = budget + (4 << 20); // the test process itself grows a little
        let memory = format!("budget.memory = {budget}");
        let planned = plan(&scene.setup(&with(&LARGE, &[memory.as_str()])));
        assert!(planned.fits && planned.needed_bytes() <= budget, "{planned:?}");
        assert!(planned.arena_bytes < last, "{planned:?}");
        let leaner = planned.micro_batch_tokens < free.micro_batch_tokens
            || planned.recompute == "block";
        assert!(leaner, "{planned:?}");
        let sum: u64 = planned.memory.values().map(|bytes| bytes.as_u64().unwrap()).sum();
        assert_eq!(sum, planned.peak_bytes);
        last = planned.arena_bytes;
    }
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
        assert_eq!((planned.recompute, planned.micro_batch_tokens), (recompute, tokens));
        assert_eq!(planned.micro_batches_per_step, 128 / tokens);
    }
}

#[test]
fn what_cannot_fit_comes_with_a_mend_that_fits() {
    let scene = large_scene();
    let pinned = ["budget.micro_batch_tokens = 65536", "budget.recompute = none"];
    let needed = plan(&scene.setup(&with(&LARGE, &pinned)));
    assert!(needed.fits);
    let budget = needed.needed_bytes() - needed.arena_bytes / 2;
    let memory = format!("budget.memory = {budget}");
    let refused = plan(&scene.setup(&[&LARGE[..], &pinned, &[&memory]].concat()));
    assert!(!refused.fits);
    assert_eq!(refused.mend.len(), 1, "{:?}", refused.mend);
    assert!(refused.mend[0].contains("leave budget.micro_batch_tokens"), "{:?}", refused.mend);
    let mended = plan(&scene.setup(&with(&LARGE, &[&memory])));
    assert!(mended.fits);
}

/// All weights of a larger model do not fit; an adapter does, or an adapter on bf16 weights.
#[test]
fn mends_build_on_each_other() {
    let scene = Scene::new("tied_gqa");
    widen(&scene.dir.path().join("model"));
    let f32_adapter = plan(&scene.setup(&[ADAPTER[0], ADAPTER[1]])).peak_bytes;
    let bf16_adapter = plan(&scene.setup(&ADAPTER)).peak_bytes;
    let full = plan(&scene.setup(&[])).peak_bytes;
    assert!(bf16_adapter + (8 << 20) < f32_adapter && f32_adapter + (8 << 20) < full);
    for (budget, num_mends) in [(f32_adapter + (4 << 20), 1), (bf16_adapter + (4 << 20), 2)] {
        let memory = format!("budget.memory = {budget}");
        let refused = plan(&scene.setup(&[&memory]));
        assert!(!refused.fits && refused.mend.len() == num_mends, "{:?}", refused.mend);
        assert!(refused.mend[0].contains("[adapter] with rank = 16"), "{:?}", refused.mend);
        assert!(num_mends == 1 || refused.mend[1].contains("base_precision = \"bf16\""));
        let mended = with(&ADAPTER[..num_mends + 1], &[&memory]);
        assert!(plan(&scene.setup(&mended)).fits);
    }
}

const ADAPTER: [&str; 3] =
    ["adapter.method = lora", "adapter.rank = 16", "model.base_precision = bf16"];

/// Gives the model hidden states of 1024; its weights are zeros that take no disk.
fn widen(model: &Path) {
    let config = std::fs::read_to_string(model.join("config.json")).unwrap();
    let config = config
        .replace("\"hidden_size\": 24", "\"hidden_size\": 1024")
        .replace("\"intermediate_size\": 11", "\"intermediate_size\": 2048");
    std::fs::write(model.join("config.json"), config).unwrap();
    let file = model.join("model.safetensors");
    let bytes = std::fs::read(&file).unwrap();
    let (mut header, mut offset) = (serde_json::Map::new(), 0);
    for (name, tensor) in SafeTensors::deserialize(&bytes).unwrap().tensors() {
        let wide = |n: &usize| match n {
            24 => 1024,
            12 => 512,
            11 => 2048,
            n => *n,
        };
        let shape: Vec<usize> = tensor.shape().iter().map(wide).collect();
        let end = offset + 4 * shape.iter().product::<usize>();
        let entry = json!({"dtype": "F32", "shape": shape, "data_offsets": [offset, end]});
        header.insert(name, entry);
        offset = end;
    }
    let header = serde_json::Value::from(header).to_string();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.bytes());
    std::fs::write(&file, &bytes).unwrap();
    let sparse = std::fs::File::options().write(true).open(&file).unwrap();
    sparse.set_len((bytes.len() + offset) as u64).unwrap();
}
