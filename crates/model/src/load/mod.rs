//! Loads the weights of a model directory or GGUF file into a decoder.

mod described;
mod digest;
mod experts;
mod files;
mod gguf;
mod heads;
mod parts;

pub(crate) use files::{Layout, find_pickled, is_lfs_pointer, layout};
pub use files::{LoadError, weight_files};

use crate::config::DecoderConfig;
use crate::decoder::{Decoder, Layer};
use crate::families;
use crate::gguf::{Architecture, GgufModel, is_gguf, of_model_type};
use crate::raw_config::RawConfig;
use crate::weights::{BlockNorm, Role, WeightSpec};
use described::Described;
use files::{Taken, WeightFiles};
use hone_tensor::safetensors::load_as;
use hone_tensor::{
    Category, DType, Device, DeviceError, PAGE_LOCKED, ParamId, Params, Storage, Tensor, Wanted,
    Weight,
};
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::path::Path;

/// Which weights are trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trained {
    /// None: inference, or adapters only.
    Nothing,
    /// All of them, stored in f32.
    All,
}

/// How weights are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadOptions {
    /// Storage format of frozen matrices; `None`: as in the file, without a copy.
    pub base_precision: Option<Storage>,
    /// Which weights are trained.
    pub trained: Trained,
    /// Number of blocks, spread evenly, whose projections stay in host memory and are copied to the
    /// GPU when needed; requires frozen weights.
    pub offloaded_blocks: usize,
}

impl LoadOptions {
    /// Frozen weights, stored as in the file.
    pub const INFERENCE: Self =
        Self { base_precision: None, trained: Trained::Nothing, offloaded_blocks: 0 };
}

/// A decoder and the parameters that are trained.
pub struct Model {
    /// The decoder.
    pub decoder: Decoder,
    /// Trained parameters, including adapters.
    pub params: Params,
    /// Element type of the matrices in the file.
    pub file_dtype: DType,
    /// Bytes of tensors in its files that hold none of its weights, such as other parts of a larger
    /// model, heads of tasks, or blocks for tokens after the next.
    pub other_bytes: u64,
    /// The architecture of GGUF files of the model; `None`: there is none that is known.
    pub(crate) architecture: Option<&'static Architecture>,
}

impl Model {
    /// The model with the parameters that are trained; what stays has its shape only.
    pub fn take(&mut self) -> Self {
        let (decoder, params) = (self.decoder.clone(), std::mem::take(&mut self.params));
        Self { decoder, params, ..*self }
    }

    /// How frozen projections are held, the most bytes first.
    pub fn storages(&self) -> Vec<Storage> {
        let mut found: Vec<(Storage, usize)> = Vec::new();
        for (_, projection) in self.decoder.projections() {
            let Weight::Frozen(weight) = &projection.weight else { continue };
            match found.iter_mut().find(|(storage, _)| *storage == weight.storage()) {
                Some((_, bytes)) => *bytes += weight.num_bytes(),
                None => found.push((weight.storage(), weight.num_bytes())),
            }
        }
        found.sort_by_key(|&(_, bytes)| Reverse(bytes));
        found.into_iter().map(|(storage, _)| storage).collect()
    }

    /// The base model without its adapters. Frozen weights are shared, not copied.
    ///
    /// # Panics
    /// If weights of the base are trained.
    pub fn without_adapters(&self) -> Self {
        let mut decoder = self.decoder.clone();
        for (_, projection) in decoder.projections_mut() {
            projection.adapters.clear();
            assert!(!projection.is_trained(), "the base of an adapter is frozen");
        }
        Self { decoder, params: Params::default(), ..*self }
    }
}

/// A model directory in Hugging Face layout, or a GGUF file, whose configuration and headers of
/// weight files were read, so that it can be loaded several times, on the dry device first.
pub struct ModelFiles {
    config: DecoderConfig,
    files: Source,
    architecture: Option<&'static Architecture>,
}

/// Where weights come from.
enum Source {
    Safetensors(WeightFiles),
    Gguf(GgufModel),
    /// Nowhere: only a dry device can do with it.
    Described(Described),
}

impl Source {
    /// The tensor of a weight, as Hugging Face's models have it.
    fn take(
        &self,
        spec: &WeightSpec,
        config: &DecoderConfig,
        device: &Device,
        taken: &mut Taken,
    ) -> Result<Tensor, LoadError> {
        match self {
            Self::Safetensors(files) => files.take(spec, config, device, taken),
            Self::Gguf(model) => gguf::take(model, spec, config, device, taken),
            Self::Described(described) => described.take(spec, taken),
        }
    }

    /// Bytes of tensors that were not taken.
    fn other_bytes(&self, taken: &Taken) -> u64 {
        match self {
            Self::Safetensors(files) => files.other_bytes(taken),
            Self::Gguf(model) => gguf::other_bytes(model, taken),
            Self::Described(_) => 0,
        }
    }

    fn refuse_surplus(&self, taken: &Taken, config: &DecoderConfig) -> Result<(), LoadError> {
        match self {
            Self::Safetensors(files) => files.refuse_surplus(taken, config),
            Self::Gguf(model) => gguf::refuse_surplus(model, taken, config),
            Self::Described(_) => Ok(()),
        }
    }
}

impl ModelFiles {
    /// Reads configuration and headers. Without weights, the configuration says how large they are,
    /// which is all that a dry device asks.
    ///
    /// # Errors
    /// [`LoadError`], naming the file.
    pub fn open(path: &Path) -> Result<Self, LoadError> {
        if is_gguf(path) {
            let model = GgufModel::open(path)?;
            let config = families::decoder_config(&model.raw_config()?)?;
            let architecture = Some(model.architecture());
            return Ok(Self { config, files: Source::Gguf(model), architecture });
        }
        let mut config = DecoderConfig::load(path)?;
        let raw = RawConfig::read(&path.join("config.json"))?;
        let architecture = raw.text("model_type")?.and_then(of_model_type);
        let mut files = match WeightFiles::open(path) {
            Err(LoadError::NoWeights { pickled: None, .. }) => {
                let files = Source::Described(Described::read(path)?);
                return Ok(Self { config, files, architecture });
            }
            files => files?,
        };
        config.heads = files.task_heads(&config)?;
        files.find_head(&mut config);
        if config.tie_word_embeddings {
            config.tie_word_embeddings = files.are_tied(&config);
        }
        Ok(Self { config, files: Source::Safetensors(files), architecture })
    }

    /// Loads the model.
    ///
    /// # Errors
    /// [`LoadError`], naming file and tensor.
    pub fn load(&self, device: &Device, options: LoadOptions) -> Result<Model, LoadError> {
        assert!(options.offloaded_blocks == 0 || options.trained == Trained::Nothing);
        if let (Source::Described(described), false) = (&self.files, device.is_dry()) {
            return Err(described.missing());
        }
        let (params, taken) = (Params::default(), Taken::default());
        let mut loader = Loader { device, options, files: &self.files, taken, params };
        let mut decoder = loader.decoder(self.config.clone())?;
        offload_blocks(&mut decoder, device, options.offloaded_blocks).map_err(
            |error| match error {
                DeviceError::OutOfMemory {
                    memory: PAGE_LOCKED,
                    wanted: Wanted::Bytes(asked),
                    ..
                } => LoadError::PageLocked { mib: asked.div_ceil(1 << 20) as usize },
                other => other.into(),
            },
        )?;
        device.settle()?;
        self.files.refuse_surplus(&loader.taken, &decoder.config)?;
        Ok(Model {
            decoder,
            params: loader.params,
            file_dtype: loader.taken.matrix_dtype(),
            other_bytes: self.files.other_bytes(&loader.taken),
            architecture: self.architecture,
        })
    }
}

/// Loads a model from a directory in Hugging Face layout, or from a GGUF file.
///
/// # Errors
/// [`LoadError`], naming file and tensor.
pub fn load(path: &Path, device: &Device, options: LoadOptions) -> Result<Model, LoadError> {
    ModelFiles::open(path)?.load(device, options)
}

/// Whether block `i` of `num_blocks` is among `n` evenly spread ones.
fn is_offloaded(i: usize, n: usize, num_blocks: usize) -> bool {
    (i + 1) * n / num_blocks > i * n / num_blocks
}

/// Moves the projections of `n` blocks into page-locked memory.
fn offload_blocks(decoder: &mut Decoder, device: &Device, n: usize) -> Result<(), DeviceError> {
    if n == 0 {
        return Ok(());
    }
    let num_blocks = decoder.layers.len();
    let chosen = |&(i, _): &(usize, &mut Layer)| is_offloaded(i, n, num_blocks);
    let layers = decoder.layers.iter_mut().enumerate().filter(chosen);
    let tensors = |(_, layer): (usize, _)| {
        Layer::projections_mut(layer).filter_map(|p| p.weight.frozen_mut()).collect()
    };
    let offloaded = hone_tensor::offload(device, layers.map(tensors).collect())?;
    let layers = decoder.layers.iter_mut().enumerate().filter(chosen);
    for ((_, layer), offloaded) in layers.zip(offloaded) {
        layer.offloaded = Some(offloaded);
    }
    Ok(())
}

struct Loader<'a> {
    device: &'a Device,
    options: LoadOptions,
    files: &'a Source,
    taken: Taken,
    params: Params,
}

impl Loader<'_> {
    fn decoder(&mut self, config: DecoderConfig) -> Result<Decoder, LoadError> {
        let (mut weights, mut layers) = (BTreeMap::new(), Vec::new());
        for spec in config.weights() {
            // Blocks follow each other. One is put together as soon as it has all its weights: of
            // a mixture's many only those of one block are held twice.
            if spec.role.layer().is_some_and(|layer| layer > layers.len()) {
                layers.push(self.layer(&config, layers.len(), &mut weights)?);
            }
            let tensor = self.files.take(&spec, &config, self.device, &mut self.taken)?;
            let weight = match spec.role {
                Role::Matrix(layer, linear) => {
                    let n = self.options.offloaded_blocks;
                    let is_offloaded = is_offloaded(layer, n, config.num_hidden_layers());
                    let home = match is_offloaded {
                        true => self.device.staging(),
                        false => self.device.clone(),
                    };
                    // A rounded router would choose other experts.
                    let storage = self.options.base_precision;
                    let storage = storage.filter(|s| !linear.is_router() || s.float().is_some());
                    self.matrix(&home, &spec.name, tensor, storage)?
                }
                Role::EmbedTokens | Role::BlockTable | Role::LmHead => {
                    let storage = self.options.base_precision.and_then(Storage::for_tables);
                    self.matrix(self.device, &spec.name, tensor, storage)?
                }
                Role::RouterBias(_) => {
                    Weight::Frozen(load_as(self.device, Category::Weights, &tensor, DType::F32)?)
                }
                // The host multiplies by it.
                Role::Scalar(_) if self.device.is_dry() => Weight::Frozen(tensor),
                Role::Scalar(_) => {
                    let host = Device::host();
                    Weight::Frozen(load_as(host, Category::Weights, &tensor, DType::F32)?)
                }
                Role::Encoder(part) if part.is_matrix() => {
                    let storage = self.options.base_precision.and_then(Storage::for_tables);
                    self.matrix(self.device, &spec.name, tensor, storage)?
                }
                // Vectors are small, and every kernel reads them as f32.
                Role::Bias(..)
                | Role::Sinks(_)
                | Role::ExpertScales(_)
                | Role::Norm(..)
                | Role::NormBias(..)
                | Role::Delta(..)
                | Role::FinalNorm
                | Role::BlockTableNorm
                | Role::Encoder(_) => {
                    self.weight(self.device, &spec.name, tensor, DType::F32.into())?
                }
            };
            weights.insert(spec.role, weight);
        }
        layers.push(self.layer(&config, layers.len(), &mut weights)?);
        Ok(Decoder::new(config, layers, weights))
    }

    /// Block `i`, all weights of which are there.
    fn layer(
        &self,
        config: &DecoderConfig,
        i: usize,
        weights: &mut BTreeMap<Role, Weight>,
    ) -> Result<Layer, DeviceError> {
        let layer = &config.layers[i];
        if layer.attention.norms_values && !layer.shares_keys() {
            let len = layer.attention.heads.head_dim;
            let ones = Tensor::from_f32(&vec![1.0; len], &[len]);
            let ones = self.device.upload(Category::Weights, &ones)?;
            weights.insert(Role::Norm(i, BlockNorm::V), Weight::Frozen(ones));
        }
        Ok(Layer::new(i, layer, weights))
    }

    fn matrix(
        &mut self,
        home: &Device,
        name: &str,
        tensor: Tensor,
        storage: Option<Storage>,
    ) -> Result<Weight, LoadError> {
        let Some(storage) = storage else {
            let storage = tensor.storage();
            return Ok(self.weight(home, name, tensor, storage)?);
        };
        if let Err(source) = storage.checked_num_bytes(tensor.shape()) {
            let fits = |name: &&str| {
                let storage = Storage::from_name(name);
                storage.is_some_and(|storage| storage.checked_num_bytes(tensor.shape()).is_ok())
            };
            let possible = Storage::NAMES.into_iter().filter(fits).collect();
            let (storage, tensor) = (storage.name(), name.to_owned());
            return Err(LoadError::Ragged { storage, tensor, source, possible });
        }
        Ok(self.weight(home, name, tensor, storage)?)
    }

    fn weight(
        &mut self,
        home: &Device,
        name: &str,
        tensor: Tensor,
        storage: Storage,
    ) -> Result<Weight, DeviceError> {
        if self.options.trained == Trained::All {
            let value = load_as(self.device, Category::Parameters, &tensor, DType::F32)?;
            let param: ParamId = self.params.add(name.to_owned(), value);
            return Ok(Weight::Trained { param, shape: tensor.shape().to_vec() });
        }
        Ok(Weight::Frozen(match tensor.storage() == storage {
            true => home.upload(Category::Weights, &tensor)?,
            false => load_as(home, Category::Weights, &tensor, storage)?,
        }))
    }
}
