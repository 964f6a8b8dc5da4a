//! The directory of a run: what is in it, and what a resumed run must find there.

mod claim;

use crate::checkpoint::{sha256_of_file, write_file_whole};
use crate::error::TrainError;
use crate::machine;
use crate::planner::{Plan, Policy};
use crate::run_file::RunFile;
use crate::sample::Sample;
use crate::setup::Setup;
use hone_data::Dataset;
use hone_model::Recompute;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

pub use claim::Claim;

/// Paths inside a run's directory.
pub struct RunDir(PathBuf);

impl RunDir {
    /// The directory `output.dir` of a run.
    pub fn new(dir: &Path) -> Self {
        Self(dir.to_owned())
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// A file or directory in it.
    pub fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Where checkpoints are.
    pub fn checkpoints(&self) -> PathBuf {
        self.join("checkpoints")
    }

    /// Whether a run was begun here. A `run.toml` alone may be one that a user wrote.
    pub fn holds_run(&self) -> bool {
        self.join("run.toml").exists() && self.join("manifest.json").exists()
    }

    /// When the run here was begun, in seconds since 1970.
    pub fn begun_at(&self) -> Option<i64> {
        self.holds_run().then(|| self.read_manifest().ok()?["created_unix"].as_i64()).flatten()
    }

    /// Checks that a new run may take the directory, as far as that shows without writing.
    ///
    /// # Errors
    /// If a run, other files or a file of that name are there already.
    pub fn check_free(&self) -> Result<(), TrainError> {
        let dir = self.0.display();
        if self.0.exists() && !self.0.is_dir() {
            return Err(TrainError::Usage(format!(
                "output.dir: {dir} is a file. Name an empty or a new directory"
            )));
        }
        if self.holds_run() {
            return Err(TrainError::Usage(format!(
                "output.dir: {dir} already holds a run. Continue it with --resume, or name another \
                 directory (output.dir=… on the command line)"
            )));
        }
        if self.holds_other_files() {
            return Err(TrainError::Usage(format!(
                "output.dir: {dir} holds other files. Name an empty or a new directory"
            )));
        }
        Ok(())
    }

    /// Whether there is more than a run leaves that was killed at its very beginning.
    fn holds_other_files(&self) -> bool {
        let entries = |dir: &Path| std::fs::read_dir(dir).into_iter().flatten().flatten();
        let is_left_over = |name: &str| match name {
            "checkpoints" => entries(&self.checkpoints()).next().is_none(),
            _ => [claim::LOCK, "manifest.json", ".tmp-manifest.json", ".tmp-run.toml"]
                .contains(&name),
        };
        entries(&self.0).any(|entry| !entry.file_name().to_str().is_some_and(is_left_over))
    }

    /// Writes `manifest.json` and `run.toml` of a new run; `run.toml` last, since with it the run
    /// counts as begun. When that fails, `claim` leaves nothing behind.
    ///
    /// # Errors
    /// If the directory cannot be written.
    pub fn begin(&self, claim: &mut Claim, setup: &Setup, plan: &Plan) -> Result<(), TrainError> {
        let manifest = manifest(setup, plan)?;
        let checkpoints = self.checkpoints();
        std::fs::create_dir_all(&checkpoints).map_err(TrainError::io(&checkpoints))?;
        self.write_json("manifest.json", &manifest)?;
        write_file_whole(&self.join("run.toml"), setup.run.to_toml().as_bytes())?;
        claim.keep();
        Ok(())
    }

    /// Checks that the run begun here is the one that `setup` describes, and returns its policy:
    /// other micro-batches would give other roundings.
    ///
    /// # Errors
    /// If settings or input files have changed since.
    pub fn check_same(&self, setup: &Setup) -> Result<Policy, TrainError> {
        if setup.begun_at != self.begun_at() {
            return Err(TrainError::Usage(format!(
                "--resume: another process began the run in {} while this one was getting ready; \
                 run the command again",
                self.0.display()
            )));
        }
        let path = self.join("run.toml");
        let begun = RunFile::load(&path, &[])?;
        let changed = begun.changed_keys(&setup.run);
        if !changed.is_empty() {
            return Err(TrainError::Usage(format!(
                "--resume: the settings are not those that {} was begun with:\n  {}\nChange them \
                 back, or start a new run in another output.dir",
                self.0.display(),
                changed.join("\n  ")
            )));
        }
        let manifest = self.read_manifest()?;
        let (then, now) = (manifest["plan"]["gpu"].as_str(), setup.place.gpu_name());
        if then != now {
            let shown = |gpu: Option<&str>| gpu.unwrap_or("the CPU").to_owned();
            return Err(TrainError::Usage(format!(
                "--resume: {} was begun on {}, and run.device is now {}, which rounds otherwise. \
                 Set run.device so that it is the same, or start a new run in another output.dir",
                self.0.display(),
                shown(then),
                shown(now)
            )));
        }
        let inputs = input_files(setup)?;
        if manifest["inputs"] != inputs {
            return Err(TrainError::Usage(format!(
                "--resume: a model or data file has changed since {} was begun: {}. Put the files \
                 back, or start a new run in another output.dir",
                self.0.display(),
                changed_input(&manifest["inputs"], &inputs)
            )));
        }
        let tokens = manifest["plan"]["micro_batch_tokens"].as_u64().unwrap_or(0) as usize;
        let recompute = match manifest["plan"]["recompute"].as_str() {
            Some("block") => Recompute::Block,
            _ => Recompute::None,
        };
        Ok(Policy { units: (tokens / setup.max_seq_len).max(1), recompute })
    }

    /// Adds what really happened to `manifest.json`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn finish(&self, actual: Value) -> Result<(), TrainError> {
        let mut manifest = self.read_manifest()?;
        manifest["actual"] = actual;
        self.write_json("manifest.json", &manifest)
    }

    /// The samples written before.
    pub fn read_samples(&self) -> Option<Vec<Sample>> {
        let text = std::fs::read_to_string(self.join("samples.json")).ok()?;
        serde_json::from_str(&text).ok()
    }

    /// Writes `samples.json`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write_samples(&self, samples: &[Sample]) -> Result<(), TrainError> {
        self.write_json("samples.json", &json!(samples))
    }

    fn write_json(&self, name: &str, value: &Value) -> Result<(), TrainError> {
        let text = serde_json::to_string_pretty(value).expect("a JSON value can be written");
        write_file_whole(&self.join(name), text.as_bytes())?;
        Ok(())
    }

    fn read_manifest(&self) -> Result<Value, TrainError> {
        let path = self.join("manifest.json");
        let text = std::fs::read_to_string(&path).map_err(TrainError::io(&path))?;
        serde_json::from_str(&text).map_err(|error| {
            TrainError::Usage(format!(
                "{}: damaged ({error}). Start a new run in another output.dir",
                path.display()
            ))
        })
    }
}

fn manifest(setup: &Setup, plan: &Plan) -> Result<Value, TrainError> {
    let inputs = input_files(setup)?;
    let now = jiff::Timestamp::now();
    let data = |dataset: &Dataset, files: &Value| {
        let mut report = serde_json::to_value(dataset.report()).expect("a report is plain data");
        for (file, input) in report["files"]
            .as_array_mut()
            .into_iter()
            .flatten()
            .zip(files.as_array().into_iter().flatten())
        {
            file["path"] = input["path"].clone();
            file["sha256"] = input["sha256"].clone();
        }
        report
    };
    Ok(json!({
        "hone_version": env!("CARGO_PKG_VERSION"),
        "created": now.strftime("%Y-%m-%d %H:%M UTC").to_string(),
        "created_unix": now.as_second(),
        "machine": {
            "cpu": machine::cpu_name(),
            "threads": setup.threads,
            "memory_bytes": machine::total_memory(),
        },
        "model": {
            "path": setup.run.model.path,
            "parameters": setup.config.num_parameters(),
            "trainable_parameters": plan.trainable_parameters,
            "files": inputs["model"],
        },
        "data": {
            "train": data(&setup.train, &inputs["train"]),
            "eval": setup.eval.as_ref().map(|(eval, _)| data(eval, &inputs["eval"])),
        },
        "inputs": inputs,
        "plan": plan,
    }))
}

/// Path and SHA-256 of every file that the result depends on.
fn input_files(setup: &Setup) -> Result<Value, TrainError> {
    let model = model_files(&setup.model_dir)?;
    let adapter = setup.init_adapter.as_ref().map(|dir| model_files(dir)).transpose()?;
    let data = |dataset: &Dataset| -> Result<Vec<Value>, TrainError> {
        dataset.report().files.iter().map(|file| digest(Path::new(&file.file))).collect()
    };
    let eval = setup.eval.as_ref().map(|(eval, _)| data(eval)).transpose()?;
    let train = data(&setup.train)?;
    Ok(json!({ "model": model, "adapter": adapter, "train": train, "eval": eval }))
}

fn model_files(dir: &Path) -> Result<Vec<Value>, TrainError> {
    let entries = std::fs::read_dir(dir).map_err(TrainError::io(dir))?.flatten();
    let files = entries.map(|entry| entry.path()).filter(|path| is_model_file(path));
    let files: BTreeSet<PathBuf> = files.collect();
    files.iter().map(|path| digest(path)).collect()
}

fn is_model_file(path: &Path) -> bool {
    path.extension().is_some_and(|e| e == "safetensors" || e == "json" || e == "jinja")
        && path.is_file()
}

fn digest(path: &Path) -> Result<Value, TrainError> {
    let bytes = std::fs::metadata(path).map_err(TrainError::io(path))?.len();
    Ok(json!({
        "path": path.display().to_string(),
        "bytes": bytes,
        "sha256": sha256_of_file(path)?,
    }))
}

/// The first file that is not what it was.
fn changed_input(old: &Value, new: &Value) -> String {
    for group in ["model", "adapter", "train", "eval"] {
        let files = |value: &Value| value[group].as_array().cloned().unwrap_or_default();
        let old = files(old);
        if let Some(file) = files(new).into_iter().find(|file| !old.contains(file)) {
            return file["path"].as_str().unwrap_or("?").to_owned();
        }
    }
    "a file is missing".to_owned()
}
