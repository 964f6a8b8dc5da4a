//! Matrices that an export holds in several tensors each, as other programs quantise them.

use super::{ExportError, layout_of, together};
use crate::load::{Layout, Model};
use crate::weights::{Role, WeightSpec};
use hone_tensor::safetensors::{Dtype, Lazy, RawTensor};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// What is written instead of floats.
#[derive(Clone, Debug, Default)]
pub struct Quantised<'a> {
    /// `quantization_config` of `config.json`.
    pub config: Value,
    /// The tensors of each matrix.
    pub matrices: BTreeMap<Role, &'a [StoredTensor]>,
}

/// One of a matrix's tensors.
#[derive(Clone, Debug)]
pub struct StoredTensor {
    /// What its name has in place of `weight`, such as `weight_scale`.
    pub name: &'static str,
    /// Element type.
    pub dtype: Dtype,
    /// Lengths of its dimensions.
    pub shape: Vec<usize>,
    /// The elements, little-endian.
    pub bytes: Vec<u8>,
}

impl StoredTensor {
    /// With the name that it has where the whole matrix would be called `whole`.
    pub(super) fn in_place_of(&self, whole: &str) -> (String, Lazy<'_>) {
        let module = whole.strip_suffix("weight").unwrap_or(whole);
        let Self { name, dtype, shape, bytes } = self;
        (format!("{module}{name}"), Lazy::Raw(RawTensor { dtype: *dtype, shape, bytes }))
    }
}

/// A linear layer of a model as an export names it.
#[derive(Clone, Debug)]
pub struct LinearLayer {
    /// What its matrix does; `None`: the layer is of another part of the files, or a head.
    pub role: Option<Role>,
    /// Name of its module, or what such names have in common.
    pub module: String,
    /// Whether its matrix is written in one tensor with those of other experts.
    pub is_together: bool,
}

/// The linear layers of what is exported of a model whose base is at `base`: those of blocks, the
/// head, and those of other parts of the files.
///
/// # Errors
/// If the base's files cannot be read.
pub fn linear_layers(model: &Model, base: &Path) -> Result<Vec<LinearLayer>, ExportError> {
    let config = &model.decoder.config;
    let Layout { names, mut fused, packed, others } = layout_of(config, base)?;
    let mut layers = Vec::new();
    for WeightSpec { role, name, .. } in config.weights() {
        let Role::Matrix(..) = role else { continue };
        let is_together = together(config, role, &name, &mut fused).is_some();
        let module = module(names.get(&name).unwrap_or(&name)).to_owned();
        layers.push(LinearLayer { role: Some(role), module, is_together });
    }
    let other =
        |module: &str| LinearLayer { role: None, module: module.to_owned(), is_together: false };
    layers.push(other(module(&config.head_name())));
    let others = others
        .iter()
        .filter(|(name, tensor)| name.ends_with(".weight") && tensor.shape().len() == 2);
    for name in packed.iter().map(|(name, _)| name).chain(others.map(|(name, _)| name)) {
        let module = module(name);
        // Programs call other parts by other names than files do, but not their modules.
        let part = module.strip_prefix("model.").unwrap_or(module).split('.').next();
        let name = if config.is_part { part.unwrap_or(module) } else { module };
        if !layers.iter().any(|layer| layer.role.is_none() && layer.module == name) {
            layers.push(other(name));
        }
    }
    Ok(layers)
}

/// The name of a weight's module.
fn module(name: &str) -> &str {
    name.strip_suffix(".weight").unwrap_or(name)
}
