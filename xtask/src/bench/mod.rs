//! Benchmarks: `cargo xtask bench NAME`. Each writes a page under `docs/benchmarks`.

pub mod adapters;
pub mod compress;
pub mod doctor;
pub mod int8;
pub mod isa;
pub mod model;
pub mod ops;
pub mod peer;
pub mod plan;
pub mod train;

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// Where benchmarks find things.
struct Place {
    root: PathBuf,
    hone: PathBuf,
    /// Models, data and runs of this benchmark.
    dir: PathBuf,
}

impl Place {
    /// Builds Hone unless a binary is given.
    fn new(root: &Path, name: &str, hone: Option<&Path>) -> Result<Self, String> {
        let hone = match hone {
            Some(path) => std::path::absolute(path).map_err(|error| error.to_string())?,
            None => build(root)?,
        };
        let dir = root.join("target").join(name);
        std::fs::create_dir_all(&dir).map_err(|error| format!("{}: {error}", dir.display()))?;
        Ok(Self { root: root.to_path_buf(), hone, dir })
    }

    fn page(&self, page: &str) -> PathBuf {
        self.root.join("docs/benchmarks").join(page)
    }

    fn write_page(&self, page: &str, text: &str) -> Result<(), String> {
        let path = self.page(page);
        let made = std::fs::create_dir_all(path.parent().unwrap_or(&self.root));
        made.and_then(|()| std::fs::write(&path, text)).map_err(|error| format!("{page}: {error}"))
    }

    /// Processor, threads and instruction set.
    fn machine(&self) -> Result<String, String> {
        doctor::Doctor::ask(&self.hone, None)?.machine()
    }
}

/// The release build of Hone.
pub fn build(root: &Path) -> Result<PathBuf, String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let build = ["build", "--release", "--package", "hone-cli"];
    let built = Command::new(cargo).args(build).current_dir(root).status();
    match built.is_ok_and(|status| status.success()) {
        true => Ok(root.join("target/release/hone")),
        false => Err("the release build failed".to_owned()),
    }
}

/// What a command prints on standard output, as JSON; its progress is shown only when it fails.
pub fn json(command: &mut Command) -> Result<Value, String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    if !output.status.success() {
        return Err(format!("{command:?}:\n{}", String::from_utf8_lossy(&output.stderr)));
    }
    serde_json::from_slice(&output.stdout).map_err(|error| format!("{command:?}: {error}"))
}

/// The date as `2026-01-31`.
fn today() -> Result<String, String> {
    let output = Command::new("date").arg("+%F").output();
    let output = output.map_err(|error| format!("date: {error}"))?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// The one in the middle, or the upper of two.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Turns what a benchmark returns into an exit code: whether all it checked came true.
fn report(name: &str, result: Result<bool, String>) -> ExitCode {
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            eprintln!("bench {name}: not all came true; see docs/benchmarks/{name}.md");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("bench {name}: {error}");
            ExitCode::FAILURE
        }
    }
}
