//! Weights of a GGUF file, by their roles.

use super::files::{LoadError, Taken};
use crate::config::DecoderConfig;
use crate::gguf::{GgufModel, Place, is_used};
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
    let (Place { name, expert }, file) = (model.place_of(spec.role, config), model.file());
    let path = file.path().to_owned();
    let tensor = match expert {
        None => file.tensor(&name),
        Some(expert) => file.part(&name, expert)?,
    };
    let Some(tensor) = tensor else { return Err(LoadError::Missing { path, name }) };
    // A matrix of one row may be a vector there.
    let tensor = match spec.shape[..] {
        [1, cols] if tensor.shape() == [cols] => tensor.with_shape(&spec.shape),
        _ => tensor,
    };
    if tensor.shape() != spec.shape {
        let (found, expected) = (tensor.shape().to_vec(), spec.shape.clone());
        return Err(LoadError::Shape { path, name, found, expected });
    }
    taken.note(&name, &tensor);
    match device.is_dry() {
        true => Ok(tensor),
        false => Ok(model.restored(spec.role, config, tensor)?),
    }
}

/// Refuses tensors that were not taken.
pub(super) fn refuse_surplus(model: &GgufModel, taken: &Taken) -> Result<(), LoadError> {
    let names = model.file().names().filter(|name| !is_used(name));
    taken.refuse_others(model.file().path(), names)
}
