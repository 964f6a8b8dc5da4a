//! Masked tokens: `hone train` of encoders.

use super::{json, succeeds};
use crate::sandbox::tiny_model::write_model;
use crate::sandbox::{Scene, ended};
use hone_tensor::Tensor;
use hone_tensor::safetensors::{SafeTensorsFile, write};
use serde_json::Value;
use std::fmt::Write as _;

/// An encoder with a mask token, texts in which each word follows from the one before, and a run.
fn scene(settings: &str) -> Scene {
    let scene = Scene::new();
    write_model("bert", &scene.path("encoder"));
    scene.write("encoder/tokenizer_config.json", "{\"mask_token\": \"<unk>\"}");
    let texts = |rows: std::ops::Range<u64>| {
        let mut text = String::new();
        for row in rows {
            let word = |i: u64| format!("w{}", 3 + (row * 5 + i) % 40);
            let words: Vec<String> = (0..8 + row % 9).map(word).collect();
            let record = serde_json::json!({ "text": words.join(" ") });
            writeln!(text, "{record}").unwrap();
        }
        text
    };
    scene.write("texts.jsonl", &texts(0..24));
    scene.write("more.jsonl", &texts(24..30));
    scene.write(
        "masked.toml",
        &format!(
            "{settings}[objective]\nkind = \"masked\"\nratio = 0.3\n[model]\npath = \"encoder\"\n\
             [data]\ntrain = \"texts.jsonl\"\neval = \"more.jsonl\"\nmax_seq_len = 20\n\
             [run]\nthreads = 2\n[budget]\nmicro_batch_tokens = 20\n[output]\ndir = \"run\"\n"
        ),
    );
    scene
}

const LORA: &str = "[adapter]\nkind = \"lora\"\nrank = 4\n\
    [train]\nlearning_rate = 0.05\nmax_steps = 6\nbatch_tokens = 80\n";
const FULL: &str = "[train]\nlearning_rate = 0.005\nmax_steps = 6\nbatch_tokens = 80\n";

fn losses(scene: &Scene) -> Vec<f64> {
    let lines = scene.lines("eval.jsonl");
    lines.iter().map(|line| line["loss"].as_f64().unwrap()).collect()
}

fn targets(scene: &Scene) -> Vec<Value> {
    scene.lines("metrics.jsonl").iter().map(|line| line["target_tokens"].clone()).collect()
}

#[test]
fn adapters_and_whole_encoders_learn() {
    for settings in [LORA, FULL] {
        let scene = scene(settings);
        let plan = json(&mut scene.hone(&["plan", "masked.toml", "--json"]));
        assert!(plan["peak_bytes"].as_u64().unwrap() > 0);
        let shown = succeeds(&mut scene.hone(&["plan", "masked.toml"])).stdout;
        assert!(shown.contains("a share of 0.3 masked in each step"), "{shown}");
        succeeds(&mut scene.hone(&["train", "masked.toml"]));
        let found = losses(&scene);
        assert!(found.len() == 2 && found[1] < found[0] - 0.05, "{found:?}");
        let of_small = targets(&scene);
        if settings == FULL {
            continue;
        }
        let merge = ["export", "encoder", "--adapter", "run/adapter", "--out", "merged"];
        succeeds(&mut scene.hone(&merge));
        succeeds(&mut scene.hone(&["export", "merged", "--out", "again"]));
        // Other micro-batches mask the same tokens.
        let other = ["budget.micro_batch_tokens=80", "output.dir=other"];
        succeeds(&mut scene.hone(&[&["train", "masked.toml"], &other[..]].concat()));
        std::fs::rename(scene.run_dir(), scene.path("first")).unwrap();
        std::fs::rename(scene.path("other"), scene.run_dir()).unwrap();
        assert_eq!(targets(&scene), of_small);
        let again = losses(&scene);
        assert!((again[0] - found[0]).abs() < 1e-5, "{again:?}, {found:?}");
    }
}

/// What the files lack is said, what they hold besides stays, and the report says why there are no
/// samples.
#[test]
fn bare_encoders_and_classifiers_learn() {
    let scene = scene(LORA);
    let weights = scene.path("encoder/model.safetensors");
    let head = ["classifier.weight", "classifier.bias"];
    let shapes = [vec![2, 24], vec![2]];
    let values = shapes.map(|shape| Tensor::from_f32(&vec![0.5; shape.iter().product()], &shape));
    let file = SafeTensorsFile::open(&weights).unwrap();
    let names = file.names().into_iter().filter(|name| !name.starts_with("cls."));
    let own: Vec<(String, Tensor)> =
        names.map(|name| (name.clone(), file.tensor(&name).unwrap().unwrap())).collect();
    let added = head.map(str::to_owned).into_iter().zip(values);
    let tensors: Vec<(String, Tensor)> = own.into_iter().chain(added).collect();
    let changed = scene.path("changed.safetensors");
    write(&changed, tensors.iter().map(|(name, tensor)| (name.clone(), tensor.into()))).unwrap();
    std::fs::rename(&changed, &weights).unwrap();
    let told = succeeds(&mut scene.hone(&["train", "masked.toml"])).stderr;
    for part in ["hold no head for masked tokens", "`classifier` of the model's files stay as"] {
        assert!(told.contains(part), "{told}");
    }
    let report = std::fs::read_to_string(scene.run_dir().join("report.html")).unwrap();
    assert!(report.contains("an encoder generates no texts"));
    succeeds(&mut scene.hone(&["export", "encoder", "--adapter", "run/adapter", "--out", "out"]));
    let kept = SafeTensorsFile::open(&scene.path("out/model.safetensors")).unwrap();
    let of = |file: &SafeTensorsFile, name: &str| file.raw(name).unwrap().bytes.to_vec();
    let before = SafeTensorsFile::open(&weights).unwrap();
    assert!(head.iter().all(|name| of(&kept, name) == of(&before, name)));
}

#[test]
fn objectives_and_models_that_do_not_fit_are_named() {
    let scene = scene(LORA);
    let refused = |settings: &[&str], parts: &[&str]| {
        ended(&mut scene.hone(&[&["train", "masked.toml"], settings].concat())).says(2, parts);
    };
    let sft = ["objective.kind = \"sft\"", "an encoder", "objective.kind = \"masked\""];
    scene.write(
        "sft.toml",
        "[adapter]\nkind = \"lora\"\n[model]\npath = \"encoder\"\n[data]\ntrain = \"texts.jsonl\"\n\
         max_seq_len = 20\n[output]\ndir = \"run\"\n",
    );
    ended(&mut scene.hone(&["train", "sft.toml"])).says(2, &sft);
    refused(&["model.path=model"], &["is for encoders", "objective.kind = \"pretrain\""]);
    for ratio in ["objective.ratio=1.5", "objective.ratio=0"] {
        refused(&[ratio], &["objective.ratio", "a number above 0 and below 1"]);
    }
    scene.write("encoder/tokenizer_config.json", "{}");
    refused(&[], &["needs a mask token", "tokenizer_config.json"]);
    let eval = ended(&mut scene.hone(&["eval", "encoder", "--data", "texts.jsonl"]));
    eval.says(2, &["is an encoder", "objective.kind = \"masked\""]);
}
