//! A model in the types that its file will have.

use crate::back::{BackError, Lookers, Room, run_back};
use crate::calibrate::{Places, head_of};
use crate::curvature::{Curvature, Group, Moment, curvature_bytes};
use crate::factor::Factor;
use crate::feedback::rounded;
use crate::imatrix::Columns;
use crate::tune::coding_of;
use crate::window::Window;
use hone_model::{GgufForm, Model, Pass, Role};
use hone_tensor::{Category, Coding, DType, DeviceError, Storage, Tensor, WeightFormat};

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
/// known of their curvature allow it. That is known of one block at a time, the last one first.
/// `done` is told of each block, forward and back.
///
/// # Errors
/// If the device failed, or there is no place for what blocks read.
pub fn fed_back(
    pass: Pass<'_>,
    form: &GgufForm<'_>,
    packed: &Model,
    (windows, room): (&[Window], Room<'_>),
    done: &mut dyn FnMut(),
) -> Result<Model, BackError> {
    let places = Places::of(pass, form);
    let curvature = Curvature::new(&places);
    let mut matrices = Vec::new();
    let mut after_block = || -> Result<(), DeviceError> {
        for Group { inputs, outputs } in curvature.take()? {
            let inputs = inputs.factor();
            for ((tensor, part), moment) in outputs {
                let role = form.tensors()[tensor].roles()[part];
                let Some((format, coding)) = coding_in(packed, role) else { continue };
                let weights = form.matrix(pass.device, role, (DType::F32.into(), &[]))?;
                let outputs = moment.factor();
                let matrix = rounded(&weights, format, coding, (&inputs, Some(&outputs)));
                matrices.push((role, pass.device.upload(Category::Weights, &matrix)?));
            }
        }
        Ok(())
    };
    let lookers = Lookers { observer: &curvature, after_block: &mut after_block, done };
    let back = run_back(pass, windows, lookers, room.folder)?;
    let role = head_of(form).map(|head| form.tensors()[head].roles()[0]);
    let of_head = role.and_then(|role| Some((role, coding_in(packed, role)?)));
    if let Some((role, coding)) = of_head {
        let inputs = Moment::of_head(&back.hidden, pass.model.decoder.config.hidden_size).factor();
        let matrix = table(pass, form, (role, coding), &inputs)?;
        matrices.push((role, pass.device.upload(Category::Weights, &matrix)?));
    }
    Ok(packed.with_weights(matrices))
}

/// About the most bytes that [`fed_back`] takes besides the models.
pub fn feedback_bytes(model: &Model, windows: &[Window]) -> u64 {
    let tokens: usize = windows.iter().map(Window::num_tokens).sum();
    // What blocks read, gradients of that, hidden states, and a window's while it is run.
    let streams = 4 * 4 * tokens * model.decoder.config.hidden_size;
    curvature_bytes(&model.decoder) + streams as u64 + (1 << 29)
}

/// The format that a matrix is packed in, if errors of it can be fed back.
fn coding_in(packed: &Model, role: Role) -> Option<(&'static WeightFormat, Coding)> {
    let of = packed.weight(role)?;
    match (coding_of(of), of.storage()) {
        (Some(coding), Storage::Packed(format)) => Some((format, coding)),
        _ => None,
    }
}

/// Rows of a table that are rounded at a time, between which nothing is fed back.
const ROWS: usize = 4096;

/// A table of which only the curvature of inputs is known.
fn table(
    pass: Pass<'_>,
    form: &GgufForm<'_>,
    (role, (format, coding)): (Role, (&'static WeightFormat, Coding)),
    inputs: &Factor,
) -> Result<Tensor, DeviceError> {
    let shape = pass.model.weight(role).map(|table| table.shape().to_vec());
    let Some(&[num_rows, cols]) = shape.as_deref() else { panic!("a table") };
    let piece = |first: usize| -> Result<Tensor, DeviceError> {
        let weights = form.rows(pass.device, role, first..num_rows.min(first + ROWS))?;
        Ok(rounded(&weights, format, coding, (inputs, None)))
    };
    let pieces = (0..num_rows).step_by(ROWS).map(piece);
    let table = Tensor::of_rows(Storage::Packed(format), &[num_rows, cols], pieces);
    pass.model.release_tables();
    table
}
