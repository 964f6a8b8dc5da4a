//! Digests of a run's result.

use serde_json::Value;
use sha2::{Digest as _, Sha256};
use std::fs::File;
use std::io;
use std::path::Path;

/// SHA-256 in hexadecimal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Digests {
    pub weights: String,
    /// Of loss and gradient norm of every step.
    pub losses: String,
}

impl Digests {
    /// Those of a finished run in `dir`.
    pub fn of_run(dir: &Path) -> Result<Self, String> {
        let adapter = dir.join("adapter/adapter_model.safetensors");
        let model = dir.join("model/model.safetensors");
        let weights = if adapter.is_file() { adapter } else { model };
        let weights = read(&weights)?;
        let metrics = read(&dir.join("metrics.jsonl"))?;
        let metrics = String::from_utf8(metrics).map_err(|error| error.to_string())?;
        Ok(Self { weights: of_weights(&weights)?, losses: of_losses(&metrics)? })
    }
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))
}

/// Of all tensors in a safetensors file, in order of name; metadata and order in the file are left
/// out.
pub fn of_weights(file: &[u8]) -> Result<String, String> {
    let cut_off = || "not a safetensors file".to_owned();
    let (length, rest) = file.split_first_chunk::<8>().ok_or_else(cut_off)?;
    let length = usize::try_from(u64::from_le_bytes(*length)).map_err(|_| cut_off())?;
    let (header, data) = rest.split_at_checked(length).ok_or_else(cut_off)?;
    let header: serde_json::Map<String, Value> =
        serde_json::from_slice(header).map_err(|error| error.to_string())?;
    let mut tensors: Vec<_> = header.iter().filter(|(name, _)| *name != "__metadata__").collect();
    tensors.sort_by_key(|(name, _)| *name);
    let mut sha = Sha256::new();
    for (name, about) in tensors {
        let offset =
            |i: usize| about["data_offsets"][i].as_u64().map_or(usize::MAX, |n| n as usize);
        let values = data.get(offset(0)..offset(1)).ok_or_else(cut_off)?;
        sha.update(format!("{name} {} {}\n", about["dtype"], about["shape"]));
        sha.update(values);
    }
    Ok(hexadecimal(sha))
}

/// Of Adam's moments at the end of a run, which its last checkpoint holds.
pub fn of_moments(dir: &Path) -> Result<String, String> {
    let checkpoints = dir.join("checkpoints");
    let entries = std::fs::read_dir(&checkpoints);
    let entries = entries.map_err(|error| format!("{}: {error}", checkpoints.display()))?;
    let step = |name: &str| name.strip_prefix("step-")?.parse::<u64>().ok();
    let steps = entries.flatten().filter_map(|entry| step(&entry.file_name().to_string_lossy()));
    let last = steps.max().ok_or_else(|| format!("{}: empty", checkpoints.display()))?;
    of_weights(&read(&checkpoints.join(format!("step-{last}/optimizer.safetensors")))?)
}

/// What counts of a line of `metrics.jsonl`, and of one of `eval.jsonl`.
const OF_STEP: &[&str] = &["step", "loss", "grad_norm"];
const OF_EVALUATION: &[&str] = &["step", "loss"];

/// Of what `metrics.jsonl` says of loss and gradient norm, as it is written there.
pub fn of_losses(metrics: &str) -> Result<String, String> {
    of_lines(&[(metrics, OF_STEP)])
}

/// The same of a run in `dir`, evaluations included.
pub fn of_losses_and_evaluations(dir: &Path) -> Result<String, String> {
    let text = |name: &str| {
        String::from_utf8(read(&dir.join(name))?).map_err(|error| format!("{name}: {error}"))
    };
    of_lines(&[(&text("metrics.jsonl")?, OF_STEP), (&text("eval.jsonl")?, OF_EVALUATION)])
}

/// Of these numbers of each line of these texts.
fn of_lines(texts: &[(&str, &[&str])]) -> Result<String, String> {
    let mut sha = Sha256::new();
    for (text, keys) in texts {
        for line in text.lines() {
            let line: Value = serde_json::from_str(line).map_err(|error| error.to_string())?;
            let number = |key: &&str| line[*key].is_number().then(|| line[*key].to_string());
            let numbers: Option<Vec<String>> = keys.iter().map(number).collect();
            let numbers = numbers.ok_or_else(|| format!("not all of {keys:?}: {line}"))?;
            sha.update(numbers.join(" ") + "\n");
        }
    }
    Ok(hexadecimal(sha))
}

/// Of a file's bytes, which need not fit into memory.
pub fn of_file(path: &Path) -> Result<String, String> {
    let mut sha = Sha256::new();
    let copied = File::open(path).and_then(|mut open| io::copy(&mut open, &mut sha));
    copied.map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(hexadecimal(sha))
}

pub fn hexadecimal(sha: Sha256) -> String {
    sha.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}
