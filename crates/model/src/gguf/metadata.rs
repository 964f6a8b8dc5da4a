//! A file's metadata, read key by key, with errors that name file and key.

use crate::raw_config::ConfigError;
use hone_tensor::gguf::{GgufFile, Value};
use std::cell::RefCell;
use std::collections::BTreeSet;

/// The metadata of a file.
pub(super) struct Metadata<'a> {
    pub(super) file: &'a GgufFile,
    /// Keys that were read, so that unknown ones can be reported.
    read: RefCell<BTreeSet<String>>,
}

impl<'a> Metadata<'a> {
    pub(super) fn new(file: &'a GgufFile) -> Self {
        Self { file, read: RefCell::default() }
    }

    pub(super) fn get(&self, key: &str) -> Option<Value<'a>> {
        self.read.borrow_mut().insert(key.to_owned());
        self.file.get(key)
    }

    pub(super) fn error(&self, key: &str, problem: impl Into<String>) -> ConfigError {
        let (path, key) = (self.file.path().to_owned(), key.to_owned());
        ConfigError::Key { path, key, problem: problem.into() }
    }

    pub(super) fn unexpected(&self, key: &str, expected: &str, found: Value<'_>) -> ConfigError {
        let found = match found {
            Value::Integer(n) => n.to_string(),
            Value::Float(x) => x.to_string(),
            Value::Bool(flag) => flag.to_string(),
            Value::Text(_) | Value::Array(_) => found.kind().to_owned(),
        };
        self.error(key, format!("must be {expected}, found {found}"))
    }

    pub(super) fn text(&self, key: &str) -> Result<Option<&'a str>, ConfigError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Text(text)) => Ok(Some(text)),
            Some(other) => Err(self.unexpected(key, "a string", other)),
        }
    }

    pub(super) fn flag(&self, key: &str) -> Result<Option<bool>, ConfigError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(flag)),
            Some(other) => Err(self.unexpected(key, "true or false", other)),
        }
    }

    /// A whole number that is not negative.
    pub(super) fn size(&self, key: &str) -> Result<Option<u64>, ConfigError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value {
            Value::Integer(n) if u64::try_from(n).is_ok() => Ok(Some(n as u64)),
            other => Err(self.unexpected(key, "a whole number", other)),
        }
    }

    pub(super) fn number(&self, key: &str) -> Result<Option<f64>, ConfigError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value {
            Value::Integer(n) => Ok(Some(n as f64)),
            Value::Float(x) if x.is_finite() => Ok(Some(x)),
            other => Err(self.unexpected(key, "a number", other)),
        }
    }

    /// The id of a token.
    pub(super) fn token_id(&self, key: &str) -> Result<Option<u32>, ConfigError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value {
            Value::Integer(n) if u32::try_from(n).is_ok() => Ok(Some(n as u32)),
            other => Err(self.unexpected(key, "a token id", other)),
        }
    }

    /// Refuses a key with this beginning that was not read: it may change what is computed.
    pub(super) fn refuse_unread(&self, prefix: &str) -> Result<(), ConfigError> {
        let read = self.read.borrow();
        let mut keys = self.file.keys().filter(|key| key.starts_with(prefix));
        let is_unset =
            |value| matches!(value, Some(Value::Integer(0) | Value::Bool(false) | Value::Text("")));
        let Some(key) = keys.find(|key| !read.contains(*key) && !is_unset(self.file.get(key)))
        else {
            return Ok(());
        };
        let problem = "is set, but Hone does not know this key, which may change what the model \
                       computes: give the model's directory in Hugging Face layout instead";
        Err(self.error(key, problem))
    }
}
