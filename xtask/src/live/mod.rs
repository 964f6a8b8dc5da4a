//! `cargo xtask live`: comparisons with other programs that run now, where tests compare with what
//! such a program once said. They want PyTorch, which is installed when it is missing.

mod big;
mod eval;
mod families;
mod files;
mod gguf;
mod llama;
mod packed;

use crate::bench::peer::venv;
use std::path::Path;
use std::process::{Command, ExitCode};

/// Runs what the arguments name; `None` if they name nothing.
pub fn run(root: &Path, args: &[&str]) -> Option<ExitCode> {
    let (name, result) = match args {
        ["big", args @ ..] => ("big", big::run(root, args)),
        ["eval", args @ ..] => ("eval", eval::run(root, args)),
        ["families", args @ ..] => ("families", families::run(root, args)),
        ["files", cases @ ..] => ("files", files::run(root, cases)),
        ["gguf", args @ ..] => ("gguf", gguf::run(root, args)),
        ["llama", args @ ..] => ("llama", llama::run(root, args)),
        ["packed", kinds @ ..] => ("packed", packed::run(root, kinds)),
        _ => return None,
    };
    Some(match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("live {name}: {error}");
            ExitCode::FAILURE
        }
    })
}

/// Runs a script of `scripts/` with the peers' Python.
fn script(root: &Path, name: &str, args: &[&str]) -> Result<(), String> {
    let mut command = Command::new(venv(root)?);
    command.arg(root.join("scripts").join(name)).args(args).current_dir(root);
    succeed(&mut command)
}

fn succeed(command: &mut Command) -> Result<(), String> {
    let status = command.status().map_err(|error| format!("{command:?}: {error}"))?;
    match status.success() {
        true => Ok(()),
        false => Err(format!("{command:?} failed")),
    }
}
