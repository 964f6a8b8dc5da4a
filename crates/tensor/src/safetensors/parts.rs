//! Matrices that files have in several tensors.

use super::Parts;
use crate::{Category, Device, DeviceError, Storage, Tensor};

/// The matrix `[rows, cols]` of `storage`, as [`Parts::storage`] said, in the host's memory; on a
/// dry device without memory.
///
/// # Errors
/// If there is no memory for it.
pub fn joined(
    device: &Device,
    parts: &Parts<'_>,
    storage: Storage,
    shape: [usize; 2],
) -> Result<Tensor, DeviceError> {
    if device.is_dry() {
        // Not counted in `device`: that is done when it is uploaded or converted.
        return Device::dry().persistent(Category::Weights, storage, &shape);
    }
    let mut tensor = Tensor::try_zeros(storage, &shape)?;
    parts.write(storage, shape, tensor.bytes_mut());
    Ok(tensor)
}
