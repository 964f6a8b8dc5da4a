//! Models in GGUF files: what stands in the metadata is translated into the files of a model
//! directory in Hugging Face layout, so that nothing else reads such a model differently, and
//! tensors are found by their weights' roles. They stay in the file, in their blocks.

mod adapter;
mod architectures;
mod config;
mod delta;
mod merges;
mod metadata;
mod pieces;
mod rope;
mod splits;
mod tensors;
mod tokenizer;
mod write;

pub(crate) use adapter::AdapterFile;
pub(crate) use architectures::{Architecture, of_model_type};
pub use pieces::LlamaCppPieces;
pub(crate) use tensors::{Part, Place, is_used};
pub use write::{
    FINGERPRINT_TEXT, FormTensor, GgufAdapter, GgufExportError, GgufForm, Importance, ModelTexts,
    tokenizer_name,
};

use crate::raw_config::{ConfigError, RawConfig};
use hone_tensor::gguf::GgufFile;
use metadata::Metadata;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;

/// Whether a path names a GGUF file, by its extension.
pub fn is_gguf(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"))
}

/// What would be the small files of a GGUF file's model in Hugging Face layout, by their names.
///
/// # Errors
/// If the file is damaged, or holds a model or tokenizer that Hone does not read.
pub fn texts_of_gguf(path: &Path) -> Result<BTreeMap<&'static str, String>, ConfigError> {
    GgufModel::open(path)?.texts()
}

fn pretty(value: &impl Serialize) -> String {
    serde_json::to_string_pretty(value).expect("plain data can be written")
}

/// An open GGUF file that holds a model of an architecture that Hone knows.
pub(crate) struct GgufModel {
    file: GgufFile,
    architecture: &'static Architecture,
}

impl GgufModel {
    /// Reads the header of the file, or of all its parts.
    ///
    /// # Errors
    /// If it is damaged, or holds no model or one of another architecture.
    pub(crate) fn open(path: &Path) -> Result<Self, ConfigError> {
        let file = GgufFile::open(path)?;
        let architecture = architectures::of(&Metadata::new(&file))?;
        Ok(Self { file, architecture })
    }

    /// What would be the model's `config.json`. Errors call keys by their names in the file.
    ///
    /// # Errors
    /// If a key has an unusable value, or is not known.
    pub(crate) fn raw_config(&self) -> Result<RawConfig, ConfigError> {
        config::raw_config(&self.file, self.architecture)
    }

    /// What would be the other files of the model's directory, by their names: `config.json`,
    /// `generation_config.json` and, if the file holds a tokenizer, `tokenizer.json` and
    /// `tokenizer_config.json`, which has the chat template.
    ///
    /// # Errors
    /// As [`Self::raw_config`].
    pub(crate) fn texts(&self) -> Result<BTreeMap<&'static str, String>, ConfigError> {
        let config = self.raw_config()?.into_object();
        let ids = ["bos_token_id", "eos_token_id", "pad_token_id"];
        let generation = ids.into_iter().filter_map(|key| Some((key, config.get(key)?)));
        let generation: BTreeMap<_, _> = generation.collect();
        let metadata = Metadata::new(&self.file);
        let mut texts = tokenizer::texts(&metadata, self.architecture.name)?;
        texts.insert("generation_config.json", pretty(&generation));
        texts.insert("config.json", pretty(&config));
        Ok(texts)
    }

    /// Blocks that the file has after those of the model.
    pub(crate) fn num_further_blocks(&self) -> usize {
        let key = format!("{}.{}", self.architecture.name, config::FURTHER);
        let count = Metadata::new(&self.file).size(&key).ok().flatten();
        count.and_then(|count| usize::try_from(count).ok()).unwrap_or(0)
    }

    pub(crate) fn file(&self) -> &GgufFile {
        &self.file
    }

    pub(crate) fn architecture(&self) -> &'static Architecture {
        self.architecture
    }
}
