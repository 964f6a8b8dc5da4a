//! Runs of a model with experts.

use crate::fixture::{LORA, Scene, accumulate, carry_out, clear, engine, relative_error};
use hone_data::Cursor;
use hone_model::{Recompute, adapter};
use hone_tensor::{AdapterId, Device};
use hone_train::StepRecord;
use hone_train::engine::Engine;
use hone_train::recipe::{Event, Options};
use hone_train::setup::Setup;
use std::collections::BTreeMap;

const CASE: &str = "qwen3_moe";
const NUM_STEPS: usize = 24;

/// The steps of a run.
fn steps(setup: &Setup) -> Vec<StepRecord> {
    let mut records = Vec::new();
    let mut event = |event: Event<'_>| {
        if let Event::Step(record) = event {
            records.push(record.clone());
        }
    };
    carry_out(setup, Options::default(), &mut event, &|| false).unwrap();
    records
}

/// The log says how experts are used; the plan holds with the pass ahead of a step.
#[test]
fn load_is_logged_and_balanced() {
    let scene = Scene::new(CASE);
    let max_steps = format!("train.max_steps = {NUM_STEPS}");
    let settings = [&max_steps, "train.learning_rate = 0.02", "schedule.kind = constant"];
    let run = |coefficient: &str| {
        let coefficient = format!("train.router_aux_loss_coef = {coefficient}");
        let out = format!("output.dir = {}/run{coefficient}", scene.dir.path().display());
        let settings = [&settings[..], &[coefficient.as_str(), out.as_str()]].concat();
        steps(&scene.setup(&settings))
    };
    let (balanced, plain) = (run("50.0"), run("0.0"));
    for record in balanced.iter().chain(&plain) {
        let layers: Vec<usize> = record.expert_load.iter().map(|load| load.layer).collect();
        assert_eq!(layers, [0, 2]);
        for load in &record.expert_load {
            // Of six experts, a token has two.
            assert!((0.0..=1.0).contains(&load.least) && (1.0..=3.0).contains(&load.greatest));
        }
    }
    assert!(plain.iter().all(|record| record.metrics.is_empty()));
    // Until the first update, both are the same.
    assert_eq!(balanced[0].expert_load, plain[0].expert_load);
    assert_eq!(balanced[0].loss, plain[0].loss);
    assert_ne!(balanced[3].loss, plain[3].loss);
    // It is of all blocks together, where one may make up for another.
    let losses: Vec<f64> = balanced.iter().map(|step| step.metrics["router_aux_loss"]).collect();
    let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len() as f64;
    let (first, last) = (mean(&losses[..8]), mean(&losses[NUM_STEPS - 8..]));
    assert!(last < first - 0.02, "{first}, later {last}: {losses:?}");
}

/// Only routers and experts are adapted, with dropout, in several micro-batches.
#[test]
fn routers_and_experts_are_adapted() {
    let scene = Scene::new(CASE);
    let targets = "adapter.target_modules = [\"experts\", \"router\"]";
    let settings = [&LORA[..], &[targets, "train.max_steps = 6"]].concat();
    let records = steps(&scene.setup(&settings));
    assert!(records.iter().all(|record| record.grad_norm.is_some_and(|norm| norm > 0.0)));
    let adapter = std::fs::read(scene.run_dir().join("adapter/adapter_config.json")).unwrap();
    let adapter: serde_json::Value = serde_json::from_slice(&adapter).unwrap();
    // PEFT has both as parameters.
    assert_eq!(adapter["target_modules"], serde_json::json!([]));
    let of_block = |block| {
        ["experts.down_proj", "experts.gate_up_proj", "gate.weight"]
            .map(|name| format!("model.layers.{block}.mlp.{name}"))
    };
    let mut names: Vec<&str> = adapter["target_parameters"]
        .as_array()
        .unwrap()
        .iter()
        .map(|name| name.as_str().unwrap())
        .collect();
    names.sort_unstable();
    assert_eq!(names, [of_block(0), of_block(2)].concat());
}

/// Without weights a router's scores are all alike, and the first experts take everything.
#[test]
fn a_run_names_the_expert_that_starves() {
    let scene = Scene::new(CASE);
    clear(&scene.dir.path().join("model/model.safetensors"), "model.layers.2.mlp.gate.weight");
    let settings = [&LORA[..], &["train.max_steps = 24", "report.samples = 0"]].concat();
    let mut notes = Vec::new();
    let mut event = |event: Event<'_>| match event {
        Event::Note { text } if text.contains("starved") => notes.push(text),
        _ => {}
    };
    carry_out(&scene.setup(&settings), Options::default(), &mut event, &|| false).unwrap();
    let all = notes.join("\n");
    assert!(all.contains("expert 2 of block 2") && all.contains("starved"), "{all}");
}

/// Gradients by name, of the first step's rows.
fn gradients(setup: &Setup, engine: &mut Engine) -> BTreeMap<String, Vec<f32>> {
    let units = setup.order().unwrap().step(&Cursor::default()).to_vec();
    accumulate((setup, engine), &units, 2, (1, Recompute::None));
    let names = engine.model.params.iter().map(|(_, name, _)| name.to_owned());
    names.zip(engine.gradients.iter().map(|gradient| gradient.to_vec_f32())).collect()
}

/// The gradient of what experts share is the sum of those that they would have each; a run's
/// adapter has a copy for each expert.
#[test]
fn experts_share_their_matrices() {
    let scene = Scene::new(CASE);
    let no_dropout = [LORA[0], LORA[1], LORA[3], "adapter.target_modules = experts"];
    let setup = scene.setup(&[&no_dropout[..], &["adapter.share_experts = true"]].concat());
    let device = Device::cpu(2);
    let mut shared = engine(&setup, &device);
    // Both matrices of a block's gate, up and down projection, of two blocks.
    assert_eq!(shared.model.params.len(), 2 * 3 * 2);
    gradients(&setup, &mut shared);
    shared.update(0.01, 1.0).unwrap();
    let of_shared = gradients(&setup, &mut shared);

    let copies = scene.dir.path().join("copies");
    std::fs::create_dir(&copies).unwrap();
    let lora = shared.lora.as_ref().unwrap();
    adapter::save(&copies, &shared.model, &device, AdapterId::default(), lora, "base").unwrap();
    let init_from = format!("adapter.init_from = {}", copies.display());
    let from_copies = scene.setup(&[&no_dropout[..], &[&init_from]].concat());
    let mut each = engine(&from_copies, &device);
    let mut sums: BTreeMap<String, Vec<f32>> = BTreeMap::new();
    for (name, gradient) in gradients(&from_copies, &mut each) {
        let is_index = |part: &&str| part.parse::<usize>().is_err();
        let (before, after) = name.split_once(".experts.").unwrap();
        let after: Vec<&str> = after.split('.').filter(is_index).collect();
        let sum = sums.entry(format!("{before}.experts.{}", after.join("."))).or_default();
        sum.resize(gradient.len(), 0.0);
        sum.iter_mut().zip(gradient).for_each(|(sum, x)| *sum += x);
    }
    assert!(sums.keys().eq(of_shared.keys()), "{:?}", sums.keys());
    for (name, sum) in &sums {
        let error = relative_error(sum, &of_shared[name]);
        assert!(error <= 1e-5, "{name}: {error:e}");
    }

    let run = [&no_dropout[..], &["adapter.share_experts = true", "train.max_steps = 3"]].concat();
    steps(&scene.setup(&run));
}

#[test]
fn a_model_without_experts_has_no_load_to_even_out() {
    let setup = std::panic::catch_unwind(|| {
        Scene::new("tied_gqa").setup(&["train.router_aux_loss_coef = 0.1"])
    });
    let message = setup.err().expect("it is refused");
    let message = message.downcast_ref::<String>().expect("a message");
    assert!(message.contains("train.router_aux_loss_coef evens out"), "{message}");
}
