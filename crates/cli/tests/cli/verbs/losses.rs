//! `hone eval`: the loss is the one that the logits give, and exports keep it.

use super::{Scene, json as output_of, succeeds};
use crate::sandbox::ended;
use crate::sandbox::tiny_model::{golden_dir, write_adapter, write_model};
use hone_tensor::safetensors::SafeTensorsFile;
use serde_json::{Value, json};

const TEXT: &str = "w5 w9 w11 w4 w30 w31 w8 w8 w17";

fn eval(scene: &Scene, more: &[&str]) -> Value {
    output_of(&mut scene.hone(&[&["eval", "model", "--json"], more].concat()))
}

fn loss(evaluation: &Value) -> f64 {
    evaluation["loss"].as_f64().unwrap()
}

/// Mean negative log-probability of tokens `1..` under logits `[t, vocab_size]`.
fn by_hand(scene: &Scene, file: &str) -> (f64, usize) {
    let file = SafeTensorsFile::open(&scene.path(file)).unwrap();
    let [logits, tokens] = ["logits", "tokens"].map(|name| file.tensor(name).unwrap().unwrap());
    let vocab_size = logits.shape()[1];
    let rows = logits.f32().chunks(vocab_size).zip(&tokens.f32()[1..]);
    let losses = rows.map(|(row, &next)| {
        let sum: f64 = row.iter().map(|&x| f64::from(x).exp()).sum();
        sum.ln() - f64::from(row[next as usize])
    });
    (losses.sum::<f64>() / (tokens.f32().len() - 1) as f64, tokens.f32().len() - 1)
}

#[test]
fn the_loss_of_a_text_is_that_of_its_logits() {
    let scene = Scene::new();
    scene.write("book.txt", TEXT);
    let flags = ["--data", "book.txt", "--format", "text"];
    for end in [&[][..], &["--append-eos"]] {
        let logits = ["--logits", "logits.safetensors"];
        let evaluation = eval(&scene, &[&flags[..], &logits, end].concat());
        let (expected, num_targets) = by_hand(&scene, "logits.safetensors");
        assert!((loss(&evaluation) - expected).abs() < 1e-5, "{evaluation}, by hand {expected}");
        assert_eq!(evaluation["num_target_tokens"], num_targets);
        assert_eq!(num_targets, if end.is_empty() { 8 } else { 9 });
        let perplexity = evaluation["perplexity"].as_f64().unwrap();
        assert!((perplexity.ln() - expected).abs() < 1e-5);
    }
}

/// All tokens count but each window's first.
#[test]
fn every_window_counts() {
    let scene = Scene::new();
    // 270 tokens.
    scene.write("book.txt", &[TEXT; 30].join(" "));
    let flags = ["--data", "book.txt", "--format", "text"];
    let whole = eval(&scene, &[&flags[..], &["--max-seq-len", "64"]].concat());
    let short = eval(&scene, &[&flags[..], &["--max-seq-len", "16"]].concat());
    assert_eq!((&whole["num_target_tokens"], &whole["rows"]), (&json!(265), &json!(5)));
    assert_eq!((&short["num_target_tokens"], &short["rows"]), (&json!(253), &json!(17)));
    let again = eval(&scene, &[&flags[..], &["--max-seq-len", "16", "--threads", "1"]].concat());
    assert_eq!(loss(&short).to_bits(), loss(&again).to_bits());
}

/// Dynamic RoPE goes beyond `max_position_embeddings`, here 8.
#[test]
fn rows_may_be_longer_where_rope_stretches() {
    let scene = Scene::new();
    scene.write("book.txt", TEXT);
    write_model("dynamic", &scene.path("stretching"));
    let data = ["--data", "book.txt", "--format", "text", "--max-seq-len", "16"];
    let more = ["--compute", "f32", "--logits", "logits.safetensors", "--json"];
    let evaluation =
        output_of(&mut scene.hone(&[&["eval", "stretching"], &data[..], &more].concat()));
    let (expected, num_targets) = by_hand(&scene, "logits.safetensors");
    assert_eq!((&evaluation["num_target_tokens"], num_targets), (&json!(8), 8));
    assert!((loss(&evaluation) - expected).abs() < 1e-5, "{evaluation}, by hand {expected}");
}

#[test]
fn an_export_keeps_the_loss() {
    let scene = Scene::new();
    succeeds(&mut scene.train(&["train.max_steps=4"]));
    let data = ["--data", "eval.jsonl"];
    let base = loss(&eval(&scene, &data));
    let adapted = loss(&eval(&scene, &[&data[..], &["--adapter", "run/adapter"]].concat()));
    assert!((base - adapted).abs() > 1e-4, "training changed nothing: {base}, {adapted}");
    let export = ["export", "model", "--adapter", "run/adapter", "--out", "merged"];
    succeeds(&mut scene.hone(&export));
    let merged = output_of(&mut scene.hone(&["eval", "merged", "--data", "eval.jsonl", "--json"]));
    assert!((loss(&merged) - adapted).abs() < 1e-5, "{merged}, with the adapter {adapted}");
    let half = ["--dtype", "bf16", "--out", "half"];
    succeeds(&mut scene.hone(&[&export[..4], &half].concat()));
    let half = output_of(&mut scene.hone(&["eval", "half", "--data", "eval.jsonl", "--json"]));
    assert!((loss(&half) - adapted).abs() < 0.05, "{half}, with the adapter {adapted}");
    assert!(!scene.path(".merged.partial").exists());
}

/// The model and adapter of the goldens, and the values that TRL computes of them.
#[test]
fn answers_are_ranked() {
    let scene = Scene::new();
    let goldens = golden_dir("../../../train/tests/goldens/preference.json");
    let goldens: Value = serde_json::from_slice(&std::fs::read(goldens).unwrap()).unwrap();
    write_adapter("tied_gqa", &scene.path("adapter"));
    let shared = ["--data", "answers.json", "--max-seq-len", "16", "--compute", "f32"];
    for (name, format) in [("dpo", "pairs"), ("kto", "rated")] {
        for case in goldens[name].as_array().unwrap() {
            scene.write("answers.json", &case["rows"].to_string());
            let beta = case["settings"]["beta"].to_string();
            let flags = ["--format", format, "--adapter", "adapter", "--beta", &beta];
            let found = eval(&scene, &[&shared[..], &flags].concat());
            for (metric, expected) in case["metrics"].as_object().unwrap() {
                let of = |name: &str| found["metrics"][name].as_f64().unwrap();
                let value = match (name, metric.as_str()) {
                    // Depends on which prompts the answers are moved to.
                    (_, "kl") => continue,
                    ("kto", "rewards/margins") => of("rewards/chosen") - of("rewards/rejected"),
                    (_, metric) => of(metric),
                };
                assert!((value - expected.as_f64().unwrap()).abs() < 1e-4, "{metric}: {found}");
            }
        }
    }
}

/// By the losses of the same answers, taken one by one.
#[test]
fn a_pairs_margin_is_the_difference_of_its_answers() {
    let scene = Scene::new();
    let pairs = [("w3 w4", " w12", " w19 w33 w49"), ("w5", " w8 w9", " w30"), ("w7", " w3", " w4")];
    let records = pairs.map(|(prompt, chosen, rejected)| {
        json!({ "prompt": prompt, "chosen": chosen, "rejected": rejected })
    });
    scene.write("pairs.json", &json!(records).to_string());
    let log_prob = |prompt: &str, completion: &str| {
        let record = json!([{ "prompt": prompt, "completion": completion }]);
        scene.write("one.json", &record.to_string());
        let one = eval(&scene, &["--data", "one.json"]);
        (-loss(&one) * one["num_target_tokens"].as_f64().unwrap(), one["num_target_tokens"].clone())
    };
    let margins = pairs.map(|(prompt, chosen, rejected)| {
        log_prob(prompt, chosen).0 - log_prob(prompt, rejected).0
    });
    let found = eval(&scene, &["--data", "pairs.json", "--format", "pairs"]);
    let (metrics, n) = (&found["metrics"], pairs.len() as f64);
    let close = |name: &str, expected: f64| {
        let value = metrics[name].as_f64().unwrap();
        assert!((value - expected).abs() < 1e-4, "{name}: {value}, not {expected}");
    };
    close("margin", margins.iter().sum::<f64>() / n);
    close("accuracy", margins.iter().filter(|margin| **margin > 0.0).count() as f64 / n);
    let chosen = pairs.map(|(prompt, chosen, _)| log_prob(prompt, chosen));
    let tokens: f64 = chosen.iter().map(|(_, tokens)| tokens.as_f64().unwrap()).sum();
    close("loss/chosen", -chosen.iter().map(|(log_prob, _)| log_prob).sum::<f64>() / tokens);
    assert!(metrics.get("rewards/margins").is_none(), "{found}");
    let bad = json!([{ "prompt": "w3", "completion": " w4", "label": false }]);
    scene.write("rated.json", &bad.to_string());
    let plain = ended(&mut scene.hone(&["eval", "model", "--data", "rated.json"]));
    plain.says(2, &["give --format rated"]);
}

/// A terminal shows how far an evaluation is; anything else gets results alone.
#[test]
fn a_terminal_shows_progress() {
    let scene = Scene::new();
    let flags = ["eval", "model", "--data", "eval.jsonl"];
    let plain = succeeds(&mut scene.hone(&flags));
    assert!(!plain.stderr.contains("rows"), "{}", plain.stderr);
    let command = format!("{} {}", env!("CARGO_BIN_EXE_hone"), flags.join(" "));
    let mut script = std::process::Command::new("script");
    script.args(["-qec", &command, "/dev/null"]).current_dir(scene.path(""));
    let Ok(output) = script.env("TERM", "xterm").output() else {
        return hone_tensor::testing::skip("there is no `script` to make a terminal");
    };
    let shown = String::from_utf8_lossy(&output.stdout);
    assert!(shown.contains("/9  rows"), "{shown}");
}
