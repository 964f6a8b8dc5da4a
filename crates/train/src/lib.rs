//! hone-train

pub mod checkpoint;
pub mod failpoint;
pub mod report;
pub mod run_file;
