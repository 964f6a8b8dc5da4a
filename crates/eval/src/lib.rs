//! What a model is worth in figures that people know, and how sure they are.
//!
//! [`task`] reads task files of EleutherAI's lm-evaluation-harness, [`against`] compares with
//! another model.

pub mod against;
pub mod statistics;
pub mod task;
