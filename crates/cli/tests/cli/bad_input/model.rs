//! Model directories: configuration, tokenizer, adapters. Their weights are in `weights`.

use super::{Case, check, replace, train};
use crate::sandbox::Scene;
use crate::sandbox::tiny_model::{word_tokenizer, write_adapter};

fn config(scene: &Scene, from: &str, to: &str) {
    replace(scene, "model/config.json", from, to);
}

#[test]
fn configurations() {
    check(&[
        train(
            "unsupported model_type",
            |s| config(s, "\"model_type\": \"llama\"", "\"model_type\": \"mamba\""),
            &["model/config.json: model_type `mamba` is not supported", "llama"],
        ),
        train(
            "not JSON",
            |s| s.write("model/config.json", "{"),
            &["model/config.json: not valid JSON"],
        ),
        train(
            "no configuration",
            |s| std::fs::remove_file(s.path("model/config.json")).unwrap(),
            &["model/config.json", "no such file", "contains a config.json"],
        ),
        train(
            "a missing key",
            |s| config(s, "\"hidden_size\": 24,", ""),
            &["model/config.json: `hidden_size` is missing"],
        ),
        train(
            "a wrong type",
            |s| config(s, "\"hidden_size\": 24", "\"hidden_size\": \"wide\""),
            &["model/config.json: `hidden_size` must be a whole number", "\"wide\""],
        ),
        train(
            "unknown RoPE scaling",
            |s| config(s, "{\n", "{\n\"rope_scaling\": {\"rope_type\": \"spiral\"},\n"),
            &["`rope_scaling.rope_type` is `spiral`", "supported: default, linear"],
        ),
    ]);
}

#[test]
fn tokenizers() {
    check(&[
        train(
            "tokenizer and model of different vocabulary size",
            |s| {
                let larger = word_tokenizer(60);
                s.write("model/tokenizer.json", &larger.to_string());
                s.write("train.jsonl", r#"{"prompt": "w4 ", "completion": "w55"}"#);
            },
            &["the row has token id", "knows only 53 tokens", "another model"],
        ),
        train(
            "no tokenizer",
            |s| std::fs::remove_file(s.path("model/tokenizer.json")).unwrap(),
            &["model/tokenizer.json: no such file"],
        ),
        train(
            "not a tokenizer",
            |s| s.write("model/tokenizer.json", "{}"),
            &["model/tokenizer.json: not a tokenizer"],
        ),
        train(
            "a broken tokenizer_config.json",
            |s| s.write("model/tokenizer_config.json", "[["),
            &["model/tokenizer_config.json"],
        ),
    ]);
}

const EVAL: &[&str] = &["eval", "model", "--adapter", "adapter", "--data", "eval.jsonl"];

fn adapter(scene: &Scene) {
    write_adapter("tied_gqa", &scene.path("adapter"));
}

#[test]
fn adapters() {
    let case = |name, spoil, says| Case { name, spoil, arguments: EVAL, says };
    check(&[
        case("no adapter", |_| {}, &["adapter: there is no such directory"]),
        case(
            "an adapter of another kind",
            |s| {
                adapter(s);
                replace(s, "adapter/adapter_config.json", "\"LORA\"", "\"IA3\"");
            },
            &["adapter/adapter_config.json", "IA3", "only LORA adapters are supported"],
        ),
        case(
            "a truncated adapter",
            |s| {
                adapter(s);
                let path = s.path("adapter/adapter_model.safetensors");
                let bytes = std::fs::read(&path).unwrap();
                std::fs::write(&path, &bytes[..bytes.len() - 9]).unwrap();
            },
            &["adapter_model.safetensors: not a whole safetensors file", "fetch it again"],
        ),
        case(
            "an adapter of another model",
            |s| {
                adapter(s);
                write_adapter("yarn", &s.path("other"));
                let [from, to] = ["other", "adapter"]
                    .map(|folder| s.path(folder).join("adapter_model.safetensors"));
                std::fs::copy(from, to).unwrap();
            },
            &["adapter_model.safetensors: tensor `base_model", "trained for another model"],
        ),
    ]);
}
