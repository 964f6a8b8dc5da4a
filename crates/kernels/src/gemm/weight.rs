//! Gradient of a weight: a product whose contraction runs over tokens. Both operands have to be
//! packed: the right one once, shared by all tasks; each block of the left one by the task that
//! owns it (by several tasks only if there are more threads than blocks).

use super::WeightGradient;
use super::block::{Left, Right, multiply_add, packed_stride, right_of_all, right_of_all_len};
use super::cpu::{MAX_PANEL, lines_of};
use super::tile::{Lines, Part, Tile, with_tile};
use crate::cpu::{Cpu, Kernel, Scratch, Split, reinterpret, with_scratch};
use crate::element::DType;
use std::ops::Range;

/// Rows of the weight that a task computes.
const ROWS: usize = 96;
/// Tokens packed at a time; the gradient is read and written once per this many.
pub const MAX_TOKENS: usize = 1024;

/// Bytes of scratch memory that a thread needs, whatever the instruction set.
pub(super) const SCRATCH_BYTES: usize = 4 * (ROWS * (MAX_TOKENS + 16) + ROWS * MAX_PANEL) + 2 * 64;

/// Elements of workspace for `t` tokens and a weight of `n` columns.
pub(super) fn workspace_len(t: usize, n: usize) -> usize {
    right_of_all_len(n, t.min(MAX_TOKENS))
}

/// `d_w [m, n] += d_yᵀ x` for `d_y [t, m]` and `x [t, n]`, rounded to `compute` as in
/// [`gemm`](super::gemm). `workspace` holds [`workspace_len`] elements.
///
/// # Panics
/// If rows are not contiguous, or a slice is too short for its matrix.
pub fn add_weight_gradient(
    cpu: &Cpu,
    compute: DType,
    gradient: WeightGradient<'_>,
    workspace: &mut [f32],
    d_w: &mut [f32],
) {
    let WeightGradient { t, m, n, d_y, x } = gradient;
    assert!(d_y.col_stride == 1 && x.col_stride == 1 && d_w.len() >= m * n);
    if m == 0 || n == 0 {
        return;
    }
    let (d_y, x) = (lines_of(d_y.transposed()), lines_of(x.transposed()));
    let d_w = &Split::new(d_w);
    with_tile!(cpu.isa, compute, M => for first in (0..t).step_by(MAX_TOKENS) {
        let tokens = MAX_TOKENS.min(t - first);
        let all = Part { line: 0, lines: n, k0: first, k: tokens };
        let panels = right_of_all::<M>(cpu, x, all, reinterpret(workspace));
        let blocks = m.div_ceil(ROWS);
        // Too few blocks to keep the threads busy are split between tasks by panels.
        let wanted = if cpu.threads() == 1 { 1 } else { (4 * cpu.threads()).div_ceil(blocks) };
        let num_panels = panels.num_panels::<M>();
        let task_panels = num_panels.div_ceil(wanted.min(num_panels));
        let splits = num_panels.div_ceil(task_panels);
        cpu.pool.run(blocks * splits, &|task| {
            with_scratch(SCRATCH_BYTES, |scratch| {
                let (row, panel) = (task / splits * ROWS, task % splits * task_panels);
                let rows = Part { line: row, lines: ROWS.min(m - row), k0: first, k: tokens };
                let own_panels = panel..num_panels.min(panel + task_panels);
                cpu.isa.run(Task::<M> { d_y, rows, panels, own_panels, n, d_w, scratch });
            });
        });
    });
}

struct Task<'a, M: Tile> {
    /// Columns of `d_y` as lines.
    d_y: Lines<'a>,
    /// The lines of `d_y` that this task multiplies: rows of the weight.
    rows: Part,
    panels: Right<'a, M::Elem>,
    /// The panels that this task multiplies.
    own_panels: Range<usize>,
    n: usize,
    d_w: &'a Split<'a, f32>,
    scratch: Scratch<'a>,
}

impl<M: Tile> Kernel for Task<'_, M> {
    type Output = ();
    const RUNS_TILES: bool = true;

    #[inline(always)]
    fn run(self) {
        let Self { d_y, rows, panels, own_panels, n, d_w, mut scratch } = self;
        let stride = packed_stride::<M>(rows.k);
        let packed = scratch.take(rows.lines * stride);
        // SAFETY: the tile was chosen by the instruction set.
        unsafe { M::pack_rows(d_y, rows, stride, packed) };
        let a = Left::packed(packed, stride);
        let sums = scratch.take(rows.lines * MAX_PANEL);
        for panel in own_panels {
            multiply_add::<M>(a, rows.lines, panels, panel, sums, |i, columns| {
                // SAFETY: these rows and columns belong to this task.
                unsafe { d_w.slice((rows.line + i) * n + columns.start, columns.len()) }
            });
        }
    }
}
