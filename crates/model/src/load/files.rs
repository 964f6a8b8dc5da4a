//! The weight files of a model: one safetensors file, or shards with an index.

use crate::config::{DecoderConfig, ExpertLayout};
use crate::encoder::is_buffer;
use crate::families::Quantised;
use crate::gguf::{GgufModel, is_gguf};
use crate::raw_config::{ConfigError, RawConfig};
use crate::weights::{Fused, Role, WeightSpec};
use hone_tensor::gguf::GgufError;
use hone_tensor::safetensors::{FileError, Lazy, RawTensor, SafeTensorsFile};
use hone_tensor::{DType, Device, DeviceError, ShapeError, Tensor};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;
use std::path::{Component, Path, PathBuf};

const SINGLE: &str = "model.safetensors";
/// What names of everything but heads begin with.
const PREFIXES: [&str; 4] = ["model.", "bert.", "roberta.", "distilbert."];
/// Names of a text model among other parts begin with one of these.
const TEXT_PREFIXES: [&str; 2] = ["model.language_model.", "language_model."];
const HEAD: &str = "lm_head.weight";
const INDEX: &str = "model.safetensors.index.json";
/// An index has about 100 bytes per tensor.
const MAX_INDEX_BYTES: u64 = 64 << 20;

/// Why weights cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The configuration cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A GGUF file cannot be used.
    #[error(transparent)]
    Gguf(#[from] GgufError),
    /// A weight file cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// Neither a weight file nor an index.
    #[error(
        "{}: neither {SINGLE} nor {INDEX} was found. {}", dir.display(),
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
    /// A git-lfs pointer in place of a file that was not fetched.
    #[error(
        "{}: a git-lfs pointer, not the weights: fetch them with `git lfs pull`, or download the \
         file again",
        path.display()
    )]
    LfsPointer {
        /// File.
        path: PathBuf,
    },
    /// The index is invalid.
    #[error("{}: {problem}", path.display())]
    Index {
        /// File.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A tensor that the configuration requires is in no file.
    #[error(
        "{}: tensor `{name}` is missing, but the configuration requires it. {}",
        path.display(),
        match name.as_str() {
            HEAD => "If the head is the embedding, set tie_word_embeddings to true in \
                     config.json; if not, fetch the whole model",
            _ => "Either the weights or the configuration belong to another model",
        }
    )]
    Missing {
        /// Weight file or index.
        path: PathBuf,
        /// Tensor.
        name: String,
    },
    /// The shape of a tensor contradicts the configuration.
    #[error(
        "{}: tensor `{name}` has shape {found:?}, but the configuration requires {expected:?}. \
         Either the weights or the configuration belong to another model",
        path.display()
    )]
    Shape {
        /// File.
        path: PathBuf,
        /// Tensor.
        name: String,
        /// Shape in the file.
        found: Vec<usize>,
        /// Shape according to the configuration.
        expected: Vec<usize>,
    },
    /// The weights cannot be held in the storage that was asked for.
    #[error(
        "base precision {storage}: tensor `{tensor}`: {source}. What its rows can be held in: {}",
        .possible.join(", ")
    )]
    Ragged {
        /// What was asked for.
        storage: &'static str,
        /// Tensor.
        tensor: String,
        /// Its rows and the storage's blocks.
        source: ShapeError,
        /// Names of storages without such blocks, or with blocks that its rows are made of.
        possible: Vec<&'static str>,
    },
    /// The tensors of a matrix that is held in several do not fit together.
    #[error("{}: tensor `{name}`: {problem}", path.display())]
    Parts {
        /// File.
        path: PathBuf,
        /// That of the weights themselves.
        name: String,
        /// What does not fit, and what to do.
        problem: String,
    },
    /// Not enough page-locked host memory for offloaded blocks.
    #[error(
        "cannot allocate {mib} MiB of page-locked host memory for the blocks that do not fit on \
         the GPU: memory is short, or this system or container has a lower limit. Raise the \
         limit, store weights as int8, or allow more GPU memory with budget.memory"
    )]
    PageLocked {
        /// Total needed.
        mib: usize,
    },
    /// The device has no room for the weights, or failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// Tensors that the model does not use.
    #[error(
        "{}: tensor `{first}`{} not part of the model that the configuration describes. Either the \
         weights or the configuration belong to another model",
        path.display(),
        if *count == 1 { " is".to_owned() } else { format!(" and {} more are", count - 1) }
    )]
    Surplus {
        /// Weight file or index.
        path: PathBuf,
        /// How many.
        count: usize,
        /// One of them.
        first: String,
    },
}

/// The tensors of a model directory, by name.
pub(super) struct WeightFiles {
    /// Weight file or index, for messages.
    path: PathBuf,
    files: Vec<SafeTensorsFile>,
    /// Index into `files` by tensor name.
    file_of: BTreeMap<String, usize>,
    /// Whether the files contain only the head of the tied pair.
    embedding_is_head: bool,
    /// Bits of the integers that the configuration says are packed into words.
    pub(super) int_bits: Vec<u32>,
}

/// How the files of a model hold its weights, and what else they hold.
#[derive(Default)]
pub(crate) struct Layout {
    /// Stored names of weights, by their own.
    pub(crate) names: BTreeMap<String, String>,
    /// Tensors of all experts under their stored names, by those of the weights in them.
    pub(crate) fused: BTreeMap<String, Fused>,
    /// Other tensors that are packed, in parts that are tensors of their own.
    pub(crate) packed: Vec<(String, Tensor)>,
    /// Other tensors as they are, of whatever type.
    pub(crate) others: Vec<(String, Lazy<'static>)>,
}

/// How the files in `dir` hold the weights that `config` requires.
///
/// # Errors
/// If they cannot be read.
pub(crate) fn layout(dir: &Path, config: &DecoderConfig) -> Result<Layout, LoadError> {
    WeightFiles::open(dir)?.layout(config)
}

/// What was taken of them for a model.
#[derive(Default)]
pub(super) struct Taken {
    names: BTreeSet<String>,
    matrix_dtype: Option<DType>,
}

impl Taken {
    pub(super) fn note(&mut self, name: &str, tensor: &Tensor) {
        self.note_dtype(tensor);
        self.note_part(name);
    }

    /// Notes the element type of a matrix.
    pub(super) fn note_dtype(&mut self, tensor: &Tensor) {
        if tensor.shape().len() > 1 {
            // What blocks hold is rounded far more coarsely.
            let dtype = tensor.storage().float().unwrap_or(DType::Bf16);
            self.matrix_dtype.get_or_insert(dtype);
        }
    }

    /// Notes a tensor that belongs to another.
    pub(super) fn note_part(&mut self, name: &str) {
        self.names.insert(name.to_owned());
    }

    /// Whether a tensor was taken, or belongs to one that was.
    pub(super) fn has(&self, name: &str) -> bool {
        self.names.contains(name)
    }

    /// Refuses names that were not taken.
    pub(super) fn refuse_others<'n>(
        &self,
        path: &Path,
        names: impl Iterator<Item = &'n str>,
    ) -> Result<(), LoadError> {
        let left: Vec<&str> = names.filter(|name| !self.has(name)).collect();
        match left.first() {
            None => Ok(()),
            Some(first) => Err(LoadError::Surplus {
                path: path.to_owned(),
                count: left.len(),
                first: (*first).to_owned(),
            }),
        }
    }

    /// Element type of the first matrix taken.
    pub(super) fn matrix_dtype(&self) -> DType {
        self.matrix_dtype.unwrap_or(DType::F32)
    }
}

/// What older files of encoders call a weight, or ones with a second name for it.
fn older_name(name: &str) -> Option<String> {
    const ENDS: [(&str, &str); 4] = [
        ("LayerNorm.weight", "LayerNorm.gamma"),
        ("LayerNorm.bias", "LayerNorm.beta"),
        ("cls.predictions.bias", "cls.predictions.decoder.bias"),
        ("lm_head.bias", "lm_head.decoder.bias"),
    ];
    let older = |(end, older): &(&str, &str)| Some(format!("{}{older}", name.strip_suffix(end)?));
    ENDS.iter().find_map(older)
}

/// What the name of a matrix of packed integers ends in, after the name of the whole matrix.
pub(super) const PACKED: &str = "_packed";

/// The name of the whole matrix whose weights are in the tensor `stored`.
pub(super) fn whole_name(stored: &str) -> &str {
    stored.strip_suffix(PACKED).unwrap_or(stored)
}

/// The names that a tensor may have in the files, or what they begin with: files of the bare model,
/// without its head, omit the prefix, and those with other parts have another, now or in older
/// versions.
fn stored_forms(name: &str) -> impl Iterator<Item = String> + use<> {
    let bare = PREFIXES.iter().find_map(|prefix| name.strip_prefix(prefix));
    let of_part = bare.map(|bare| format!("model.language_model.{bare}"));
    let of_older_part = Some(format!("language_model.{name}"));
    [Some(name.to_owned()), bare.map(str::to_owned), of_part, of_older_part].into_iter().flatten()
}

impl WeightFiles {
    pub(super) fn open(dir: &Path) -> Result<Self, LoadError> {
        let (path, paths) = path_and_files(dir)?;
        let raw = RawConfig::read(&dir.join("config.json"))?;
        let int_bits = Quantised::of_files(&raw)?.map_or_else(Vec::new, |of| of.int_bits);
        let (files, file_of) = (Vec::new(), BTreeMap::new());
        let mut this = Self { path, files, file_of, embedding_is_head: false, int_bits };
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
            if let Some(other) = self.file_of.insert(name.clone(), self.files.len()) {
                let other = self.files.get(other).unwrap_or(&file).path().display();
                let problem = format!(
                    "tensor `{name}` is also in {other}. Fetch the model again into an empty \
                     directory, without files of other versions"
                );
                return Err(LoadError::Index { path: path.to_owned(), problem });
            }
        }
        self.files.push(file);
        Ok(())
    }

    /// The name of a tensor in the files.
    pub(super) fn stored_name(&self, name: &str) -> Option<&str> {
        let stored = |name: String| self.file_of.get_key_value(&name);
        let found = stored_forms(name).find_map(stored).map(|(stored, _)| stored.as_str());
        found.or_else(|| self.stored_name(&older_name(name)?))
    }

    /// # Errors
    /// If a tensor cannot be read.
    fn layout(&self, config: &DecoderConfig) -> Result<Layout, LoadError> {
        let mut layout = Layout::default();
        // A head that is tied is the embedding, which may have been trained.
        let mut ours: BTreeSet<&str> = self.copies(config).collect();
        for WeightSpec { role, name, .. } in config.weights() {
            let stored = self.stored_name(&name).or_else(|| self.stored_ints(&name));
            ours.extend(stored);
            let fused = config.fused(role).filter(|_| stored.is_none());
            ours.extend(fused.iter().flat_map(|fused| self.mxfp4_names(fused)).flatten());
            let stored_fused = fused.as_ref().and_then(|fused| self.stored_name(&fused.name));
            if let (Some(fused), Some(stored)) = (fused, stored_fused) {
                ours.insert(stored);
                layout.fused.insert(name, Fused { name: stored.to_owned(), ..fused });
            } else if let Some(stored) = stored {
                layout.names.insert(name, whole_name(stored).to_owned());
            }
        }
        let unused = self.unused(config);
        let is_other = |name: &&String| {
            let name = name.as_str();
            let is_ours = ours.contains(name) || self.is_part(name);
            !is_ours && !is_buffer(name) && !unused.contains(name)
        };
        for name in self.file_of.keys().filter(is_other) {
            match self.joined_as_stored(name)? {
                Some(tensor) => layout.packed.push((whole_name(name).to_owned(), tensor)),
                None => {
                    let copied = self.files[self.file_of[name]].copied(name);
                    layout.others.extend(copied.map(|copied| (name.clone(), copied)));
                }
            }
        }
        Ok(layout)
    }

    /// A name as the files have it, if it is there.
    pub(super) fn name_of(&self, name: &str) -> Option<&str> {
        self.file_of.get_key_value(name).map(|(name, _)| name.as_str())
    }

    /// The first name that begins with `prefix`.
    pub(super) fn name_from(&self, prefix: &str) -> Option<&str> {
        self.names_from(prefix).next()
    }

    /// All names that begin with `prefix`.
    fn names_from(&self, prefix: &str) -> impl Iterator<Item = &str> {
        let names = self.file_of.range(prefix.to_owned()..).map(|(name, _)| name.as_str());
        names.take_while(move |name| name.starts_with(prefix))
    }

    /// A tensor as it is in its file.
    pub(super) fn raw(&self, stored_name: &str) -> Option<(&SafeTensorsFile, RawTensor<'_>)> {
        let file = &self.files[*self.file_of.get(stored_name)?];
        Some((file, file.raw(stored_name)?))
    }

    pub(super) fn tensor(
        &self,
        stored_name: &str,
    ) -> Result<Option<(&SafeTensorsFile, Tensor)>, FileError> {
        let Some(&file) = self.file_of.get(stored_name) else { return Ok(None) };
        let file = &self.files[file];
        Ok(file.tensor(stored_name)?.map(|tensor| (file, tensor)))
    }

    /// Whether embedding and head, which the configuration ties, are tied in the files too. As in
    /// transformers 5, either of them may stand for both, and a head whose values differ from the
    /// embedding's was trained separately.
    pub(super) fn are_tied(&mut self, config: &DecoderConfig) -> bool {
        let raw = |name: String| {
            let stored = self.stored_name(&name)?;
            self.raw(stored).map(|(file, tensor)| (tensor, file, stored))
        };
        let tables = [config.embedding_name(), config.head_name()].map(raw);
        let [embedding, head] = tables.map(|table| table.map(|(tensor, ..)| tensor));
        let are_tied = embedding.is_none() || head.is_none() || embedding == head;
        let is_head = embedding.is_none() && head.is_some();
        tables.into_iter().flatten().for_each(|(_, file, stored)| file.release(stored));
        self.embedding_is_head = is_head;
        are_tied
    }

    /// The tensor of a weight, or its part of that of all experts, which must have its shape.
    pub(super) fn take(
        &self,
        spec: &WeightSpec,
        config: &DecoderConfig,
        device: &Device,
        taken: &mut Taken,
    ) -> Result<Tensor, LoadError> {
        let WeightSpec { role, name, shape } = spec;
        let stored = match self.embedding_is_head && *role == Role::EmbedTokens {
            true => self.stored_name(&config.head_name()),
            false => self.stored_name(name),
        };
        if let Some(stored) = stored {
            if let Some(tensor) = self.joined(stored, shape, device, taken)? {
                return Ok(tensor);
            }
            return self.take_stored(stored, shape, taken);
        }
        if let Some(stored) = self.stored_ints(name) {
            return self.packed_ints(stored, shape, device, taken);
        }
        if let Some(tensor) = self.expert_in_mxfp4(spec, config, device, taken)? {
            return Ok(tensor);
        }
        if let Some(tensor) = self.expert_in_fp8(spec, config, device, taken)? {
            return Ok(tensor);
        }
        let missing = || LoadError::Missing { path: self.path.clone(), name: name.clone() };
        let Some(fused) = config.fused(*role) else { return Err(missing()) };
        let Some(stored) = self.stored_name(&fused.name) else {
            return Err(match fused.layout {
                ExpertLayout::Rows => missing(),
                ExpertLayout::Columns => {
                    LoadError::Missing { path: self.path.clone(), name: fused.name }
                }
            });
        };
        let tensor = self.take_stored(stored, &fused.shape, taken)?;
        Ok(tensor.part_of_file(device, fused.place, shape)?)
    }

    /// The tensor of this name in the files, which must have this shape.
    fn take_stored(
        &self,
        name: &str,
        shape: &[usize],
        taken: &mut Taken,
    ) -> Result<Tensor, LoadError> {
        let name = name.to_owned();
        let Some((file, tensor)) = self.tensor(&name)? else {
            return Err(LoadError::Missing { path: self.path.clone(), name });
        };
        if tensor.shape() != shape {
            let (path, found) = (file.path().to_owned(), tensor.shape().to_vec());
            return Err(LoadError::Shape { path, name, found, expected: shape.to_vec() });
        }
        taken.note(&name, &tensor);
        Ok(tensor)
    }

    /// Copies of weights under other names, which files may have: a head that is tied to the
    /// embedding, which may have been trained, and a second name of its bias.
    fn copies(&self, config: &DecoderConfig) -> impl Iterator<Item = &str> {
        let head = config.tie_word_embeddings.then(|| config.head_name());
        let bias = config.encoder.as_ref().and_then(|e| older_name(e.names.logit_bias));
        let names = head.into_iter().chain(bias);
        names.filter_map(|name| self.stored_name(&name)).collect::<Vec<_>>().into_iter()
    }

    /// All tensors of projections and norms of keys and values of blocks that read another's, which
    /// files may have all the same.
    fn unused(&self, config: &DecoderConfig) -> BTreeSet<&str> {
        let shares = |&layer: &usize| config.layers[layer].attention.keys_of.is_some();
        let modules = |layer: usize| {
            let modules = ["k_proj", "v_proj", "k_norm", "v_norm"];
            modules.map(|module| format!("model.layers.{layer}.self_attn.{module}."))
        };
        let modules = (0..config.num_hidden_layers()).filter(shares).flat_map(modules);
        let stored = modules.flat_map(|module| stored_forms(&module));
        stored.flat_map(|module| self.names_from(&module).collect::<Vec<_>>()).collect()
    }

    /// Bytes of tensors that were not taken.
    pub(super) fn other_bytes(&self, taken: &Taken) -> u64 {
        let others = self.file_of.keys().filter(|name| !taken.has(name));
        others.filter_map(|name| self.raw(name)).map(|(_, of)| of.bytes.len() as u64).sum()
    }

    /// Refuses tensors that were not taken, except those that transformers ignores too: rotary
    /// embedding buffers in old files, a copy of the embedding as the tied head, blocks for tokens
    /// after the next, and what blocks with another's keys and values do not use; and except other
    /// parts.
    pub(super) fn refuse_surplus(
        &self,
        taken: &Taken,
        config: &DecoderConfig,
    ) -> Result<(), LoadError> {
        let copies: Vec<&str> = self.copies(config).collect();
        let unused = self.unused(config);
        let further = |name: &str| {
            let block = name.strip_prefix("model.layers.").and_then(|rest| rest.split('.').next());
            let is_beyond = |block: usize| block >= config.num_hidden_layers();
            name.starts_with("mtp.") || block.and_then(|n| n.parse().ok()).is_some_and(is_beyond)
        };
        let is_ignored = |name: &String| {
            let is_buffer = name == "rotary_emb.inv_freq" || name.ends_with(".rotary_emb.inv_freq");
            let of_text = TEXT_PREFIXES.iter().any(|prefix| name.starts_with(prefix));
            is_buffer
                || copies.contains(&name.as_str())
                || unused.contains(name.as_str())
                || config.is_kept(name)
                || (config.has_mtp && further(name))
                || (config.is_part && !of_text)
        };
        let names = self.file_of.keys().filter(|name| !is_ignored(name));
        taken.refuse_others(&self.path, names.map(String::as_str))
    }
}

/// The weight files that [`load`](super::load) reads from `dir`, or a GGUF file and its parts.
///
/// # Errors
/// If there are none, or some are missing.
pub fn weight_files(path: &Path) -> Result<Vec<PathBuf>, LoadError> {
    match is_gguf(path) {
        true => Ok(GgufModel::open(path)?.file().paths().collect()),
        false => Ok(path_and_files(path)?.1),
    }
}

/// The weight file or index of `dir`, for messages, and all weight files.
fn path_and_files(dir: &Path) -> Result<(PathBuf, Vec<PathBuf>), LoadError> {
    let (single, index) = (dir.join(SINGLE), dir.join(INDEX));
    if single.is_file() {
        return Ok((single.clone(), vec![single]));
    }
    if !index.is_file() {
        return Err(LoadError::NoWeights { dir: dir.to_owned(), pickled: find_pickled(dir) });
    }
    let shards = shard_names(&index)?;
    if let Some(missing) = shards.iter().find(|name| !dir.join(name).is_file()) {
        let problem = format!("shard `{missing}` is missing: fetch it as well");
        return Err(LoadError::Index { path: index, problem });
    }
    Ok((index, shards.into_iter().map(|name| dir.join(name)).collect()))
}

/// Names of the shards in an index, each a path inside the model's directory.
fn shard_names(index: &Path) -> Result<BTreeSet<String>, LoadError> {
    let error = |problem: String| LoadError::Index { path: index.to_owned(), problem };
    let raw = RawConfig::read_up_to(index, MAX_INDEX_BYTES)?;
    let Some(Value::Object(map)) = raw.get("weight_map") else {
        let problem = "`weight_map` must be an object that maps tensors to files";
        return Err(error(problem.to_owned()));
    };
    let mut names = BTreeSet::new();
    for (tensor, file) in map {
        let name = file.as_str().filter(|name| is_below(name)).ok_or_else(|| {
            error(format!(
                "`weight_map` maps `{tensor}` to {file}: expected a file in the model's directory"
            ))
        })?;
        names.insert(name.to_owned());
    }
    Ok(names)
}

/// Whether a path stays below the directory it is relative to.
fn is_below(name: &str) -> bool {
    let mut components = Path::new(name).components().peekable();
    components.peek().is_some() && components.all(|c| matches!(c, Component::Normal(_)))
}

/// Whether a file is the pointer that git-lfs leaves for a file that was not fetched.
pub(crate) fn is_lfs_pointer(path: &Path) -> bool {
    const BEGINNING: &[u8] = b"version https://git-lfs.github.com/spec/";
    let mut start = [0; BEGINNING.len()];
    let read = std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut start));
    read.is_ok() && start == BEGINNING
}

/// The first file in a directory that is pickled, judging by its name.
pub(crate) fn find_pickled(dir: &Path) -> Option<String> {
    let names = std::fs::read_dir(dir).ok()?;
    let names = names.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
    let mut pickled: Vec<String> = names
        .filter(|name| [".bin", ".pt", ".pth", ".ckpt"].iter().any(|end| name.ends_with(end)))
        .collect();
    pickled.sort();
    pickled.into_iter().next()
}
