//! Figures of steps, kept with a digest of what they were made from.

use crate::bits::digest::{hexadecimal, of_file};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use std::cell::RefCell;
use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

pub struct Kept {
    dir: PathBuf,
    /// Day and machine, which what a step gives then has as `measured`.
    here: Option<String>,
    /// Of files, which do not change while the benchmark runs.
    digests: RefCell<HashMap<PathBuf, String>>,
}

impl Kept {
    pub fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), here: None, digests: RefCell::default() }
    }

    /// The same, with day and machine in what steps give.
    pub fn dated(dir: &Path, here: String) -> Self {
        Self { here: Some(here), ..Self::new(dir) }
    }

    /// Has step `key` done again.
    pub fn forget(&self, key: &str) {
        let _ = fs::remove_file(self.path(key));
    }

    fn path(&self, key: &str) -> PathBuf {
        self.dir.join(format!("{key}.json"))
    }

    /// What step `key` gave, if it had the same files and the same words as inputs; otherwise what
    /// it gives now.
    pub fn step(
        &self,
        key: &str,
        (files, words): (&[&Path], &str),
        make: impl FnOnce() -> Result<Value, String>,
    ) -> Result<Value, String> {
        let mut inputs = Sha256::new_with_prefix(words);
        for file in files {
            inputs.update(self.digest(file)?);
        }
        let inputs = hexadecimal(inputs);
        let path = self.path(key);
        let failed = |error: io::Error| format!("{}: {error}", path.display());
        let before = fs::read(&path).unwrap_or_default();
        let before: Value = serde_json::from_slice(&before).unwrap_or_default();
        if before["inputs"] == inputs {
            return Ok(before["value"].clone());
        }
        eprintln!("{key}");
        let mut value = make()?;
        if let (Some(of), Some(here)) = (value.as_object_mut(), &self.here) {
            of.insert("measured".to_owned(), here.as_str().into());
        }
        let text = format!("{:#}\n", json!({ "inputs": inputs, "value": value }));
        fs::create_dir_all(path.parent().unwrap_or(&self.dir)).map_err(failed)?;
        // Aside, since a run may be ended here too.
        let aside = path.with_extension("part");
        fs::write(&aside, text).and_then(|()| fs::rename(&aside, &path)).map_err(failed)?;
        Ok(value)
    }

    fn digest(&self, file: &Path) -> Result<String, String> {
        if let Some(known) = self.digests.borrow().get(file) {
            return Ok(known.clone());
        }
        let digest = of_file(file)?;
        self.digests.borrow_mut().insert(file.to_owned(), digest.clone());
        Ok(digest)
    }
}
