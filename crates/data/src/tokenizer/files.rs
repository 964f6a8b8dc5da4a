//! The files of a tokenizer: those of a directory, or texts that stand for them.

use crate::error::DataError;
use crate::reader::lfs_pointer;
use serde_json::{Map, Value};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Largest `tokenizer.json` accepted; the largest known one has 35 MB.
const MAX_TOKENIZER_BYTES: u64 = 512 << 20;
/// Largest side file (configurations, template) accepted.
const MAX_CONFIG_BYTES: u64 = 16 << 20;

const TOKENIZER: &str = "tokenizer.json";
/// What to do without a tokenizer.
pub(super) const NEEDED: &str =
    "give a model directory that holds a tokenizer.json of the tokenizers library";

/// A directory, or another file and what it says.
#[derive(Clone, Copy)]
pub(super) struct Files<'a> {
    path: &'a Path,
    /// By the names of the files they stand for.
    texts: Option<&'a BTreeMap<&'static str, String>>,
}

impl<'a> Files<'a> {
    pub(super) fn of_dir(path: &'a Path) -> Self {
        Self { path, texts: None }
    }

    pub(super) fn of_texts(path: &'a Path, texts: &'a BTreeMap<&'static str, String>) -> Self {
        Self { path, texts: Some(texts) }
    }

    /// The directory or file.
    pub(super) fn path(&self) -> &'a Path {
        self.path
    }

    /// The file to name where the tokenizer itself is at fault.
    pub(super) fn tokenizer(&self) -> PathBuf {
        self.place(TOKENIZER)
    }

    /// The contents of `tokenizer.json`.
    pub(super) fn tokenizer_json(&self) -> Result<Cow<'a, [u8]>, DataError> {
        match (self.read(TOKENIZER, MAX_TOKENIZER_BYTES)?, self.texts) {
            (Some(bytes), _) => Ok(bytes),
            (None, None) => Err(no_tokenizer(&self.tokenizer(), NEEDED)),
            (None, Some(_)) => Err(DataError::tokenizer(
                self.path.display(),
                "holds no tokenizer",
                "give a file that was converted with its tokenizer, or the model's directory in \
                 Hugging Face layout",
            )),
        }
    }

    /// A JSON object; empty where there is no such file.
    pub(super) fn object(&self, name: &str) -> Result<Map<String, Value>, DataError> {
        let Some(bytes) = self.read(name, MAX_CONFIG_BYTES)? else { return Ok(Map::new()) };
        serde_json::from_slice(&bytes).map_err(|e| {
            DataError::tokenizer(
                self.place(name).display(),
                format!("not a JSON object: {e}"),
                "restore the model's own file",
            )
        })
    }

    /// A text, if there is such a file.
    pub(super) fn text(&self, name: &str) -> Result<Option<String>, DataError> {
        let Some(bytes) = self.read(name, MAX_CONFIG_BYTES)? else { return Ok(None) };
        String::from_utf8(bytes.into_owned()).map(Some).map_err(|_| {
            let name = self.place(name).display().to_string();
            DataError::tokenizer(name, "not valid UTF-8", "restore the model's own file")
        })
    }

    fn place(&self, name: &str) -> PathBuf {
        match self.texts {
            None => self.path.join(name),
            Some(_) => self.path.to_owned(),
        }
    }

    fn read(&self, name: &str, limit: u64) -> Result<Option<Cow<'a, [u8]>>, DataError> {
        match self.texts {
            None => Ok(read_limited(&self.path.join(name), limit)?.map(Cow::Owned)),
            Some(texts) => Ok(texts.get(name).map(|text| Cow::Borrowed(text.as_bytes()))),
        }
    }
}

/// Contents of a file of at most `limit` bytes; `None` where it does not exist.
fn read_limited(path: &Path, limit: u64) -> Result<Option<Vec<u8>>, DataError> {
    let name = path.display().to_string();
    let fix = "check the model directory";
    match std::fs::metadata(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(DataError::tokenizer(name, format!("cannot be read: {e}"), fix)),
        Ok(meta) if meta.len() > limit => {
            let what = format!("{} bytes long, at most {limit} are accepted", meta.len());
            return Err(DataError::tokenizer(name, what, fix));
        }
        Ok(_) => {}
    }
    let bytes = std::fs::read(path)
        .map_err(|e| DataError::tokenizer(&name, format!("cannot be read: {e}"), fix))?;
    match lfs_pointer(&bytes) {
        Some((what, fix)) => Err(DataError::tokenizer(name, what, fix)),
        None => Ok(Some(bytes)),
    }
}

fn no_tokenizer(path: &Path, fix: &str) -> DataError {
    let name = path.display().to_string();
    let dir = path.parent().unwrap_or(Path::new("."));
    if !dir.join("tokenizer.model").is_file() {
        return DataError::tokenizer(name, "no such file", fix);
    }
    let dir = dir.display();
    DataError::tokenizer(
        name,
        "no such file; tokenizer.model, which is there, is not read",
        format!(
            "convert it once with transformers: python -c \"from transformers import \
             AutoTokenizer; AutoTokenizer.from_pretrained('{dir}').save_pretrained('{dir}')\""
        ),
    )
}
