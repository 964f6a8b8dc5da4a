//! Matrix products with the accumulation that every projection needs.
//!
//! `out[m, n] (+)= scale · Σ_terms A[m, k] · B[k, n] + bias[n] + add[m, n]`.
//!
//! Operands are strided views, so the forward product `x · Wᵀ`, the input gradient `dy · W` and the
//! weight gradient `dyᵀ · x` are the same function on other strides, and a low-rank adapter is one
//! more term.

mod cpu;
mod micro;
pub mod reference;

pub use cpu::{SCRATCH_BYTES, gemm};

use crate::element::View;

/// A matrix inside a slice: element `(i, j)` is at `offset + i * row_stride + j * col_stride`.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    /// Where the elements are.
    pub data: View<'a>,
    /// Index of element `(0, 0)`.
    pub offset: usize,
    /// Distance between rows.
    pub row_stride: usize,
    /// Distance between columns.
    pub col_stride: usize,
}

impl<'a> Matrix<'a> {
    /// A row-major matrix with `cols` columns.
    pub fn rows(data: View<'a>, cols: usize) -> Self {
        Self { data, offset: 0, row_stride: cols, col_stride: 1 }
    }

    /// The same elements with rows and columns exchanged.
    pub fn transposed(self) -> Self {
        Self { row_stride: self.col_stride, col_stride: self.row_stride, ..self }
    }

    /// The matrix without its first `cols` columns.
    pub fn from_col(self, cols: usize) -> Self {
        Self { offset: self.offset + cols * self.col_stride, ..self }
    }
}

/// One product `A[m, k] · B[k, n]` of a sum of products.
#[derive(Clone, Copy, Debug)]
pub struct Term<'a> {
    /// Left operand, `[m, k]`.
    pub a: Matrix<'a>,
    /// Right operand, `[k, n]`.
    pub b: Matrix<'a>,
    /// Length of the contraction.
    pub k: usize,
}

/// What becomes of the sum of products.
#[derive(Clone, Copy, Debug)]
pub struct Epilogue<'a> {
    /// What the sum is multiplied by, before anything is added.
    pub scale: f32,
    /// `[n]`, added to every row.
    pub bias: Option<&'a [f32]>,
    /// `[m, n]`, row-major with the row stride of the output.
    pub add: Option<&'a [f32]>,
    /// Whether the products are added to what the output holds.
    pub accumulate: bool,
}

impl Default for Epilogue<'_> {
    fn default() -> Self {
        Self { scale: 1.0, bias: None, add: None, accumulate: false }
    }
}

/// Where the result goes: `m` rows of `n` columns, `row_stride` apart, from column `col` on.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Rows.
    pub m: usize,
    /// Columns.
    pub n: usize,
    /// Distance between rows in the output slice.
    pub row_stride: usize,
    /// First column.
    pub col: usize,
}

impl Target {
    /// A whole row-major `[m, n]` slice.
    pub fn whole(m: usize, n: usize) -> Self {
        Self { m, n, row_stride: n, col: 0 }
    }
}

#[cfg(test)]
mod tests;
