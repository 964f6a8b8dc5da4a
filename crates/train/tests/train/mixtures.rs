//! Runs of a model with experts.

use crate::fixture::{LORA, Scene, carry_out};
use hone_train::StepRecord;
use hone_train::recipe::{Event, Options};
use hone_train::setup::Setup;

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

#[test]
fn a_model_without_experts_has_no_load_to_even_out() {
    let setup = std::panic::catch_unwind(|| {
        Scene::new("tied_gqa").setup(&["train.router_aux_loss_coef = 0.1"])
    });
    let message = setup.err().expect("it is refused");
    let message = message.downcast_ref::<String>().expect("a message");
    assert!(message.contains("train.router_aux_loss_coef evens out"), "{message}");
}
