//! `cargo xtask bench compress`: what compression loses, beside llama.cpp's programs, on SmolLM2
//! and on a small Llama that Hone pre-trains.
//!
//! Models, texts and runs live in `target/compress`. Figures are kept in
//! `docs/benchmarks/compress`, each with a digest of the model, the texts and the options that it
//! was made from, so that a run that was ended goes on where it was, on another machine too: all of
//! SmolLM2 takes most of a day. Of Hone only the version is among them: after a change to what is
//! measured, remove the figures.

pub(super) mod kept;
mod llama;
mod models;
mod ours;
mod page;
mod picture;
mod tasks;
#[cfg(test)]
mod tests;

use super::peer::venv;
use super::{Place, report, today};
use kept::Kept;
use llama::Programs;
use models::Ready;
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// `args` are the folder of llama.cpp's programs, `--hone BINARY` if it is not to be built, and
/// names of models, all without any.
pub fn run(root: &Path, args: &[&str]) -> ExitCode {
    report("compress", try_run(root, args))
}

fn try_run(root: &Path, args: &[&str]) -> Result<bool, String> {
    let [programs, rest @ ..] = args else {
        return Err("give the folder of llama.cpp's programs, such as build/bin".to_owned());
    };
    let (hone, names) = match rest {
        ["--hone", hone, names @ ..] => (Some(Path::new(hone)), names),
        names => (None, names),
    };
    let known = models::ALL.map(|model| model.name);
    if let Some(unknown) = names.iter().find(|name| !known.contains(name)) {
        return Err(format!("there is no model `{unknown}`; there are {}", known.join(", ")));
    }
    let programs = Programs::new(Path::new(programs))?;
    let bench = Bench::new(Place::new(root, "compress", hone)?)?;
    for model in models::ALL.iter().filter(|m| names.is_empty() || names.contains(&m.name)) {
        let ready = models::prepare(&bench, model)?;
        let measured = measure(&bench, &programs, &ready)?;
        page::keep(&bench.place, model, &measured)?;
        // Model by model, as a run takes hours.
        page::write(&bench.place)?;
    }
    Ok(page::verdicts(&page::kept(&bench.place)).iter().all(|verdict| verdict.reached()))
}

/// What all steps share.
struct Bench {
    place: Place,
    python: PathBuf,
    kept: Kept,
    /// Of files, which are only here.
    files: Kept,
    /// As `hone --version` says it.
    version: String,
}

impl Bench {
    fn new(place: Place) -> Result<Self, String> {
        let python = venv(&place.root)?;
        let here = format!("{}, {}", today()?, place.machine()?);
        let kept = Kept::dated(&place.root.join("docs/benchmarks/compress"), here);
        let files = Kept::new(&place.dir.join("kept"));
        let version = said(Command::new(&place.hone).arg("--version"))?.trim().to_owned();
        Ok(Self { place, python, kept, files, version })
    }

    /// The file of a step that makes files.
    fn path(&self, name: &str) -> PathBuf {
        self.place.dir.join(name)
    }

    /// The file in this benchmark's folder, made aside first if it is missing, or was made from
    /// other inputs, files and words.
    fn made(
        &self,
        file: PathBuf,
        inputs: (&[&Path], &str),
        make: impl FnOnce(&Path) -> Result<(), String>,
    ) -> Result<PathBuf, String> {
        let key = file.strip_prefix(&self.place.dir).unwrap_or(&file).display().to_string();
        self.unless_there(&file, &key, inputs, || {
            let name = file.file_name().unwrap_or_default().to_string_lossy();
            let aside = file.with_file_name(format!("part-{name}"));
            remove(&aside);
            make(&aside)?;
            fs::rename(&aside, &file).map_err(|error| format!("{}: {error}", file.display()))?;
            remove(&aside);
            Ok(Value::Null)
        })?;
        Ok(file)
    }

    /// Does the step that makes a file, unless it is there and was made from these inputs.
    fn unless_there(
        &self,
        file: &Path,
        key: &str,
        inputs: (&[&Path], &str),
        make: impl FnOnce() -> Result<Value, String>,
    ) -> Result<Value, String> {
        if !file.is_file() {
            self.files.forget(key);
        }
        self.files.step(key, inputs, make)
    }

    /// Runs a script of `bench/` where models and texts live.
    fn script(&self, name: &str, args: &[&str]) -> Result<(), String> {
        let mut command = Command::new(&self.python);
        command.arg(self.place.root.join("bench").join(name)).args(args);
        said(command.current_dir(&self.place.dir)).map(drop)
    }

    /// Hone, where models and texts live.
    fn hone(&self, verb: &str) -> Command {
        let mut command = Command::new(&self.place.hone);
        command.arg(verb).current_dir(&self.place.dir);
        command
    }
}

/// All figures of a model.
fn measure(bench: &Bench, programs: &Programs, ready: &Ready) -> Result<Value, String> {
    let base = programs.base(bench, ready)?;
    let mut rows = programs.rows(bench, ready, &base)?;
    let ours = ours::rows(bench, programs, ready, &base, &rows)?;
    rows.extend(ours);
    let tasks = tasks::measure(bench, ready)?;
    let theirs = llama::autoround(bench, programs, ready, &base)?;
    rows.extend(ours::of_no_more_bytes(bench, programs, ready, &base, &theirs)?);
    rows.extend(theirs);
    let techniques = ours::techniques(bench, programs, ready, &base, &rows)?;
    Ok(json!({
        "parameters": ready.parameters,
        "bf16_bytes": 2 * ready.parameters,
        "llama_cpp": programs.version()?,
        "loss": models::losses(bench, ready)?,
        "rows": rows,
        "techniques": techniques,
        "tasks": tasks,
    }))
}

/// The folder of a model in f32, made if it is missing: SmolLM2 off its grid but not fine-tuned,
/// the model that is pre-trained, or stories260k.
pub(super) fn base_of(root: &Path, hone: &Path, name: &str) -> Result<PathBuf, String> {
    if name == "stories" {
        return Ok(root.join("../shared/models/stories260k"));
    }
    let bench = &Bench::new(Place::new(root, "compress", Some(hone))?)?;
    match name {
        "second" => {
            models::texts(bench)?;
            models::second(bench)
        }
        _ => models::folded(bench),
    }
}

/// What a command says, both of its outputs after one another; an error if it fails.
pub(super) fn said(command: &mut Command) -> Result<String, String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    match output.status.success() {
        true => Ok(text),
        false => {
            let lines: Vec<&str> = text.lines().collect();
            let last = lines[lines.len().saturating_sub(20)..].join("\n");
            Err(format!("{command:?}:\n{last}"))
        }
    }
}

/// Removes a file, and the model card and the work beside it, that an ended run may have left: with
/// what is there of it the next one would take less time.
pub(crate) fn remove(file: &Path) {
    let _ = fs::remove_file(file);
    let _ = fs::remove_file(file.with_extension("md"));
    let mut work = file.as_os_str().to_owned();
    work.push(".work");
    let _ = fs::remove_dir_all(work);
}

pub(super) fn size(file: &Path) -> Result<u64, String> {
    let about = fs::metadata(file).map_err(|error| format!("{}: {error}", file.display()))?;
    Ok(about.len())
}
