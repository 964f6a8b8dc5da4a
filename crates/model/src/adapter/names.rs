//! Names of modules in PEFT's files: those in transformers' memory, which for some families are not
//! those on disk.

use crate::config::{DecoderConfig, LayerConfig};
use hone_tensor::Tensor;
use hone_tensor::safetensors::{FileError, SafeTensorsFile};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Mixtral's MLP on disk, and that of every family in memory.
const MIXTRAL: [&str; 2] = [".block_sparse_moe.", ".mlp."];

/// `name`, which is one on disk, or a key that contains one, as PEFT has it.
pub(super) fn in_memory(config: &DecoderConfig, name: &str) -> String {
    let name = name.replacen(MIXTRAL[0], MIXTRAL[1], 1);
    match config.text_module {
        Some(module) => name.replacen("model.layers.", &format!("model.{module}.layers."), 1),
        None => name,
    }
}

/// What PEFT's patterns may call a module: its name on disk or in memory, or its weight.
pub(super) fn names(config: &DecoderConfig, module: &str) -> [String; 3] {
    let in_memory = in_memory(config, module);
    let weight = format!("{in_memory}.weight");
    [module.to_owned(), in_memory, weight]
}

/// An adapter's tensors, under the names that modules have on disk.
pub(super) struct AdapterFile {
    file: SafeTensorsFile,
    /// Names in the file by ours.
    names: BTreeMap<String, String>,
}

impl AdapterFile {
    pub(super) fn open(path: &Path, config: &DecoderConfig) -> Result<Self, FileError> {
        let file = SafeTensorsFile::open(path)?;
        let of_experts = |layer: &LayerConfig| Some(layer.mlp.experts.as_ref()?.names.router);
        let mut routers = config.layers.iter().filter_map(of_experts);
        let is_mixtral = routers.any(|router| router.starts_with(MIXTRAL[0].trim_matches('.')));
        let ours = |name: String| (on_disk(config.text_module, is_mixtral, &name), name);
        let names = file.names().into_iter().map(ours).collect();
        Ok(Self { file, names })
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
}

/// The reverse of [`in_memory`], which leaves what has its name on disk already.
fn on_disk(text_module: Option<&str>, is_mixtral: bool, name: &str) -> String {
    let name = match text_module {
        Some(module) => name.replacen(&format!("model.{module}.layers."), "model.layers.", 1),
        None => name.to_owned(),
    };
    if is_mixtral { name.replacen(MIXTRAL[1], MIXTRAL[0], 1) } else { name }
}
