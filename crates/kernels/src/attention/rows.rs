//! Heads as operands of products.

use super::{Rows, Sequence};
use crate::element::{DType, View};
use crate::gemm::tile::{Lines, Narrow};

/// An element type of queries, keys and values.
pub(crate) trait Typed: Narrow + crate::cpu::Plain {
    /// The type's name at run time.
    const DTYPE: DType;
    fn view(x: &[Self]) -> View<'_>;
}

impl Typed for f32 {
    const DTYPE: DType = DType::F32;
    fn view(x: &[f32]) -> View<'_> {
        View::F32(x)
    }
}

impl Typed for crate::bf16 {
    const DTYPE: DType = DType::Bf16;
    fn view(x: &[Self]) -> View<'_> {
        View::Bf16(x)
    }
}

/// One head's rows as lines of `d` steps.
pub(crate) fn lines(rows: Rows<'_>, head: usize, d: usize) -> Lines<'_> {
    Lines { data: rows.data, offset: rows.offset + head * d, line_stride: rows.stride, step: 1 }
}

/// Columns as lines instead of rows.
pub(crate) fn transposed(x: Lines<'_>) -> Lines<'_> {
    Lines { line_stride: x.step, step: x.line_stride, ..x }
}

/// Rows that belong to sequences; those after them are padding.
pub(crate) fn used_rows(sequences: &[Sequence]) -> usize {
    sequences.iter().fold(0, |end, s| {
        assert_eq!(s.q_start, end, "sequences follow one another from row 0 on");
        end + s.q_len
    })
}
