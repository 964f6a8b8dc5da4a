//! `cargo xtask fuzz`: starts the fuzzer of `xtask-tools`, which links Hone.

use crate::test::cargo;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

/// Runs the fuzzer with these arguments.
pub fn run(root: &Path, args: &[&str]) -> ExitCode {
    let mut fuzz = cargo(root);
    fuzz.args(["run", "--quiet", "--package", "xtask-tools", "--bin", "fuzz", "--"]).args(args);
    match fuzz.status() {
        Ok(status) => status.code().map_or(ExitCode::FAILURE, |code| ExitCode::from(code as u8)),
        Err(error) => {
            eprintln!("fuzz: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Fuzzes all targets, `time` in all; whether none failed.
pub fn all(root: &Path, time: Duration) -> bool {
    run(root, &["all", "--seconds", &time.as_secs().to_string()]) == ExitCode::SUCCESS
}
