//! What is told of a run while it runs.

use super::Finished;
use crate::code::Code;
use crate::metrics::{EvalRecord, StepRecord};
use crate::planner::Plan;
use crate::step_profile::StepProfile;
use serde::Serialize;
use std::path::Path;

/// What a run reports while it runs. As JSON an object whose `event` is its name: see
/// `docs/events.md`.
#[derive(Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event<'a> {
    /// The run is set up.
    Started {
        /// Version of Hone.
        hone_version: &'static str,
        /// Directory of the run.
        output_dir: &'a Path,
        /// Optimizer steps of the whole run.
        num_steps: u64,
    },
    /// The plan, before anything is written.
    #[serde(rename = "plan")]
    Planned(&'a Plan),
    /// All checks have passed; `run.toml` is written.
    Begun {
        /// The file of the settings.
        settings: &'a Path,
    },
    /// Something the user should know.
    Note {
        /// It.
        text: String,
    },
    /// Training continues after a checkpoint.
    Resumed {
        /// Steps done.
        step: u64,
    },
    /// A step is done.
    Step(&'a StepRecord),
    /// The samples are answered, before training or after it.
    Sampling {
        /// How many.
        samples: usize,
        /// Most tokens of an answer.
        max_new_tokens: usize,
    },
    /// They are answered.
    Sampled {
        /// How many.
        samples: usize,
    },
    /// An evaluation begins.
    Evaluating {
        /// Rows of the evaluation data.
        rows: usize,
    },
    /// How far an evaluation is, about once a second.
    EvaluationProgress {
        /// Rows that are done.
        rows_done: usize,
        /// Rows of the evaluation data.
        rows: usize,
    },
    /// An evaluation is done.
    #[serde(rename = "eval")]
    Evaluated(&'a EvalRecord),
    /// A checkpoint is on disk.
    Checkpoint {
        /// Steps done by then.
        step: u64,
    },
    /// Steps were recorded, and their trace written.
    #[serde(rename = "profile")]
    Profiled {
        /// Where the time went.
        #[serde(skip)]
        profile: &'a StepProfile<'a>,
        /// The file of the trace.
        trace: &'a Path,
    },
    /// All steps are done and the result is written.
    Finished(&'a Finished),
    /// A signal stopped the run after a checkpoint.
    Interrupted {
        /// Steps done.
        step: u64,
    },
    /// The run could not start or continue, or a signal stopped it before training.
    Failed {
        /// The kind of error.
        code: Code,
        /// What was wrong, and how to fix it.
        message: &'a str,
    },
}
