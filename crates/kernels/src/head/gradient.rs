//! Gradient of a trained head's weight: a task recomputes the logits of some columns of the
//! vocabulary, and multiplies their gradients with the hidden states, which are packed once for all
//! tasks.

use super::cpu::ROWS;
use super::{Inputs, Logits, Saved};
use crate::cpu::{Cpu, Kernel, Scratch, Split, reinterpret, with_scratch};
use crate::gemm::MAX_PANEL;
use crate::gemm::block::{
    Left, Right, Typed, left, max_padded, multiply, multiply_add, packed_stride, padded,
    panel_cols, right, right_of_all, right_of_all_len,
};
use crate::gemm::tile::{Lines, Part, Store, Tile, with_tiles};
use crate::math::exp;
use crate::view::View;
use std::ops::Range;

/// Columns of the vocabulary of a task.
const COLS: usize = 96;
/// Maximum rows at a time.
pub const MAX_ROWS: usize = 1024;

/// Bytes of scratch memory that a thread needs.
pub(super) fn scratch_bytes(hidden_size: usize) -> usize {
    let columns = COLS * (max_padded(hidden_size) + MAX_ROWS + 64 + MAX_PANEL);
    4 * (columns + ROWS * (max_padded(hidden_size) + COLS)) + 8 * 64
}

/// Elements of workspace for `n` rows.
pub(super) fn weight_workspace_len(n: usize, hidden_size: usize) -> usize {
    right_of_all_len(hidden_size, n)
}

/// `d_w [v, h] += d_logitsᵀ x`, where `d_logits = d_log_prob · (1[column = target] - p)` times the
/// slope of a bounded logit, from the values saved by the forward pass. `workspace` holds
/// [`weight_workspace_len`] elements. The bias's gradient, `d_bias [v] += Σ d_logits`, is that of
/// the same logits.
///
/// # Panics
/// If there are more than [`MAX_ROWS`] rows, or a slice is too short.
pub fn backward_weight(
    cpu: &Cpu,
    inputs: Inputs<'_>,
    saved: Saved<'_>,
    d_log_probs: &[f32],
    workspace: &mut [f32],
    (d_w, d_bias): (&mut [f32], Option<&mut [f32]>),
) {
    let (log_probs, lse) = (saved.log_probs.f32(), saved.lse.f32());
    let per_row = PerRow { log_probs, lse, d_log_probs };
    match inputs.x {
        View::F32(x) => typed(cpu, x, inputs, per_row, workspace, (d_w, d_bias)),
        View::Bf16(x) => typed(cpu, x, inputs, per_row, workspace, (d_w, d_bias)),
        _ => panic!("hidden states are f32 or bf16"),
    }
}

/// Values of each row, `[n]`.
#[derive(Clone, Copy)]
struct PerRow<'a> {
    log_probs: &'a [f32],
    lse: &'a [f32],
    d_log_probs: &'a [f32],
}

fn typed<T: Typed>(
    cpu: &Cpu,
    x: &[T],
    inputs: Inputs<'_>,
    per_row: PerRow<'_>,
    workspace: &mut [f32],
    (d_w, d_bias): (&mut [f32], Option<&mut [f32]>),
) {
    let (n, h) = (inputs.targets.len(), inputs.hidden_size);
    let PerRow { log_probs, lse, d_log_probs } = per_row;
    assert!(n <= MAX_ROWS && x.len() >= n * h);
    assert!([log_probs, lse, d_log_probs].iter().all(|x| x.len() >= n));
    if n == 0 {
        return;
    }
    let (vocab, d_w) = (inputs.weight.len() / h, Split::new(d_w));
    inputs.check_bias(vocab);
    assert!(d_bias.as_ref().is_none_or(|d_bias| d_bias.len() == vocab));
    let d_bias = d_bias.map(Split::new);
    assert!(inputs.targets.iter().all(|&target| (target as usize) < vocab));
    with_tiles!(cpu.isa, I => {
        let columns_of_x = Lines { data: T::view(x), offset: 0, line_stride: 1, step: h };
        let all = Part { line: 0, lines: h, k0: 0, k: n };
        let panels = right_of_all::<T::TileOf<I>>(cpu, columns_of_x, all, reinterpret(workspace));
        cpu.pool.run(vocab.div_ceil(COLS), &|task| {
            with_scratch(scratch_bytes(h), |scratch| {
                let columns = task * COLS..vocab.min((task + 1) * COLS);
                // SAFETY: these columns belong to this task.
                let d_w = unsafe { d_w.slice(columns.start * h, columns.len() * h) };
                // SAFETY: these columns belong to this task.
                let d_bias = d_bias
                    .as_ref()
                    .map(|all| unsafe { all.slice(columns.start, columns.len()) });
                cpu.isa.run(Columns::<T, T::TileOf<I>> {
                    inputs,
                    x,
                    panels,
                    per_row,
                    columns,
                    d_w,
                    d_bias,
                    scratch,
                });
            });
        });
    });
}

struct Columns<'a, T, M: Tile> {
    inputs: Inputs<'a>,
    /// The hidden states, row-major and as columns in panels.
    x: &'a [T],
    panels: Right<'a, M::Elem>,
    per_row: PerRow<'a>,
    columns: Range<usize>,
    /// `[columns, h]`
    d_w: &'a mut [f32],
    /// `[columns]`
    d_bias: Option<&'a mut [f32]>,
    scratch: Scratch<'a>,
}

impl<T: Typed, M: Tile> Kernel for Columns<'_, T, M> {
    type Output = ();
    const RUNS_TILES: bool = true;

    #[inline(always)]
    fn run(self) {
        let Self { inputs, x, panels, columns, d_w, mut d_bias, mut scratch, .. } = self;
        let (n, h, cols) = (inputs.targets.len(), inputs.hidden_size, columns.len());
        let stride = packed_stride::<M>(n);
        let d_logits = scratch.take(COLS * stride);
        let lines = |data| Lines { data, offset: 0, line_stride: h, step: 1 };
        let weight = Part { line: columns.start, lines: cols, k0: 0, k: h };
        let to = scratch.take(panel_cols::<M>(cols) * padded::<M>(h));
        let weight = right::<M>(lines(inputs.weight), weight, to);
        let tile = scratch.take(ROWS * COLS);
        let packed = scratch.take(ROWS * padded::<M>(h));
        for first in (0..n).step_by(ROWS) {
            let rows = ROWS.min(n - first);
            let of_x = Part { line: first, lines: rows, k0: 0, k: h };
            let x = left::<M>(lines(T::view(x)), of_x, packed);
            multiply::<M>(x, rows, weight, (tile, COLS), Store::Overwrite, |_, _| 0..h);
            for (i, row) in tile.chunks_exact_mut(COLS).take(rows).enumerate() {
                let PerRow { log_probs, lse, d_log_probs } = self.per_row;
                let (lse, d) = (lse[first + i], d_log_probs[first + i]);
                let logits = inputs.logits;
                logits.apply(row);
                inputs.add_bias(columns.clone(), row);
                let target = (inputs.targets[first + i] as usize).wrapping_sub(columns.start);
                let own = row[..cols]
                    .get(target)
                    .map(|&logit| d * complement(log_probs[first + i]) * logits.slope(logit));
                match logits {
                    Logits::PLAIN => row.iter_mut().for_each(|x| *x = -d * exp(*x - lse)),
                    _ => row.iter_mut().for_each(|x| *x = -d * exp(*x - lse) * logits.slope(*x)),
                }
                if let Some(own) = own {
                    row[target] = own;
                }
                if let Some(d_bias) = d_bias.as_deref_mut() {
                    d_bias.iter_mut().zip(row).for_each(|(sum, d)| *sum += *d);
                }
            }
            let transposed = Lines { data: View::F32(tile), offset: 0, line_stride: 1, step: COLS };
            let all = Part { line: 0, lines: cols, k0: 0, k: rows };
            // SAFETY: the tile was chosen by the instruction set.
            unsafe { M::pack_rows(transposed, all, stride, &mut d_logits[first..]) };
        }
        let (d_logits, sums) = (Left::packed(d_logits, stride), scratch.take(COLS * MAX_PANEL));
        let d_w = Split::new(d_w);
        for panel in 0..panels.num_panels::<M>() {
            multiply_add::<M>(d_logits, cols, panels, panel, sums, |i, columns| {
                // SAFETY: one part is in use at a time.
                unsafe { d_w.slice(i * h + columns.start, columns.len()) }
            });
        }
    }
}

/// `1 - p` from `ln p`. If the model is nearly certain, the differences `1 - p` and `logit - lse`
/// cancel.
fn complement(log_prob: f32) -> f32 {
    -f64::from(log_prob).exp_m1() as f32
}
