//! For `cargo xtask live gguf`: golden models as llama.cpp's own converter writes them, and texts
//! as its vocabularies cut them.

use crate::fixture::{Golden, copy_of, max_error, range, set_key};
use crate::gguf::{CASES, loaded, logits_of, set_unsaid, write};
use crate::gguf_files::from_directory;
use hone_model::{DecoderConfig, FINGERPRINT_TEXT, texts_of_gguf, tokenizer_name};
use hone_tensor::gguf::testing::Meta;
use hone_tensor::gguf::{self, GgufFile};
use serde_json::Value;
use std::path::{Path, PathBuf};
use tokenizers::Tokenizer;

fn folder(variable: &str) -> PathBuf {
    std::env::var_os(variable).unwrap_or_else(|| panic!("no {variable}")).into()
}

#[test]
#[ignore = "`cargo xtask live gguf` converts them"]
fn directories_for_the_converter() {
    for (case, unsaid) in CASES.iter().filter(|(_, unsaid)| !has_twin(unsaid)) {
        let (from, to) = (copy_of(case), folder("HONE_LIVE_GGUF").join(case));
        set_unsaid(case, from.path(), unsaid);
        if *case == "gemma3" {
            // The converter writes no other than the format's default.
            set_key(&from.path().join("config.json"), "sliding_window_pattern", Value::Null);
        }
        std::fs::create_dir_all(&to).unwrap();
        for name in ["config.json", "model.safetensors"] {
            std::fs::copy(from.path().join(name), to.join(name)).unwrap();
        }
    }
}

/// The second of two cases of a golden model.
fn has_twin(unsaid: &[(&str, Value)]) -> bool {
    unsaid.iter().any(|(key, _)| *key == "rope_scaling")
}

#[test]
#[ignore = "`cargo xtask live gguf` has them converted"]
fn files_of_the_converter() {
    let mut num_files = 0;
    for entry in std::fs::read_dir(folder("HONE_LIVE_GGUF")).unwrap() {
        let file = entry.unwrap().path();
        if file.extension().is_none_or(|extension| extension != "gguf") {
            continue;
        }
        let dir = file.with_extension("");
        let case = dir.file_name().unwrap().to_str().unwrap();
        let configs = [file.as_path(), &dir].map(|path| {
            let mut config = DecoderConfig::load(path).unwrap_or_else(|e| panic!("{case}: {e}"));
            // Which stand with the tokenizer.
            config.eos_token_ids.clear();
            format!("{config:?}")
        });
        assert_eq!(configs[0], configs[1], "{case}");
        let golden = Golden::load(case);
        let [found, expected] =
            [file.as_path(), &dir].map(|path| logits_of(&loaded(path), &golden));
        let off = max_error(&found, &expected) / range(&expected);
        assert!(off == 0.0 || case.starts_with("qwen3_5") && off < 1e-6, "{case} {off}");
        num_files += 1;
    }
    assert!(num_files > 20, "{num_files}");
}

#[test]
#[ignore = "`cargo xtask live gguf` names llama.cpp's files"]
fn texts_of_its_vocabularies() {
    // Of Qwen3.5's, decomposed accents: Hone composes them as transformers does.
    for (name, case, differ) in [
        ("llama-spm", "tied_gqa", 0),
        ("phi-3", "phi3", 0),
        ("llama-bpe", "tied_gqa", 0),
        ("gpt-2", "tied_gqa", 0),
        ("starcoder", "tied_gqa", 0),
        ("refact", "tied_gqa", 0),
        ("command-r", "tied_gqa", 0),
        ("qwen2", "tied_gqa", 0),
        ("qwen35", "tied_gqa", 3),
        ("mpt", "tied_gqa", 0),
        ("falcon", "tied_gqa", 0),
        ("deepseek-llm", "tied_gqa", 0),
        ("deepseek-coder", "tied_gqa", 0),
        ("gemma-4", "tied_gqa", 0),
    ] {
        let path = folder("HONE_LLAMA_CPP").join(format!("models/ggml-vocab-{name}.gguf"));
        let tokenizer = tokenizer(&path, case);
        let read = |kind: &str| std::fs::read_to_string(path.with_extension(kind)).unwrap();
        let (texts, ids) = (read("gguf.inp"), read("gguf.out"));
        assert!(ids.lines().count() > 40, "{name}: too few texts");
        let differing = texts.split("\n__ggml_vocab_test__\n").zip(ids.lines()).filter(|of| {
            let expected: Vec<u32> =
                of.1.split_whitespace().map(|id| id.parse().unwrap()).collect();
            tokenizer.encode(of.0, false).unwrap().get_ids() != expected
        });
        let differing: Vec<&str> = differing.map(|(text, _)| text).collect();
        assert_eq!(differing.len(), differ, "{name}: {differing:?}");
        // Two families have the same tokenizer, and one test file another's.
        let pre = match name {
            "llama-spm" | "phi-3" | "gemma-4" | "qwen35" => continue,
            "mpt" => "olmo",
            name => name,
        };
        let ids = tokenizer.encode(FINGERPRINT_TEXT, true).unwrap();
        assert_eq!(tokenizer_name(ids.get_ids()), Some(pre), "{name}");
    }
}

/// That of a file without a model, beside the weights of a golden one.
fn tokenizer(path: &Path, case: &str) -> Tokenizer {
    let file = GgufFile::open(path).unwrap();
    let mut writer = from_directory(copy_of(case).path());
    for key in file.keys().filter(|key| key.starts_with("tokenizer.")) {
        writer.set(key, meta(file.get(key).unwrap()));
    }
    let (_folder, path) = write(&writer);
    texts_of_gguf(&path).unwrap()["tokenizer.json"].parse().unwrap()
}

fn meta(value: gguf::Value<'_>) -> Meta {
    let array = match value {
        gguf::Value::Integer(n) => return Meta::U32(n as u32),
        gguf::Value::Float(x) => return Meta::F32(x as f32),
        gguf::Value::Bool(flag) => return Meta::Bool(flag),
        gguf::Value::Text(text) => return text.into(),
        gguf::Value::Array(array) => array,
    };
    let (mut texts, mut integers, mut floats) = (Vec::new(), Vec::new(), Vec::new());
    for element in array.iter() {
        match element.unwrap() {
            gguf::Value::Text(text) => texts.push(text.to_owned()),
            gguf::Value::Integer(n) => integers.push(n as i32),
            gguf::Value::Float(x) => floats.push(x as f32),
            other => panic!("{other:?}"),
        }
    }
    match (texts.is_empty(), integers.is_empty()) {
        (false, _) => Meta::Texts(texts),
        (_, false) => Meta::I32s(integers),
        _ => Meta::F32s(floats),
    }
}
