//! JSON objects of foreign configuration files, read key by key, and what may be wrong with them.

use serde_json::{Map, Value};
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Largest `config.json` that is read: real ones have a few kilobytes.
const MAX_BYTES: u64 = 4 << 20;

/// Why a `config.json` cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// An adapter where a model was asked for.
    #[error(
        "{}: this is an adapter, not a model; name the model it was made for, and this directory \
         with --adapter",
        dir.display()
    )]
    IsAdapter {
        /// Directory.
        dir: PathBuf,
    },
    /// The file cannot be read.
    #[error(
        "{}: {source}. A model directory in Hugging Face layout holds a config.json",
        path.display()
    )]
    Io {
        /// File.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Not a JSON object.
    #[error("{}: {reason}", path.display())]
    Json {
        /// File.
        path: PathBuf,
        /// Where and what.
        reason: String,
    },
    /// Another kind of model.
    #[error(
        "{}: model_type `{model_type}` is not supported yet; supported: {supported}",
        path.display()
    )]
    Family {
        /// File.
        path: PathBuf,
        /// What it says.
        model_type: String,
        /// What there is.
        supported: String,
    },
    /// A key is missing, or has a value that does not fit.
    #[error("{}: `{key}` {problem}", path.display())]
    Key {
        /// File.
        path: PathBuf,
        /// Key.
        key: String,
        /// What is wrong, and what would be right.
        problem: String,
    },
}

/// A JSON object from a configuration file, read key by key.
pub struct RawConfig {
    path: PathBuf,
    /// Key of this object inside the file, with a trailing dot; empty at the top.
    prefix: String,
    object: Map<String, Value>,
    /// Keys that were asked for, so that those that nobody knows can be told.
    asked: RefCell<BTreeSet<String>>,
}

impl RawConfig {
    /// Reads a file that holds one object.
    ///
    /// # Errors
    /// [`ConfigError`], naming the file.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        Self::read_up_to(path, MAX_BYTES)
    }

    /// The same, with another limit to the file's size.
    ///
    /// # Errors
    /// [`ConfigError`], naming the file.
    pub fn read_up_to(path: &Path, max_bytes: u64) -> Result<Self, ConfigError> {
        let io = |source| ConfigError::Io { path: path.to_owned(), source };
        let json = |reason: String| ConfigError::Json { path: path.to_owned(), reason };
        let size = std::fs::metadata(path).map_err(io)?.len();
        if size > max_bytes {
            return Err(json(format!("{size} bytes are too many: at most {max_bytes} are read")));
        }
        let text = std::fs::read(path).map_err(io)?;
        if text.starts_with(b"version https://git-lfs.github.com/spec/") {
            let reason = "a pointer of git-lfs, not the file: fetch it with `git lfs pull`";
            return Err(json(reason.to_owned()));
        }
        let value = serde_json::from_slice(&text);
        match value.map_err(|e| json(format!("not valid JSON: {e}")))? {
            Value::Object(object) => Ok(Self::of(path.to_owned(), String::new(), object)),
            other => Err(json(format!("expected a JSON object, found {}", kind(&other)))),
        }
    }

    fn of(path: PathBuf, prefix: String, object: Map<String, Value>) -> Self {
        Self { path, prefix, object, asked: RefCell::default() }
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// An error about a key of this object.
    pub fn error(&self, key: &str, problem: impl Into<String>) -> ConfigError {
        let key = format!("{}{key}", self.prefix);
        ConfigError::Key { path: self.path.clone(), key, problem: problem.into() }
    }

    /// Whether there is no key.
    pub fn is_empty(&self) -> bool {
        self.object.is_empty()
    }

    /// The value of a key; `null` counts as absent.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.asked.borrow_mut().insert(key.to_owned());
        self.object.get(key).filter(|v| !v.is_null())
    }

    /// The first key that was not asked for, is none of those `known` to change nothing, and says
    /// something: what it means is not known, so it may change what is computed.
    pub fn first_unread(&self, known: &[&str]) -> Option<(&str, &Value)> {
        let asked = self.asked.borrow();
        let is_unread = |key: &str, value: &Value| {
            let is_private = key.starts_with('_');
            !(is_private || asked.contains(key) || known.contains(&key) || says_nothing(value))
        };
        let keys = self.object.iter().map(|(key, value)| (key.as_str(), value));
        keys.into_iter().find(|(key, value)| is_unread(key, value))
    }

    /// Refuses what [`Self::first_unread`] finds.
    ///
    /// # Errors
    /// If there is such a key.
    pub fn refuse_unread(&self, known: &[&str]) -> Result<(), ConfigError> {
        let Some((key, value)) = self.first_unread(known) else { return Ok(()) };
        let problem = format!(
            "is {value}, and Hone does not know this key, which may change what the model \
             computes: remove it if transformers does not read it for this family"
        );
        Err(self.error(key, problem))
    }

    /// An object inside this one.
    ///
    /// # Errors
    /// If it is something else.
    pub fn object(&self, key: &str) -> Result<Option<RawConfig>, ConfigError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Object(object)) => {
                let (path, prefix) = (self.path.clone(), format!("{}{key}.", self.prefix));
                Ok(Some(Self::of(path, prefix, object.clone())))
            }
            Some(other) => Err(self.unexpected(key, "an object", other)),
        }
    }

    /// A whole number of at least 1.
    ///
    /// # Errors
    /// If it is missing or something else.
    pub fn size(&self, key: &str) -> Result<usize, ConfigError> {
        self.optional_size(key)?.ok_or_else(|| self.missing(key))
    }

    /// A whole number of at least 1, if present.
    ///
    /// # Errors
    /// If it is something else, or beyond what any model has.
    pub fn optional_size(&self, key: &str) -> Result<Option<usize>, ConfigError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_u64() {
            // Sums of a few products of two sizes must not overflow.
            Some(n) if (1..1 << 31).contains(&n) => Ok(Some(n as usize)),
            _ => Err(self.unexpected(key, "a whole number from 1 to 2147483647", value)),
        }
    }

    /// Refuses a setting that would change what a model computes in a way that is not supported.
    ///
    /// # Errors
    /// If it is there with another value than `neutral`.
    pub fn expect_neutral(&self, key: &str, neutral: f64) -> Result<(), ConfigError> {
        match self.get(key) {
            Some(value) if value.as_f64() != Some(neutral) => {
                let problem = format!("is {value}, which is not supported; only {neutral} is");
                Err(self.error(key, problem))
            }
            _ => Ok(()),
        }
    }

    /// A positive, finite number, if present.
    ///
    /// # Errors
    /// If it is something else.
    pub fn optional_number(&self, key: &str) -> Result<Option<f64>, ConfigError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_f64() {
            Some(x) if x.is_finite() && x > 0.0 => Ok(Some(x)),
            _ => Err(self.unexpected(key, "a positive number", value)),
        }
    }

    /// A positive, finite number.
    ///
    /// # Errors
    /// If it is missing or something else.
    pub fn number(&self, key: &str) -> Result<f64, ConfigError> {
        self.optional_number(key)?.ok_or_else(|| self.missing(key))
    }

    /// A truth value, `default` if absent.
    ///
    /// # Errors
    /// If it is something else.
    pub fn flag(&self, key: &str, default: bool) -> Result<bool, ConfigError> {
        match self.get(key) {
            None => Ok(default),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(other) => Err(self.unexpected(key, "true or false", other)),
        }
    }

    /// A string, if present.
    ///
    /// # Errors
    /// If it is something else.
    pub fn text(&self, key: &str) -> Result<Option<&str>, ConfigError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.unexpected(key, "a string", other)),
        }
    }

    /// One token id or a list of them; empty if absent.
    ///
    /// # Errors
    /// If it is something else.
    pub fn token_ids(&self, key: &str) -> Result<Vec<u32>, ConfigError> {
        let id = |v: &Value| v.as_u64().and_then(|id| u32::try_from(id).ok());
        let Some(value) = self.get(key) else { return Ok(Vec::new()) };
        let ids = match value {
            Value::Array(ids) => ids.iter().map(id).collect(),
            one => id(one).map(|id| vec![id]),
        };
        ids.ok_or_else(|| self.unexpected(key, "a token id or a list of them", value))
    }

    fn missing(&self, key: &str) -> ConfigError {
        let mend = "is missing, and no default stands for it: take the file from where the \
                    weights came from";
        self.error(key, mend)
    }

    /// An error about a key whose value is of another kind than `expected`.
    pub fn unexpected(&self, key: &str, expected: &str, found: &Value) -> ConfigError {
        self.error(key, format!("must be {expected}, found {found}"))
    }
}

/// Whether a value asks for nothing.
fn says_nothing(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::Number(_) | Value::String(_) | Value::Bool(true) => false,
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a truth value",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
