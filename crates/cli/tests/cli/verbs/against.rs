//! `hone eval --against`: two models on the same tokens.

use super::{Scene, assert_fields, json as output_of, succeeds};
use crate::sandbox::ended;
use crate::sandbox::tiny_model::write_model;
use hone_tensor::Tensor;
use hone_tensor::safetensors::{Lazy, SafeTensorsFile, write};
use serde_json::{Value, json};

const TEXT: &str = "w5 w9 w11 w4 w30 w31 w8 w8 w17";

/// With a merge of a trained adapter as `merged`.
fn scene() -> Scene {
    let scene = Scene::new();
    succeeds(&mut scene.train(&["train.max_steps=4"]));
    let export = ["export", "model", "--adapter", "run/adapter", "--out", "merged"];
    succeeds(&mut scene.hone(&export));
    scene.write("book.txt", TEXT);
    scene
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

/// Mean `Σ p ln(p / q)` of the rows of two files of logits that have a target.
fn kl_by_hand(scene: &Scene, files: [&str; 2]) -> f64 {
    let [p, q] = files.map(|file| {
        let file = SafeTensorsFile::open(&scene.path(file)).unwrap();
        let logits = file.tensor("logits").unwrap().unwrap();
        let probabilities = |row: &[f32]| -> Vec<f64> {
            let sum: f64 = row.iter().map(|&x| f64::from(x).exp()).sum();
            row.iter().map(|&x| f64::from(x).exp() / sum).collect()
        };
        let rows = logits.f32().chunks(logits.shape()[1]).map(probabilities).collect::<Vec<_>>();
        rows[..rows.len() - 1].concat()
    });
    let sum: f64 = p.iter().zip(&q).map(|(p, q)| p * (p / q).ln()).sum();
    sum / (TEXT.split(' ').count() - 1) as f64
}

#[test]
fn divergence_is_that_of_the_logits() {
    let scene = scene();
    let text = ["--data", "book.txt", "--format", "text", "--compute", "f32"];
    for model in ["model", "merged"] {
        let logits = format!("{model}.safetensors");
        let eval = ["eval", model, "--logits", &logits];
        succeeds(&mut scene.hone(&[&eval[..], &text].concat()));
    }
    let against = |more: &[&str]| {
        let eval = ["eval", "merged", "--against", "model", "--json"];
        output_of(&mut scene.hone(&[&eval[..], &text, more].concat()))
    };
    let found = against(&[]);
    let expected = kl_by_hand(&scene, ["model.safetensors", "merged.safetensors"]);
    assert!(expected > 1e-6, "training changed nothing");
    let kl = number(&found["kl"]["mean"]);
    assert!((kl / expected - 1.0).abs() < 1e-3, "{kl}, by hand {expected}");
    assert_eq!((&found["num_target_tokens"], &found["rows"]), (&json!(8), &json!(1)));
    // Held in fewer bits, a model is compared with what its file has.
    let eval = ["eval", "model", "--against", "model", "--json"];
    let kl = |more: &[&str]| {
        let found = output_of(&mut scene.hone(&[&eval[..], &text[..4], more].concat()));
        number(&found["kl"]["mean"])
    };
    assert_eq!(kl(&["--compute", "f32"]), 0.0);
    assert!(kl(&["--compute", "f32", "--base-precision", "int8"]) > 1e-6);
    assert!(kl(&["--compute", "int8"]) > 1e-6);
    // One row is one observation.
    assert_eq!(found["kl"]["stderr"], Value::Null);
    // Eight windows of nine tokens; of each the last three are scored.
    scene.write("book.txt", &[TEXT; 8].join(" "));
    let windows = ["--max-seq-len", "9", "--context-tokens", "6"];
    let found = against(&windows);
    assert_eq!((&found["num_target_tokens"], &found["rows"]), (&json!(24), &json!(8)));
    assert_eq!(found, against(&[&windows[..], &["--threads", "1"]].concat()));
}

/// Losses are those of each model alone, and the adapter need not be merged.
#[test]
fn losses_are_those_of_either_model() {
    let scene = scene();
    let data = ["--data", "train.jsonl", "--json"];
    let loss = |of: &[&str]| {
        let eval = output_of(&mut scene.hone(&[&["eval"], of, &data].concat()));
        number(&eval["loss"])
    };
    let adapted = ["model", "--adapter", "run/adapter"];
    let against = [&adapted[..], &["--against", "model"]].concat();
    let found = output_of(&mut scene.hone(&[&["eval"], &against[..], &data].concat()));
    assert_fields(
        &found,
        &[
            "kl",
            "same_top",
            "flips",
            "loss",
            "loss_against",
            "loss_difference",
            "num_target_tokens",
            "rows",
        ],
    );
    let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-5, "{a} and {b}");
    let [own, other] = ["loss", "loss_against"].map(|name| number(&found[name]));
    close(own, loss(&adapted));
    close(other, loss(&["model"]));
    close(number(&found["loss_difference"]["value"]), own - other);
    let kl = &found["kl"];
    let ascending = ["median", "p99", "p999", "max"].map(|name| number(&kl[name]));
    assert!(ascending.is_sorted() && ascending[0] > 0.0, "{kl}");
    let [low, high] = [0, 1].map(|i| number(&kl["interval"][i]));
    assert!(low < number(&kl["mean"]) && high > number(&kl["mean"]) && low > 0.0, "{kl}");

    let itself = ["eval", "model", "--against", "model"];
    let found = output_of(&mut scene.hone(&[&itself[..], &data].concat()));
    assert_eq!(number(&found["kl"]["max"]), 0.0);
    assert_eq!(number(&found["same_top"]["value"]), 1.0);
    assert_eq!(found["flips"], json!({"lost": 0, "gained": 0, "p_value": 1.0}));
    let table = succeeds(&mut scene.hone(&[&itself[..], &data[..2]].concat())).stdout;
    assert!(table.contains("KL divergence") && table.contains("p = 1.000 by rows"), "{table}");
    assert!(table.contains("same top token  100.00 % (95 %: 9"), "{table}");
    assert!(!table.contains("too few for intervals"), "{table}");
    let few = ["--data", "eval.jsonl"];
    let table = succeeds(&mut scene.hone(&[&itself[..], &few].concat())).stdout;
    assert!(table.contains(" in 9 rows, too few for intervals"), "{table}");
    assert!(!table.contains("95 %:"), "{table}");
}

/// Files of a larger model hold more than the weights that are computed with.
#[test]
fn bits_per_weight_are_of_the_model_s_own_weights() {
    let scene = Scene::new();
    write_model("ministral3", &scene.path("text"));
    std::fs::create_dir(scene.path("whole")).unwrap();
    std::fs::copy(scene.path("text/tokenizer.json"), scene.path("whole/tokenizer.json")).unwrap();
    let text = std::fs::read_to_string(scene.path("text/config.json")).unwrap();
    let outer = json!({
        "model_type": "mistral3", "vision_config": {"hidden_size": 3}, "image_token_index": 7,
        "eos_token_id": 2, "tie_word_embeddings": true,
        "text_config": serde_json::from_str::<Value>(&text).unwrap(),
    });
    scene.write("whole/config.json", &outer.to_string());
    let file = SafeTensorsFile::open(&scene.path("text/model.safetensors")).unwrap();
    let of_text = file.names().into_iter().map(|name| {
        let tensor = file.tensor(&name).unwrap().unwrap();
        (format!("language_model.{name}"), Lazy::Ready(tensor))
    });
    let vision = Tensor::from_f32(&vec![0.5; 100_000], &[100, 1000]);
    let all = of_text.chain([("vision_tower.patches.weight".to_owned(), Lazy::Ready(vision))]);
    write(&scene.path("whole/model.safetensors"), all).unwrap();
    scene.write("book.txt", TEXT);
    let eval = ["eval", "whole", "--against", "text", "--data", "book.txt", "--format", "text"];
    let found = output_of(&mut scene.hone(&[&eval[..], &["--json"]].concat()));
    let [whole, text] = ["model", "against"].map(|of| &found[of]);
    assert!(number(&whole["bytes"]) > 400_000.0 + number(&text["bytes"]), "{found}");
    // Names are longer.
    let bits = [whole, text].map(|of| number(&of["bits_per_weight"]));
    assert!(bits[0] > 32.0 && (bits[0] / bits[1] - 1.0).abs() < 0.1, "{bits:?}");
}

#[test]
fn what_cannot_be_compared_is_said() {
    let scene = Scene::new();
    scene.write("book.txt", TEXT);
    write_model("tied_gqa", &scene.path("other"));
    let tokenizer = std::fs::read_to_string(scene.path("other/tokenizer.json")).unwrap();
    let other = tokenizer.replace("\"w5\"", "\"W5\"");
    assert_ne!(tokenizer, other);
    scene.write("other/tokenizer.json", &other);
    scene.write("pairs.jsonl", "{\"prompt\": \"w5\", \"chosen\": \"w6\", \"rejected\": \"w7\"}\n");
    let eval = |more: &[&str]| ended(&mut scene.hone(&[&["eval", "model"], more].concat()));
    let text = ["--data", "book.txt", "--format", "text"];
    eval(&[&text[..], &["--against", "other"]].concat())
        .says(2, &["--against other", "makes other tokens of book.txt:1"]);
    eval(&["--data", "pairs.jsonl", "--format", "pairs", "--against", "model"])
        .says(2, &["not of --format pairs"]);
    eval(&[&text[..], &["--max-seq-len", "8", "--context-tokens", "8"]].concat())
        .says(2, &["--context-tokens 8 leaves nothing to score of windows of 8"]);
    eval(&["--data", "eval.jsonl", "--format", "messages", "--context-tokens", "8"])
        .says(2, &["--context-tokens is for --format text"]);
    eval(&[&text[..], &["--against", "nowhere"]].concat()).says(2, &["nowhere"]);
    eval(&[&text[..], &["--context-tokens", "20"]].concat()).says(2, &["book.txt"]);
}
