//! The files that a run's result depends on, and whether they are still what they were.

use crate::checkpoint::sha256_of_file;
use crate::error::TrainError;
use crate::setup::Setup;
use hone_data::Dataset;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fs::Metadata;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// All input files, in the order in which they are read.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Inputs {
    /// The model's weights and everything else in its directory that may be read.
    pub model: Vec<InputFile>,
    /// The adapter that training started from.
    pub adapter: Vec<InputFile>,
    /// Rows to learn from.
    pub train: Vec<InputFile>,
    /// Rows to evaluate on.
    pub eval: Vec<InputFile>,
}

/// One file and what is in it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct InputFile {
    /// Where it was found.
    pub path: PathBuf,
    /// Its length.
    pub bytes: u64,
    /// SHA-256 of its content in lower-case hexadecimal.
    pub sha256: String,
    /// What the system says of the file for as long as nobody writes to it; `None` where the
    /// system does not say, or the file was too young to tell two writes apart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    identity: Option<Identity>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Identity {
    device: u64,
    inode: u64,
    /// Last change, in seconds since 1970 and nanoseconds.
    modified: (i64, i64),
}

/// Two writes within the resolution of a file's time look like one.
const TIME_RESOLUTION: Duration = Duration::from_secs(2);

impl Inputs {
    /// The files of `setup`. Of a file in `known` that nobody has written to since, the digest is
    /// taken from there: weights are not read a second time.
    ///
    /// # Errors
    /// If a file cannot be read.
    pub(super) fn of(setup: &Setup, known: &Inputs) -> Result<Self, TrainError> {
        let known: Vec<&InputFile> = known.all().collect();
        let digests = |paths: Vec<PathBuf>| -> Result<Vec<InputFile>, TrainError> {
            paths.iter().map(|path| InputFile::of(path, &known)).collect()
        };
        let data = |dataset: &Dataset| {
            digests(dataset.report().files.iter().map(|file| PathBuf::from(&file.file)).collect())
        };
        let adapter = match &setup.init_adapter {
            Some(dir) => digests(hone_model::adapter::files(dir))?,
            None => Vec::new(),
        };
        let eval = setup.eval.as_ref().map(|(eval, _)| data(eval)).transpose()?;
        Ok(Self {
            model: digests(model_files(&setup.model_dir)?)?,
            adapter,
            train: data(&setup.train)?,
            eval: eval.unwrap_or_default(),
        })
    }

    /// The first file that differs from the one of that name in `before`, and the key of the run
    /// file that names it; places may differ.
    pub(super) fn first_change(&self, before: &Inputs) -> Option<(&'static str, String)> {
        let groups = [
            ("model.path", &self.model, &before.model),
            ("adapter.init_from", &self.adapter, &before.adapter),
            ("data.train", &self.train, &before.train),
            ("data.eval", &self.eval, &before.eval),
        ];
        groups.into_iter().find_map(|(key, now, then)| {
            let changed = now.iter().zip(then).find(|(now, then)| !now.is_same(then));
            let changed = changed.map(|(now, _)| now);
            // Where all so far are the same, the first that was added or is missing.
            let changed = changed.or_else(|| now.get(then.len())).or_else(|| then.get(now.len()));
            changed.map(|file| (key, file.path.display().to_string()))
        })
    }

    fn all(&self) -> impl Iterator<Item = &InputFile> {
        [&self.model, &self.adapter, &self.train, &self.eval].into_iter().flatten()
    }
}

impl InputFile {
    fn of(path: &Path, known: &[&InputFile]) -> Result<Self, TrainError> {
        let metadata = std::fs::metadata(path).map_err(TrainError::io(path))?;
        let (bytes, identity) = (metadata.len(), Identity::of(&metadata));
        let unchanged = known
            .iter()
            .find(|file| identity.is_some() && file.identity == identity && file.bytes == bytes);
        let sha256 = match unchanged {
            Some(file) => file.sha256.clone(),
            None => sha256_of_file(path)?,
        };
        Ok(Self { path: path.to_owned(), bytes, sha256, identity })
    }

    fn is_same(&self, other: &Self) -> bool {
        self.path.file_name() == other.path.file_name()
            && (self.bytes, &self.sha256) == (other.bytes, &other.sha256)
    }
}

impl Identity {
    #[cfg(unix)]
    fn of(metadata: &Metadata) -> Option<Self> {
        use std::os::unix::fs::MetadataExt;
        let age = SystemTime::now().duration_since(metadata.modified().ok()?).ok()?;
        (age > TIME_RESOLUTION).then(|| Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        })
    }

    #[cfg(not(unix))]
    fn of(_: &Metadata) -> Option<Self> {
        None
    }
}

/// The weights that are loaded, and, unless a GGUF file says all, every small file in their
/// directory: which of those matter is known to configuration, tokenizer and templates alone.
///
/// # Errors
/// If there are no weights.
pub fn model_files(dir: &Path) -> Result<Vec<PathBuf>, TrainError> {
    let small = |dir: &Path| -> BTreeSet<PathBuf> {
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        let is_small = |path: &PathBuf| {
            path.extension().is_some_and(|e| e == "json" || e == "jinja") && path.is_file()
        };
        entries.map(|entry| entry.path()).filter(is_small).collect()
    };
    let weights = hone_model::weight_files(dir)?;
    if hone_model::is_gguf(dir) {
        return Ok(weights);
    }
    let templates = dir.join("additional_chat_templates");
    Ok(small(dir).into_iter().chain(small(&templates)).chain(weights).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, sha256: &str) -> InputFile {
        InputFile { path: path.into(), bytes: 1, sha256: sha256.into(), identity: None }
    }

    #[test]
    fn the_first_change_is_named() {
        let inputs = |train: &[(&str, &str)]| Inputs {
            model: vec![file("m/a.json", "1")],
            train: train.iter().map(|(path, sha256)| file(path, sha256)).collect(),
            ..Inputs::default()
        };
        let before = inputs(&[("d/a", "1"), ("d/b", "2")]);
        for (now, change) in [
            (inputs(&[("elsewhere/a", "1"), ("b", "2")]), None),
            (inputs(&[("d/a", "1"), ("d/b", "3")]), Some("d/b")),
            (inputs(&[("d/c", "1"), ("d/b", "2")]), Some("d/c")),
            (inputs(&[("d/a", "1")]), Some("d/b")),
            (inputs(&[("d/a", "1"), ("d/b", "2"), ("d/c", "2")]), Some("d/c")),
            (inputs(&[("d/b", "2"), ("d/a", "1")]), Some("d/b")),
        ] {
            let change = change.map(|file| ("data.train", file.to_owned()));
            assert_eq!(now.first_change(&before), change);
        }
    }

    /// A digest is taken over only from a file that was not written to since.
    #[cfg(unix)]
    #[test]
    fn digests_are_remembered_for_as_long_as_they_hold() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        let written = |text: &str, seconds: u64| {
            std::fs::write(&path, text).unwrap();
            let file = std::fs::File::options().write(true).open(&path).unwrap();
            file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)).unwrap();
        };
        written("one", 1_000_000);
        let mut first = InputFile::of(&path, &[]).unwrap();
        assert!(first.identity.is_some());
        first.sha256 = "remembered".to_owned();
        assert_eq!(InputFile::of(&path, &[&first]).unwrap().sha256, "remembered");
        written("two", 1_000_001);
        assert_ne!(InputFile::of(&path, &[&first]).unwrap().sha256, "remembered");
        std::fs::write(&path, "now").unwrap();
        assert!(InputFile::of(&path, &[]).unwrap().identity.is_none(), "too young");
    }
}
