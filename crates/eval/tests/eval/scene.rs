//! A tiny model with a tokenizer, and tasks in a folder.

#[path = "../../../model/tests/model/random_weights.rs"]
mod random_weights;

use hone_data::Tokenizer;
use hone_eval::task::{Options, Results, RunOptions, TaskError, group, prepare, run};
use hone_model::{LoadOptions, Model, Pass, load};
use hone_tensor::{Compute, Device};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

pub fn goldens() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens")
}

/// The golden model `tied_gqa` with a tokenizer of characters and a few merges.
pub struct Scene {
    _dir: TempDir,
    device: Device,
    model: Model,
    pub tokenizer: Tokenizer,
}

impl Scene {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        random_weights::write_checkpoint(
            &goldens().join("../../../model/tests/goldens/tied_gqa"),
            dir.path(),
        );
        for name in ["tokenizer.json", "tokenizer_config.json"] {
            std::fs::copy(goldens().join(name), dir.path().join(name)).unwrap();
        }
        let device = Device::cpu(2);
        let model = load(dir.path(), &device, LoadOptions::INFERENCE).unwrap();
        let tokenizer = Tokenizer::from_dir(dir.path()).unwrap();
        Self { _dir: dir, device, model, tokenizer }
    }

    pub fn pass(&self) -> Pass<'_> {
        Pass { device: &self.device, model: &self.model, compute: Compute::F32 }
    }

    /// Evaluates tasks.
    pub fn results(
        &self,
        names: &[PathBuf],
        options: &Options<'_>,
        run_options: RunOptions<'_>,
    ) -> Result<Results, TaskError> {
        let (entries, tasks) = group::load(names, options)?;
        let config = &self.model.decoder.config;
        let mut found = Vec::new();
        for task in &tasks {
            let prepared = prepare(task, &self.tokenizer, config, run_options)?;
            found.push(run(self.pass(), &self.tokenizer, prepared, 2, &mut |_| ())?);
        }
        Ok(Results::new(entries, found))
    }
}

/// Writes files into a folder of their own.
pub fn folder(files: &[(&str, &str)]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in files {
        std::fs::write(dir.path().join(name), text).unwrap();
    }
    dir
}
