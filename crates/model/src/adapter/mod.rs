//! Low-rank adapters: which layers get one, how they start, and the PEFT files they live in.

mod lora;
mod peft;
mod targets;

pub use lora::{LoraConfig, attach};
pub use peft::{PeftConfig, load, save};
pub use targets::TargetModules;

use hone_tensor::safetensors::FileError;
use std::path::PathBuf;

/// Why an adapter cannot be attached, read or written.
#[derive(Debug, thiserror::Error)]
pub enum AdapterError {
    /// A target names no layer of the model.
    #[error(
        "adapter.target_modules: `{target}` matches no linear layer of this model. Its linear \
         layers are {available} (in {num_layers} blocks); a target is such a name, a longer one \
         (`layers.0.self_attn.q_proj`), a pattern with `*`, or \"all-linear\""
    )]
    NoMatch {
        /// What was given.
        target: String,
        /// Last parts of the names there are.
        available: String,
        /// Number of blocks.
        num_layers: usize,
    },
    /// The file of tensors.
    #[error(transparent)]
    File(#[from] FileError),
    /// The system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// File.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// `adapter_config.json` is not usable.
    #[error("{}: {problem}", path.display())]
    Config {
        /// File.
        path: PathBuf,
        /// What is wrong, and what would be right.
        problem: String,
    },
    /// Tensors that do not fit the model.
    #[error("{}: {problem}. The adapter was made for another model", path.display())]
    Mismatch {
        /// File.
        path: PathBuf,
        /// What does not fit.
        problem: String,
    },
}
