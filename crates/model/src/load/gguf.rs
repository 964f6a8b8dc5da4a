//! Weights of a GGUF file, by their roles.

use super::files::{LoadError, Taken};
use crate::config::DecoderConfig;
use crate::gguf::{GgufModel, Part, Place, is_used};
use crate::weights::WeightSpec;
use hone_tensor::{Device, Tensor};

/// The tensor of a weight, which must have its shape. A dry device reads no elements, so for one
/// they stay as they are in the file.
pub(super) fn take(
    model: &GgufModel,
    spec: &WeightSpec,
    config: &DecoderConfig,
    device: &Device,
    taken: &mut Taken,
) -> Result<Tensor, LoadError> {
    let file = model.file();
    let path = file.path().to_owned();
    let Some(Place { name, part }) = model.place_of(spec.role, config) else {
        return Err(LoadError::Missing { path, name: spec.name.clone() });
    };
    let tensor = match part {
        None => file.tensor(&name),
        Some(Part { index, of }) => file.part(&name, index, of)?,
    };
    let Some(tensor) = tensor else {
        let Some(shape) = file.shape(&name) else { return Err(LoadError::Missing { path, name }) };
        let problem = format!(
            "it has shape {shape:?}, in which not every expert has whole blocks of its own. Fetch \
             the file again, or another of this model"
        );
        return Err(LoadError::Parts { path, name, problem });
    };
    // A matrix of one row may be a vector there.
    let tensor = match spec.shape[..] {
        [1, cols] if tensor.shape() == [cols] => tensor.with_shape(&spec.shape),
        // The weight of a convolution has one channel, which files leave out.
        [rows, 1, cols] if tensor.shape() == [rows, cols] => tensor.with_shape(&spec.shape),
        _ => tensor,
    };
    if tensor.shape() != spec.shape {
        let (found, expected) = (tensor.shape().to_vec(), spec.shape.clone());
        return Err(LoadError::Shape { path, name, found, expected });
    }
    if let Some(problem) = model.obstacle(spec.role, &tensor)? {
        return Err(LoadError::Parts { path, name, problem });
    }
    taken.note(&name, &tensor);
    match device.is_dry() {
        true => Ok(tensor),
        false => Ok(model.restored(spec.role, config, tensor)?),
    }
}

/// Bytes of tensors that were not taken.
pub(super) fn other_bytes(model: &GgufModel, taken: &Taken) -> u64 {
    let others = model.file().names().filter(|name| !taken.has(name));
    others.filter_map(|name| model.file().tensor(name)).map(|of| of.num_bytes() as u64).sum()
}

/// Refuses tensors that were not taken, but for blocks that predict tokens after the next.
pub(super) fn refuse_surplus(
    model: &GgufModel,
    taken: &Taken,
    config: &DecoderConfig,
) -> Result<(), LoadError> {
    let further = model.num_further_blocks();
    let is_further = |name: &str| {
        let block = name.strip_prefix("blk.").and_then(|rest| rest.split('.').next()?.parse().ok());
        let first = config.num_hidden_layers();
        block.is_some_and(|block: usize| (first..first.saturating_add(further)).contains(&block))
    };
    let names = model.file().names().filter(|name| !is_used(name) && !is_further(name));
    taken.refuse_others(model.file().path(), names)
}
