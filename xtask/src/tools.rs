//! Starts the programs of `xtask-tools`, which link Hone.

use crate::test::cargo;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

/// Builds and runs `program` with these arguments.
pub fn run(root: &Path, program: &str, args: &[&str]) -> ExitCode {
    let mut tool = cargo(root);
    tool.args(["run", "--quiet", "--package", "xtask-tools", "--bin", program, "--"]).args(args);
    match tool.status() {
        Ok(status) => status.code().map_or(ExitCode::FAILURE, |code| ExitCode::from(code as u8)),
        Err(error) => {
            eprintln!("{program}: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Fuzzes all targets, `time` in all; whether none failed.
pub fn fuzz_all(root: &Path, time: Duration) -> bool {
    run(root, "fuzz", &["all", "--seconds", &time.as_secs().to_string()]) == ExitCode::SUCCESS
}
