//! Log-probabilities of target tokens and their gradient, tile by tile of the vocabulary.
//!
//! A task takes some rows and a segment of the vocabulary. The segment's length is fixed, so that
//! results do not depend on the number of threads; segments are merged row by row at the end.

use crate::cpu::{Cpu, Kernel, Scratch, Split, with_scratch};
use crate::element::{Element, Elements, View, ViewMut, with_elements};
use crate::gemm::block::{Typed, left, multiply, padded, right};
use crate::gemm::tile::{Lines, Old, Part, Tile, with_tile};
use crate::math::{LANES, exp, max, sum};
use std::marker::PhantomData;

/// Columns of the vocabulary per tile of [`forward`].
const COLS: usize = 192;
/// Columns per segment: a whole number of tiles.
const SEGMENT: usize = 64 * COLS;
/// Rows of a task, at most.
const ROWS: usize = 256;

/// Hidden states, the head's weight, and targets.
#[derive(Clone, Copy)]
pub struct Inputs<'a> {
    /// `[n, h]`
    pub x: View<'a>,
    /// `[v, h]`
    pub weight: View<'a>,
    /// `[n]`, each below `v`.
    pub targets: &'a [u32],
    /// `h`
    pub hidden_size: usize,
}

/// What comes out for each row.
pub struct Outputs<'a> {
    /// `log softmax(x Wᵀ)[target]`, `[n]`.
    pub log_probs: &'a mut [f32],
    /// Logarithm of the softmax's denominator, `[n]`.
    pub lse: &'a mut [f32],
    /// The gradient of the log-probability with respect to `x`, `[n, h]`:
    /// `W[target] - Σ_v p_v W[v]`.
    pub direction: Option<ViewMut<'a>>,
}

/// Elements of workspace for `n` rows, with or without directions.
pub fn workspace_len(n: usize, hidden_size: usize, vocab_size: usize, direction: bool) -> usize {
    let of_row = 3 + if direction { padded_row(hidden_size) } else { 0 };
    vocab_size.div_ceil(SEGMENT) * n * of_row
}

/// Elements of a row of sums: whole panels, whatever the instruction set.
fn padded_row(hidden_size: usize) -> usize {
    hidden_size.next_multiple_of(48)
}

/// Bytes of scratch memory that a thread needs.
pub fn scratch_bytes(hidden_size: usize) -> usize {
    let packed = (COLS + 1) * padded_row(hidden_size) + ROWS * (hidden_size + 1);
    4 * (packed + 3 * ROWS * COLS) + 8 * 64
}

/// Log-probabilities of targets and, where asked for, their gradients, without keeping logits: the
/// gradient needs no more than a softmax-weighted mean of the weight's rows, which is taken online
/// as attention does (Milakov & Gimelshein, 2018; Dao et al., 2022).
///
/// # Panics
/// If a slice is too short.
pub fn forward<'a>(cpu: &Cpu, inputs: Inputs<'a>, workspace: &mut [f32], outputs: Outputs<'a>) {
    match inputs.x {
        View::F32(x) => typed(cpu, x, inputs, workspace, outputs),
        View::Bf16(x) => typed(cpu, x, inputs, workspace, outputs),
        View::F16(_) | View::Int8(_) => panic!("hidden states are f32 or bf16"),
    }
}

fn typed<T: Typed>(
    cpu: &Cpu,
    x: &[T],
    inputs: Inputs<'_>,
    workspace: &mut [f32],
    outputs: Outputs<'_>,
) {
    let (n, h) = (inputs.targets.len(), inputs.hidden_size);
    if n == 0 {
        return;
    }
    let vocab = inputs.weight.len() / h;
    assert!(x.len() >= n * h && inputs.targets.iter().all(|&t| (t as usize) < vocab));
    let segments = vocab.div_ceil(SEGMENT);
    let width = if outputs.direction.is_some() { padded_row(h) } else { 0 };
    let (states, sums) = workspace.split_at_mut(3 * segments * n);
    let rows = n.div_ceil(row_chunks(n, segments, cpu.threads()));
    let chunks = n.div_ceil(rows);
    let (shared_states, shared_sums) = (Split::new(&mut *states), Split::new(&mut *sums));
    with_tile!(cpu.isa, T::DTYPE, M => cpu.pool.run(segments * chunks, &|task| {
        with_scratch(scratch_bytes(h), |scratch| {
            let (segment, first) = (task / chunks, task % chunks * rows);
            let rows = rows.min(n - first);
            // SAFETY: these rows of this segment belong to this task.
            let (states, sums) = unsafe {
                let at = segment * n + first;
                let states = shared_states.slice(3 * at, 3 * rows);
                (states, shared_sums.slice(at * width, rows * width))
            };
            let kernel = SegmentTask {
                x: &x[first * h..(first + rows) * h],
                weight: inputs.weight,
                targets: &inputs.targets[first..first + rows],
                columns: segment * SEGMENT..vocab.min((segment + 1) * SEGMENT),
                h,
                states,
                sums,
                scratch,
                tile: PhantomData::<M>,
            };
            cpu.isa.run(kernel);
        });
    }));
    merge(cpu, inputs, (states, sums), segments, outputs);
}

/// Equal chunks of rows, enough of them for the threads.
fn row_chunks(n: usize, segments: usize, threads: usize) -> usize {
    let wanted = if threads == 1 { 1 } else { (4 * threads).div_ceil(segments) };
    n.div_ceil(ROWS).max(wanted.min(n.div_ceil(64)))
}

struct SegmentTask<'a, T, M> {
    x: &'a [T],
    weight: View<'a>,
    targets: &'a [u32],
    columns: std::ops::Range<usize>,
    h: usize,
    /// Of each row: maximum, sum, the target's logit.
    states: &'a mut [f32],
    /// `Σ_v exp(logit - maximum) W[v]` without the target's, in rows of [`padded_row`]; empty where
    /// not asked for.
    sums: &'a mut [f32],
    scratch: Scratch<'a>,
    tile: PhantomData<M>,
}

impl<T: Typed, M: Tile> Kernel for SegmentTask<'_, T, M> {
    type Output = ();

    #[inline(always)]
    fn run(mut self) {
        let (h, rows) = (self.h, self.targets.len());
        let width = padded_row(h);
        let scratch = &mut self.scratch;
        let panels = scratch.take((COLS + 1) * padded_row(h));
        let x_rows = scratch.take(rows * padded::<M>(h));
        let (logits, p) = (scratch.take(rows * COLS), scratch.take::<T>(rows * COLS));
        let p_rows = scratch.take(rows * COLS);
        for state in self.states.chunks_exact_mut(3) {
            state.copy_from_slice(&[f32::NEG_INFINITY, 0.0, 0.0]);
        }
        let weight = Lines { data: self.weight, offset: 0, line_stride: h, step: 1 };
        let x = Lines { data: T::view(self.x), ..weight };
        let x = left::<M>(x, Part { line: 0, lines: rows, k0: 0, k: h }, x_rows);
        for first in self.columns.clone().step_by(COLS) {
            let cols = COLS.min(self.columns.end - first);
            // What rows are worked on: whole vectors, and all that products read.
            let whole = cols.next_multiple_of(LANES);
            let tile = right::<M>(weight, Part { line: first, lines: cols, k0: 0, k: h }, panels);
            multiply::<M>(x, rows, tile, (logits, COLS), Old::Dropped, |_, _| true);
            for (i, state) in self.states.chunks_exact_mut(3).enumerate() {
                let logits = &mut logits[i * COLS..][..whole];
                let target = (self.targets[i] as usize).wrapping_sub(first);
                if target < cols {
                    state[2] = logits[target];
                }
                logits[cols..].fill(f32::NEG_INFINITY);
                let shrink = absorb(logits, state);
                if !self.sums.is_empty() {
                    let p = &mut p[i * COLS..][..whole];
                    // SAFETY: the tile was chosen by the instruction set.
                    unsafe { T::narrow::<M>(logits, p) };
                    // Where the target is nearly certain, the gradient is what it lacks of being
                    // so: too little to survive the rounding of its probability.
                    if target < cols {
                        p[target] = T::from_f32(0.0);
                    }
                    if shrink != 1.0 && first > self.columns.start {
                        self.sums[i * width..][..h].iter_mut().for_each(|s| *s *= shrink);
                    }
                }
            }
            if !self.sums.is_empty() {
                let turned = Lines { line_stride: 1, step: h, ..weight };
                let tile =
                    right::<M>(turned, Part { line: 0, lines: h, k0: first, k: cols }, panels);
                let p = Lines { data: T::view(p), offset: 0, line_stride: COLS, step: 1 };
                let p = left::<M>(p, Part { line: 0, lines: rows, k0: 0, k: tile.depth }, p_rows);
                let old = if first > self.columns.start { Old::Added } else { Old::Dropped };
                multiply::<M>(p, rows, tile, (self.sums, width), old, |_, _| true);
            }
        }
    }
}

/// Takes a tile of logits of one row into its softmax; turns them into `exp(logit - maximum)` and
/// returns what earlier sums shrink by.
#[inline(always)]
fn absorb(logits: &mut [f32], state: &mut [f32]) -> f32 {
    let new_max = state[0].max(max(logits));
    let shrink = exp(state[0] - new_max);
    logits.iter_mut().for_each(|x| *x = exp(*x - new_max));
    state[1] = state[1] * shrink + sum(logits);
    state[0] = new_max;
    shrink
}

/// Puts the segments together.
fn merge(
    cpu: &Cpu,
    inputs: Inputs<'_>,
    (states, sums): (&[f32], &[f32]),
    segments: usize,
    outputs: Outputs<'_>,
) {
    let (n, h) = (inputs.targets.len(), inputs.hidden_size);
    let state = |segment: usize, t: usize| &states[3 * (segment * n + t)..][..3];
    // Of a row over all segments: maximum and sum.
    let whole = |t: usize| {
        let max = (0..segments).map(|s| state(s, t)[0]).fold(f32::NEG_INFINITY, f32::max);
        let sum: f32 = (0..segments).map(|s| state(s, t)[1] * exp(state(s, t)[0] - max)).sum();
        (max, sum)
    };
    for t in 0..n {
        let ((max, sum), target) = (whole(t), state(inputs.targets[t] as usize / SEGMENT, t)[2]);
        outputs.lse[t] = max + sum.ln();
        outputs.log_probs[t] = target - outputs.lse[t];
    }
    let Some(direction) = outputs.direction else { return };
    with_elements!(mut direction, direction => {
        cpu.rows(&mut direction[..n * h], h, (segments + 1) * h, |t, row| {
            let (target, (max, sum)) = (inputs.targets[t] as usize, whole(t));
            let lacks = 1.0 - exp(state(target / SEGMENT, t)[2] - max) / sum;
            let parts = (0..segments).map(|s| {
                let share = exp(state(s, t)[0] - max) / sum;
                (share, &sums[(s * n + t) * padded_row(h)..][..h])
            });
            with_elements!(any inputs.weight, weight => {
                cpu.isa.run(Direction { row, weight, target, lacks, parts });
            });
        });
    });
}

/// Elements of a row that are summed together.
const BLOCK: usize = 64;

struct Direction<'a, T, W, P> {
    row: &'a mut [T],
    weight: W,
    target: usize,
    /// One minus the target's probability.
    lacks: f32,
    parts: P,
}

impl<'a, T: Element, W: Elements, P> Kernel for Direction<'_, T, W, P>
where
    P: Iterator<Item = (f32, &'a [f32])> + Clone,
{
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let start = self.target * self.row.len();
        // In blocks, so that segments are added along the row.
        for (block, out) in self.row.chunks_mut(BLOCK).enumerate() {
            let columns = block * BLOCK..block * BLOCK + out.len();
            let mut mean = [0.0; BLOCK];
            for (share, sums) in self.parts.clone() {
                for (mean, sum) in mean.iter_mut().zip(&sums[columns.clone()]) {
                    *mean += share * sum;
                }
            }
            for ((out, j), mean) in out.iter_mut().zip(columns).zip(mean) {
                *out = T::from_f32(self.lacks * self.weight.at(start + j, self.target) - mean);
            }
        }
    }
}

/// `d_x[rows[i]] = d_log_probs[i] · direction[i]`; other rows become zero.
pub fn backward(
    cpu: &Cpu,
    direction: View<'_>,
    rows: &[u32],
    d_log_probs: &[f32],
    hidden_size: usize,
    d_x: ViewMut<'_>,
) {
    with_elements!(direction, direction => with_elements!(mut d_x, d_x => {
        cpu.rows(d_x, hidden_size, 2 * hidden_size, |t, row| {
            let Ok(i) = rows.binary_search(&(t as u32)) else {
                row.fill(Element::from_f32(0.0));
                return;
            };
            let direction = &direction[i * hidden_size..][..hidden_size];
            cpu.isa.run(Scaled { row, direction, scale: d_log_probs[i] });
        });
    }));
}

struct Scaled<'a, T, D> {
    row: &'a mut [T],
    direction: &'a [D],
    scale: f32,
}

impl<T: Element, D: Element> Kernel for Scaled<'_, T, D> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for (x, d) in self.row.iter_mut().zip(self.direction) {
            *x = T::from_f32(self.scale * d.to_f32());
        }
    }
}

/// Turns the logits `tile [n, width]` of vocabulary columns `first..first + width` into their
/// gradients, in place: `d = d_log_prob · (1[column = target] - p)`.
pub fn tile_gradient(
    cpu: &Cpu,
    tile: &mut [f32],
    width: usize,
    first: usize,
    targets: &[u32],
    (lse, d_log_probs): (&[f32], &[f32]),
) {
    cpu.rows(tile, width, 4 * width, |t, row| {
        cpu.isa.run(Gradient { row, lse: lse[t], d_log_prob: d_log_probs[t] });
        let target = targets[t] as usize;
        if (first..first + width).contains(&target) {
            row[target - first] += d_log_probs[t];
        }
    });
}

struct Gradient<'a> {
    row: &'a mut [f32],
    lse: f32,
    d_log_prob: f32,
}

impl Kernel for Gradient<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for x in self.row {
            *x = -self.d_log_prob * exp(*x - self.lse);
        }
    }
}
