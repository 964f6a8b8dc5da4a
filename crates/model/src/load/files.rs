//! One safetensors file, or several with an index.

use crate::raw_config::{ConfigError, RawConfig};
use hone_tensor::safetensors::{FileError, SafeTensorsFile};
use hone_tensor::{DType, Tensor};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;
use std::path::{Component, Path, PathBuf};

const SINGLE: &str = "model.safetensors";
const EMBEDDING: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";
const INDEX: &str = "model.safetensors.index.json";
/// An index has about 100 bytes per tensor.
const MAX_INDEX_BYTES: u64 = 64 << 20;

/// Why weights cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A weight file.
    #[error(transparent)]
    File(#[from] FileError),
    /// Neither a weight file nor an index.
    #[error(
        "{}: neither {SINGLE} nor {INDEX} is there. {}", dir.display(),
        .pickled.as_ref().map_or("Fetch the weights as well".to_owned(), |name| format!(
            "{name} is pickled, which Hone never reads because a pickle can run code: convert \
             the model to safetensors (`save_pretrained` of transformers does)"
        ))
    )]
    NoWeights {
        /// Model directory.
        dir: PathBuf,
        /// A pickled file found instead.
        pickled: Option<String>,
    },
    /// What git leaves where a large file was not fetched.
    #[error(
        "{}: a pointer of git-lfs, not the weights: fetch them with `git lfs pull`, or download \
         the file again",
        path.display()
    )]
    LfsPointer {
        /// File.
        path: PathBuf,
    },
    /// The index is not what it should be.
    #[error("{}: {problem}", path.display())]
    Index {
        /// File.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A tensor that the configuration calls for is in no file.
    #[error(
        "{}: tensor `{name}` is missing, and config.json calls for it. {}",
        place.display(),
        match name.as_str() {
            HEAD => "If the head is the embedding, set tie_word_embeddings to true in \
                     config.json; if not, fetch the whole model",
            _ => "Either the weights or the configuration belong to another model",
        }
    )]
    Missing {
        /// File or directory.
        place: PathBuf,
        /// Tensor.
        name: String,
    },
    /// A tensor has another shape than the configuration says.
    #[error(
        "{}: tensor `{name}` has shape {found:?}, and config.json calls for {expected:?}. Either \
         the weights or the configuration belong to another model",
        path.display()
    )]
    Shape {
        /// File.
        path: PathBuf,
        /// Tensor.
        name: String,
        /// Shape in the file.
        found: Vec<usize>,
        /// Shape by the configuration.
        expected: Vec<usize>,
    },
    /// Blocks that stay in the CPU's memory have no room there.
    #[error(
        "cannot get {mib} MiB of page-locked memory of the CPU, where blocks stay that the GPU has \
         no room for: a limit of this system or container is lower, or memory is short. Raise it, \
         hold weights as int8, or give the GPU more with budget.memory"
    )]
    PageLocked {
        /// Needed in all.
        mib: usize,
    },
    /// Tensors that no part of the model takes.
    #[error(
        "{}: tensor `{first}`{} no place in the model that config.json describes. Either the \
         weights or the configuration belong to another model",
        place.display(),
        if *count == 1 { " has".to_owned() } else { format!(" and {} more have", count - 1) }
    )]
    Surplus {
        /// File or directory.
        place: PathBuf,
        /// How many.
        count: usize,
        /// One of them.
        first: String,
    },
}

/// The tensors of a model directory, by name; each may be taken once.
pub(super) struct WeightFiles {
    place: PathBuf,
    files: Vec<SafeTensorsFile>,
    /// Which file holds a tensor.
    holder: BTreeMap<String, usize>,
    taken: BTreeSet<String>,
    /// Whether only the head is there, and stands for the embedding too.
    embedding_is_head: bool,
    matrix_dtype: Option<DType>,
}

impl WeightFiles {
    pub(super) fn open(dir: &Path) -> Result<Self, LoadError> {
        let (place, paths) = place_and_files(dir)?;
        let mut this = Self {
            place,
            files: Vec::new(),
            holder: BTreeMap::new(),
            taken: BTreeSet::new(),
            embedding_is_head: false,
            matrix_dtype: None,
        };
        for path in paths {
            this.add(&path)?;
        }
        Ok(this)
    }

    fn add(&mut self, path: &Path) -> Result<(), LoadError> {
        if is_lfs_pointer(path) {
            return Err(LoadError::LfsPointer { path: path.to_owned() });
        }
        let file = SafeTensorsFile::open(path)?;
        for name in file.names() {
            if let Some(other) = self.holder.insert(name.clone(), self.files.len()) {
                let other = self.files.get(other).unwrap_or(&file).path().display();
                let problem = format!(
                    "tensor `{name}` is also in {other}. Fetch the model again, without files of \
                     other versions"
                );
                return Err(LoadError::Index { path: path.to_owned(), problem });
            }
        }
        self.files.push(file);
        Ok(())
    }

    /// The name under which the files hold a tensor: files of the bare decoder, without its head,
    /// leave out the first part.
    fn stored_name<'n>(&self, name: &'n str) -> Option<&'n str> {
        let bare = name.strip_prefix("model.");
        [Some(name), bare].into_iter().flatten().find(|name| self.holder.contains_key(*name))
    }

    fn tensor(&self, stored_name: &str) -> Option<(&SafeTensorsFile, Tensor)> {
        let file = &self.files[*self.holder.get(stored_name)?];
        Some((file, file.tensor(stored_name)?))
    }

    /// Settles which of embedding and head are there, where the configuration says that they are
    /// one: whether they are. As in transformers 5, either of them may stand for both, and a head
    /// with other values than the embedding was trained apart from it.
    pub(super) fn are_tied(&mut self) -> bool {
        let Some((_, head)) = self.tensor(HEAD) else { return true };
        match self.stored_name(EMBEDDING).and_then(|name| self.tensor(name)) {
            None => {
                self.embedding_is_head = true;
                true
            }
            Some((_, embedding)) => {
                let is_same = |a: &Tensor, b: &Tensor| {
                    (a.dtype(), a.shape()) == (b.dtype(), b.shape()) && a.bytes() == b.bytes()
                };
                is_same(&embedding, &head)
            }
        }
    }

    /// The tensor `name`, which must have `shape`.
    pub(super) fn take(&mut self, name: &str, shape: &[usize]) -> Result<Tensor, LoadError> {
        let stored = match self.embedding_is_head && name == EMBEDDING {
            true => Some(HEAD),
            false => self.stored_name(name),
        };
        let Some((file, tensor)) = stored.and_then(|stored| self.tensor(stored)) else {
            return Err(LoadError::Missing { place: self.place.clone(), name: name.to_owned() });
        };
        let name = stored.unwrap_or(name);
        if tensor.shape() != shape {
            return Err(LoadError::Shape {
                path: file.path().to_owned(),
                name: name.to_owned(),
                found: tensor.shape().to_vec(),
                expected: shape.to_vec(),
            });
        }
        if shape.len() > 1 {
            self.matrix_dtype.get_or_insert(tensor.dtype());
        }
        let name = name.to_owned();
        self.taken.insert(name);
        Ok(tensor)
    }

    /// Element type of the first matrix taken.
    pub(super) fn matrix_dtype(&self) -> DType {
        self.matrix_dtype.unwrap_or(DType::F32)
    }

    /// All tensors must have been taken, but for those that transformers passes over too: buffers
    /// of rotary embeddings that old files hold, and a copy of the embedding as the tied head.
    pub(super) fn refuse_surplus(&self, is_tied: bool) -> Result<(), LoadError> {
        let passed_over = |name: &String| {
            let is_buffer = name == "rotary_emb.inv_freq" || name.ends_with(".rotary_emb.inv_freq");
            is_buffer || (is_tied && name == HEAD)
        };
        let left = self.holder.keys().filter(|n| !self.taken.contains(*n) && !passed_over(n));
        let left: Vec<&String> = left.collect();
        match left.first() {
            None => Ok(()),
            Some(first) => Err(LoadError::Surplus {
                place: self.place.clone(),
                count: left.len(),
                first: (*first).clone(),
            }),
        }
    }
}

/// The files of weights that [`load`](super::load) reads from `dir`.
///
/// # Errors
/// If there are none, or some are missing.
pub fn weight_files(dir: &Path) -> Result<Vec<PathBuf>, LoadError> {
    Ok(place_and_files(dir)?.1)
}

/// What names the weights of `dir`, for messages, and their files.
fn place_and_files(dir: &Path) -> Result<(PathBuf, Vec<PathBuf>), LoadError> {
    let (single, index) = (dir.join(SINGLE), dir.join(INDEX));
    if single.is_file() {
        return Ok((single.clone(), vec![single]));
    }
    if !index.is_file() {
        return Err(LoadError::NoWeights { dir: dir.to_owned(), pickled: find_pickled(dir) });
    }
    let shards = shard_names(&index)?;
    if let Some(absent) = shards.iter().find(|name| !dir.join(name).is_file()) {
        let problem = format!("`{absent}`, which it names, is not there: fetch it as well");
        return Err(LoadError::Index { path: index, problem });
    }
    Ok((index, shards.into_iter().map(|name| dir.join(name)).collect()))
}

/// Names of the shards in an index, each a path below the model's directory.
fn shard_names(index: &Path) -> Result<BTreeSet<String>, LoadError> {
    let error = |problem: String| LoadError::Index { path: index.to_owned(), problem };
    let raw = RawConfig::read_up_to(index, MAX_INDEX_BYTES)?;
    let Some(Value::Object(map)) = raw.get("weight_map") else {
        let problem = "`weight_map` must be an object that gives the file of each tensor";
        return Err(error(problem.to_owned()));
    };
    let mut names = BTreeSet::new();
    for (tensor, file) in map {
        let name = file.as_str().filter(|name| is_below(name)).ok_or_else(|| {
            error(format!(
                "`weight_map` gives {file} for `{tensor}`: expected a file in the model's directory"
            ))
        })?;
        names.insert(name.to_owned());
    }
    Ok(names)
}

/// Whether a path leads nowhere but down.
fn is_below(name: &str) -> bool {
    let mut components = Path::new(name).components().peekable();
    components.peek().is_some() && components.all(|c| matches!(c, Component::Normal(_)))
}

/// Whether a file is what git leaves where a large file was not fetched.
pub(crate) fn is_lfs_pointer(path: &Path) -> bool {
    const BEGINNING: &[u8] = b"version https://git-lfs.github.com/spec/";
    let mut start = [0; BEGINNING.len()];
    let read = std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut start));
    read.is_ok() && start == BEGINNING
}

/// The first file of a directory whose name says that it is pickled.
pub(crate) fn find_pickled(dir: &Path) -> Option<String> {
    let names = std::fs::read_dir(dir).ok()?;
    let names = names.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    let mut pickled: Vec<String> = names
        .filter(|name| [".bin", ".pt", ".pth", ".ckpt"].iter().any(|end| name.ends_with(end)))
        .collect();
    pickled.sort();
    pickled.into_iter().next()
}
