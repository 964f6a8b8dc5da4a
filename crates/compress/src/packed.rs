//! A model in the types that its file will have.

use crate::curvature::Curvature;
use crate::feedback::rounded;
use crate::imatrix::Columns;
use crate::tune::coding_of;
use crate::window::Window;
use hone_model::{GgufForm, Model, Pass};
use hone_tensor::{Category, DType, DeviceError, Storage};

/// The model of `pass` with its adapters merged and matrices in these types, one for each tensor of
/// the form; what stays in floats is in those that the file will have.
///
/// # Errors
/// If the device failed.
pub fn packed(
    pass: Pass<'_>,
    form: &GgufForm<'_>,
    (storages, columns): (&[Storage], &Columns),
) -> Result<Model, DeviceError> {
    let mut matrices = Vec::new();
    let tensors = form.tensors().iter().zip(storages).enumerate();
    for (i, (tensor, &storage)) in tensors.filter(|(_, (tensor, _))| tensor.is_matrix()) {
        for (part, role) in tensor.roles().iter().enumerate() {
            let matrix = form.matrix(pass.device, *role, (storage, columns.of(i, part)))?;
            matrices.push((*role, pass.device.upload(Category::Weights, &matrix)?));
        }
    }
    Ok(pass.model.with_weights(matrices))
}

/// What [`packed`] gives, with matrices rounded by error feedback where their type and what is
/// known of their curvature allow it. `done` is told of each window and of each matrix.
///
/// # Errors
/// If the device failed.
pub fn fed_back(
    pass: Pass<'_>,
    form: &GgufForm<'_>,
    packed: &Model,
    windows: &[Window],
    done: &mut dyn FnMut(),
) -> Result<Model, DeviceError> {
    let curvature = Curvature::measure(pass, form, windows, done)?;
    let mut matrices = Vec::new();
    for (i, tensor) in form.tensors().iter().enumerate().filter(|(_, of)| of.is_matrix()) {
        for (part, &role) in tensor.roles().iter().enumerate() {
            done();
            let Some(of) = packed.weight(role) else { continue };
            let (Some(coding), Storage::Packed(format)) = (coding_of(of), of.storage()) else {
                continue;
            };
            let Some((inputs, outputs)) = curvature.of(i, part) else { continue };
            let weights = form.matrix(pass.device, role, (DType::F32.into(), &[]))?;
            let matrix = rounded(&weights, format, coding, (inputs, outputs.as_ref()));
            matrices.push((role, pass.device.upload(Category::Weights, &matrix)?));
        }
    }
    Ok(packed.with_weights(matrices))
}
