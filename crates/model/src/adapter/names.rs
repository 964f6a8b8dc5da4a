//! Names of modules in PEFT's files: those in transformers' memory, which depend on the class that
//! a model was loaded in, and for some families are not those on disk.

use super::AdapterError;
use crate::config::{DecoderConfig, LayerConfig};
use hone_tensor::Tensor;
use hone_tensor::safetensors::{FileError, SafeTensorsFile};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// A module outside the blocks, after what is before the blocks.
const OUTSIDE: &str = "per_layer_model_projection";

/// Mixtral's MLP on disk, and that of every family in memory.
const MIXTRAL: [&str; 2] = [".block_sparse_moe.", ".mlp."];

/// What PEFT puts before the names of a model's own modules.
const OF_PEFT: &str = "base_model.model.";

/// What classes of transformers, and sentence-transformers, put before a text model's blocks.
const PREFIXES: [&str; 10] = [
    // `…Model`.
    "",
    // `…ForCausalLM`, and classifiers of decoders; ModernBERT with a head.
    "model.",
    // `…ForConditionalGeneration`, and before transformers 4.52.
    "model.language_model.",
    "language_model.model.",
    // `…Model` of several parts.
    "language_model.",
    // Encoders with a head.
    "bert.",
    "roberta.",
    "distilbert.",
    // `SentenceTransformer`, now and in older versions.
    "0.model.",
    "0.auto_model.",
];

/// `name`, which is one on disk, or a key that contains one, as PEFT has it.
pub(super) fn in_memory(config: &DecoderConfig, name: &str) -> String {
    with_prefix(config, config.class_prefix, name)
}

fn with_prefix(config: &DecoderConfig, prefix: &str, name: &str) -> String {
    let (own, blocks) = (config.own_prefix(), config.blocks());
    let name = name.replacen(MIXTRAL[0], MIXTRAL[1], 1);
    let name = name.replacen(&format!("{own}{OUTSIDE}"), &format!("{prefix}{OUTSIDE}"), 1);
    name.replacen(&format!("{own}{blocks}."), &format!("{prefix}{blocks}."), 1)
}

/// An adapter's tensors, under the names that modules have on disk.
pub(super) struct AdapterFile {
    file: SafeTensorsFile,
    /// Names in the file by ours.
    names: BTreeMap<String, String>,
    /// What the file has before the names of blocks.
    prefix: &'static str,
}

impl AdapterFile {
    /// # Errors
    /// If it cannot be read, or has two names for one tensor.
    pub(super) fn open(path: &Path, config: &DecoderConfig) -> Result<Self, AdapterError> {
        let file = SafeTensorsFile::open(path)?;
        let of_experts = |layer: &LayerConfig| Some(layer.mlp.experts.as_ref()?.names.router);
        let mut routers = config.layers.iter().filter_map(of_experts);
        let is_mixtral = routers.any(|router| router.starts_with(MIXTRAL[0].trim_matches('.')));
        let mut this = Self { file, names: BTreeMap::new(), prefix: config.class_prefix };
        for name in this.file.names() {
            let (prefix, mut ours) = on_disk(config, &name);
            this.prefix = prefix.unwrap_or(this.prefix);
            if is_mixtral {
                ours = ours.replacen(MIXTRAL[1], MIXTRAL[0], 1);
            }
            if let Some(other) = this.names.insert(ours, name.clone()) {
                let problem = format!(
                    "tensors `{other}` and `{name}` are of the same layer, under names of two \
                     classes of transformers: keep those of one, or save the adapter again"
                );
                return Err(AdapterError::Mismatch { path: path.to_owned(), problem });
            }
        }
        Ok(this)
    }

    pub(super) fn path(&self) -> &Path {
        self.file.path()
    }

    pub(super) fn names(&self) -> BTreeSet<String> {
        self.names.keys().cloned().collect()
    }

    /// The tensor of this name, if there is one.
    pub(super) fn tensor(&self, name: &str) -> Result<Option<Tensor>, FileError> {
        self.names.get(name).map_or(Ok(None), |name| self.file.tensor(name))
    }

    /// What the adapter's settings may call a module: its name on disk, in memory, or where the
    /// adapter was trained, or its weight.
    pub(super) fn names_of(&self, config: &DecoderConfig, module: &str) -> [String; 5] {
        let in_memory = in_memory(config, module);
        let trained = with_prefix(config, self.prefix, module);
        let weights = [&in_memory, &trained].map(|module| format!("{module}.weight"));
        let [weight, trained_weight] = weights;
        [module.to_owned(), in_memory, trained, weight, trained_weight]
    }
}

/// The reverse of [`in_memory`] for any class, with what the class puts before names of blocks;
/// what is no module keeps its name.
fn on_disk(config: &DecoderConfig, name: &str) -> (Option<&'static str>, String) {
    let blocks = config.blocks();
    let is_module = |rest: &str| {
        let number = rest.strip_prefix(blocks).and_then(|rest| rest.strip_prefix('.'));
        number.is_some_and(|number| number.starts_with(|c: char| c.is_ascii_digit()))
            || rest.starts_with(OUTSIDE)
    };
    let inner = name.strip_prefix(OF_PEFT);
    let found = PREFIXES.into_iter().find_map(|prefix| {
        let rest = inner?.strip_prefix(prefix).filter(|rest| is_module(rest))?;
        Some((Some(prefix), format!("{OF_PEFT}{}{rest}", config.own_prefix())))
    });
    found.unwrap_or_else(|| (None, name.to_owned()))
}
