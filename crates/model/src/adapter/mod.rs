//! Low-rank adapters: target layers, initialisation, and PEFT files.

mod coverage;
mod fused;
mod gguf;
mod lora;
mod names;
mod parameters;
mod patterns;
mod peft;
mod targets;
mod trained_on;

pub use coverage::{Coverage, CoveredModules, coverage};
pub use lora::{LoraConfig, attach};
pub use peft::{files, load, save};
pub use targets::{ROLES, TargetModules};
pub use trained_on::TrainedOn;

use crate::load::LoadError;
use crate::raw_config::ConfigError;
use hone_tensor::DeviceError;
use hone_tensor::safetensors::FileError;
use std::path::PathBuf;

/// Why an adapter cannot be attached, read or written.
#[derive(Debug, thiserror::Error)]
pub enum AdapterError {
    /// A target names no layer of the model.
    #[error(
        "adapter.target_modules: `{target}` matches no linear layer of this model. Its linear \
         layers are {available} (in {num_layers} blocks); a target is one of these names, a longer \
         one (`layers.0.self_attn.q_proj`), a pattern with `*` over the full name \
         (`*.layers.0.*`), or \"all-linear\""
    )]
    NoMatch {
        /// The target as given.
        target: String,
        /// Last components of the existing names.
        available: String,
        /// Number of blocks.
        num_layers: usize,
    },
    /// A target names layers of several kinds and reaches only some of them.
    #[error(
        "adapter.target_modules: `{target}` covers only {covered}, and not {left_out}, which it \
         also names. Write `{all}` for all of them, or `*.{target}` for these alone"
    )]
    Partial {
        /// The target as given.
        target: String,
        /// What it covers.
        covered: String,
        /// What it names besides.
        left_out: String,
        /// A target that covers both.
        all: String,
    },
    /// Experts are to share, and none is adapted.
    #[error(
        "adapter.share_experts: no expert of this model gets an adapter, so there is nothing to \
         share. Leave the key out, or add \"experts\" to adapter.target_modules if the model has \
         some"
    )]
    NothingToShare,
    /// The adapter was trained on other weights.
    #[error(
        "{}: was trained on {}, whose weights have SHA-256 {:.12}…; those of {model} have \
         {found:.12}…, and an adapter is of use with its own alone. Give the model that it was \
         trained on",
        adapter.display(),
        .trained_on.name,
        .trained_on.weights_sha256
    )]
    OtherBase {
        /// The adapter.
        adapter: PathBuf,
        /// What it was trained on.
        trained_on: Box<TrainedOn>,
        /// The other model.
        model: String,
        /// The digest of its weights.
        found: String,
    },
    /// The list of targets is empty.
    #[error(
        "adapter.target_modules is empty: name the layers to adapt, such as [\"q_proj\", \
         \"v_proj\"], or write \"all-linear\""
    )]
    NoTargets,
    /// The weights file.
    #[error(transparent)]
    File(#[from] FileError),
    /// The device has no room for it, or failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The weights file was not fetched.
    #[error(transparent)]
    Weights(#[from] LoadError),
    /// Another file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// File.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file of the adapter is missing.
    #[error(
        "{}: {file} is missing. An adapter in PEFT layout is a directory with \
         adapter_config.json and adapter_model.safetensors{}",
        dir.display(),
        .pickled.as_ref().map(|name| format!(
            "; {name} is pickled, which Hone never reads because a pickle can run code: convert \
             it to safetensors (`save_pretrained` of PEFT does)"
        )).unwrap_or_default()
    )]
    NoAdapter {
        /// Adapter directory.
        dir: PathBuf,
        /// What is missing.
        file: &'static str,
        /// A pickled file found instead.
        pickled: Option<String>,
    },
    /// There is no such directory.
    #[error(
        "{}: there is no such directory. An adapter in PEFT layout is a directory with \
         adapter_config.json and adapter_model.safetensors; a run of `hone train` leaves it as \
         adapter/ in its output.dir",
        .0.display()
    )]
    NotThere(PathBuf),
    /// A run directory was given that has no adapter yet.
    #[error(
        "{}: this run of `hone train` has not finished, so it has no adapter yet; finish it by \
         the command that began it and --resume",
        .0.display()
    )]
    Unfinished(PathBuf),
    /// A checkpoint of a run was given.
    #[error(
        "{}: this is a checkpoint of `hone train`, to go on from and not to use: finish its run \
         with --resume, which leaves adapter/", .0.display()
    )]
    Checkpoint(PathBuf),
    /// A run directory was given instead of the adapter inside it.
    #[error("{}: the adapter is in {}", dir.display(), inner.display())]
    Inside {
        /// The directory as given.
        dir: PathBuf,
        /// Where the adapter is.
        inner: PathBuf,
    },
    /// `adapter_config.json` cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Tensors that do not fit the model or the configuration.
    #[error("{}: {problem}", path.display())]
    Mismatch {
        /// File.
        path: PathBuf,
        /// What does not fit, and the likely cause.
        problem: String,
    },
}
