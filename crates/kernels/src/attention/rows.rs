//! Heads as operands of matmuls.

use super::{Inputs, PAGE_ROWS, Rows, Sequence};
use crate::gemm::tile::Lines;

/// One head's rows as lines of `d` steps.
pub(super) fn lines(rows: Rows<'_>, head: usize, d: usize) -> Lines<'_> {
    Lines { data: rows.data, offset: rows.offset + head * d, line_stride: rows.stride, step: 1 }
}

/// The transpose: columns as lines instead of rows.
pub(super) fn transposed(x: Lines<'_>) -> Lines<'_> {
    Lines { line_stride: x.step, step: x.line_stride, ..x }
}

/// Number of rows that belong to sequences; the rest is padding.
pub(crate) fn used_rows(sequences: &[Sequence]) -> usize {
    sequences.iter().fold(0, |end, s| {
        assert_eq!(s.q_start, end, "sequences are contiguous from row 0 on");
        end + s.q_len
    })
}

/// If keys are paged, checks that every key has a page and sequences begin with one.
pub(super) fn check_pages(inputs: &Inputs<'_>, sequences: &[Sequence]) {
    let Some(pages) = inputs.pages else { return };
    let is_paged = |s: &Sequence| {
        s.k_start.is_multiple_of(PAGE_ROWS) && s.k_start + s.k_len <= pages.len() * PAGE_ROWS
    };
    assert!(sequences.iter().all(is_paged), "every key has a page, and sequences begin with one");
}
