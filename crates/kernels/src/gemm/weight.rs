//! Gradient of a weight: a product whose contraction goes over tokens. Both operands have to be
//! packed: the right one is once, for all tasks together, and a block of the left one's rows by its
//! own task (by several only where there are more threads than blocks).

use super::Matrix;
use super::block::{Left, Right, multiply_add, packed_stride, right_of_all, right_of_all_len};
use super::cpu::{MAX_PANEL, lines_of};
use super::tile::{Lines, Part, Tile, with_tile};
use crate::cpu::{Cpu, Kernel, Scratch, Split, reinterpret, with_scratch};
use crate::element::DType;
use std::ops::Range;

/// Rows of the weight of a task.
const ROWS: usize = 96;
/// Most tokens that are packed at a time: the gradient is read and written once for so many.
pub const MOST_TOKENS: usize = 1024;

/// Bytes of scratch memory that a thread needs, whatever the instruction set.
pub(super) const SCRATCH_BYTES: usize = 4 * (ROWS * (MOST_TOKENS + 64) + ROWS * MAX_PANEL) + 2 * 64;

/// Elements of workspace for `t` tokens and a weight of `n` columns.
pub(super) fn workspace_len(t: usize, n: usize) -> usize {
    right_of_all_len(n, t.min(MOST_TOKENS))
}

/// `d_w [m, n] += d_yᵀ x` for `d_y [t, m]` and `x [t, n]`, both row by row; operands enter the
/// product as `compute` says, as in [`gemm`](super::gemm). `workspace` holds
/// [`workspace_len`] elements.
///
/// # Panics
/// If a slice is too short for its matrix.
pub fn add_weight_gradient(
    cpu: &Cpu,
    compute: DType,
    (t, m, n): (usize, usize, usize),
    (d_y, x): (Matrix<'_>, Matrix<'_>),
    workspace: &mut [f32],
    d_w: &mut [f32],
) {
    assert!(d_y.col_stride == 1 && x.col_stride == 1 && d_w.len() >= m * n);
    if m == 0 || n == 0 {
        return;
    }
    let (d_y, x) = (lines_of(d_y.transposed()), lines_of(x.transposed()));
    let d_w = &Split::new(d_w);
    with_tile!(cpu.isa, compute, M => for first in (0..t).step_by(MOST_TOKENS) {
        let tokens = MOST_TOKENS.min(t - first);
        let all = Part { line: 0, lines: n, k0: first, k: tokens };
        let panels = right_of_all::<M>(cpu, x, all, reinterpret(workspace));
        let blocks = m.div_ceil(ROWS);
        // Where blocks of rows are too few to keep threads busy, each is for several tasks.
        let wanted = if cpu.threads() == 1 { 1 } else { (4 * cpu.threads()).div_ceil(blocks) };
        let num_panels = panels.num_panels::<M>();
        let of_task = num_panels.div_ceil(wanted.min(num_panels));
        let splits = num_panels.div_ceil(of_task);
        cpu.pool.run(blocks * splits, &|task| {
            with_scratch(SCRATCH_BYTES, |scratch| {
                let (row, panel) = (task / splits * ROWS, task % splits * of_task);
                let rows = Part { line: row, lines: ROWS.min(m - row), k0: first, k: tokens };
                let some = panel..num_panels.min(panel + of_task);
                cpu.isa.run(Task::<M> { d_y, rows, panels, some, n, d_w, scratch });
            });
        });
    });
}

struct Task<'a, M: Tile> {
    /// Columns as lines, and which of them.
    d_y: Lines<'a>,
    rows: Part,
    panels: Right<'a, M::Elem>,
    /// Which of the panels.
    some: Range<usize>,
    n: usize,
    d_w: &'a Split<'a, f32>,
    scratch: Scratch<'a>,
}

impl<M: Tile> Kernel for Task<'_, M> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { d_y, rows, panels, some, n, d_w, mut scratch } = self;
        let stride = packed_stride::<M>(rows.k);
        let packed = scratch.take(rows.lines * stride);
        // SAFETY: the tile was chosen by the instruction set.
        unsafe { M::pack_rows(d_y, rows, stride, packed) };
        let a = Left::packed(packed, stride);
        let sums = scratch.take(rows.lines * MAX_PANEL);
        for panel in some {
            multiply_add::<M>(a, rows.lines, panels, panel, sums, |i, columns| {
                // SAFETY: these rows and columns belong to this task.
                unsafe { d_w.slice((rows.line + i) * n + columns.start, columns.len()) }
            });
        }
    }
}
