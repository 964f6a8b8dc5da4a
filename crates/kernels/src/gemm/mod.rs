//! Matrix products with a fused epilogue.
//!
//! `out[m, n] (+)= scale · Σ_terms A[m, k] · B[k, n] + bias[n] + add[m, n]`.
//!
//! Operands are strided views, so the forward product `x · Wᵀ`, the input gradient `dy · W` and the
//! gradient `dyᵀ · x` of an adapter's matrix are one function with different strides, and a
//! low-rank adapter is one more term, for all rows or for some. Products that write to the same
//! output are scheduled together. Gradients of whole weights have a function of their own,
//! [`add_weight_gradient`], which packs each operand once.

pub(crate) mod block;
mod cpu;
pub(crate) mod cuda;
#[cfg(any(test, feature = "reference"))]
pub mod reference;
pub(crate) mod tile;
mod weight;

pub use crate::cuda::Fp8;
pub(crate) use cpu::{MAX_PANEL, WHOLE_PANELS};
pub use cpu::{gemm, gemm_each};
pub use cuda::{fits_quantised, quantised_bytes};
pub use weight::{MAX_TOKENS, add_weight_gradient};

use crate::element::DType;
use crate::format::Storage;
use crate::processor::{Processor, Target};
use crate::view::{View, ViewMut};

/// Bytes of scratch memory that each thread keeps after its first product.
pub const SCRATCH_BYTES: usize = if cpu::SCRATCH_BYTES > weight::SCRATCH_BYTES {
    cpu::SCRATCH_BYTES
} else {
    weight::SCRATCH_BYTES
};

/// Whether a product first converts operands of another type in memory, as on a GPU; the CPU
/// converts while it packs.
pub fn converts_in_memory(target: Target) -> bool {
    target == Target::Cuda
}

/// Scratch bytes that a product needs to convert `elements` of an operand stored as `storage`.
pub fn converted_bytes(target: Target, storage: Storage, compute: DType, elements: usize) -> usize {
    if converts_in_memory(target) { cuda::converted_bytes(storage, compute, elements) } else { 0 }
}

/// Whether a product quantises its operands itself, as on a GPU; on the CPU the caller does.
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
    /// The elements.
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

    /// The transpose, without copying.
    pub fn transposed(self) -> Self {
        Self { row_stride: self.col_stride, col_stride: self.row_stride, ..self }
    }

    /// Whether elements are contiguous along rows or columns.
    fn is_contiguous(&self) -> bool {
        self.row_stride == 1 || self.col_stride == 1
    }

    /// Whether the matrix consists of whole rows of the array, as a packed array's scales require.
    fn has_whole_rows(&self) -> bool {
        let View::Packed(packed) = self.data else { return true };
        let (cols, stride) = (packed.cols(), self.row_stride.max(self.col_stride));
        let is_unambiguous = cols > 1 || !packed.has_scales();
        is_unambiguous && stride == cols && self.offset.is_multiple_of(cols)
    }

    /// The matrix without its first `cols` columns.
    pub fn from_col(self, cols: usize) -> Self {
        Self { offset: self.offset + cols * self.col_stride, ..self }
    }
}

/// One product `A[m, k] · B[k, n]` of a sum of products.
///
/// If both operands are int8, they are multiplied as integers: rows of `A` must be contiguous and
/// `k` a multiple of four; the scales of `B` belong to its columns (a weight's rows, transposed),
/// or are left out because `A` already includes them; and the term must precede any float term.
#[derive(Clone, Copy, Debug)]
pub struct Term<'a> {
    /// Left operand, `[m, k]`.
    pub a: Matrix<'a>,
    /// Right operand, `[k, n]`.
    pub b: Matrix<'a>,
    /// Length of the contraction.
    pub k: usize,
    /// Rows of the result that the term is added to; other rows of `a` are not read. An int8 term
    /// must have [`Rows::ALL`].
    pub rows: Rows,
}

/// Consecutive rows of a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rows {
    /// First row.
    pub first: usize,
    /// One past the last row; may exceed the number of rows.
    pub end: usize,
}

impl Rows {
    /// Every row.
    pub const ALL: Self = Self { first: 0, end: usize::MAX };

    fn contains(self, row: usize) -> bool {
        (self.first..self.end).contains(&row)
    }

    /// The intersection with `rows`.
    fn within(self, rows: std::ops::Range<usize>) -> std::ops::Range<usize> {
        let first = self.first.clamp(rows.start, rows.end);
        first..self.end.clamp(first, rows.end)
    }

    /// Number of rows, starting at `row`, that are all inside or all outside.
    fn uniform_from(self, row: usize) -> usize {
        let bound = if row < self.first { self.first } else { self.end };
        if row < bound { bound - row } else { usize::MAX }
    }
}

impl<'a> Term<'a> {
    /// A term added to all rows.
    pub fn new(a: Matrix<'a>, b: Matrix<'a>, k: usize) -> Self {
        Self { a, b, k, rows: Rows::ALL }
    }

    /// Whether the term is summed in integers.
    fn is_int8(&self) -> bool {
        self.a.data.storage().is_int8() && self.b.data.storage().is_int8()
    }
}

/// The 8-bit type that a GPU quantises operands to for a product with a weight stored as int8.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QuantisedType {
    /// FP8 with one scale per operand; the left operand in this format, the weight in E4M3.
    Fp8(Fp8),
    /// Integers, with a scale per row of the left operand. The scales of a weight's rows apply to
    /// columns of the result; in the backward pass they run along the contraction, so the left
    /// operand is multiplied by them before it is quantised.
    Int8,
}

/// Epilogue applied to the accumulator.
#[derive(Clone, Copy, Debug)]
pub struct Epilogue<'a> {
    /// Factor of the sum, applied before anything is added.
    pub scale: f32,
    /// `[n]` f32, added to every row.
    pub bias: Option<View<'a>>,
    /// f32, added elementwise; with the length and layout of the output.
    pub add: Option<View<'a>>,
    /// Whether to add to the output rather than overwrite it.
    pub accumulate: bool,
}

impl Default for Epilogue<'_> {
    fn default() -> Self {
        Self { scale: 1.0, bias: None, add: None, accumulate: false }
    }
}

/// Where a result is written: element `(i, j)` to `offset + i * row_stride + j * col_stride`. One
/// of the strides is 1.
#[derive(Clone, Copy, Debug)]
pub struct OutputRegion {
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

impl OutputRegion {
    /// A whole row-major `[m, n]` slice.
    pub fn whole(m: usize, n: usize) -> Self {
        Self::columns(m, n, n, 0)
    }

    /// Columns `col..col + n` of a row-major `[m, width]` slice.
    pub fn columns(m: usize, n: usize, width: usize, col: usize) -> Self {
        Self { m, n, offset: col, row_stride: width, col_stride: 1 }
    }

    /// The region of the transposed result.
    pub fn transposed(self) -> Self {
        let Self { m, n, offset, row_stride, col_stride } = self;
        Self { m: n, n: m, offset, row_stride: col_stride, col_stride: row_stride }
    }

    /// Index of an element.
    fn index(&self, row: usize, col: usize) -> usize {
        self.offset + row * self.row_stride + col * self.col_stride
    }

    /// Panics unless the region is inside a slice of `len` and its elements are distinct.
    fn check(&self, len: usize) {
        let Self { m, n, row_stride, col_stride, .. } = *self;
        let last = self.index(m.saturating_sub(1), n.saturating_sub(1));
        assert!(m == 0 || n == 0 || last < len, "the output is too short");
        let disjoint = |len: usize, stride: usize, count: usize| count <= 1 || len <= stride;
        assert!(match (row_stride, col_stride) {
            (stride, 1) => disjoint(n, stride, m),
            (1, stride) => disjoint(m, stride, n),
            _ => false,
        });
    }
}

/// A sum of products, and where it is written.
#[derive(Clone, Copy, Debug)]
pub struct Product<'a> {
    /// Products that are summed.
    pub terms: &'a [Term<'a>],
    /// Epilogue applied to the sum.
    pub epilogue: Epilogue<'a>,
    /// Where the result is written.
    pub output: OutputRegion,
}

/// Gradient of a weight `[m, n]` over `t` tokens.
#[derive(Clone, Copy, Debug)]
pub struct WeightGradient<'a> {
    /// Tokens: the length of the contraction.
    pub t: usize,
    /// Rows of the weight.
    pub m: usize,
    /// Columns of the weight.
    pub n: usize,
    /// Gradient of the layer's output, `[t, m]`; rows are contiguous.
    pub d_y: Matrix<'a>,
    /// The layer's input, `[t, n]`; rows are contiguous.
    pub x: Matrix<'a>,
}

impl Processor {
    /// Sums of products into `out`; see [`gemm`].
    pub fn gemm(&self, compute: DType, products: &[Product<'_>], out: ViewMut<'_>) {
        match self {
            Self::Cpu(cpu) => gemm(cpu, compute, products, out),
            Self::Cuda(gpu) => cuda::gemm(gpu, compute, None, products, out.cuda()),
        }
    }

    /// Sums of products, each into its own array of f32; see [`gemm_each`].
    pub fn gemm_each(&self, compute: DType, products: &[Product<'_>], outputs: Vec<ViewMut<'_>>) {
        match self {
            Self::Cpu(cpu) => gemm_each(cpu, compute, products, outputs),
            Self::Cuda(gpu) => {
                assert_eq!(products.len(), outputs.len());
                for (product, out) in products.iter().zip(outputs) {
                    cuda::gemm(gpu, compute, None, std::slice::from_ref(product), out.cuda());
                }
            }
        }
    }

    /// [`Processor::gemm`] on a GPU, with operands quantised to `quantised` in terms whose weight
    /// is stored as int8, where sizes allow: see [`fits_quantised`].
    ///
    /// # Panics
    /// On the CPU.
    pub fn gemm_quantised(
        &self,
        quantised: QuantisedType,
        compute: DType,
        products: &[Product<'_>],
        out: ViewMut<'_>,
    ) {
        match self {
            Self::Cpu(_) => panic!("on the CPU the caller quantises operands"),
            Self::Cuda(gpu) => cuda::gemm(gpu, compute, Some(quantised), products, out.cuda()),
        }
    }

    /// `d_w [m, n] += d_yᵀ x`; see [`add_weight_gradient`]. `workspace` is f32:
    /// [`weight_workspace_len`] elements.
    pub fn add_weight_gradient(
        &self,
        compute: DType,
        gradient: WeightGradient<'_>,
        workspace: ViewMut<'_>,
        d_w: ViewMut<'_>,
    ) {
        match self {
            Self::Cpu(cpu) => {
                add_weight_gradient(cpu, compute, gradient, workspace.f32(), d_w.f32());
            }
            Self::Cuda(gpu) => cuda::add_weight_gradient(gpu, compute, gradient, d_w.cuda()),
        }
    }
}

#[cfg(test)]
mod order_tests;
#[cfg(test)]
mod tests;
