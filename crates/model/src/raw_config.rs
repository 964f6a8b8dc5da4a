//! JSON objects of foreign configuration files, read key by key, and their errors.

use hone_tensor::gguf::GgufError;
use serde_json::{Map, Value};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::path::{Path, PathBuf};

/// Largest accepted `config.json`; real ones have a few kilobytes.
const MAX_BYTES: u64 = 4 << 20;

/// Why a `config.json` cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// An adapter was given as the model.
    #[error(
        "{}: this is an adapter, not a model; give the model it was trained for, and this \
         directory with --adapter",
        dir.display()
    )]
    IsAdapter {
        /// Directory.
        dir: PathBuf,
    },
    /// The file cannot be read.
    #[error(
        "{}: {source}. A model directory in Hugging Face layout contains a config.json",
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
    /// The model family is not supported.
    #[error(
        "{}: model_type `{model_type}` is not supported yet; supported: {supported}",
        path.display()
    )]
    Family {
        /// File.
        path: PathBuf,
        /// The family.
        model_type: String,
        /// The supported families.
        supported: String,
    },
    /// A GGUF file cannot be read.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// A key is missing or has an invalid value.
    #[error("{}: `{key}` {problem}", path.display())]
    Key {
        /// File.
        path: PathBuf,
        /// Key.
        key: String,
        /// What is wrong, and what was expected.
        problem: String,
    },
}

/// A JSON object from a configuration file, read key by key.
pub struct RawConfig {
    path: PathBuf,
    /// Path of this object inside the file, with a trailing dot; empty at the top level.
    prefix: String,
    object: Map<String, Value>,
    /// What the file calls keys that were translated.
    names: BTreeMap<String, String>,
    /// Keys that were read, so that unknown ones can be reported.
    read: RefCell<BTreeSet<String>>,
}

impl RawConfig {
    /// Reads a file that contains one object.
    ///
    /// # Errors
    /// [`ConfigError`], naming the file.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        Self::read_up_to(path, MAX_BYTES)
    }

    /// Reads a file of at most `max_bytes` that contains one object.
    ///
    /// # Errors
    /// [`ConfigError`], naming the file.
    pub fn read_up_to(path: &Path, max_bytes: u64) -> Result<Self, ConfigError> {
        let io = |source| ConfigError::Io { path: path.to_owned(), source };
        let json = |reason: String| ConfigError::Json { path: path.to_owned(), reason };
        let size = std::fs::metadata(path).map_err(io)?.len();
        if size > max_bytes {
            return Err(json(format!("{size} bytes are too many: the limit is {max_bytes}")));
        }
        let text = std::fs::read(path).map_err(io)?;
        if text.starts_with(b"version https://git-lfs.github.com/spec/") {
            let reason = "a git-lfs pointer, not the file: fetch it with `git lfs pull`";
            return Err(json(reason.to_owned()));
        }
        let value = serde_json::from_slice(&text);
        match value.map_err(|e| json(format!("not valid JSON: {e}")))? {
            Value::Object(object) => Ok(Self::new(path.to_owned(), String::new(), object)),
            other => Err(json(format!("expected a JSON object, found {}", kind(&other)))),
        }
    }

    fn new(path: PathBuf, prefix: String, object: Map<String, Value>) -> Self {
        Self { path, prefix, object, names: BTreeMap::new(), read: RefCell::default() }
    }

    /// A configuration that was translated from a file which calls some keys by other `names`.
    pub(crate) fn translated(
        path: PathBuf,
        object: Map<String, Value>,
        names: BTreeMap<String, String>,
    ) -> Self {
        Self { names, ..Self::new(path, String::new(), object) }
    }

    /// The same object with `names` of keys, each with what the file calls it, and without those
    /// that do not matter. Whoever asks for it looks for unknown keys there.
    ///
    /// # Errors
    /// If a key is there under both names, with values that differ.
    pub(crate) fn renamed(
        &self,
        names: &[(&str, &str)],
        without: &[&str],
    ) -> Result<Self, ConfigError> {
        for (ours, theirs) in names {
            if let (Some(here), Some(there)) = (self.get(theirs), self.get(ours))
                && here != there
            {
                let problem = format!("is {here}, but `{ours}`, which means the same, is {there}");
                return Err(self.ruled_out(theirs, problem));
            }
        }
        let read = self.read.clone();
        self.read.borrow_mut().extend(self.object.keys().cloned());
        let ours = |key: &String| names.iter().find(|(_, theirs)| theirs == key);
        let kept = self.object.iter().filter(|(key, _)| !without.contains(&key.as_str()));
        let entry = |(key, value): (&String, &Value)| {
            let key = ours(key).map_or(key.as_str(), |(ours, _)| ours);
            (key.to_owned(), value.clone())
        };
        let object = kept.map(entry).collect();
        let names = names.iter().map(|(ours, theirs)| ((*ours).to_owned(), (*theirs).to_owned()));
        let new = Self::new(self.path.clone(), self.prefix.clone(), object);
        Ok(Self { names: names.collect(), read, ..new })
    }

    /// All of it.
    pub(crate) fn into_object(self) -> Map<String, Value> {
        self.object
    }

    /// Path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// An error about a key of this object.
    pub fn error(&self, key: &str, problem: impl Into<String>) -> ConfigError {
        let translated = || format!("{}{key}", self.prefix);
        let key = self.names.get(key).cloned().unwrap_or_else(translated);
        ConfigError::Key { path: self.path.clone(), key, problem: problem.into() }
    }

    /// What the file calls a key, for messages about another.
    pub(crate) fn name<'a>(&'a self, key: &'a str) -> &'a str {
        self.names.get(key).map_or(key, String::as_str)
    }

    /// Whether the object has no keys.
    pub fn is_empty(&self) -> bool {
        self.object.is_empty()
    }

    /// The keys, in the file's order.
    pub(crate) fn keys(&self) -> Vec<String> {
        self.object.keys().cloned().collect()
    }

    /// The value of a key; `null` counts as absent.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.read.borrow_mut().insert(key.to_owned());
        self.object.get(key).filter(|v| !v.is_null())
    }

    /// Whether a key is there, and not `null`.
    pub fn has(&self, key: &str) -> bool {
        self.object.get(key).is_some_and(|value| !value.is_null())
    }

    /// Whether a key is there and says `null`, for keys whose absence means something else.
    pub fn is_null(&self, key: &str) -> bool {
        self.object.get(key).is_some_and(Value::is_null)
    }

    /// The first key that was not read, is not among the `neutral` ones, and is set to something:
    /// its meaning is unknown, so it may affect what is computed.
    pub fn first_unread(&self, neutral: &[&str]) -> Option<(&str, &Value)> {
        let read = self.read.borrow();
        let is_unread = |key: &str, value: &Value| {
            let is_private = key.starts_with('_');
            !(is_private || read.contains(key) || neutral.contains(&key) || is_unset(value))
        };
        let keys = self.object.iter().map(|(key, value)| (key.as_str(), value));
        keys.into_iter().find(|(key, value)| is_unread(key, value))
    }

    /// Refuses the key that [`Self::first_unread`] finds.
    ///
    /// # Errors
    /// If there is such a key.
    pub fn refuse_unread(&self, neutral: &[&str]) -> Result<(), ConfigError> {
        let Some((key, value)) = self.first_unread(neutral) else { return Ok(()) };
        let problem = format!(
            "is {value}, but Hone does not know this key, which may change what the model \
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
                Ok(Some(Self::new(path, prefix, object.clone())))
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
    /// If it is something else, or larger than any model has.
    pub fn optional_size(&self, key: &str) -> Result<Option<usize>, ConfigError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_u64() {
            // Sums of a few products of two sizes must not overflow.
            Some(n) if (1..1 << 31).contains(&n) => Ok(Some(n as usize)),
            _ => Err(self.unexpected(key, "a whole number from 1 to 2147483647", value)),
        }
    }

    /// Refuses an unsupported setting that would change what a model computes.
    ///
    /// # Errors
    /// If it is present with a value other than `neutral`.
    pub fn expect_neutral(&self, key: &str, neutral: f64) -> Result<(), ConfigError> {
        match self.get(key) {
            Some(value) if value.as_f64() != Some(neutral) => {
                let remedy = match neutral == 0.0 {
                    // Dropout and noise.
                    true => "set it to 0, which changes training alone",
                    false => "use a checkpoint that was trained with it",
                };
                let problem =
                    format!("is {value}, which is not supported; only {neutral} is: {remedy}");
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

    /// A boolean, `default` if absent.
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

    /// An error about a key that is needed.
    pub(crate) fn missing(&self, key: &str) -> ConfigError {
        self.ruled_out(key, "is missing and has no default")
    }

    /// An error about a value that others of the file rule out, or that no model has.
    pub(crate) fn ruled_out(&self, key: &str, problem: impl Display) -> ConfigError {
        self.error(key, format!("{problem}: take the file from the source of the weights"))
    }

    /// An error about a key whose value is not of the `expected` kind.
    pub fn unexpected(&self, key: &str, expected: &str, found: &Value) -> ConfigError {
        self.error(key, format!("must be {expected}, found {found}"))
    }
}

/// Whether a value is the same as leaving out its key.
fn is_unset(value: &Value) -> bool {
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
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
