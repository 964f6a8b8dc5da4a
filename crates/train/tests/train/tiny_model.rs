//! A complete model directory of a few kilobytes, and data for it; the tests of the binary read
//! this file as well.

#[path = "../../../model/tests/model/random_weights.rs"]
mod random_weights;

use random_weights::write_checkpoint;
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// Where `hone-model` has a golden model, without its weights.
pub fn golden_dir(case: &str) -> PathBuf {
    // Of the checkout that the tests run in, which need not be the one they were built in.
    let package = std::env::var_os("CARGO_MANIFEST_DIR");
    let built_in = || PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    package.map_or_else(built_in, PathBuf::from).join("../model/tests/goldens").join(case)
}

/// Makes `dir` the golden model `case`, with a tokenizer of words.
pub fn write_model(case: &str, dir: &Path) {
    write_checkpoint(&golden_dir(case), dir);
    let config = std::fs::read(dir.join("config.json")).unwrap();
    let config: Value = serde_json::from_slice(&config).unwrap();
    let tokenizer = word_tokenizer(config["vocab_size"].as_u64().unwrap());
    std::fs::write(dir.join("tokenizer.json"), tokenizer.to_string()).unwrap();
}

/// Makes `dir` the adapter of the golden model `case`.
pub fn write_adapter(case: &str, dir: &Path) {
    write_checkpoint(&golden_dir(case).join("adapter"), dir);
}

/// `<unk>`, `<s>`, `</s>`, then the words `w3`, `w4`, … with a space between them.
pub fn word_tokenizer(vocab_size: u64) -> Value {
    let specials = ["<unk>", "<s>", "</s>"];
    let added = specials.iter().enumerate().map(|(id, content)| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false,
               "rstrip": false, "normalized": false, "special": true})
    });
    let words = (3..vocab_size).map(|id| (format!("w{id}"), json!(id)));
    let specials = (0u64..).zip(specials).map(|(id, name)| (name.to_owned(), json!(id)));
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": added.collect::<Vec<_>>(),
        "normalizer": null,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": null, "decoder": null,
        "model": {
            "type": "WordLevel", "unk_token": "<unk>",
            "vocab": specials.chain(words).collect::<serde_json::Map<_, _>>(),
        },
    })
}

/// `num_rows` prompts with completions, the latter of 1 to 8 words, as JSON lines.
pub fn rows(num_rows: u64) -> String {
    let mut text = String::new();
    for row in 0..num_rows {
        let words = |from: u64, n: u64| -> Vec<String> {
            (from..from + n).map(|i| format!("w{}", 3 + (i * i + 7 * row) % 40)).collect()
        };
        let prompt = words(row, 2 + row % 5).join(" ");
        let completion = words(2 * row + 1, 1 + (row * 5) % 8).join(" ");
        let record = json!({"prompt": prompt, "completion": format!(" {completion}")});
        writeln!(text, "{record}").unwrap();
    }
    text
}
