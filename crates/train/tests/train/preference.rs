//! Objectives over pairs and rated answers, against TRL and against finite differences.

use crate::fixture::{LORA, Scene, carry_out, devices, flat, relative_error};
use crate::tiny_model::{golden_dir, write_adapter};
use hone_data::{Dataset, MicroBatch, RecordKind, RecordSpec, Tokenizer, pack_in_order};
use hone_model::{LoadOptions, Recompute};
use hone_tensor::{Compute, Device, StepKey};
use hone_train::engine::{AdapterSet, Base, Engine, EngineOptions, StepContext};
use hone_train::objectives::{Dpo, Kto, Metrics, Objective, RowSpan, TokenScores};
use hone_train::optimizer::AdamWOptions;
use hone_train::recipe::{Options, Outcome};
use hone_train::scoring::{LabelledBatch, Packing, Scorer};
use serde_json::{Value, json};

/// What an objective is, the records it learns from, and TRL's name of it.
type Kind = (&'static str, RecordKind, fn(&Value) -> Box<dyn Objective>);

const KINDS: [Kind; 2] = [
    ("dpo", RecordKind::Pairs, |settings| {
        Box::new(Dpo { beta: settings["beta"].as_f64().unwrap() })
    }),
    ("kto", RecordKind::Rated, |settings| {
        let number = |name: &str| settings[name].as_f64().unwrap();
        let (beta, desirable_weight) = (number("beta"), number("desirable_weight"));
        let undesirable_weight = number("undesirable_weight");
        Box::new(Kto { beta, desirable_weight, undesirable_weight })
    }),
];

fn goldens() -> Value {
    let path = golden_dir("../../../train/tests/goldens/preference.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// The golden adapter over its base, which is the reference.
fn engine(scene: &Scene, device: &Device, objective: Box<dyn Objective>) -> Engine {
    let model = scene.dir.path().join("model");
    let base = Base::load(&model, device, Compute::F32, LoadOptions::INFERENCE).unwrap();
    let adapter = scene.dir.path().join("adapter");
    write_adapter("tied_gqa", &adapter);
    let adapters = AdapterSet::load(&base, &adapter, 0.0, &mut |_| {}).unwrap();
    let (beta1, beta2, epsilon) = (0.9, 0.999, 1e-8);
    let optimizer = AdamWOptions { beta1, beta2, epsilon, weight_decay: 0.0, max_grad_norm: 1.0 };
    let reference = Some(base.frozen_model());
    Engine::new(&base, adapters, EngineOptions { optimizer, objective, reference }).unwrap()
}

fn load(scene: &Scene, rows: &Value, kind: RecordKind) -> Dataset {
    let path = scene.dir.path().join("preferences.json");
    std::fs::write(&path, rows.to_string()).unwrap();
    let tokenizer = Tokenizer::from_dir(&scene.dir.path().join("model")).unwrap();
    let spec = RecordSpec { kind, max_seq_len: 16, ..RecordSpec::default() };
    hone_data::load(&[path.display().to_string()], &spec, &tokenizer, 1).unwrap()
}

/// Loss, metrics and gradients of all of `dataset` as one step.
fn step(engine: &mut Engine, dataset: &Dataset, units_per_batch: usize) -> (f64, Metrics) {
    let packing = Packing { max_seq_len: 16, unit_tokens: 32, units_per_batch };
    let (config, target) = (engine.model.decoder.config.clone(), engine.device.target());
    let labelled = |packed: MicroBatch| LabelledBatch::new(&config, &packed, target);
    let units = pack_in_order(dataset, packing.unit_tokens).unwrap();
    let assemble = |units| MicroBatch::assemble(dataset, units, packing.batch_tokens());
    let mut batches: Vec<_> =
        units.chunks(units_per_batch).map(|units| labelled(assemble(units))).collect();
    let rows: Vec<u32> = (0..dataset.len() as u32).collect();
    let probes = packing.probes(&*engine.objective, dataset, &rows).unwrap();
    let mut scorer =
        Scorer { pass: engine.pass(), reference: engine.reference.as_ref(), plan: None };
    scorer.add_reference(&mut batches).unwrap();
    let probes = probes.into_iter().map(labelled).collect();
    let statistics = &scorer.statistics(&*engine.objective, probes).unwrap();
    let num_terms = batches.iter().map(|batch| engine.objective.num_terms(&batch.rows)).sum();
    let context = StepContext { num_terms, statistics, recompute: Recompute::None };
    engine.gradients.clear(&engine.device.clone());
    let (mut loss, mut metrics) = (0.0, Metrics::default());
    for batch in &batches {
        loss += engine.forward_backward(batch, context, StepKey::default(), &mut metrics);
    }
    (loss, metrics)
}

#[test]
fn losses_metrics_and_gradients_are_those_of_trl() {
    let (goldens, scene) = (goldens(), Scene::new("tied_gqa"));
    for (name, kind, objective) in KINDS {
        let cases = goldens[name].as_array().unwrap().iter();
        for (case, device) in cases.flat_map(|case| devices().into_iter().map(move |d| (case, d))) {
            let dataset = load(&scene, &case["rows"], kind);
            let mut engine = engine(&scene, &device, objective(&case["settings"]));
            let (loss, metrics) = step(&mut engine, &dataset, 8);
            let found = metrics.means();
            let close = |what: &str, found: f64, expected: &Value, scale: f64| {
                let expected = expected.as_f64().unwrap();
                let error = (found - expected).abs() / scale;
                assert!(error < 1e-4, "{name}, {what}: {found}, not {expected}");
            };
            close("loss", loss, &case["loss"], 1.0);
            for (metric, expected) in case["metrics"].as_object().unwrap() {
                let found = match (metric.as_str(), name) {
                    // TRL takes the difference of the other two.
                    ("rewards/margins", "kto") => {
                        found["rewards/chosen"] - found["rewards/rejected"]
                    }
                    _ => found[metric],
                };
                close(metric, found, expected, 1.0);
            }
            for (id, parameter, _) in engine.model.params.iter() {
                let gradient = engine.gradients.get(id).to_vec_f32();
                let square = |x: &f32| f64::from(*x).powi(2);
                let norm = gradient.iter().map(square).sum::<f64>().sqrt();
                let wave = |(i, x): (usize, &f32)| f64::from(*x) * (i as f64).cos();
                let product: f64 = gradient.iter().enumerate().map(wave).sum();
                let expected = &case["gradients"][parameter];
                let scale = expected[0].as_f64().unwrap();
                close(parameter, norm, &expected[0], scale);
                close(parameter, product, &expected[1], scale);
            }
        }
    }
}

#[test]
fn accumulated_micro_batches_equal_one_large_batch() {
    let (goldens, scene) = (goldens(), Scene::new("tied_gqa"));
    for (name, kind, objective) in KINDS {
        let case = &goldens[name][1];
        let dataset = load(&scene, &case["rows"], kind);
        let mut engine = engine(&scene, &Device::cpu(1), objective(&case["settings"]));
        let (loss, metrics) = step(&mut engine, &dataset, 8);
        let whole = flat(&engine.gradients);
        let (accumulated_loss, accumulated) = step(&mut engine, &dataset, 1);
        let error = relative_error(&flat(&engine.gradients), &whole);
        assert!(error < 2e-6, "{name}: {error:e}");
        assert!((accumulated_loss - loss).abs() < 1e-6 * loss.abs(), "{name}");
        for (metric, mean) in metrics.means() {
            assert!((accumulated.means()[&metric] - mean).abs() < 1e-6, "{name}, {metric}");
        }
    }
}

/// Against central differences, in the numbers' own precision.
#[test]
fn derivatives_are_those_of_the_loss() {
    let goldens = goldens();
    for (name, kind, objective) in KINDS {
        let objective = objective(&goldens[name][1]["settings"]);
        let labels = match kind {
            RecordKind::Pairs => [hone_data::Label::Chosen, hone_data::Label::Rejected],
            _ => [hone_data::Label::Desirable, hone_data::Label::Undesirable],
        };
        let rows: Vec<RowSpan> = (0..4)
            .map(|i| RowSpan { id: i as u32, label: labels[i % 2], targets: 3 * i..3 * i + 3 })
            .collect();
        let reference: Vec<f32> = (0..12).map(|i| -1.0 - (i as f32).sin().abs()).collect();
        let statistics = vec![0.25];
        let loss = |log_probs: &[f32], d: &mut [f32]| {
            let scores = TokenScores { rows: &rows, log_probs, reference: &reference };
            objective.loss(&scores, &statistics, d, &mut Metrics::default())
        };
        let log_probs: Vec<f32> = (0..12).map(|i| -1.5 - (i as f32 * 1.7).cos()).collect();
        let (mut d, mut unused) = (vec![0.0; 12], vec![0.0; 12]);
        loss(&log_probs, &mut d);
        for i in 0..12 {
            let mut at = |step: f32| {
                let mut moved = log_probs.clone();
                moved[i] += step;
                loss(&moved, &mut unused)
            };
            let slope = (at(0.0625) - at(-0.0625)) / 0.125;
            assert!((slope - f64::from(d[i])).abs() < 1e-3, "{name}, {i}: {slope}, not {}", d[i]);
        }
        assert!(d.iter().all(|d| *d != 0.0));
    }
}

/// Records that a run of this kind learns from, and their file's name in the scene.
fn records(kind: &str) -> String {
    let words = |from: u64, n: u64| -> String {
        (from..from + n).map(|i| format!(" w{}", 3 + (i * i + 5 * from) % 40)).collect()
    };
    let record = |i: u64| {
        let (prompt, answer) = (words(i, 1 + i % 4), words(3 * i + 1, 1 + i % 5));
        match kind {
            "dpo" => json!({"prompt": prompt, "chosen": answer, "rejected": words(7 * i, 2)}),
            _ => json!({"prompt": prompt, "completion": answer, "label": i.is_multiple_of(2)}),
        }
    };
    (0..24).map(|i| format!("{}\n", record(i))).collect()
}

/// Runs from a run file: interrupted after each step they end with the bits of one that was not,
/// and metrics reach log, evaluations and report. The plan knows the reference.
#[test]
fn runs_go_on_exactly_and_tell_their_metrics() {
    let full = ["train.learning_rate = 0.001"];
    for (kind, metric) in [("dpo", "rewards/margins"), ("kto", "kl")] {
        for adapter in [&LORA[..], &full] {
            let (whole, pieces) = (Scene::new("dynamic"), Scene::new("dynamic"));
            let setup = |scene: &Scene| {
                let path = scene.dir.path().join("records.jsonl");
                std::fs::write(&path, records(kind)).unwrap();
                let of_kind = [
                    format!("objective.kind = {kind}"),
                    format!("data.train = {}", path.display()),
                    format!("data.eval = {}", path.display()),
                ];
                let own = of_kind.iter().map(String::as_str);
                let settings = own.chain(adapter.iter().copied());
                let course = ["train.max_steps = 3", "train.eval_every_steps = 2"];
                scene.setup(&settings.chain(course).collect::<Vec<_>>())
            };
            let ended = carry_out(&setup(&whole), Options::default(), &mut |_| {}, &|| false);
            assert!(matches!(ended.unwrap(), Outcome::Finished(_)));
            let resume = Options { resume: true, profile: false };
            for step in 1..=3 {
                let ended = carry_out(&setup(&pieces), resume, &mut |_| {}, &|| true).unwrap();
                assert_eq!(matches!(ended, Outcome::Finished(_)), step == 3);
            }
            let read =
                |scene: &Scene, name: &str| std::fs::read(scene.run_dir().join(name)).unwrap();
            for name in ["params.safetensors", "optimizer.safetensors"] {
                let name = format!("checkpoints/step-3/{name}");
                assert!(read(&whole, &name) == read(&pieces, &name), "{kind}: {name}");
            }
            assert_eq!(read(&whole, "eval.jsonl"), read(&pieces, "eval.jsonl"), "{kind}");
            for name in ["metrics.jsonl", "eval.jsonl", "report.html"] {
                let text = String::from_utf8(read(&whole, name)).unwrap();
                assert!(text.contains(metric), "{kind}: {name}");
            }
        }
    }
}
