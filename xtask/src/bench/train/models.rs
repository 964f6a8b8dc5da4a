//! The models that are trained, of random weights, made when a case first needs them.

use super::super::Place;
use super::super::model::{
    M135, Precision, gpt2_tokenizer, word_tokenizer, write_model, write_tokenizer,
};
use super::cases::Data;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Makes model `key` with a tokenizer for the data, unless it is there; its path within the
/// benchmark's folder. `135M` is a Llama, `NAME-TYPE.gguf` a GGUF file with blocks of that type and
/// the shape of `NAME`, `masked` MiniLM, and any other a shape of `bench/random_models.py`.
pub fn prepare(place: &Place, python: &Path, key: &str, data: Data) -> Result<String, String> {
    let path = place.dir.join(key);
    if let Some((base, _)) = key.strip_suffix(".gguf").and_then(|name| name.rsplit_once('-')) {
        let base = prepare(place, python, base, data)?;
        if !path.is_file() {
            write_random(place, python, &[key, &base])?;
        }
        return Ok(key.to_owned());
    }
    if !path.join("model.safetensors").is_file() {
        match key {
            MASKED => {
                let encoder = minilm(place).display().to_string();
                write_random(place, python, &[MASKED, &encoder])?;
            }
            "135M" => write_model(&path, &M135, Precision::Bf16).map_err(in_dir(&path))?,
            _ => write_random(place, python, &[key])?,
        }
    }
    let vocab_size = vocab_size(&path)?;
    match data {
        // Its tokenizer came with it.
        Data::Banking77 { .. } => Ok(key.to_owned()),
        Data::Words { .. } => {
            write_tokenizer(&path, &word_tokenizer(vocab_size)).map_err(in_dir(&path))?;
            Ok(key.to_owned())
        }
        Data::Gsm8k => {
            let name = format!("{key}-gpt2");
            let written = with_gpt2_tokenizer(place, &path, &place.dir.join(&name), vocab_size);
            written.map_err(in_dir(&path))?;
            Ok(name)
        }
    }
}

/// all-MiniLM-L6-v2 with a head for masked tokens.
const MASKED: &str = "masked";

/// Where `cargo xtask models` puts all-MiniLM-L6-v2.
pub fn minilm(place: &Place) -> PathBuf {
    place.root.join("target/models/all-MiniLM-L6-v2")
}

fn in_dir(dir: &Path) -> impl Fn(std::io::Error) -> String {
    move |error| format!("{}: {error}", dir.display())
}

fn vocab_size(model: &Path) -> Result<usize, String> {
    let config = std::fs::read(model.join("config.json")).map_err(in_dir(model))?;
    let config: Value = serde_json::from_slice(&config).map_err(|error| error.to_string())?;
    let size = config["vocab_size"].as_u64().ok_or("config.json has no `vocab_size`")?;
    Ok(size as usize)
}

fn write_random(place: &Place, python: &Path, args: &[&str]) -> Result<(), String> {
    let script = place.root.join("bench/random_models.py");
    let status = Command::new(python).arg(script).args(args).current_dir(&place.dir).status();
    match status.is_ok_and(|status| status.success()) {
        true => Ok(()),
        false => Err(format!("bench/random_models.py {} failed", args.join(" "))),
    }
}

/// The model again, with a tokenizer for real text.
fn with_gpt2_tokenizer(
    place: &Place,
    model: &Path,
    other: &Path,
    vocab_size: usize,
) -> std::io::Result<()> {
    std::fs::create_dir_all(other)?;
    for name in ["config.json", "model.safetensors"] {
        let _ = std::fs::remove_file(other.join(name));
        std::fs::hard_link(model.join(name), other.join(name))?;
    }
    let gpt2 = place.root.join("../shared/data/tokenizers/gpt2");
    write_tokenizer(other, &gpt2_tokenizer(&gpt2, vocab_size)?)
}
