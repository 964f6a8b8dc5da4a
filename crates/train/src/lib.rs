//! Training: run files, objectives, optimizer, planner, the loop, checkpoints, reports.
//!
//! [`recipe`] reads top to bottom and is the place to start. [`setup`] turns a run file into
//! everything a run needs, [`loading`] loads that into an [`engine`], which holds what is trained
//! on a device, and [`planner`] runs one step of it on the dry device.

pub mod backend;
pub mod checkpoint;
mod code;
pub mod engine;
mod error;
pub mod evaluate;
pub mod failpoint;
pub mod file_lock;
pub mod loading;
pub mod loss_scale;
pub mod machine;
pub mod masking;
mod metrics;
pub mod mixture;
pub mod objectives;
pub mod optimizer;

pub mod planner;
pub mod profile;
pub mod recipe;
pub mod report;
pub mod run_dir;
pub mod run_file;
pub mod sample;
pub mod schedule;
pub mod scoring;
pub mod setup;
pub mod step_profile;
mod wording;

pub use code::Code;
pub use error::TrainError;
pub use metrics::{EvalRecord, StepRecord};
