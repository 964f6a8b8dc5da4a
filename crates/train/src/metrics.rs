//! Records of a run, one JSON object per line.

use crate::error::TrainError;
use crate::mixture::ExpertLoad;
use serde::de::DeserializeOwned;
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
    /// How the step used the experts of each block that has any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub expert_load: Vec<ExpertLoad>,
    /// Modules whose gradient has been zero in all of the last twenty steps, each named once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub no_gradient: Vec<String>,
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

/// A line of `rows.jsonl`: which rows a step saw.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RowsRecord {
    /// Optimizer step, from 1.
    pub step: u64,
    /// Row ids of each micro-batch, in order.
    pub micro_batches: Vec<Vec<u32>>,
}

/// A record that belongs to a step.
pub trait OfStep: DeserializeOwned {
    /// The step.
    fn step(&self) -> u64;
}

/// What a file of JSON lines holds.
pub(crate) struct Records<T> {
    pub(crate) records: Vec<T>,
    /// Lines that hold no such record.
    pub(crate) num_damaged: usize,
}

impl<T: DeserializeOwned> Records<T> {
    /// The records of the file at `path`.
    pub(crate) fn read(path: &Path) -> Result<Self, TrainError> {
        Ok(Self::parse(&read_text(path)?))
    }

    /// A last line without its end was cut off by a kill: it is no damage.
    pub(crate) fn parse(text: &str) -> Self {
        let (mut records, mut num_damaged) = (Vec::new(), 0);
        for line in text.split_inclusive('\n').filter(|line| !line.trim().is_empty()) {
            match serde_json::from_str(line) {
                Ok(record) => records.push(record),
                Err(_) => num_damaged += usize::from(line.ends_with('\n')),
            }
        }
        Self { records, num_damaged }
    }
}

/// A file of JSON lines that grows.
pub struct Lines {
    path: PathBuf,
    file: File,
    num_damaged: usize,
}

impl Lines {
    /// Opens `path`, made if absent, without the records of steps after `last_step`: what a killed
    /// run wrote after its checkpoint goes. Damaged lines stay.
    ///
    /// # Errors
    /// When the file cannot be read or written.
    pub fn open<T: OfStep>(path: &Path, last_step: u64) -> Result<Self, TrainError> {
        let text = read_text(path)?;
        let is_kept = |line: &&str| match serde_json::from_str::<T>(line) {
            Ok(record) => record.step() <= last_step,
            Err(_) => line.ends_with('\n'),
        };
        let kept: String = text.split_inclusive('\n').filter(is_kept).map(with_end).collect();
        crate::checkpoint::write_file_whole(path, kept.as_bytes())?;
        let num_damaged = Records::<T>::parse(&kept).num_damaged;
        let file = OpenOptions::new().append(true).open(path).map_err(TrainError::io(path))?;
        Ok(Self { path: path.to_owned(), file, num_damaged })
    }

    /// What to tell the user where lines are damaged.
    pub fn damage(&self) -> Option<String> {
        damage(&self.path, self.num_damaged)
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

/// What to tell the user of so many damaged lines.
pub(crate) fn damage(path: &Path, num_damaged: usize) -> Option<String> {
    let lines = if num_damaged == 1 { "line is" } else { "lines are" };
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    (num_damaged > 0).then(|| {
        format!("{name}: {num_damaged} {lines} damaged and left out of figures and curves")
    })
}

/// The text of a file, empty if it is absent. What is no UTF-8 is damaged in the lines it is in.
fn read_text(path: &Path) -> Result<String, TrainError> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(TrainError::io(path)(error)),
    }
}

fn with_end(line: &str) -> String {
    format!("{}\n", line.trim_end_matches('\n'))
}

macro_rules! of_step {
    ($($record:ty),+) => {
        $(impl OfStep for $record {
            fn step(&self) -> u64 {
                self.step
            }
        })+
    };
}

of_step!(StepRecord, EvalRecord, RowsRecord);
