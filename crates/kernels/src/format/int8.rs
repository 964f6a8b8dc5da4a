//! int8 with one scale per row: the `f32` scales, then the bytes of all rows.

use super::{Packed, WeightFormat};
use crate::cpu::Cpu;
use crate::cuda::arg::Arg;
use crate::cuda::source::Source;
use crate::element::{Address, Floats};
use crate::vector::{Columns, quantise_rows};

pub(super) static FORMAT: WeightFormat = WeightFormat {
    name: "int8",
    block: 1,
    for_tables: true,
    num_bytes: |[rows, cols]| rows * (4 + cols),
    unpack,
    pack: Some(pack),
    search: None,
    coding: None,
    tiles: None,
    source: &SOURCE,
    parameter,
};

static SOURCE: Source = super::source!("int8", "typedef Int8Rows Weights;\n");

/// A row-major matrix of bytes: element `(i, j)` is `scales[i] · (values[i, j] - 128)`.
///
/// Symmetric quantisation, so that the zero point is a constant; unsigned, since the first operand
/// of `vpdpbusd` is unsigned.
#[derive(Clone, Copy, Debug)]
pub struct Int8Rows<'a> {
    /// `[rows, cols]`
    pub values: &'a [u8],
    /// `[rows]`, or empty if they are folded into the other operand of a matmul.
    pub scales: &'a [f32],
}

impl Int8Rows<'_> {
    /// The byte that stands for zero.
    pub const ZERO_POINT: u8 = 128;
}

/// [`Int8Rows`] for writing.
#[derive(Debug)]
pub struct Int8RowsMut<'a> {
    /// `[rows, cols]`
    pub values: &'a mut [u8],
    /// `[rows]`
    pub scales: &'a mut [f32],
}

fn unpack(weights: &Packed<'_>, first: usize, out: &mut [f32]) {
    let rows = weights.int8();
    let scale = rows.scales[first / weights.cols()];
    for (out, &value) in out.iter_mut().zip(&rows.values[first..]) {
        *out = (f32::from(value) - f32::from(Int8Rows::ZERO_POINT)) * scale;
    }
}

fn pack(cpu: &Cpu, weights: Floats<'_>, cols: usize, bytes: &mut [u8]) {
    let weights = Columns { x: weights.into(), width: cols, col: 0 };
    quantise_rows(cpu, weights, None, rows_mut(bytes, cols));
}

/// Values and scales of a matrix with this number of rows.
pub(super) fn rows(bytes: &[u8], rows: usize) -> Int8Rows<'_> {
    let (scales, values) = bytes.split_at(4 * rows);
    // SAFETY: every bit pattern is a value of the type; `align_to` respects alignment.
    let (before, scales, after) = unsafe { scales.align_to() };
    assert!(before.is_empty() && after.is_empty(), "checked when the view was made");
    Int8Rows { values, scales }
}

/// Values and scales of a matrix with rows of `cols`, for writing.
///
/// # Panics
/// If the bytes are misaligned or not a whole number of rows.
pub fn rows_mut(bytes: &mut [u8], cols: usize) -> Int8RowsMut<'_> {
    assert!(bytes.len().is_multiple_of(4 + cols), "memory of a tensor is aligned and whole");
    let (scales, values) = bytes.split_at_mut(bytes.len() / (4 + cols) * 4);
    // SAFETY: every bit pattern is a value of the type; `align_to_mut` respects alignment.
    let (before, scales, after) = unsafe { scales.align_to_mut() };
    assert!(before.is_empty() && after.is_empty(), "memory of a tensor is aligned and whole");
    Int8RowsMut { values, scales }
}

/// `Int8Rows` in CUDA: addresses of values and scales.
fn parameter(address: Address, [rows, _]: [usize; 2]) -> Arg {
    Arg::pair(address + 4 * rows as u64, address)
}
