//! Twenty steps of training against PyTorch and PEFT, in f32: loss, gradient norm, learning rate.

use crate::fixture::{Golden, Scene, devices, engine, schedule, update};
use crate::tiny_model::write_adapter;
use hone_model::Recompute;
use hone_tensor::{Device, StepKey};
use hone_train::engine::StepContext;
use hone_train::objectives::Metrics;
use hone_train::scoring::LabelledBatch;
use hone_train::setup::Setup;

/// Relative errors. The gradient's norm moves ten times as far as the loss where steps are large.
const LOSS: f64 = 1e-4;
const NORM: f64 = 1e-3;
const RATE: f64 = 1e-6;

#[test]
fn adapters() {
    let cases =
        ["tied_gqa", "untied_bias_linear", "headdim_llama3", "yarn", "dynamic", "qwen3_moe"];
    for case in cases {
        let scratch = tempfile::tempdir().unwrap();
        let adapter = scratch.path().join("adapter");
        write_adapter(case, &adapter);
        let text = std::fs::read(adapter.join("adapter_config.json")).unwrap();
        let config: serde_json::Value = serde_json::from_slice(&text).unwrap();
        // PEFT does not reach the block without experts by the names of modules.
        let experts = serde_json::json!(["q_proj", "k_proj", "v_proj", "o_proj", "experts"]);
        let names = &config["target_modules"];
        let target_modules = if case == "qwen3_moe" { &experts } else { names };
        let settings = [
            "adapter.kind = lora".to_owned(),
            format!("adapter.rank = {}", config["r"]),
            format!("adapter.alpha = {}", config["lora_alpha"]),
            format!("adapter.use_rslora = {}", config["use_rslora"]),
            format!("adapter.target_modules = {target_modules}"),
            format!("adapter.init_from = {}", adapter.display()),
        ];
        check(case, &settings, "");
    }
}

#[test]
fn all_weights() {
    for case in ["tied_gqa", "untied_bias_linear", "qwen3_moe"] {
        check(case, &[], "full_");
    }
}

/// Trains on all sequences of a golden case at once, as `scripts/goldens.py` does.
fn check(case: &str, settings: &[String], prefix: &str) {
    let (golden, scene) = (Golden::load(case), Scene::new(case));
    let (optimizer, course) = (&golden.facts["optimizer"], &golden.facts["schedule"]);
    let mut settings = settings.to_vec();
    settings.extend([
        format!("train.learning_rate = {}", optimizer["lr"]),
        format!("optimizer.beta1 = {}", optimizer["betas"][0]),
        format!("optimizer.beta2 = {}", optimizer["betas"][1]),
        format!("optimizer.epsilon = {}", optimizer["eps"]),
        format!("train.weight_decay = {}", optimizer["weight_decay"]),
        format!("train.max_grad_norm = {}", optimizer["max_grad_norm"]),
        format!("schedule.kind = {}", course["kind"]),
        format!("train.warmup_steps = {}", course["warmup_steps"]),
        format!("train.max_steps = {}", course["num_steps"]),
    ]);
    let setup = scene.setup(&settings.iter().map(String::as_str).collect::<Vec<_>>());
    for device in devices() {
        check_on(&device, case, &setup, &golden, prefix);
    }
}

fn check_on(device: &Device, case: &str, setup: &Setup, golden: &Golden, prefix: &str) {
    let mut engine = engine(setup, device);
    let (batch, num_targets) = golden.batch(setup);
    let batch = LabelledBatch::unlabelled(batch);
    let expected = |name: &str| golden.curve(&format!("{prefix}{name}")).unwrap();
    let (losses, norms) = (expected("loss_curve"), expected("grad_norm_curve"));
    let rates = golden.curve("lr_curve").unwrap();
    for step in 0..setup.num_steps {
        engine.gradients.clear(&engine.device.clone());
        let key = StepKey { step, ..StepKey::default() };
        let context = StepContext {
            num_terms: num_targets,
            statistics: &Vec::new(),
            recompute: Recompute::None,
        };
        let loss = engine.forward_backward(&batch, context, key, &mut Metrics::default());
        let (norm, rate) = update(&mut engine, &schedule(setup), step);
        let i = step as usize;
        for (what, found, expected, tolerance) in [
            ("loss", loss, losses[i], LOSS),
            ("norm", norm, norms[i], NORM),
            ("rate", rate, rates[i], RATE),
        ] {
            let error = (found - expected).abs() / expected.abs().max(1e-9);
            assert!(error <= tolerance, "{case}, {prefix}{what} {step}: {found}, not {expected}");
        }
    }
}
