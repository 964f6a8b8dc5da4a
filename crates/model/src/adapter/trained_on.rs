//! The model that an adapter was trained on, known by a digest of its weights: the adapter's
//! directory has it in a file of Hone's own, which PEFT does not read, and a GGUF file in its
//! metadata. Adapters that other programs wrote have none, and are taken as they are.

use super::AdapterError;
use crate::gguf::is_gguf;
use crate::load::ModelFiles;
use crate::raw_config::ConfigError;
use hone_tensor::gguf::{GgufFile, Meta, Value};
use serde::{Deserialize, Serialize};
use std::io::ErrorKind;
use std::path::Path;

/// In an adapter's directory.
const FILE: &str = "base.json";

/// In the metadata of a GGUF file.
const NAME: &str = "hone.base.name";
const WEIGHTS: &str = "hone.base.weights_sha256";
const FILES: &str = "hone.base.files";

/// The model that an adapter was trained on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrainedOn {
    /// As the run file named it.
    pub name: String,
    /// [`ModelFiles::weights_sha256`].
    pub weights_sha256: String,
    /// Its weight files with the SHA-256 of each, as `sha256sum` prints them.
    pub files: Vec<String>,
}

impl TrainedOn {
    /// What the adapter's directory or GGUF file says; `None` if it says nothing.
    ///
    /// # Errors
    /// If what it says is damaged, or cannot be read.
    pub fn read(adapter: &Path) -> Result<Option<Self>, AdapterError> {
        if is_gguf(adapter) {
            return Self::of_gguf(adapter);
        }
        let path = adapter.join(FILE);
        let text = match std::fs::read_to_string(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            text => text.map_err(|source| AdapterError::Io { path: path.clone(), source })?,
        };
        serde_json::from_str(&text).map(Some).map_err(|error| {
            let problem = format!(
                "does not say which model the adapter was trained on ({error}): fetch or write the \
                 adapter again"
            );
            AdapterError::Mismatch { path, problem }
        })
    }

    fn of_gguf(path: &Path) -> Result<Option<Self>, AdapterError> {
        let file = GgufFile::open(path).map_err(ConfigError::from)?;
        let text = |key: &str| match file.get(key) {
            Some(Value::Text(text)) => Some(text.to_owned()),
            _ => None,
        };
        let Some(weights_sha256) = text(WEIGHTS) else { return Ok(None) };
        let files = match file.get(FILES) {
            Some(Value::Array(files)) => files.iter().filter_map(Result::ok).collect(),
            _ => Vec::new(),
        };
        let line = |value: Value<'_>| match value {
            Value::Text(line) => Some(line.to_owned()),
            _ => None,
        };
        let files = files.into_iter().filter_map(line).collect();
        Ok(Some(Self { name: text(NAME).unwrap_or_default(), weights_sha256, files }))
    }

    /// Writes it into an adapter's directory.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn write(&self, dir: &Path) -> Result<(), AdapterError> {
        let text = serde_json::to_string_pretty(self).expect("strings can be written");
        let path = dir.join(FILE);
        std::fs::write(&path, text).map_err(|source| AdapterError::Io { path, source })
    }

    /// The keys of a GGUF file.
    pub fn metadata(&self) -> [(&'static str, Meta); 3] {
        [
            (NAME, Meta::Text(self.name.clone())),
            (WEIGHTS, Meta::Text(self.weights_sha256.clone())),
            (FILES, Meta::Texts(self.files.clone())),
        ]
    }

    /// Refuses the model that is called `model` if `adapter` was trained on other weights.
    ///
    /// # Errors
    /// [`AdapterError::OtherBase`], or if what the adapter says or the model's weights cannot be
    /// read.
    pub fn check(adapter: &Path, (model, files): (&str, &ModelFiles)) -> Result<(), AdapterError> {
        let Some(trained_on) = Self::read(adapter)? else { return Ok(()) };
        let found = files.weights_sha256()?;
        if found == trained_on.weights_sha256 {
            return Ok(());
        }
        let (adapter, model) = (adapter.to_owned(), model.to_owned());
        Err(AdapterError::OtherBase { adapter, trained_on: Box::new(trained_on), model, found })
    }
}
