//! Language models, decoders and encoders: configuration, weights, adapters, generation, export.
//!
//! Model code is forward-only code over the coarse operations of `hone-tensor`. It knows neither
//! the device nor the objective. A family ([`families`]) translates its `config.json` into one
//! [`DecoderConfig`]; everything after that is shared.

pub mod adapter;
mod batch;
mod block_embeddings;
mod cache;
mod companions;
mod config;
mod decoder;
mod divergence;
pub mod embed;
mod encoder;
mod export;
pub mod families;
mod fidelity;
pub mod generate;
mod gguf;
pub mod heads;
pub mod hub;
mod kinds;
mod load;
mod mixture;
mod pass;
mod raw_config;
mod rope;
pub mod score;
mod weights;

pub use batch::Batch;
pub use config::{
    AttentionConfig, DecoderConfig, EncoderConfig, ExpertNames, ExpertsConfig, LayerConfig,
    LearnedPositions, MaskedHead, MlpConfig, SharedExpertConfig,
};
pub use decoder::{Decoder, Recompute, Stream};
pub use divergence::{Distance, Divergence, distances, divergences};
pub use export::{
    ExportError, ExportOptions, LinearLayer, Quantised, StoredTensor, check_written, export_hf,
    linear_layers, not_finite, torch_name, written,
};
pub use fidelity::{Comparison, Fidelity, MAX_LOST};
pub use gguf::{
    FINGERPRINT_TEXT, FormTensor, GgufAdapter, GgufExportError, GgufForm, Importance,
    LlamaCppPieces, ModelTexts, is_gguf, texts_of_gguf, tokenizer_name,
};
pub use kinds::{LayerKind, Part, Trait};
pub use load::{LoadError, LoadOptions, Model, ModelFiles, Trained, load, weight_files};
pub use pass::Pass;
pub use raw_config::ConfigError;
pub use rope::{RopeConfig, RopeScaling};
pub use weights::{BlockNorm, EncoderPart, ExpertPart, Linear, Role, WeightSpec};
