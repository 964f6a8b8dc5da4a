//! Real GGUF files: token ids, logits and greedy answers are those of transformers on the same
//! file. With the files in `target/models`, best in release.

use hone_model::generate::{Request, Sampling, generate_all};
use hone_model::{Batch, FINGERPRINT_TEXT, LoadOptions, Pass, tokenizer_name};
use hone_tensor::{Compute, Device, Tape, testing};
use hone_train::setup::tokenizer_of;
use serde_json::Value;
use std::path::{Path, PathBuf};

/// A share of the logits' range: by so much a token must lead, or they may differ.
const TOLERANCE: f64 = 1e-3;

#[test]
fn smollm2() {
    compare("smollm2");
}

/// The base model of 270M parameters in Q4_K_M: under Gemma's terms, so it is
/// fetched only by `cargo xtask models gemma3`.
#[test]
fn gemma3() {
    compare("gemma3");
}

/// Where a model was put; `None`, with a message, if it was not.
fn find(file: &str) -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let folders = ["target/models", "../shared/models"];
    let found = folders.map(|folder| root.join(folder).join(file));
    let found = found.into_iter().find(|path| path.is_file());
    if found.is_none() {
        testing::skip(format!("no {file} in target/models"));
    }
    found
}

fn ids(value: &Value) -> Vec<u32> {
    let ids = value.as_array().unwrap().iter();
    ids.map(|id| id.as_u64().unwrap() as u32).collect()
}

fn compare(name: &str) {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/gguf");
    let golden = std::fs::read(golden.join(name).with_extension("json")).unwrap();
    let golden: Value = serde_json::from_slice(&golden).unwrap();
    let Some(path) = find(golden["file"].as_str().unwrap()) else { return };
    let tokenizer = tokenizer_of(&path).unwrap();
    let fingerprint = tokenizer.encode(FINGERPRINT_TEXT, true).unwrap();
    let pre = tokenizer_name(&fingerprint);
    assert_eq!(pre, (name == "smollm2").then_some("smollm"), "{name}");
    let tokens = tokenizer.encode(golden["text"].as_str().unwrap(), true).unwrap();
    assert_eq!(tokens, ids(&golden["ids"]), "{name}");

    let device = Device::cpu(2);
    let model = hone_model::load(&path, &device, LoadOptions::INFERENCE).unwrap();
    let batch = Batch::from_sequence(&model.decoder.config, &tokens);
    let mut tape = Tape::inference(&device, &model.params, Compute::F32);
    let logits = model.decoder.logits(&mut tape, &batch).to_vec_f32();
    let sampled = ids(&golden["sampled"]);
    let rows = logits.chunks(model.decoder.config.vocab_size);
    let mut error: f64 = 0.0;
    for (found, expected) in rows.zip(golden["logits"].as_array().unwrap()) {
        for (&id, expected) in sampled.iter().zip(expected.as_array().unwrap()) {
            let expected = expected.as_f64().unwrap();
            error = error.max((f64::from(found[id as usize]) - expected).abs());
        }
    }
    let error = error / golden["range"].as_f64().unwrap();
    println!("{name}: logits within {error:.1e} of their range");
    assert!(error < TOLERANCE, "{name}: {error}");

    let answers = golden["answers"].as_array().unwrap();
    let answers = testing::cases(answers, &answers[..2]);
    let request = |answer: &Value| {
        let prompt = tokenizer.encode(answer["prompt"].as_str().unwrap(), true).unwrap();
        assert_eq!(prompt, ids(&answer["ids"]), "{name}");
        let max_new_tokens = ids(&answer["tokens"]).len();
        let sampling = Sampling::GREEDY;
        Request { id: 0, prompt, max_new_tokens, sampling, stop_ids: Vec::new() }
    };
    let pass = Pass { device: &device, model: &model, compute: Compute::F32 };
    let found = generate_all(pass, answers.iter().map(request)).unwrap();
    for (found, answer) in found.iter().zip(answers) {
        let margins = answer["margins"].as_array().unwrap();
        let is_close = |margin: &Value| margin.as_f64().unwrap() < TOLERANCE;
        let len = margins.iter().position(is_close).unwrap_or(margins.len());
        assert_eq!(found.tokens[..len], ids(&answer["tokens"])[..len], "{name} {answer}");
    }
}
