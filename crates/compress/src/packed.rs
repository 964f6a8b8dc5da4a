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
use std::cell::RefCell;
use std::collections::BTreeMap;

/// The bytes of matrices that another process had done, by tensor of the form and part of it.
pub type Kept<'k> = &'k dyn Fn(usize, usize) -> Option<&'k [u8]>;

/// What [`fed_back`] has done.
pub enum Done<'a> {
    /// All windows went through a block.
    Forward,
    /// Their gradients went back through one.
    Back,
    /// The matrix that is this part of a tensor of the form is as it stays.
    Matrix((usize, usize), &'a Tensor),
}

/// The model of `pass` with its adapters merged and matrices in these types, one for each tensor of
/// the form; what stays in floats is in those that the file will have. Matrices that are kept are
/// taken from there.
///
/// # Errors
/// If the device failed.
pub fn packed(
    pass: Pass<'_>,
    form: &GgufForm<'_>,
    (storages, columns): (&[Storage], &Columns),
    kept: Kept<'_>,
) -> Result<Model, DeviceError> {
    let mut matrices = Vec::new();
    let tensors = form.tensors().iter().zip(storages).enumerate();
    for (i, (tensor, &storage)) in tensors.filter(|(_, (tensor, _))| tensor.is_matrix()) {
        for (part, role) in tensor.roles().iter().enumerate() {
            let kept = kept(i, part).and_then(|bytes| taken(pass.model, *role, storage, bytes));
            let matrix = match kept {
                Some(matrix) => matrix,
                None => form.matrix(pass.device, *role, (storage, columns.of(i, part)))?,
            };
            matrices.push((*role, pass.device.upload(Category::Weights, &matrix)?));
        }
    }
    Ok(pass.model.with_weights(matrices))
}

/// The matrix that has these bytes, if it can.
fn taken(model: &Model, role: Role, storage: Storage, bytes: &[u8]) -> Option<Tensor> {
    let shape = model.weight(role)?.shape();
    let has_len = storage.checked_num_bytes(shape) == Ok(bytes.len());
    has_len.then(|| Tensor::from_bytes(bytes, storage, shape))
}

/// What [`packed`] gives, with matrices rounded by error feedback where their type and what is
/// known of their curvature allow it, but for those that are kept. It is known of one block at a
/// time, the last one first.
///
/// # Errors
/// If the device failed, or there is no place for what blocks read.
pub fn fed_back(
    pass: Pass<'_>,
    form: &GgufForm<'_>,
    packed: &Model,
    (windows, room): (&[Window], Room<'_>),
    kept: Kept<'_>,
    done: &mut dyn FnMut(Done<'_>),
) -> Result<Model, BackError> {
    let mut left = BTreeMap::new();
    for (i, tensor) in form.tensors().iter().enumerate().filter(|(_, of)| of.is_matrix()) {
        for (part, &role) in tensor.roles().iter().enumerate() {
            if let (Some(coding), None) = (coding_in(packed, role), kept(i, part)) {
                left.insert((i, part), (role, coding));
            }
        }
    }
    if left.is_empty() {
        return Ok(packed.with_weights([]));
    }
    let head = head_of(form).map(|head| (head, 0));
    let of_head = head.and_then(|head| left.remove(&head));
    let (left, done, mut matrices) = (RefCell::new(left), RefCell::new(done), Vec::new());
    let (places, is_left) = (Places::of(pass, form), |place| left.borrow().contains_key(&place));
    let curvature = Curvature::new(&places, &is_left);
    let mut after_block = || -> Result<(), DeviceError> {
        (done.borrow_mut())(Done::Back);
        for Group { inputs, outputs } in curvature.take()? {
            let inputs = inputs.factor();
            for (place, moment) in outputs {
                let of_place = left.borrow_mut().remove(&place);
                let Some((role, (format, coding))) = of_place else { continue };
                let weights = form.matrix(pass.device, role, (DType::F32.into(), &[]))?;
                let outputs = moment.factor();
                let matrix = rounded(&weights, format, coding, (&inputs, Some(&outputs)));
                (done.borrow_mut())(Done::Matrix(place, &matrix));
                matrices.push((role, pass.device.upload(Category::Weights, &matrix)?));
            }
        }
        Ok(())
    };
    let mut forward = pass.model.decoder.config.num_hidden_layers();
    let mut of_block = || {
        if forward > 0 {
            forward -= 1;
            (done.borrow_mut())(Done::Forward);
        }
    };
    let (after_block, done_block) = (&mut after_block, &mut of_block);
    let lookers = Lookers { observer: &curvature, after_block, done: done_block };
    let back = run_back(pass, windows, lookers, room.folder)?;
    let done = done.into_inner();
    if let (Some(head), Some((role, coding))) = (head, of_head) {
        let inputs = Moment::of_head(&back.hidden, pass.model.decoder.config.hidden_size).factor();
        let matrix = table(pass, form, (role, coding), &inputs)?;
        done(Done::Matrix(head, &matrix));
        matrices.push((role, pass.device.upload(Category::Weights, &matrix)?));
    }
    // Those of which nothing is known stay.
    for (place, (role, _)) in left.into_inner() {
        if let Some(matrix) = packed.weight(role) {
            done(Done::Matrix(place, matrix));
        }
    }
    Ok(packed.with_weights(matrices))
}

/// About the most bytes that [`fed_back`] takes besides the models.
pub fn feedback_bytes(model: &Model, windows: &[Window]) -> u64 {
    let config = &model.decoder.config;
    let tokens: usize = windows.iter().map(Window::num_tokens).sum();
    // What blocks read, gradients of that, and hidden states.
    let streams = 4 * 4 * tokens * config.hidden_size;
    // Of a window, outputs of a block's matrices with their gradients, and what logits go through.
    let longest = windows.iter().map(Window::num_tokens).max().unwrap_or(0);
    let outputs: usize = model.decoder.projections().map(|(_, p)| p.out_features()).sum();
    let of_block = outputs / config.num_hidden_layers().max(1);
    let of_token = 4 * (4 * of_block + 8 * config.hidden_size + 3 * config.vocab_size);
    curvature_bytes(&model.decoder) + (streams + longest * of_token) as u64
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
