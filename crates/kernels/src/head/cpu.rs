//! Log-probabilities of target tokens and their gradient, tile by tile of the vocabulary.
//!
//! A task handles some rows and a segment of the vocabulary. Segments have a fixed length, so that
//! results do not depend on the number of threads; they are merged row by row at the end.

use super::{Logits, Sizes};
use crate::cpu::{Cpu, Kernel, Scratch, Split, with_scratch};
use crate::element::Element;
use crate::gemm::WHOLE_PANELS;
use crate::gemm::block::{
    Int8Left, Left, Typed, int8_right, int8_right_len, left, max_padded, multiply, multiply_int8,
    padded, right,
};
use crate::gemm::tile::{Lines, Part, Store, Tile, with_tiles};
use crate::math::{BLOCK, Softcap, exp, max, sum, weighted_sums};
use crate::vector::quantise_row;
use crate::view::{View, ViewMut, with_elements};
use std::marker::PhantomData;
use std::ops::Range;

/// Columns of the vocabulary per tile of [`forward`].
const COLS: usize = 192;
/// Columns per segment: a whole number of tiles.
const SEGMENT: usize = 64 * COLS;
/// Maximum rows of a task.
pub(super) const ROWS: usize = 256;

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
    /// Whether logits are int8 products; if so, `weight` is int8 and `h` a multiple of four.
    /// Probabilities are never quantised: most of them would become zero, though their sum may
    /// exceed that of the few that remain.
    pub int8: bool,
    /// How products become logits.
    pub logits: Logits,
    /// `[v]` f32, added to logits that are neither scaled nor bounded.
    pub bias: Option<View<'a>>,
}

impl Inputs<'_> {
    /// Asserts that a bias has the length of the vocabulary, and that products are logits as they
    /// are.
    pub(super) fn check_bias(&self, vocab_size: usize) {
        let Some(bias) = self.bias else { return };
        assert!(bias.len() == vocab_size && self.logits == Logits::PLAIN);
    }

    /// Adds the bias of `columns` to a row of their logits.
    #[inline(always)]
    pub(super) fn add_bias(&self, columns: Range<usize>, logits: &mut [f32]) {
        if let Some(bias) = self.bias {
            let bias = &bias.f32()[columns];
            logits.iter_mut().zip(bias).for_each(|(logit, bias)| *logit += bias);
        }
    }
}

/// Results for each row.
pub struct Outputs<'a> {
    /// `log softmax(x Wᵀ)[target]`, `[n]` f32.
    pub log_probs: ViewMut<'a>,
    /// Logarithm of the softmax's denominator, `[n]` f32.
    pub lse: ViewMut<'a>,
    /// The gradient of the log-probability with respect to `x`, `[n, h]`:
    /// `W[target] - Σ_v p_v W[v]`.
    pub direction: Option<ViewMut<'a>>,
}

/// Elements of workspace, with or without directions.
pub(super) fn workspace_len(sizes: Sizes, direction: bool) -> usize {
    let per_row = 3 + if direction { padded_row(sizes.hidden_size) } else { 0 };
    sizes.vocab_size.div_ceil(SEGMENT) * sizes.rows * per_row
}

/// Elements of a row of sums: whole panels on any instruction set.
fn padded_row(hidden_size: usize) -> usize {
    hidden_size.next_multiple_of(WHOLE_PANELS)
}

/// Bytes of scratch memory that a thread needs.
pub(super) fn scratch_bytes(hidden_size: usize) -> usize {
    let h = max_padded(hidden_size);
    let panels = (COLS * padded_row(hidden_size)).max(int8_right_len(COLS, hidden_size));
    let packed = panels + ROWS * h;
    4 * (packed + 3 * ROWS * COLS) + 8 * 64
}

/// Replaces products in rows of `v` by logits.
pub(super) fn logits(cpu: &Cpu, logits: Logits, v: usize, products: &mut [f32]) {
    cpu.rows(products, v, 24 * v, |_, row| cpu.isa.run(Bounded { row, logits }));
}

struct Bounded<'a> {
    row: &'a mut [f32],
    logits: Logits,
}

impl Kernel for Bounded<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        self.logits.apply(self.row);
    }
}

/// Log-probabilities of targets and, if requested, their gradients, without keeping logits: the
/// gradient only needs a softmax-weighted mean of the weight's rows, which is computed online as in
/// attention (Milakov & Gimelshein, 2018; Dao et al., 2022).
///
/// # Panics
/// If a slice is too short.
pub fn forward<'a>(cpu: &Cpu, inputs: Inputs<'a>, workspace: &mut [f32], outputs: Outputs<'a>) {
    match inputs.x {
        View::F32(x) => typed(cpu, x, inputs, workspace, outputs),
        View::Bf16(x) => typed(cpu, x, inputs, workspace, outputs),
        _ => panic!("hidden states are f32 or bf16"),
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
    inputs.check_bias(vocab);
    assert!(x.len() >= n * h && inputs.targets.iter().all(|&t| (t as usize) < vocab));
    let segments = vocab.div_ceil(SEGMENT);
    let width = if outputs.direction.is_some() { padded_row(h) } else { 0 };
    let (states, sums) = workspace.split_at_mut(3 * segments * n);
    let rows = n.div_ceil(row_chunks(n, segments, cpu.threads()));
    let chunks = n.div_ceil(rows);
    let (shared_states, shared_sums) = (Split::new(&mut *states), Split::new(&mut *sums));
    with_tiles!(cpu.isa, I => cpu.pool.run(segments * chunks, &|task| {
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
                int8: inputs.int8,
                logits: inputs.logits,
                inputs,
                states,
                sums,
                scratch,
                tile: PhantomData::<T::TileOf<I>>,
            };
            cpu.isa.run(kernel);
        });
    }));
    merge(cpu, inputs, (states, sums), segments, outputs);
}

/// Number of chunks of rows, enough to keep the threads busy.
fn row_chunks(n: usize, segments: usize, threads: usize) -> usize {
    let wanted = if threads == 1 { 1 } else { (4 * threads).div_ceil(segments) };
    n.div_ceil(ROWS).max(wanted.min(n.div_ceil(64)))
}

struct SegmentTask<'a, T, M> {
    x: &'a [T],
    weight: View<'a>,
    targets: &'a [u32],
    columns: Range<usize>,
    h: usize,
    int8: bool,
    logits: Logits,
    inputs: Inputs<'a>,
    /// For each row: maximum and sum over the tokens other than the target; the target's logit.
    states: &'a mut [f32],
    /// `Σ_v exp(logit - maximum) s W[v]` over the tokens other than the target, where `s` is the
    /// slope of a bounded logit, in rows of [`padded_row`]; empty if not requested.
    sums: &'a mut [f32],
    scratch: Scratch<'a>,
    tile: PhantomData<M>,
}

impl<T: Typed, M: Tile> Kernel for SegmentTask<'_, T, M> {
    type Output = ();
    const RUNS_TILES: bool = true;

    #[inline(always)]
    fn run(mut self) {
        let (h, rows) = (self.h, self.targets.len());
        let mut scratch = std::mem::take(&mut self.scratch);
        let logits = scratch.take(rows * COLS);
        let x = match self.int8 {
            false => {
                let x = Lines { data: T::view(self.x), offset: 0, line_stride: h, step: 1 };
                let rows_of_x = Part { line: 0, lines: rows, k0: 0, k: h };
                HiddenStates::Floats(left::<M>(x, rows_of_x, scratch.take(rows * padded::<M>(h))))
            }
            true => {
                let (values, scales) = (scratch.take(rows * h), scratch.take(rows));
                for (i, x) in self.x.chunks_exact(h).enumerate() {
                    let values = &mut values[i * h..(i + 1) * h];
                    scales[i] = quantise_row(x.iter().map(|x| x.to_f32()), values);
                }
                HiddenStates::Int8(Int8Left { values, stride: h, scales })
            }
        };
        for state in self.states.chunks_exact_mut(3) {
            // Not -inf, since the difference of two infinities is NaN.
            state.copy_from_slice(&[f32::MIN, 0.0, 0.0]);
        }
        for first in self.columns.clone().step_by(COLS) {
            let columns = first..self.columns.end.min(first + COLS);
            self.tile_of_logits(&x, columns.clone(), logits, scratch.reborrow());
            self.update_softmax(columns.clone(), logits);
            if !self.sums.is_empty() {
                self.add_to_sums(columns, logits, scratch.reborrow());
            }
        }
    }
}

/// Hidden states as left operands.
enum HiddenStates<'a, E> {
    Floats(Left<'a, E>),
    Int8(Int8Left<'a>),
}

impl<T: Typed, M: Tile> SegmentTask<'_, T, M> {
    fn weight(&self) -> Lines<'_> {
        Lines { data: self.weight, offset: 0, line_stride: self.h, step: 1 }
    }

    /// Logits of some columns, in rows of [`COLS`].
    #[inline(always)]
    fn tile_of_logits(
        &self,
        x: &HiddenStates<'_, M::Elem>,
        columns: Range<usize>,
        logits: &mut [f32],
        mut scratch: Scratch<'_>,
    ) {
        let (h, rows) = (self.h, self.targets.len());
        let part = Part { line: columns.start, lines: columns.len(), k0: 0, k: h };
        match *x {
            HiddenStates::Floats(x) => {
                let panels = scratch.take(COLS * padded::<M>(h));
                let tile = right::<M>(self.weight(), part, panels);
                multiply::<M>(x, rows, tile, (logits, COLS), Store::Overwrite, |_, _| 0..h);
            }
            HiddenStates::Int8(x) => {
                let panels = scratch.take(int8_right_len(COLS, h));
                let tile = int8_right::<M>(self.weight(), part, panels);
                multiply_int8::<M>(x, rows, tile, (logits, COLS));
            }
        }
        self.logits.apply(logits);
        if self.inputs.bias.is_some() {
            let rows = logits.chunks_exact_mut(COLS);
            rows.for_each(|row| self.inputs.add_bias(columns.clone(), row));
        }
    }

    /// Updates the online softmax with a tile of logits, and replaces them by weights of the sums.
    #[inline(always)]
    fn update_softmax(&mut self, columns: Range<usize>, logits: &mut [f32]) {
        // Padded to whole vectors and blocks, which covers everything that products read.
        let (cols, whole) = (columns.len(), max_padded(columns.len()));
        let width = padded_row(self.h);
        for (i, state) in self.states.chunks_exact_mut(3).enumerate() {
            let logits = &mut logits[i * COLS..][..whole];
            let target = (self.targets[i] as usize).wrapping_sub(columns.start);
            logits[cols..].fill(f32::NEG_INFINITY);
            // If the target is nearly certain, the gradient is the sum over the others, which would
            // be lost if it were added to the target's own probability.
            if target < cols {
                state[2] = std::mem::replace(&mut logits[target], f32::NEG_INFINITY);
            }
            let rescale = match self.logits.softcap {
                None => update_row(logits, state),
                Some(cap) => update_bounded_row(logits, state, cap),
            };
            if !self.sums.is_empty() && rescale != 1.0 && columns.start > self.columns.start {
                self.sums[i * width..][..self.h].iter_mut().for_each(|s| *s *= rescale);
            }
        }
    }

    /// `sums (+)= p · W` for some columns.
    #[inline(always)]
    fn add_to_sums(&mut self, columns: Range<usize>, p: &[f32], mut scratch: Scratch<'_>) {
        let (h, rows, cols) = (self.h, self.targets.len(), columns.len());
        let transposed = Lines { line_stride: 1, step: h, ..self.weight() };
        let part = Part { line: 0, lines: h, k0: columns.start, k: cols };
        let store = if columns.start > self.columns.start { Store::Add } else { Store::Overwrite };
        let tile = right::<M>(transposed, part, scratch.take(COLS * padded_row(h)));
        let narrow = scratch.take::<T>(rows * COLS);
        for (p, narrow) in p.chunks_exact(COLS).zip(narrow.chunks_exact_mut(COLS)) {
            let whole = max_padded(cols);
            // SAFETY: the tile was chosen by the instruction set.
            unsafe { T::narrow::<M>(&p[..whole], &mut narrow[..whole]) };
        }
        let p = Lines { data: T::view(narrow), offset: 0, line_stride: COLS, step: 1 };
        let part = Part { line: 0, lines: rows, k0: 0, k: tile.depth };
        let p = left::<M>(p, part, scratch.take(rows * COLS));
        multiply::<M>(p, rows, tile, (self.sums, padded_row(h)), store, |_, _| 0..cols);
    }
}

/// Updates a row's online softmax with a tile of its logits; replaces them by
/// `exp(logit - maximum)` and returns the factor that earlier sums must be multiplied by.
#[inline(always)]
fn update_row(logits: &mut [f32], state: &mut [f32]) -> f32 {
    let new_max = state[0].max(max(logits));
    let rescale = exp(state[0] - new_max);
    logits.iter_mut().for_each(|x| *x = exp(*x - new_max));
    state[1] = state[1] * rescale + sum(logits);
    state[0] = new_max;
    rescale
}

/// As [`update_row`], but each weight is multiplied by its logit's slope.
#[inline(always)]
fn update_bounded_row(logits: &mut [f32], state: &mut [f32], cap: Softcap) -> f32 {
    let mut bounded = [0.0; COLS];
    let bounded = &mut bounded[..logits.len()];
    bounded.copy_from_slice(logits);
    let rescale = update_row(logits, state);
    for (weight, bounded) in logits.iter_mut().zip(bounded) {
        // The target and what pads a tile are -inf, and have no weight.
        *weight *= cap.slope(bounded.max(-cap.0));
    }
    rescale
}

/// A row's softmax, with the target apart from the other tokens.
#[derive(Clone, Copy)]
struct Softmax {
    target: f32,
    /// Maximum over all logits.
    max: f32,
    /// `exp(target - max)`.
    own: f32,
    /// `Σ exp(logit - max)` over the others.
    others: f32,
}

impl Softmax {
    /// Merges the maximum and sum of each segment, both without the target.
    fn merge(segments: impl Iterator<Item = (f32, f32)> + Clone, target: f32) -> Self {
        let others_max = segments.clone().map(|(max, _)| max).fold(f32::MIN, f32::max);
        let sum: f32 = segments.map(|(max, sum)| sum * exp(max - others_max)).sum();
        let max = others_max.max(target);
        Self { target, max, own: exp(target - max), others: sum * exp(others_max - max) }
    }

    /// Logarithm of the denominator.
    fn lse(self) -> f32 {
        self.max + (self.own + self.others).ln()
    }

    /// The target's log-probability, accurate even close to zero.
    fn log_prob(self) -> f32 {
        match self.others < self.own {
            true => -(f64::from(self.others) / f64::from(self.own)).ln_1p() as f32,
            false => self.target - self.lse(),
        }
    }

    /// One minus the target's probability.
    fn complement(self) -> f32 {
        self.others / (self.own + self.others)
    }

    /// Factor that normalises a segment's weights, given its maximum.
    fn share(self, segment_max: f32) -> f32 {
        exp(segment_max - self.max) / (self.own + self.others)
    }
}

/// Merges the segments and writes the results.
fn merge(
    cpu: &Cpu,
    inputs: Inputs<'_>,
    (states, sums): (&[f32], &[f32]),
    segments: usize,
    outputs: Outputs<'_>,
) {
    let (n, h) = (inputs.targets.len(), inputs.hidden_size);
    let (log_probs, lse) = (outputs.log_probs.f32(), outputs.lse.f32());
    let state = |segment: usize, t: usize| &states[3 * (segment * n + t)..][..3];
    let whole = |t: usize| {
        let target = state(inputs.targets[t] as usize / SEGMENT, t)[2];
        Softmax::merge((0..segments).map(|s| (state(s, t)[0], state(s, t)[1])), target)
    };
    for t in 0..n {
        let softmax = whole(t);
        (lse[t], log_probs[t]) = (softmax.lse(), softmax.log_prob());
    }
    let Some(direction) = outputs.direction else { return };
    with_elements!(mut direction, direction => {
        cpu.rows(&mut direction[..n * h], h, (segments + 1) * h, |t, row| {
            let (target, softmax) = (inputs.targets[t] as usize, whole(t));
            let complement = softmax.complement() * inputs.logits.slope(softmax.target);
            let parts = (0..segments).map(|s| {
                let share = softmax.share(state(s, t)[0]) * inputs.logits.scale;
                (share, &sums[(s * n + t) * padded_row(h)..][..h])
            });
            cpu.isa.run(Direction { row, weight: inputs.weight, target, complement, parts });
        });
    });
}

struct Direction<'a, T, P> {
    row: &'a mut [T],
    weight: View<'a>,
    target: usize,
    /// One minus the target's probability, times the slope of its logit.
    complement: f32,
    parts: P,
}

impl<'a, T: Element, P> Kernel for Direction<'_, T, P>
where
    P: Iterator<Item = (f32, &'a [f32])> + Clone,
{
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { row, weight, target, complement, parts } = self;
        let h = row.len();
        weighted_sums(h, parts, |start, means| {
            let mut weights = [0.0; BLOCK];
            let weights = &mut weights[..means.len()];
            weight.read(target * h + start, weights);
            for ((out, mean), weight) in row[start..].iter_mut().zip(means).zip(weights) {
                *out = T::from_f32(complement * *weight - mean);
            }
        });
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
