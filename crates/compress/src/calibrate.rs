//! Passes over text of calibration: what each matrix is multiplied with.
//!
//! Importance of a column is the mean of squares of what it is multiplied with, as llama.cpp's
//! `imatrix` has it. Sums run over tokens in their order, in f64, so that they have the same bits
//! whatever the threads.

use crate::imatrix::{Imatrix, Sums};
use crate::window::Window;
use hone_model::{Batch, DecoderConfig, GgufForm, Pass, Role};
use hone_tensor::{DeviceError, Observer, Projection, Reader, Tensor};
use std::cell::RefCell;
use std::collections::HashMap;

/// Which matrix of which tensor a projection has, by where it is in memory.
pub(crate) struct Places(HashMap<*const Projection, (usize, usize)>);

impl Places {
    pub(crate) fn of(pass: Pass<'_>, form: &GgufForm<'_>) -> Self {
        let mut places = HashMap::new();
        for (i, tensor) in form.tensors().iter().enumerate().filter(|(_, of)| of.is_matrix()) {
            for (part, role) in tensor.roles().iter().enumerate() {
                if let Some(projection) = pass.model.decoder.projection(*role) {
                    places.insert(std::ptr::from_ref(projection), (i, part));
                }
            }
        }
        Self(places)
    }

    pub(crate) fn get(&self, projection: &Projection) -> Option<(usize, usize)> {
        self.0.get(&std::ptr::from_ref(projection)).copied()
    }
}

/// The tensor that the head's products take: its own, or the embedding that it is tied to.
pub(crate) fn head_of(form: &GgufForm<'_>) -> Option<usize> {
    let is = |wanted: Role| form.tensors().iter().position(|of| of.roles() == [wanted]);
    is(Role::LmHead).or_else(|| is(Role::EmbedTokens))
}

/// Sums of squares of columns, and of how many rows.
#[derive(Clone, Default)]
struct Squares {
    sums: Vec<f64>,
    count: u64,
}

impl Squares {
    fn add(&mut self, other: &[f64], count: usize) {
        self.sums.resize(other.len(), 0.0);
        self.sums.iter_mut().zip(other).for_each(|(sum, x)| *sum += x);
        self.count += count as u64;
    }
}

/// Sums of squares of the columns of `x [_, cols]`.
fn squares(x: &[f32], cols: usize) -> Vec<f64> {
    let mut sums = vec![0.0; cols];
    for row in x.chunks_exact(cols) {
        sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += f64::from(*x) * f64::from(*x));
    }
    sums
}

struct Inputs<'a> {
    places: &'a Places,
    /// Of each matrix of each tensor.
    found: RefCell<Vec<Vec<Squares>>>,
    failure: RefCell<Option<DeviceError>>,
}

impl Observer for Inputs<'_> {
    fn input(&self, x: &Tensor, readers: &[Reader<'_>]) {
        let cols = x.shape()[1];
        let x = match x.try_to_vec_f32() {
            Ok(x) => x,
            Err(error) => {
                *self.failure.borrow_mut() = Some(error);
                return;
            }
        };
        let mut found = self.found.borrow_mut();
        for (projections, rows) in readers {
            let sums = squares(&x[rows.start * cols..rows.end * cols], cols);
            for (tensor, part) in projections.iter().filter_map(|p| self.places.get(p)) {
                found[tensor][part].add(&sums, rows.len());
            }
        }
    }
}

/// What the matrices at these places are multiplied with on the windows, where `found` has as many
/// sums as there are matrices. `head` is the tensor that the head's products take.
fn watched(
    pass: Pass<'_>,
    places: &Places,
    (found, head): (Vec<Vec<Squares>>, Option<usize>),
    windows: &[Window],
    done: &mut dyn FnMut(),
) -> Result<Vec<Vec<Squares>>, DeviceError> {
    let inputs = Inputs { places, found: RefCell::new(found), failure: RefCell::new(None) };
    let config = &pass.model.decoder.config;
    for windows in windows.chunks(windows_at_once(config, windows)) {
        let batches: Vec<Batch> = windows.iter().map(|window| window.batch(config)).collect();
        let hidden = pass.hidden_by_blocks(&batches, Some(&inputs), done)?;
        let Some(head) = head else { continue };
        for (hidden, window) in hidden.into_iter().zip(windows) {
            let sums = squares(&hidden.try_to_vec_f32()?, config.hidden_size);
            inputs.found.borrow_mut()[head][0].add(&sums, window.num_tokens());
        }
    }
    match inputs.failure.into_inner() {
        Some(error) => Err(error),
        None => Ok(inputs.found.into_inner()),
    }
}

/// Bytes of hidden states that go through blocks together at most.
pub(crate) const MAX_STREAMS: usize = 512 << 20;

/// How many of the windows go through a block before the next one is read.
fn windows_at_once(config: &DecoderConfig, windows: &[Window]) -> usize {
    let longest = windows.iter().map(Window::num_tokens).max().unwrap_or(0);
    (MAX_STREAMS / (4 * longest * config.hidden_size).max(1)).max(1)
}

/// How often [`importance`] says that a block is done.
pub fn importance_steps(config: &DecoderConfig, windows: &[Window]) -> usize {
    windows.len().div_ceil(windows_at_once(config, windows)) * config.num_hidden_layers()
}

/// The importance of the columns of these matrices on the windows: mean squares of what they are
/// multiplied with, none of a matrix that no token reached. `done` is told of each
/// block that some windows have gone through, [`importance_steps`] times.
///
/// # Errors
/// If the device failed.
pub fn importance_of_roles(
    pass: Pass<'_>,
    roles: &[Role],
    windows: &[Window],
    done: &mut dyn FnMut(),
) -> Result<Vec<Vec<f32>>, DeviceError> {
    let mut places = HashMap::new();
    for (i, role) in roles.iter().enumerate() {
        if let Some(projection) = pass.model.decoder.projection(*role) {
            places.insert(std::ptr::from_ref(projection), (i, 0));
        }
    }
    let found = vec![vec![Squares::default()]; roles.len()];
    let found = watched(pass, &Places(places), (found, None), windows, done)?;
    let mean = |squares: &Squares| {
        squares.sums.iter().map(|sum| (sum / squares.count as f64) as f32).collect()
    };
    Ok(found.iter().map(|of| mean(&of[0])).collect())
}

/// The importance of columns on these windows, which `datasets` were made of. `done` is told of
/// each.
///
/// # Errors
/// If the device failed.
pub fn importance(
    pass: Pass<'_>,
    form: &GgufForm<'_>,
    (windows, datasets): (&[Window], Vec<String>),
    done: &mut dyn FnMut(),
) -> Result<Imatrix, DeviceError> {
    let places = Places::of(pass, form);
    let parts = |of: &hone_model::FormTensor| vec![Squares::default(); of.roles().len()];
    let found = form.tensors().iter().map(parts).collect();
    let found = watched(pass, &places, (found, head_of(form)), windows, done)?;
    let tensors = form.tensors().iter().zip(found);
    let seen = tensors.filter(|(_, parts)| parts.iter().any(|squares| squares.count > 0));
    let of_tensor = |(tensor, parts): (&hone_model::FormTensor, Vec<Squares>)| {
        let cols = tensor.shape.last().copied().unwrap_or(0);
        let mut sums = Sums::default();
        for (role, squares) in tensor.roles().iter().zip(parts) {
            let mut values: Vec<f32> = squares.sums.iter().map(|sum| *sum as f32).collect();
            values.resize(cols, 0.0);
            sums.squares.extend(form.columns(*role, values)?);
            sums.counts.push(squares.count as f32);
        }
        Ok((tensor.name.clone(), sums))
    };
    Ok(Imatrix {
        tensors: seen.map(of_tensor).collect::<Result<_, DeviceError>>()?,
        datasets,
        chunk_count: windows.len() as u32,
        chunk_size: windows.iter().map(Window::num_tokens).max().unwrap_or(0) as u32,
    })
}
