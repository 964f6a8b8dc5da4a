//! Whether a file has the weights that it was meant to have, and how far they are from the model's.

use crate::imatrix::Columns;
use hone_model::{FormTensor, GgufForm, Role};
use hone_tensor::{DType, Device, DeviceError, Storage, Tensor};
use std::ops::Range;

/// Rows of a packed matrix that are compared, as packing takes most of the time. Rows are packed
/// one by one, and what goes wrong with a tensor (its place, shape, type, or order of rows) goes
/// wrong with all or most of them. Of a matrix of floats all are.
const ROWS: usize = 64;
/// Rows of a table that are compared at a time. Other matrices are read whole in any case.
const PIECE: usize = 4096;
/// How far a vector may be off, relative to one more than its size: some are stored as another
/// function of theirs.
const OFF: f32 = 1e-5;

/// What is found of a file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ReadBack {
    /// The first tensor that is not what was meant.
    pub differs: Option<String>,
    /// The tensor with the largest error: its name, and the sum of squares of that as a share of
    /// that of its weights.
    pub worst: Option<(String, f64)>,
}

/// Compares `found`, read from a file, with `written`, the model that the file was written of in
/// these types, and with the model that all are of; of packed matrices some rows.
///
/// # Errors
/// If the device failed or there is no memory.
pub fn read_back(
    device: &Device,
    [model, written, found]: [&GgufForm<'_>; 3],
    (storages, columns): (&[Storage], &Columns),
) -> Result<ReadBack, DeviceError> {
    let mut all = ReadBack::default();
    for (i, (tensor, &storage)) in model.tensors().iter().zip(storages).enumerate() {
        let mut sums = [0.0; 2];
        for (part, &role) in tensor.roles().iter().enumerate() {
            let mut is_same = true;
            if tensor.is_matrix() {
                for rows in rows_of((tensor, role), storage, i) {
                    let read = found.rows(device, role, rows.clone())?;
                    let own = model.rows(device, role, rows.clone())?;
                    let as_stored = (storage, columns.of(i, part));
                    let meant = written.stored_rows(device, (role, rows), as_stored)?;
                    add_errors(&mut sums, [&own, &read]);
                    is_same &= meant.bytes() == read.bytes();
                }
            } else {
                let vector = |form: &GgufForm<'_>| vector(device, form, role);
                is_same = is_close(&vector(written)?, &vector(found)?);
            }
            if !is_same && all.differs.is_none() {
                all.differs = Some(tensor.name.clone());
            }
        }
        let error = sums[0] / sums[1];
        if error > all.worst.as_ref().map_or(0.0, |worst| worst.1) {
            all.worst = Some((tensor.name.clone(), error));
        }
    }
    Ok(all)
}

/// The rows that are compared of each matrix of the tensor with this number, in pieces; of packed
/// ones some, elsewhere in others.
fn rows_of(
    (tensor, role): (&FormTensor, Role),
    storage: Storage,
    number: usize,
) -> impl Iterator<Item = Range<usize>> {
    let num_rows = tensor.shape[tensor.shape.len() - 2];
    let all = match storage {
        Storage::Float(_) => 0..num_rows,
        Storage::Packed(_) => {
            let count = num_rows.min(ROWS);
            let first = number * ROWS % (num_rows - count + 1);
            first..first + count
        }
    };
    let piece = match role {
        Role::EmbedTokens | Role::LmHead => PIECE,
        _ => num_rows,
    };
    all.clone().step_by(piece).map(move |first| first..all.end.min(first + piece))
}

/// Adds the squares of errors, and of weights.
fn add_errors(sums: &mut [f64; 2], [own, read]: [&Tensor; 2]) {
    for (own, read) in own.f32().iter().zip(read.f32()) {
        sums[0] += f64::from(read - own).powi(2);
        sums[1] += f64::from(*own).powi(2);
    }
}

fn vector(device: &Device, form: &GgufForm<'_>, role: Role) -> Result<Vec<f32>, DeviceError> {
    form.matrix(device, role, (DType::F32.into(), &[]))?.try_to_vec_f32()
}

fn is_close(a: &[f32], b: &[f32]) -> bool {
    // Numbers that are none are the concern of who compares predictions.
    let is_close = |(a, b): (&f32, &f32)| (a - b).abs() <= OFF * (1.0 + a.abs()) || !b.is_finite();
    a.len() == b.len() && a.iter().zip(b).all(is_close)
}
