//! Tasks: their files, documents, prompts, scores and what is made of them.
//!
//! [`group::load`] reads files (`yaml`, `file`, `config`) and their data (`data`, `csv`, `field`),
//! [`run::prepare`] writes prompts and cuts them into tokens (`prompt`, `tokens`), [`run::run`]
//! asks the model and sums up (`metrics`, `filters`, `statistics`), [`result`] says it,
//! [`recorded`] reads it again, and [`gate`] compares it with an earlier evaluation.
//!
//! Formats and rules are those of lm-evaluation-harness 0.4.13, so that numbers are comparable.
//! Left out: Python functions, data that are not in local files, images and sound, sampling.

mod builtin;
pub mod config;
mod csv;
mod data;
mod error;
mod field;
mod file;
mod filters;
pub mod gate;
pub mod group;
mod literal;
pub mod metrics;
pub mod output_type;
pub mod prompt;
mod random;
pub mod recorded;
pub mod result;
pub mod run;
mod statistics;
mod tokens;
mod yaml;

pub use builtin::names;
pub use config::{Options, Task};
pub use error::TaskError;
pub use gate::{Gate, Verdict};
pub use result::Results;
pub use run::{RunOptions, prepare, run};
