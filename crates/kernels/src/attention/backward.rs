//! Backward pass: a task is a block of keys of one sequence and query head, which loops over blocks
//! of queries.
//!
//! Scores are recomputed transposed (`k qᵀ`), so that probabilities and score gradients have keys
//! as rows and can be left operands for `d_v` and `d_k` as they are; only `d_q` needs them
//! transposed. A task owns `d_k` and `d_v` of its block, and the query heads of a key-value head
//! are summed in order. Blocks of keys add to `d_q` of a block of queries in order, too: a task
//! waits until its predecessor has finished those queries. So a single long sequence keeps many
//! threads busy, and the order of every sum is fixed.

use super::rows::{lines, transposed, used_rows};
use super::{Gradients, Heads, Inputs, Rows, Saved, Sequence};
use crate::cpu::{Cpu, Kernel, Scratch, Split, with_scratch};
use crate::element::Element;
use crate::gemm::WHOLE_PANELS;
use crate::gemm::block::{Typed, left, max_padded, multiply, padded, panel_cols, right};
use crate::gemm::tile::{Lines, Part, Store, Tile, with_tiles};
use crate::math::{dot, exp};
use crate::view::{View, ViewMut};
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Queries and keys of a block.
const QUERIES: usize = 64;
const KEYS: usize = 256;

/// Elements of workspace for `t` rows: `d_q`, `d_k` and `d_v`, and `delta`.
pub(super) fn workspace_len(heads: &Heads, t: usize) -> usize {
    t * heads.qkv_width() + t * heads.num_heads
}

/// Gradients of packed rows for `d_out [t, out_width]`. `workspace` holds [`workspace_len`]
/// elements.
///
/// # Panics
/// If the sequences are not contiguous from row 0 on, or their keys are not the rows of their
/// queries.
pub fn backward(
    cpu: &Cpu,
    saved: Saved<'_>,
    heads: &Heads,
    sequences: &[Sequence],
    d_out: View<'_>,
    gradients: Gradients<'_>,
    workspace: &mut [f32],
) {
    let (inputs, lse) = (Inputs::packed(saved.qkv, heads), saved.lse.f32());
    let pass = Pass { cpu, heads, inputs, sequences, lse };
    match (saved.out, d_out, gradients.d_qkv) {
        (View::F32(out), View::F32(d_out), ViewMut::F32(d_qkv)) => {
            pass.typed(out, d_out, d_qkv, workspace)
        }
        (View::Bf16(out), View::Bf16(d_out), ViewMut::Bf16(d_qkv)) => {
            pass.typed(out, d_out, d_qkv, workspace)
        }
        _ => panic!("outputs and gradients have the same element type"),
    }
    if let Some((sinks, d_sinks)) = gradients.sinks {
        let delta = &workspace[lse.len() / heads.num_heads * heads.qkv_width()..];
        pass.add_sink_gradients(sinks.f32(), delta, d_sinks.f32());
    }
}

/// Bytes of scratch memory that a thread needs on any instruction set.
pub(super) fn scratch_bytes(heads: &Heads) -> usize {
    let d = heads.head_dim;
    let w = d.next_multiple_of(WHOLE_PANELS);
    let packed = (2 * KEYS + 2 * QUERIES) * max_padded(d) + (KEYS + 2 * QUERIES) * w;
    let squares = 5 * KEYS * QUERIES;
    4 * (packed + squares + (2 * KEYS + QUERIES) * w) + 24 * 64
}

struct Pass<'a> {
    cpu: &'a Cpu,
    heads: &'a Heads,
    inputs: Inputs<'a>,
    sequences: &'a [Sequence],
    lse: &'a [f32],
}

impl Pass<'_> {
    fn typed<T: Typed>(&self, out: &[T], d_out: &[T], d_qkv: &mut [T], workspace: &mut [f32]) {
        let Self { cpu, heads, sequences, .. } = *self;
        assert!(sequences.iter().all(|s| *s == Sequence::new(s.q_start, s.q_len)));
        // Tasks write disjoint rows only if sequences do not overlap, which this checks.
        let used = used_rows(sequences);
        let width = heads.out_width();
        let num_tokens = out.len() / width;
        let (sums, delta) = workspace.split_at_mut(num_tokens * heads.qkv_width());
        self.deltas(out, d_out, delta);
        let (sums_split, tasks) = (Split::new(sums), Tasks::new(heads, sequences));
        with_tiles!(cpu.isa, I => cpu.pool.run(tasks.0.len(), &|task| {
            with_scratch(scratch_bytes(heads), |scratch| {
                let kernel = Backward {
                    pass: self,
                    turn: tasks.turn(heads, task),
                    sequence: tasks.0[task].sequence,
                    head: tasks.0[task].head,
                    first_key: tasks.0[task].first_key,
                    d_out: Rows { data: T::view(d_out), stride: width, offset: 0 },
                    delta,
                    lse: &self.lse[tasks.0[task].head * num_tokens..][..num_tokens],
                    sums: &sums_split,
                    scratch,
                    types: PhantomData::<(T, T::TileOf<I>)>,
                };
                cpu.isa.run(kernel)
            });
        }));
        self.narrow(sums, used, d_qkv);
    }

    /// `delta [t, num_heads] = Σ_c d_out · out`.
    fn deltas<T: Typed>(&self, out: &[T], d_out: &[T], delta: &mut [f32]) {
        let (d, width) = (self.heads.head_dim, self.heads.out_width());
        self.cpu.rows(delta, self.heads.num_heads, 2 * width, |t, delta| {
            let row = t * width..(t + 1) * width;
            self.cpu.isa.run(Deltas { out: &out[row.clone()], d_out: &d_out[row], d, delta });
        });
    }

    /// Adds to the gradient of sinks, which take their share from all of a row's probabilities:
    /// each is `-Σ share · delta` over rows, in f64.
    fn add_sink_gradients(&self, sinks: &[f32], delta: &[f32], d_sinks: &mut [f32]) {
        let (n, used) = (self.heads.num_heads, used_rows(self.sequences));
        let num_tokens = self.lse.len() / n;
        self.cpu.rows(d_sinks, 1, 32 * used, |h, d_sink| {
            let lse = &self.lse[h * num_tokens..][..used];
            let of_row = |(t, lse): (usize, &f32)| exp(sinks[h] - lse) * delta[t * n + h];
            let sum: f64 = lse.iter().enumerate().map(of_row).map(f64::from).sum();
            d_sink[0] -= sum as f32;
        });
    }

    /// Writes the sums in the gradient's type, and zeros to rows of no sequence.
    fn narrow<T: Typed>(&self, sums: &[f32], used: usize, d_qkv: &mut [T]) {
        let width = self.heads.qkv_width();
        self.cpu.rows(d_qkv, width, width, |t, row| match t < used {
            true => self.cpu.isa.run(NarrowRow { sums: &sums[t * width..][..width], row }),
            false => row.fill(T::from_f32(0.0)),
        });
    }
}

struct Deltas<'a, T> {
    out: &'a [T],
    d_out: &'a [T],
    d: usize,
    delta: &'a mut [f32],
}

impl<T: Element> Kernel for Deltas<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let heads = self.out.chunks_exact(self.d).zip(self.d_out.chunks_exact(self.d));
        for (delta, (out, d_out)) in self.delta.iter_mut().zip(heads) {
            *delta = dot(out, d_out);
        }
    }
}

struct NarrowRow<'a, T> {
    sums: &'a [f32],
    row: &'a mut [T],
}

impl<T: Element> Kernel for NarrowRow<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        self.row.iter_mut().zip(self.sums).for_each(|(x, sum)| *x = T::from_f32(*sum));
    }
}

/// A block of keys for one query head.
struct Task {
    sequence: Sequence,
    head: usize,
    /// First key, counted from the start of the sequence.
    first_key: usize,
    /// End of the queries whose `d_q` already includes this block; [`ALL`] once the task is done.
    progress: AtomicUsize,
}

/// More than any number of queries.
const ALL: usize = usize::MAX;

/// The tasks in the order in which they start: each after those that it waits for.
struct Tasks(Vec<Task>);

impl Tasks {
    /// Long sequences first; within a sequence, each block of keys for all heads, so that the tasks
    /// of one head are far apart.
    fn new(heads: &Heads, sequences: &[Sequence]) -> Self {
        let (mut tasks, mut sequences) = (Vec::new(), sequences.to_vec());
        sequences.sort_by_key(|sequence| std::cmp::Reverse(sequence.q_len));
        for sequence in sequences {
            for first_key in (0..sequence.q_len).step_by(KEYS) {
                let task = |head| Task { sequence, head, first_key, progress: AtomicUsize::new(0) };
                tasks.extend((0..heads.num_heads).map(task));
            }
        }
        Self(tasks)
    }

    fn turn(&self, heads: &Heads, task: usize) -> Turn<'_> {
        let Task { head, first_key, progress, .. } = &self.0[task];
        let progress_of = |distance: usize| &self.0[task - distance].progress;
        Turn {
            progress,
            previous_keys: (*first_key > 0).then(|| progress_of(heads.num_heads)),
            previous_head: (head % heads.group() > 0).then(|| progress_of(1)),
        }
    }
}

/// A task's progress, and that of its predecessors. Dropping it marks the task as done, also on
/// panic, so that no task waits forever.
struct Turn<'a> {
    progress: &'a AtomicUsize,
    /// The previous block of keys of the same head.
    previous_keys: Option<&'a AtomicUsize>,
    /// The previous query head of the same key-value head, with the same keys.
    previous_head: Option<&'a AtomicUsize>,
}

impl Turn<'_> {
    /// Waits until the previous keys have been added to all queries below `end`.
    fn wait_for_queries(&self, end: usize) {
        self.previous_keys.iter().for_each(|progress| wait(progress, end));
    }

    /// Waits until the previous head has added to the keys.
    fn wait_for_head(&self) {
        self.previous_head.iter().for_each(|progress| wait(progress, ALL));
    }

    /// Hands the queries below `end` over to the next keys.
    fn hand_over(&self, end: usize) {
        self.progress.store(end, Ordering::Release);
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // Tasks that wait for this one rely on its predecessors being done, too.
            self.wait_for_queries(ALL);
            self.wait_for_head();
        }
        self.hand_over(ALL);
    }
}

/// Waits until `progress` is at least `end`. The predecessor is already running, but may need this
/// core, so the wait yields after a while.
fn wait(progress: &AtomicUsize, end: usize) {
    let mut spins = 0;
    while progress.load(Ordering::Acquire) < end {
        spins += 1;
        if spins < 1000 { std::hint::spin_loop() } else { std::thread::yield_now() }
    }
}

struct Backward<'a, T, M> {
    pass: &'a Pass<'a>,
    turn: Turn<'a>,
    sequence: Sequence,
    head: usize,
    /// First key of the block, counted from the start of the sequence.
    first_key: usize,
    d_out: Rows<'a>,
    /// `[t, num_heads]`
    delta: &'a [f32],
    /// `[t]`, of this head.
    lse: &'a [f32],
    /// `d_q`, `d_k` and `d_v` in packed rows, as in `d_qkv`.
    sums: &'a Split<'a, f32>,
    scratch: Scratch<'a>,
    types: PhantomData<(T, M)>,
}

/// Buffers of a task.
struct Buffers<'a, T, M: Tile> {
    k_rows: &'a mut [M::Elem],
    v_rows: &'a mut [M::Elem],
    k_panels: &'a mut [M::Elem],
    /// Queries and output gradients: contracted over head dimensions, then over tokens.
    q_panels: [&'a mut [M::Elem]; 2],
    o_panels: [&'a mut [M::Elem]; 2],
    /// Scores and gradients of probabilities, `[KEYS, QUERIES]`.
    scores: &'a mut [f32],
    d_p: &'a mut [f32],
    p: &'a mut [T],
    d_s: &'a mut [T],
    packed: &'a mut [M::Elem],
    d_k: &'a mut [f32],
    d_v: &'a mut [f32],
    d_q: &'a mut [f32],
}

impl<T: Typed, M: Tile> Kernel for Backward<'_, T, M> {
    type Output = ();
    const RUNS_TILES: bool = true;

    #[inline(always)]
    fn run(mut self) {
        let d = self.pass.heads.head_dim;
        let (width, depth) = (panel_cols::<M>(d), padded::<M>(d));
        let scratch = &mut self.scratch;
        let mut buffers = Buffers::<T, M> {
            k_rows: scratch.take(KEYS * depth),
            v_rows: scratch.take(KEYS * depth),
            k_panels: scratch.take(KEYS * width),
            q_panels: [scratch.take(depth * QUERIES), scratch.take(QUERIES * width)],
            o_panels: [scratch.take(depth * QUERIES), scratch.take(QUERIES * width)],
            scores: scratch.take(KEYS * QUERIES),
            d_p: scratch.take(KEYS * QUERIES),
            p: scratch.take(KEYS * QUERIES),
            d_s: scratch.take(KEYS * QUERIES),
            packed: scratch.take(KEYS * QUERIES),
            d_k: scratch.take(KEYS * width),
            d_v: scratch.take(KEYS * width),
            d_q: scratch.take(QUERIES * width),
        };
        let keys = self.first_key..self.sequence.q_len.min(self.first_key + KEYS);
        self.block_of_keys(&mut buffers, keys.clone());
        self.turn.wait_for_head();
        let is_first = self.head.is_multiple_of(self.pass.heads.group());
        for (which, sums) in [(1, &*buffers.d_k), (2, &*buffers.d_v)] {
            for (j, addend) in keys.clone().zip(sums.chunks_exact(width)) {
                let sums = self.gradient(which, j).iter_mut().zip(addend);
                match is_first {
                    // Like a sum that starts from zero: turns -0 into 0.
                    true => sums.for_each(|(sum, x)| *sum = 0.0 + x),
                    false => sums.for_each(|(sum, x)| *sum += x),
                }
            }
        }
    }
}

impl<T: Typed, M: Tile> Backward<'_, T, M> {
    /// Row `t` of the sequence in `d_q` (0) for this head, or in `d_k` (1) or `d_v` (2) for its
    /// key-value head.
    #[inline(always)]
    #[allow(clippy::mut_from_ref)]
    fn gradient(&self, which: usize, t: usize) -> &mut [f32] {
        let heads = self.pass.heads;
        let (first, head) = match which {
            0 => (0, self.head),
            1 => (heads.num_heads, self.head / heads.group()),
            _ => (heads.num_heads + heads.num_kv_heads, self.head / heads.group()),
        };
        let row = self.sequence.q_start + t;
        let at = row * heads.qkv_width() + (first + head) * heads.head_dim;
        // SAFETY: a task holds one such row at a time. No other task of its head has its keys, and
        // no other head its queries; where other tasks write the same row, it has waited for its
        // predecessors (`Turn`), and its successors wait for it.
        unsafe { self.sums.slice(at, heads.head_dim) }
    }

    /// Computes `d_k` and `d_v` of `keys` in the buffers, and adds their share of `d_q`.
    #[inline(always)]
    fn block_of_keys(&self, buffers: &mut Buffers<'_, T, M>, keys: Range<usize>) {
        let (heads, inputs) = (self.pass.heads, &self.pass.inputs);
        let (d, width) = (heads.head_dim, panel_cols::<M>(heads.head_dim));
        let kv_head = self.head / heads.group();
        let (start, count) = (self.sequence.k_start + keys.start, keys.len());
        let (k, v) = (lines(inputs.k, kv_head, d), lines(inputs.v, kv_head, d));
        let rows = Part { line: start, lines: count, k0: 0, k: d };
        let k_rows = left::<M>(k, rows, buffers.k_rows);
        let v_rows = left::<M>(v, rows, buffers.v_rows);
        let cols = Part { line: 0, lines: d, k0: start, k: count };
        let k_cols = right::<M>(transposed(k), cols, buffers.k_panels);
        buffers.d_k[..count * width].fill(0.0);
        buffers.d_v[..count * width].fill(0.0);
        // The queries that see any of these keys.
        let window = heads.window.unwrap_or(self.sequence.q_len);
        let begin = keys.start.saturating_sub(heads.ahead) / QUERIES * QUERIES;
        let end = self.sequence.q_len.min(keys.end - 1 + window);
        for q0 in (begin..end).step_by(QUERIES) {
            let queries = q0..self.sequence.q_len.min(q0 + QUERIES);
            let n = queries.len();
            let rows = Part { line: self.sequence.q_start + q0, lines: n, k0: 0, k: d };
            let cols = Part { line: 0, lines: d, k0: self.sequence.q_start + q0, k: n };
            let q = lines(inputs.q, self.head, d);
            let d_o = lines(self.d_out, self.head, d);
            let [q_panels, q_col_panels] = &mut buffers.q_panels;
            let [o_panels, o_col_panels] = &mut buffers.o_panels;
            let q_t = right::<M>(q, rows, q_panels);
            let o_t = right::<M>(d_o, rows, o_panels);
            let q_cols = right::<M>(transposed(q), cols, q_col_panels);
            let o_cols = right::<M>(transposed(d_o), cols, o_col_panels);
            // The queries of the block that see key `j`.
            let seen = |j: usize| {
                let key = keys.start + j;
                let clip = |i: usize| i.clamp(q0, q0 + n) - q0;
                clip(key.saturating_sub(heads.ahead))..clip(key + window)
            };
            // The union of these over the keys of a tile.
            let seen_by = |keys: Range<usize>, _| seen(keys.start).start..seen(keys.end - 1).end;
            let tiles = |rows: Range<usize>, cols: Range<usize>| {
                let any = seen_by(rows, cols.clone());
                if any.start < cols.end && cols.start < any.end { 0..d } else { 0..0 }
            };
            let sees = |queries: Range<usize>, _| {
                let end = (q0 + queries.end).saturating_add(heads.ahead);
                let start = (q0 + queries.start + 1).saturating_sub(keys.start + window);
                // Never empty: tiles that are masked entirely are zero, and must be written.
                let end = end.saturating_sub(keys.start).clamp(1, count);
                start.min(end - 1)..end
            };
            multiply::<M>(k_rows, count, q_t, (buffers.scores, QUERIES), Store::Overwrite, tiles);
            multiply::<M>(v_rows, count, o_t, (buffers.d_p, QUERIES), Store::Overwrite, tiles);
            let (p, d_s) = (&mut *buffers.p, &mut *buffers.d_s);
            self.score_gradients((buffers.scores, buffers.d_p), (p, d_s), count, q0, seen);
            let square = |x| Lines { data: T::view(x), offset: 0, line_stride: QUERIES, step: 1 };
            let rows = Part { line: 0, lines: count, k0: 0, k: q_cols.depth };
            let p = left::<M>(square(buffers.p), rows, buffers.packed);
            multiply::<M>(p, count, o_cols, (buffers.d_v, width), Store::Add, seen_by);
            let d_s = left::<M>(square(buffers.d_s), rows, buffers.packed);
            multiply::<M>(d_s, count, q_cols, (buffers.d_k, width), Store::Add, seen_by);
            let d_s = transposed(square(buffers.d_s));
            let rows = Part { line: 0, lines: n, k0: 0, k: count };
            let d_s = left::<M>(d_s, rows, buffers.packed);
            multiply::<M>(d_s, n, k_cols, (buffers.d_q, width), Store::Overwrite, sees);
            self.turn.wait_for_queries(queries.end);
            self.add_to_queries(queries.clone(), keys.start, buffers.d_q);
            self.turn.hand_over(queries.end);
        }
    }

    /// Adds a block of keys' share to `d_q`, or writes it if the block is the first that any of the
    /// queries sees.
    #[inline(always)]
    fn add_to_queries(&self, queries: Range<usize>, first_key: usize, d_q: &[f32]) {
        let Heads { head_dim: d, window, .. } = *self.pass.heads;
        let first_seen = window.map_or(0, |w| (queries.start + 1).saturating_sub(w));
        for (i, addend) in queries.zip(d_q.chunks_exact(panel_cols::<M>(d))) {
            let sums = self.gradient(0, i);
            match first_key == first_seen / KEYS * KEYS {
                // Like a sum that starts from zero: turns -0 into 0.
                true => sums.iter_mut().zip(addend).for_each(|(sum, x)| *sum = 0.0 + x),
                false => sums.iter_mut().zip(addend).for_each(|(sum, x)| *sum += x),
            }
        }
    }

    /// Probabilities `p` and gradients `d_s` of the unscaled scores, `[KEYS, QUERIES]`, for the
    /// first `count` keys; zero where masked.
    #[inline(always)]
    fn score_gradients(
        &self,
        (scores, d_p): (&[f32], &[f32]),
        (p, d_s): (&mut [T], &mut [T]),
        count: usize,
        q0: usize,
        seen: impl Fn(usize) -> Range<usize>,
    ) {
        let scale = self.pass.heads.scale;
        let n = QUERIES.min(self.sequence.q_len - q0);
        let at = self.sequence.q_start + q0;
        let (mut lse, mut delta) = ([0.0; QUERIES], [0.0; QUERIES]);
        lse[..n].copy_from_slice(&self.lse[at..at + n]);
        let num_heads = self.pass.heads.num_heads;
        for (i, delta) in delta[..n].iter_mut().enumerate() {
            *delta = self.delta[(at + i) * num_heads + self.head];
        }
        let rows = scores.as_chunks::<QUERIES>().0.iter().zip(d_p.as_chunks::<QUERIES>().0);
        let outputs = p.as_chunks_mut::<QUERIES>().0.iter_mut();
        let outputs = outputs.zip(d_s.as_chunks_mut::<QUERIES>().0);
        for (j, ((scores, d_p), (p, d_s))) in rows.zip(outputs).take(count).enumerate() {
            let seen = seen(j);
            if !seen.is_empty() {
                let (mut x, mut d) = ([0.0; QUERIES], [0.0; QUERIES]);
                for i in 0..QUERIES {
                    x[i] = exp(scores[i].mul_add(scale, -lse[i]));
                    d[i] = x[i] * (d_p[i] - delta[i]) * scale;
                }
                if let Some(cap) = self.pass.heads.softcap {
                    for i in 0..QUERIES {
                        let score = cap.bounded(scores[i] * scale);
                        x[i] = exp(score - lse[i]);
                        d[i] = x[i] * (d_p[i] - delta[i]) * scale * cap.slope(score);
                    }
                }
                // SAFETY: the tile was chosen by the instruction set.
                unsafe {
                    T::narrow::<M>(&x, p);
                    T::narrow::<M>(&d, d_s);
                }
            }
            if seen.len() < QUERIES {
                for x in [p, d_s] {
                    x[..seen.start].fill(T::from_f32(0.0));
                    x[seen.end..].fill(T::from_f32(0.0));
                }
            }
        }
    }
}
