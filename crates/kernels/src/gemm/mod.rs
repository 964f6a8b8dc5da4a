//! Matrix products with the accumulation that every projection needs.
//!
//! `out[m, n] (+)= scale · Σ_terms A[m, k] · B[k, n] + bias[n] + add[m, n]`.
//!
//! Operands are strided views, so the forward product `x · Wᵀ`, the input gradient `dy · W` and the
//! gradient `dyᵀ · x` of an adapter's matrix are the same function on other strides, and a low-rank
//! adapter is one more term, of all rows or of some. Products that share an output are handed out
//! to the threads together. Gradients of whole weights have a function of their own,
//! [`add_weight_gradient`], which packs each operand once.

pub(crate) mod block;
mod cpu;
pub(crate) mod cuda;
#[cfg(any(test, feature = "reference"))]
pub mod reference;
pub(crate) mod tile;
mod weight;

pub use crate::cuda::Fp8;
pub(crate) use cpu::MAX_PANEL;
pub use cpu::gemm;
pub use cuda::{eight_bit_bytes, fits_eight_bits};
pub use weight::{MOST_TOKENS, add_weight_gradient};

use crate::element::{DType, View, ViewMut};
use crate::format::Storage;
use crate::processor::{Processor, Target};

/// Bytes of scratch memory that each thread keeps after its first product.
pub const SCRATCH_BYTES: usize = if cpu::SCRATCH_BYTES > weight::SCRATCH_BYTES {
    cpu::SCRATCH_BYTES
} else {
    weight::SCRATCH_BYTES
};

/// Whether a product converts operands of another type in memory before it reads them, as a GPU
/// does; the CPU converts what it packs.
pub fn converts_in_memory(target: Target) -> bool {
    target == Target::Cuda
}

/// Bytes inside an operation that `elements` held so take, once converted for a product.
pub fn converted_bytes(target: Target, held: Storage, compute: DType, elements: usize) -> usize {
    if converts_in_memory(target) { cuda::converted_bytes(held, compute, elements) } else { 0 }
}

/// Whether a product brings its operands to eight bits itself, as on a GPU; on the CPU they are
/// quantised before.
pub fn quantises_operands(target: Target) -> bool {
    target == Target::Cuda
}

/// Elements (f32) of workspace of [`Processor::add_weight_gradient`] for `t` tokens and a weight of
/// `n` columns.
pub fn weight_workspace_len(target: Target, t: usize, n: usize) -> usize {
    match target {
        Target::Cpu => weight::workspace_len(t, n),
        Target::Cuda => 0,
    }
}

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

    /// Whether elements follow one another along rows or columns.
    fn is_contiguous(&self) -> bool {
        self.row_stride == 1 || self.col_stride == 1
    }

    /// Whether rows are those of the array, if it is packed.
    fn has_its_rows(&self) -> bool {
        let View::Packed(packed) = self.data else { return true };
        let (cols, stride) = (packed.cols(), self.row_stride.max(self.col_stride));
        let is_clear = cols > 1 || !packed.has_scales();
        is_clear && stride == cols && self.offset.is_multiple_of(cols)
    }

    /// The matrix without its first `cols` columns.
    pub fn from_col(self, cols: usize) -> Self {
        Self { offset: self.offset + cols * self.col_stride, ..self }
    }
}

/// One product `A[m, k] · B[k, n]` of a sum of products.
///
/// If both operands are int8, they are multiplied as integers: the rows of `A` are contiguous and
/// their number of elements `k` a multiple of four, the scales of `B` belong to its columns (a
/// weight's rows, transposed) or are left out because they are part of `A` already, and the term
/// comes before any of floats.
#[derive(Clone, Copy, Debug)]
pub struct Term<'a> {
    /// Left operand, `[m, k]`.
    pub a: Matrix<'a>,
    /// Right operand, `[k, n]`.
    pub b: Matrix<'a>,
    /// Length of the contraction.
    pub k: usize,
    /// Rows of the result that the term is added to; other rows of `a` are not read. A term of
    /// int8 has [`Rows::ALL`].
    pub rows: Rows,
}

/// Consecutive rows of a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rows {
    /// First row.
    pub first: usize,
    /// Row after the last; may be beyond the result's last.
    pub end: usize,
}

impl Rows {
    /// All rows there are.
    pub const ALL: Self = Self { first: 0, end: usize::MAX };

    fn contain(self, row: usize) -> bool {
        (self.first..self.end).contains(&row)
    }

    /// The part within `rows`.
    fn within(self, rows: std::ops::Range<usize>) -> std::ops::Range<usize> {
        let first = self.first.clamp(rows.start, rows.end);
        first..self.end.clamp(first, rows.end)
    }

    /// Rows from `row` on that are all in or all out.
    fn alike_from(self, row: usize) -> usize {
        let bound = if row < self.first { self.first } else { self.end };
        if row < bound { bound - row } else { usize::MAX }
    }
}

impl<'a> Term<'a> {
    /// A term of all rows.
    pub fn new(a: Matrix<'a>, b: Matrix<'a>, k: usize) -> Self {
        Self { a, b, k, rows: Rows::ALL }
    }

    /// Whether the term is summed in integers.
    fn is_int8(&self) -> bool {
        self.a.data.storage().is_int8() && self.b.data.storage().is_int8()
    }
}

/// What a GPU brings operands to whose product with a weight in bytes is in eight bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EightBits {
    /// FP8 with one factor for each operand; the left one in numbers of that kind.
    Fp8(Fp8),
    /// Integers, with a scale for each row of the left operand; the scales of a weight's rows are
    /// along the contraction of its transposed product, and then multiplied in before.
    Int8,
}

/// What becomes of the sum of products.
#[derive(Clone, Copy, Debug)]
pub struct Epilogue<'a> {
    /// What the sum is multiplied by, before anything is added.
    pub scale: f32,
    /// `[n]` f32, added to every row.
    pub bias: Option<View<'a>>,
    /// f32, added element by element; as long as the output and laid out like it.
    pub add: Option<View<'a>>,
    /// Whether the products are added to what the output holds.
    pub accumulate: bool,
}

impl Default for Epilogue<'_> {
    fn default() -> Self {
        Self { scale: 1.0, bias: None, add: None, accumulate: false }
    }
}

/// Where the result goes: element `(i, j)` to `offset + i * row_stride + j * col_stride`, one of
/// the strides being one.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// Rows.
    pub m: usize,
    /// Columns.
    pub n: usize,
    /// Index of element `(0, 0)`.
    pub offset: usize,
    /// Distance between rows.
    pub row_stride: usize,
    /// Distance between columns.
    pub col_stride: usize,
}

impl Place {
    /// A whole row-major `[m, n]` slice.
    pub fn whole(m: usize, n: usize) -> Self {
        Self::columns(m, n, n, 0)
    }

    /// Columns `col..col + n` of a row-major `[m, width]` slice.
    pub fn columns(m: usize, n: usize, width: usize, col: usize) -> Self {
        Self { m, n, offset: col, row_stride: width, col_stride: 1 }
    }

    /// The same elements with rows and columns exchanged.
    pub fn transposed(self) -> Self {
        let Self { m, n, offset, row_stride, col_stride } = self;
        Self { m: n, n: m, offset, row_stride: col_stride, col_stride: row_stride }
    }

    /// Index of an element.
    fn index(&self, row: usize, col: usize) -> usize {
        self.offset + row * self.row_stride + col * self.col_stride
    }

    /// Panics unless all elements are inside a slice of `len`, none of them twice.
    fn check(&self, len: usize) {
        let Self { m, n, row_stride, col_stride, .. } = *self;
        let last = self.index(m.saturating_sub(1), n.saturating_sub(1));
        assert!(m == 0 || n == 0 || last < len, "the output is too short");
        let apart = |len: usize, stride: usize, count: usize| count <= 1 || len <= stride;
        assert!(match (row_stride, col_stride) {
            (stride, 1) => apart(n, stride, m),
            (1, stride) => apart(m, stride, n),
            _ => false,
        });
    }
}

/// A sum of products and its place.
#[derive(Clone, Copy, Debug)]
pub struct Product<'a> {
    /// What is multiplied and summed.
    pub terms: &'a [Term<'a>],
    /// What becomes of the sum.
    pub epilogue: Epilogue<'a>,
    /// Where it goes.
    pub target: Place,
}

impl Processor {
    /// Sums of products into `out`; see [`gemm`].
    pub fn gemm(&self, compute: DType, products: &[Product<'_>], out: ViewMut<'_>) {
        match self {
            Self::Cpu(cpu) => gemm(cpu, compute, products, out),
            Self::Cuda(gpu) => cuda::gemm(gpu, (compute, None), products, out.cuda()),
        }
    }

    /// The same, on a GPU, with terms in eight bits whose right operand is held in bytes, if sizes
    /// allow: see [`fits_eight_bits`].
    ///
    /// # Panics
    /// On the CPU.
    pub fn gemm_in_eight_bits(
        &self,
        kind: EightBits,
        compute: DType,
        products: &[Product<'_>],
        out: ViewMut<'_>,
    ) {
        match self {
            Self::Cpu(_) => panic!("on the CPU operands are brought to eight bits before"),
            Self::Cuda(gpu) => cuda::gemm(gpu, (compute, Some(kind)), products, out.cuda()),
        }
    }

    /// `d_w [m, n] += d_yᵀ x`; see [`add_weight_gradient`]. `workspace` is f32:
    /// [`weight_workspace_len`] elements.
    pub fn add_weight_gradient(
        &self,
        compute: DType,
        (t, m, n): (usize, usize, usize),
        (d_y, x): (Matrix<'_>, Matrix<'_>),
        workspace: ViewMut<'_>,
        d_w: ViewMut<'_>,
    ) {
        let (sizes, operands) = ((t, m, n), (d_y, x));
        match self {
            Self::Cpu(cpu) => {
                let (workspace, d_w) = (workspace.f32(), d_w.f32());
                add_weight_gradient(cpu, compute, sizes, operands, workspace, d_w);
            }
            Self::Cuda(gpu) => cuda::add_weight_gradient(gpu, compute, sizes, operands, d_w.cuda()),
        }
    }
}

#[cfg(test)]
mod tests;
