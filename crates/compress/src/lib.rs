//! Smaller files of a model: which type each tensor is stored in.
//!
//! A [`Mix`] gives each tensor the type that llama.cpp's mix of that name gives it. A type whose
//! blocks do not divide a tensor's rows is never replaced in silence: it is an error that says
//! which tensors there are, unless [`Fallback::LlamaCpp`] is asked for.
//!
//! With text of calibration, errors of columns count by their [`importance`], and a [`Planner`]
//! finds types for a given size or divergence: what errors of a tensor cost is predicted from
//! gradients ([`Sensitivity`]), types are chosen by dynamic programming, and the choice is then
//! searched by what a [`Meter`] says.

mod allocate;
mod back;
mod calibrate;
mod choice;
mod curvature;
mod factor;
mod feedback;
mod imatrix;
mod ints;
mod ledger;
mod meter;
mod mix;
mod packed;
mod plan;
mod read_back;
mod samples;
mod scheme;
mod sensitivity;
mod spill;
mod tune;
mod window;

pub use back::{BackError, Room};
pub use calibrate::{importance, importance_of_roles, importance_steps};
pub use choice::{Choice, CompressError, Fallback, choose};
pub use imatrix::{Columns, Imatrix, ImatrixError, Sums};
pub use ledger::Ledger;
pub use meter::{Measured, Meter};
pub use mix::{Facts, Mix, Stored};
pub use packed::{Done, Kept, fed_back, feedback_bytes, packed};
pub use plan::{Allocation, Candidate, Goal, PlanError, Planner, TRIALS, Trial};
pub use read_back::{ReadBack, read_back};
pub use samples::{Samples, near};
pub use scheme::{Group, QuantisedMatrix, Scheme, SchemeError};
pub use sensitivity::Sensitivity;
pub use tune::{Begun, Schedule, Snapshot, learning_bytes, tune};
pub use window::{Corpus, Window};
