//! Records of a run, one JSON object per line.

use crate::error::TrainError;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

/// A line of `metrics.jsonl`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StepRecord {
    /// Optimizer step, from 1.
    pub step: u64,
    /// The objective's loss before the update, for language models mean nats per target token;
    /// `None` if it is not finite.
    pub loss: Option<f64>,
    /// Learning rate of the update.
    pub learning_rate: f64,
    /// Global norm of the gradient, before clipping; `None` if it is not finite.
    pub grad_norm: Option<f64>,
    /// Tokens of the step, padding not counted.
    pub tokens: u64,
    /// Tokens that were predicted.
    pub target_tokens: u64,
    /// `tokens` per second of the step.
    pub tokens_per_second: f64,
    /// Seconds of the step.
    pub step_seconds: f64,
    /// Most memory the process has occupied so far.
    pub peak_bytes: Option<u64>,
    /// Seconds by phase.
    pub phases: Phases,
    /// Whether the update was left out because something was not finite.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub skipped: bool,
    /// The objective's metrics.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metrics: BTreeMap<String, f64>,
}

/// Where the seconds of a step went.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Phases {
    /// Packing batches.
    pub data: f64,
    /// Forward and backward passes.
    pub forward_backward: f64,
    /// Gradient norm and update.
    pub optimizer: f64,
}

/// A line of `eval.jsonl`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EvalRecord {
    /// Updates before this evaluation.
    pub step: u64,
    /// The objective's loss, for language models mean nats per target token; `None` if it is not
    /// finite.
    pub loss: Option<f64>,
    /// `e^loss`; `None` if it is not finite, or means nothing to the objective.
    pub perplexity: Option<f64>,
    /// Tokens predicted.
    pub num_target_tokens: usize,
    /// The objective's metrics.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metrics: BTreeMap<String, f64>,
}

/// A line of `samples.jsonl`: which rows a step saw.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RowsRecord {
    /// Optimizer step, from 1.
    pub step: u64,
    /// Row ids of each micro-batch, in order.
    pub micro_batches: Vec<Vec<u32>>,
}

/// A file of JSON lines that grows.
pub struct Lines {
    path: PathBuf,
    file: File,
}

impl Lines {
    /// Opens `path`, made if absent, keeping those lines whose `step` is at most `last_step`. What
    /// a killed run wrote after its checkpoint goes.
    ///
    /// # Errors
    /// When the file cannot be read or written.
    pub fn open(path: &Path, last_step: u64) -> Result<Self, TrainError> {
        let kept = kept_lines(path, last_step)?;
        crate::checkpoint::write_file_whole(path, kept.as_bytes())?;
        let file = OpenOptions::new().append(true).open(path).map_err(TrainError::io(path))?;
        Ok(Self { path: path.to_owned(), file })
    }

    /// Appends a line.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn push(&mut self, record: &impl Serialize) -> Result<(), TrainError> {
        let mut line = serde_json::to_string(record).expect("records are plain data");
        line.push('\n');
        self.file.write_all(line.as_bytes()).map_err(TrainError::io(&self.path))
    }

    /// Waits until all lines are on disk.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn sync(&self) -> Result<(), TrainError> {
        self.file.sync_data().map_err(TrainError::io(&self.path))
    }
}

fn kept_lines(path: &Path, last_step: u64) -> Result<String, TrainError> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(TrainError::io(path)(error)),
    };
    let kept = |line: &&str| {
        let record: Option<serde_json::Value> = serde_json::from_str(line).ok();
        record.and_then(|r| r["step"].as_u64()).is_some_and(|step| step <= last_step)
    };
    Ok(text.lines().filter(kept).map(|line| format!("{line}\n")).collect())
}
