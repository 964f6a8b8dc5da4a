//! The files of a run directory as the report reads them: every field may be absent, so that the
//! report of an unfinished run, or of another version's, can be made.

use std::fs;
use std::path::{Path, PathBuf};

use crate::metrics::{self, Records};
use hone_model::adapter::Coverage;
use serde::Deserialize;
use serde::de::DeserializeOwned;

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// A file that every run has is absent or unreadable.
    #[error("cannot read {}: {source}; is this the directory of a run?", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// A file is not what a run writes.
    #[error("{}, line {line}: {problem}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// Its line, from 1.
        line: usize,
        /// What is wrong.
        problem: String,
    },
}

/// Everything the report is made of.
pub(super) struct Sources {
    pub run_text: String,
    pub run: toml::Table,
    pub manifest: Manifest,
    /// By ascending step, each step once.
    pub metrics: Vec<Metrics>,
    /// By ascending step, each step once.
    pub evals: Vec<Eval>,
    pub samples: Vec<Sample>,
    /// What is to be said of damaged lines.
    pub damage: Vec<String>,
}

/// A line of `metrics.jsonl`.
#[derive(Debug, Default, Clone, Deserialize)]
#[serde(default)]
pub(super) struct Metrics {
    pub step: u64,
    pub loss: Option<f64>,
    pub learning_rate: Option<f64>,
    pub grad_norm: Option<f64>,
    pub tokens_per_second: Option<f64>,
    pub step_seconds: Option<f64>,
    pub peak_bytes: Option<f64>,
    /// Seconds by phase.
    pub phases: Amounts,
    /// The objective's metrics.
    pub metrics: Amounts,
}

/// Numbers by name, in the file's order; what is not a number is left out by the reader.
pub(super) type Amounts = serde_json::Map<String, serde_json::Value>;

/// A line of `eval.jsonl`.
#[derive(Debug, Default, Clone, Deserialize)]
#[serde(default)]
pub(super) struct Eval {
    pub step: u64,
    pub loss: Option<f64>,
    pub perplexity: Option<f64>,
    /// The objective's metrics.
    pub metrics: Amounts,
}

/// An entry of `samples.json`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Sample {
    pub prompt: String,
    pub reference: Option<String>,
    pub before: Option<String>,
    pub after: Option<String>,
}

/// `manifest.json` of the run.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Manifest {
    pub hone_version: Option<String>,
    pub created: Option<String>,
    pub machine: Machine,
    pub model: Model,
    pub data: Data,
    pub inputs: Inputs,
    pub plan: Plan,
    pub actual: Actual,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Machine {
    pub cpu: Option<String>,
    pub threads: Option<f64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Model {
    pub path: Option<String>,
    pub parameters: Option<f64>,
    pub trainable_parameters: Option<f64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Inputs {
    pub model: Vec<InputFile>,
    pub train: Vec<InputFile>,
    pub eval: Vec<InputFile>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct InputFile {
    pub path: String,
    pub sha256: String,
}

/// What became of a file of records.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct DataFile {
    pub file: String,
    pub format: String,
    pub rows: Option<f64>,
    /// How often an epoch sees each row.
    pub weight: Option<f64>,
    /// Pairs, or else rows.
    pub groups: Option<f64>,
    /// Those that an epoch sees, on average.
    pub groups_per_epoch: Option<f64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Data {
    pub train: Option<DataSet>,
    pub eval: Option<DataSet>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct DataSet {
    pub files: Vec<DataFile>,
    pub rows: Option<f64>,
    pub groups_per_epoch: Option<f64>,
    pub tokens: Option<f64>,
    pub target_tokens: Option<f64>,
    pub truncated: Option<f64>,
    pub skipped: Option<f64>,
    /// What loading had to say.
    pub warnings: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Plan {
    pub peak_bytes: Option<f64>,
    pub arena_bytes: Option<f64>,
    /// Bytes by category.
    pub memory: Amounts,
    pub flops_per_step: Option<f64>,
    pub step_seconds: Option<f64>,
    pub num_steps: Option<f64>,
    pub training_seconds: Option<f64>,
    pub gpu: Option<String>,
    pub micro_batch_tokens: Option<f64>,
    pub recompute: Option<serde_json::Value>,
    /// What is trained of each kind of layer.
    pub coverage: Vec<Coverage>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Actual {
    pub peak_bytes: Option<f64>,
    pub arena_bytes: Option<f64>,
    pub step_seconds: Option<f64>,
    pub total_seconds: Option<f64>,
}

impl Sources {
    /// Reads the run directory.
    pub fn read(dir: &Path) -> Result<Sources, ReportError> {
        let path = dir.join("run.toml");
        let run_text = read_required(&path)?;
        let run = run_text.parse::<toml::Table>().map_err(|error| {
            let start = error.span().map_or(0, |span| span.start);
            let line = 1 + run_text.bytes().take(start).filter(|b| *b == b'\n').count();
            ReportError::Format { path, line, problem: error.message().to_owned() }
        })?;
        let mut damage = Vec::new();
        let mut metrics: Vec<Metrics> = json_lines(&dir.join("metrics.jsonl"), &mut damage)?;
        newest_per_step(&mut metrics, |line| line.step);
        let mut evals: Vec<Eval> = json_lines(&dir.join("eval.jsonl"), &mut damage)?;
        newest_per_step(&mut evals, |line| line.step);
        let manifest = json(&dir.join("manifest.json"))?.unwrap_or_default();
        let samples = json(&dir.join("samples.json"))?.unwrap_or_default();
        Ok(Sources { run_text, run, manifest, metrics, evals, samples, damage })
    }

    /// A value of the run file by table and key.
    pub fn run_value(&self, table: &str, key: &str) -> Option<&toml::Value> {
        self.run.get(table)?.get(key)
    }
}

/// The last line of each step, by ascending step: a resumed run writes some steps twice.
fn newest_per_step<T>(lines: &mut Vec<T>, step: impl Fn(&T) -> u64) {
    lines.reverse();
    lines.sort_by_key(&step); // stable: the newest of a step comes first
    lines.dedup_by_key(|line| step(line));
}

/// The records of a file; damaged lines are counted in `damage`.
fn json_lines<T: DeserializeOwned>(
    path: &Path,
    damage: &mut Vec<String>,
) -> Result<Vec<T>, ReportError> {
    let text = read_optional(path)?.unwrap_or_default();
    let Records { records, num_damaged } = Records::parse(&text);
    damage.extend(metrics::damage(path, num_damaged));
    Ok(records)
}

fn json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, ReportError> {
    let Some(text) = read_optional(path)? else { return Ok(None) };
    serde_json::from_str(&text).map(Some).map_err(|error| ReportError::Format {
        path: path.to_owned(),
        line: error.line(),
        problem: problem(&error),
    })
}

/// The parser's words without the place, which it appends.
fn problem(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let words = text.split_once(" at line ").map_or(text.as_str(), |(words, _)| words);
    format!("{words}; the file is damaged")
}

fn read_required(path: &Path) -> Result<String, ReportError> {
    fs::read_to_string(path).map_err(|source| ReportError::Read { path: path.to_owned(), source })
}

fn read_optional(path: &Path) -> Result<Option<String>, ReportError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(ReportError::Read { path: path.to_owned(), source }),
    }
}
