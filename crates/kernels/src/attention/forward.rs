//! Forward pass: a task is a block of queries for all query heads of one key-value head, which
//! loops over blocks of keys.

use super::rows::{check_pages, lines, transposed, used_rows};
use super::{Heads, Inputs, PAGE_ROWS, Sequence};
use crate::cpu::{Cpu, Kernel, Scratch, Split, with_scratch};
use crate::gemm::WHOLE_PANELS;
use crate::gemm::block::{Typed, left, max_padded, multiply, padded, panel_cols, right};
use crate::gemm::tile::{Lines, Part, Store, Tile, with_tiles};
use crate::math::{LANES, Softcap, exp, max, sum};
use crate::view::{View, ViewMut};
use std::marker::PhantomData;
use std::ops::Range;

/// Queries and keys of a block; the keys are a whole number of panels on any instruction set.
const QUERIES: usize = 64;
const KEYS: usize = PAGE_ROWS;

/// `out [t, out_width]` and `lse [num_heads, t]` (log of the softmax's denominator). Rows of `out`
/// after the last sequence become zero.
///
/// # Panics
/// If the queries of the sequences are not contiguous from row 0 on.
pub fn forward(
    cpu: &Cpu,
    inputs: Inputs<'_>,
    heads: &Heads,
    sequences: &[Sequence],
    out: ViewMut<'_>,
    lse: &mut [f32],
) {
    assert!(heads.scale > 0.0, "maxima are taken before scaling");
    check_pages(&inputs, sequences);
    match (inputs.q.data, out) {
        (View::F32(_), ViewMut::F32(out)) => typed(cpu, inputs, heads, sequences, out, lse),
        (View::Bf16(_), ViewMut::Bf16(out)) => typed(cpu, inputs, heads, sequences, out, lse),
        _ => panic!("queries and output have the same element type"),
    }
}

/// Bytes of scratch memory that a thread needs on any instruction set.
pub(super) fn scratch_bytes(heads: &Heads) -> usize {
    let (d, group) = (heads.head_dim, heads.group());
    let w = d.next_multiple_of(WHOLE_PANELS);
    let packed = max_padded(d) * (KEYS + QUERIES) + KEYS * w + QUERIES * KEYS;
    let sums = 2 * QUERIES * KEYS + group * QUERIES * (w + 2);
    4 * (packed + sums) + 16 * 64
}

/// Some query rows of one sequence, and a key-value head.
#[derive(Clone, Copy)]
struct Block {
    sequence: Sequence,
    /// First query, counted from the start of the sequence.
    first: usize,
    count: usize,
    kv_head: usize,
}

fn blocks(sequences: &[Sequence], heads: &Heads) -> Vec<Block> {
    let sequence_blocks = |&sequence: &Sequence| {
        let firsts = (0..sequence.q_len).step_by(QUERIES);
        firsts.flat_map(move |first| {
            let count = QUERIES.min(sequence.q_len - first);
            (0..heads.num_kv_heads).map(move |kv_head| Block { sequence, first, count, kv_head })
        })
    };
    let mut blocks: Vec<_> = sequences.iter().flat_map(sequence_blocks).collect();
    // Longest tasks first, so that no thread is left with one at the end.
    blocks.sort_by_key(|b| std::cmp::Reverse(b.sequence.visible(b.first, heads).end));
    blocks
}

fn typed<T: Typed>(
    cpu: &Cpu,
    inputs: Inputs<'_>,
    heads: &Heads,
    sequences: &[Sequence],
    out: &mut [T],
    lse: &mut [f32],
) {
    let num_tokens = out.len() / heads.out_width();
    let used = used_rows(sequences);
    out[used * heads.out_width()..].fill(T::from_f32(0.0));
    let blocks = blocks(sequences, heads);
    let (out, lse) = (Split::new(out), Split::new(lse));
    with_tiles!(cpu.isa, I => cpu.pool.run(blocks.len(), &|task| {
        with_scratch(scratch_bytes(heads), |scratch| {
            let (block, tile) = (blocks[task], PhantomData::<T::TileOf<I>>);
            let (out, lse) = (&out, &lse);
            cpu.isa.run(Forward { block, inputs, heads, num_tokens, out, lse, scratch, tile });
        });
    }));
}

struct Forward<'a, T, M> {
    block: Block,
    inputs: Inputs<'a>,
    heads: &'a Heads,
    num_tokens: usize,
    out: &'a Split<'a, T>,
    lse: &'a Split<'a, f32>,
    scratch: Scratch<'a>,
    tile: PhantomData<M>,
}

impl<T: Typed, M: Tile> Kernel for Forward<'_, T, M> {
    type Output = ();
    const RUNS_TILES: bool = true;

    #[inline(always)]
    fn run(mut self) {
        let Block { sequence, first, count, kv_head } = self.block;
        let (d, group) = (self.heads.head_dim, self.heads.group());
        let width = panel_cols::<M>(d);
        let scratch = &mut self.scratch;
        let key_panels = scratch.take(padded::<M>(d) * panel_cols::<M>(KEYS));
        let value_panels = scratch.take(KEYS * width);
        let (q_rows, p_rows) =
            (scratch.take(QUERIES * padded::<M>(d)), scratch.take(QUERIES * KEYS));
        let (scores, p) = (scratch.take(QUERIES * KEYS), scratch.take::<T>(QUERIES * KEYS));
        let acc = scratch.take(group * QUERIES * width);
        let (maxima, sums) = (scratch.take(group * QUERIES), scratch.take(group * QUERIES));
        acc.fill(0.0);
        for g in 0..group {
            let sink = self.inputs.sinks.map(|sinks| sinks.f32()[kv_head * group + g]);
            maxima[g * QUERIES..][..QUERIES].fill(sink.unwrap_or(f32::NEG_INFINITY));
            sums[g * QUERIES..][..QUERIES].fill(if sink.is_some() { 1.0 } else { 0.0 });
        }
        let visible = |i: usize| sequence.visible(first + i, self.heads);
        let begin = visible(0).start / KEYS * KEYS;
        let end = visible(count - 1).end;
        for k0 in (begin..end).step_by(KEYS) {
            let loaded = KEYS.min(end - k0);
            let key0 = self.inputs.key_row(sequence.k_start + k0);
            let of_keys = Part { line: key0, lines: loaded, k0: 0, k: d };
            let keys = right::<M>(lines(self.inputs.k, kv_head, d), of_keys, key_panels);
            let of_values = Part { line: 0, lines: d, k0: key0, k: loaded };
            let values = transposed(lines(self.inputs.v, kv_head, d));
            let values = right::<M>(values, of_values, value_panels);
            // The keys of the block that query `i` sees.
            let seen = |i: usize| {
                let keys = visible(i);
                keys.start.max(k0) - k0..keys.end.clamp(k0, k0 + loaded) - k0
            };
            let seen_by = |rows: Range<usize>| seen(rows.start).start..seen(rows.end - 1).end;
            for g in 0..group {
                let of_queries = Part { line: sequence.q_start + first, lines: count, k0: 0, k: d };
                let q = lines(self.inputs.q, kv_head * group + g, d);
                let q = left::<M>(q, of_queries, q_rows);
                multiply::<M>(q, count, keys, (scores, KEYS), Store::Overwrite, |rows, cols| {
                    let any = seen_by(rows);
                    if cols.start < any.end && any.start < cols.end { 0..d } else { 0..0 }
                });
                let of_head = g * QUERIES..(g + 1) * QUERIES;
                let acc = &mut acc[g * QUERIES * width..][..QUERIES * width];
                let (maxima, sums) = (&mut maxima[of_head.clone()], &mut sums[of_head]);
                let softmax = OnlineSoftmax { maxima, sums, acc };
                let scale = match self.heads.softcap {
                    None => self.heads.scale,
                    Some(cap) => {
                        bound(scores, count, self.heads.scale, cap);
                        1.0
                    }
                };
                softmax.update::<T, M>(scores, p, count, seen, scale);
                let of_p = Part { line: 0, lines: count, k0: 0, k: values.depth };
                let p = Lines { data: T::view(p), offset: 0, line_stride: KEYS, step: 1 };
                let p = left::<M>(p, of_p, p_rows);
                multiply::<M>(p, count, values, (acc, width), Store::Add, |rows, _| seen_by(rows));
            }
        }
        self.write((acc, width), maxima, sums);
    }
}

impl<T: Typed, M: Tile> Forward<'_, T, M> {
    /// Normalises and writes the sums: for each query head, `QUERIES` rows of `width`.
    #[inline(always)]
    fn write(&self, (acc, width): (&mut [f32], usize), maxima: &[f32], sums: &[f32]) {
        let Block { sequence, first, count, kv_head } = self.block;
        let (d, group) = (self.heads.head_dim, self.heads.group());
        for i in 0..group * count {
            let (g, i) = (i / count, i % count);
            let (head, t) = (kv_head * group + g, sequence.q_start + first + i);
            // SAFETY: this head of this row belongs to this task.
            let (out, lse) = unsafe {
                let at = t * self.heads.out_width() + head * d;
                (self.out.slice(at, d), self.lse.slice(head * self.num_tokens + t, 1))
            };
            let state = g * QUERIES + i;
            let inverse = 1.0 / sums[state];
            let acc = &mut acc[state * width..][..d];
            acc.iter_mut().for_each(|x| *x *= inverse);
            // SAFETY: the tile was chosen by the instruction set.
            unsafe { T::narrow::<M>(acc, out) };
            lse[0] = maxima[state] + sums[state].ln();
        }
    }
}

/// Scales and bounds the first `count` rows of scores, masked ones too.
#[inline(always)]
fn bound(scores: &mut [f32], count: usize, scale: f32, cap: Softcap) {
    scores[..count * KEYS].iter_mut().for_each(|score| *score = cap.bounded(*score * scale));
}

/// Online softmax of the queries of a block.
struct OnlineSoftmax<'a> {
    maxima: &'a mut [f32],
    sums: &'a mut [f32],
    /// `[QUERIES, …]`
    acc: &'a mut [f32],
}

impl OnlineSoftmax<'_> {
    /// Computes rows of `p` from rows of `KEYS` scores, masked outside of `seen`, and rescales
    /// earlier sums. `scale` is positive. Each step runs over all rows, so that work per row is
    /// vectorised, too.
    #[inline(always)]
    fn update<T: Typed, M: Tile>(
        self,
        scores: &mut [f32],
        p: &mut [T],
        count: usize,
        seen: impl Fn(usize) -> Range<usize>,
        scale: f32,
    ) {
        let Self { maxima, sums, acc } = self;
        let width = acc.len() / QUERIES;
        // Whole vectors that contain visible keys.
        let vectors = |seen: &Range<usize>| match seen.is_empty() {
            true => 0..0,
            false => seen.start / LANES * LANES..seen.end.next_multiple_of(LANES),
        };
        let mut new_maxima = [f32::NEG_INFINITY; QUERIES];
        for (i, scores) in scores.chunks_exact_mut(KEYS).take(count).enumerate() {
            let seen = seen(i);
            let whole = vectors(&seen);
            if !whole.is_empty() {
                scores[whole.start..seen.start].fill(f32::NEG_INFINITY);
                scores[seen.end..whole.end].fill(f32::NEG_INFINITY);
                new_maxima[i] = scale * max(&scores[whole]);
            }
        }
        let mut rescale = [0.0; QUERIES];
        for i in 0..QUERIES {
            let max = maxima[i].max(new_maxima[i]);
            // While all keys are masked the difference is NaN, which `min` turns into 0: no
            // rescaling.
            rescale[i] = exp((maxima[i] - max).min(0.0));
            maxima[i] = max;
        }
        let rows = scores.chunks_exact_mut(KEYS).zip(p.chunks_exact_mut(KEYS));
        for (i, (scores, p)) in rows.take(count).enumerate() {
            let whole = vectors(&seen(i));
            p[..whole.start].fill(T::from_f32(0.0));
            p[whole.end..].fill(T::from_f32(0.0));
            let (scores, p) = (&mut scores[whole.clone()], &mut p[whole]);
            let max = maxima[i];
            scores.iter_mut().for_each(|s| *s = exp(s.mul_add(scale, -max)));
            sums[i] = sums[i] * rescale[i] + sum(scores);
            // SAFETY: the tile was chosen by the instruction set.
            unsafe { T::narrow::<M>(scores, p) };
            if rescale[i] != 1.0 {
                acc[i * width..][..width].iter_mut().for_each(|a| *a *= rescale[i]);
            }
        }
    }
}
