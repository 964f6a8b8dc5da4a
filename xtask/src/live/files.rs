//! `cargo xtask live files`: training and generation on real files, beside PyTorch.

use std::path::Path;
use std::process::{Command, ExitCode};

/// Runs `scripts/live_files.py`, which says what is compared.
pub fn run(root: &Path, cases: &[&str]) -> ExitCode {
    let python = root.join("target/bench-venv/bin/python");
    if !python.is_file() {
        eprintln!("live files: {} is missing: scripts/README.md makes it", python.display());
        return ExitCode::FAILURE;
    }
    let mut script = Command::new(python);
    script.arg(root.join("scripts/live_files.py")).args(cases).current_dir(root);
    match script.status() {
        Ok(status) if status.success() => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("live files: {error}");
            ExitCode::FAILURE
        }
    }
}
