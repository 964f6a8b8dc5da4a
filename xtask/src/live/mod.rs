//! `cargo xtask live`: what needs PyTorch, real files or time, and is measured rather than tested.
//! One file a subcommand.

mod files;

use std::path::Path;
use std::process::ExitCode;

/// Runs what the arguments name; `None` if they name nothing.
pub fn run(root: &Path, args: &[&str]) -> Option<ExitCode> {
    match args {
        ["files", cases @ ..] => Some(files::run(root, cases)),
        _ => None,
    }
}
