//! A chunk of tokens of one sequence: normalised rows, decays, the triangular system.

use super::EPS;
use crate::cpu::Scratch;
use crate::gemm::WHOLE_PANELS;
use crate::gemm::block::{Left, Typed, left, max_padded, multiply, padded, panel_cols, right};
use crate::gemm::tile::{Lines, Part, Store, Tile};
use crate::math::{LANES, dot, exp};
use std::ops::Range;

/// Tokens of a chunk, counted from the sequence's first one. Shows in the rounding.
pub const CHUNK: usize = 64;

/// Distance between rows of a product of rows with rows of a chunk: whole panels of any
/// instruction set.
pub(super) const STRIDE: usize = CHUNK.next_multiple_of(WHOLE_PANELS);

/// Rows `width` apart as lines of a product.
pub(super) fn lines<T: Typed>(rows: &[T], width: usize) -> Lines<'_> {
    Lines { data: T::view(rows), offset: 0, line_stride: width, step: 1 }
}

/// Columns of such rows as lines.
pub(super) fn columns<T: Typed>(rows: &[T], width: usize) -> Lines<'_> {
    Lines { data: T::view(rows), offset: 0, line_stride: 1, step: width }
}

/// `out = x · scale / |x|`, and the reciprocal of the norm.
#[inline(always)]
pub(super) fn normalise<T: Typed>(x: &[T], scale: f32, out: &mut [T]) -> f32 {
    let reciprocal = 1.0 / (dot(x, x) + EPS).sqrt();
    let factor = reciprocal * scale;
    out.iter_mut().zip(x).for_each(|(out, x)| *out = T::from_f32(x.to_f32() * factor));
    reciprocal
}

/// Queries and keys of a chunk, of one key head.
pub(super) struct Keys<'a, T> {
    pub dk: usize,
    /// Normalised, `[CHUNK, dk]`; queries are scaled, too.
    pub q: &'a mut [T],
    pub k: &'a mut [T],
    /// Products of rows of queries, and of keys, with keys: `[CHUNK, STRIDE]`. Of a row only what
    /// is before it and itself is defined.
    pub qk: &'a mut [f32],
    pub kk: &'a mut [f32],
}

/// Rows of queries, and of keys, as operands.
pub(super) struct KeyOperands<'a, M: Tile> {
    rows: [&'a mut [M::Elem]; 2],
    panels: &'a mut [M::Elem],
}

/// Elements of scratch memory of [`Keys`] and [`KeyOperands`] at most.
pub(super) fn max_keys_len(dk: usize) -> usize {
    2 * CHUNK * dk + 2 * CHUNK * STRIDE + (2 * CHUNK + STRIDE) * max_padded(dk)
}

impl<'a, M: Tile> KeyOperands<'a, M> {
    #[inline(always)]
    pub fn take(scratch: &mut Scratch<'a>, dk: usize) -> Self {
        let depth = padded::<M>(dk);
        let rows = [scratch.take(CHUNK * depth), scratch.take(CHUNK * depth)];
        Self { rows, panels: scratch.take(depth * STRIDE) }
    }

    /// Rows of queries, and of keys, as left operands.
    #[inline(always)]
    pub fn left<'k, T: Typed>(
        &'k mut self,
        keys: &'k Keys<'_, T>,
        rows: Range<usize>,
    ) -> [Left<'k, M::Elem>; 2] {
        let part = Part { line: rows.start, lines: rows.len(), k0: 0, k: keys.dk };
        let [q, k] = &mut self.rows;
        [left::<M>(lines(keys.q, keys.dk), part, q), left::<M>(lines(keys.k, keys.dk), part, k)]
    }
}

impl<'a, T: Typed> Keys<'a, T> {
    #[inline(always)]
    pub fn take(scratch: &mut Scratch<'a>, dk: usize) -> Self {
        Self {
            dk,
            q: scratch.take(CHUNK * dk),
            k: scratch.take(CHUNK * dk),
            qk: scratch.take(CHUNK * STRIDE),
            kk: scratch.take(CHUNK * STRIDE),
        }
    }

    /// Computes `qk` and `kk` for rows `first..n`.
    #[inline(always)]
    pub fn multiply<M: Tile>(&mut self, operands: &mut KeyOperands<'_, M>, first: usize, n: usize) {
        let (dk, count) = (self.dk, n - first);
        let KeyOperands { rows: [q_rows, k_rows], panels } = operands;
        let new = Part { line: first, lines: count, k0: 0, k: dk };
        let all = Part { line: 0, lines: n, k0: 0, k: dk };
        let keys = right::<M>(lines(self.k, dk), all, panels);
        for (x, rows, out) in [(&*self.q, q_rows, &mut self.qk), (&*self.k, k_rows, &mut self.kk)] {
            let x = left::<M>(lines(x, dk), new, rows);
            let out = (&mut out[first * STRIDE..], STRIDE);
            multiply::<M>(x, count, keys, out, Store::Overwrite, |rows, cols| {
                if cols.start < first + rows.end { 0..dk } else { 0..0 }
            });
        }
    }
}

/// `S' = E S + Kᵀ F U` for a whole chunk: `kt` are the columns of `K`, `written` is `U`,
/// `[CHUNK, dv]`.
#[inline(always)]
pub(super) fn update_state<T: Typed, M: Tile>(
    (state, stride): (&mut [f32], usize),
    decays: &Decays,
    kt: Left<'_, M::Elem>,
    (written, dv): (&[T], usize),
    scaled: &mut [T],
    panels: &mut [M::Elem],
) {
    scale_rows(&decays.until_end, (written, dv), scaled);
    let of_rows = Part { line: 0, lines: dv, k0: 0, k: CHUNK };
    let scaled = right::<M>(columns(scaled, dv), of_rows, panels);
    state.iter_mut().for_each(|x| *x *= decays.whole);
    let dk = state.len() / stride;
    multiply::<M>(kt, dk, scaled, (state, stride), Store::Add, |_, _| 0..CHUNK);
}

/// Rows of `out` are rows of `x`, `width` wide, times factors.
#[inline(always)]
pub(super) fn scale_rows<T: Typed>(factors: &[f32], (x, width): (&[T], usize), out: &mut [T]) {
    let rows = out.chunks_exact_mut(width).zip(x.chunks_exact(width));
    for ((out, x), factor) in rows.zip(factors) {
        out.iter_mut().zip(x).for_each(|(out, x)| *out = T::from_f32(factor * x.to_f32()));
    }
}

/// Decays within a chunk, of one value head. Their logarithms are summed in f64: the difference of
/// two sums is what counts.
pub(super) struct Decays {
    sums: [f64; CHUNK],
    /// Since the chunk began, the token's own included.
    pub since_start: [f32; CHUNK],
    /// From after the token until the last one.
    pub until_end: [f32; CHUNK],
    /// Over the whole chunk.
    pub whole: f32,
}

impl Decays {
    /// `g` of the tokens, at most [`CHUNK`].
    #[inline(always)]
    pub fn new(g: impl Iterator<Item = f32>) -> Self {
        let (mut sums, mut sum, mut n) = ([0.0; CHUNK], 0.0, 0);
        for (to, g) in sums.iter_mut().zip(g) {
            sum += f64::from(g);
            *to = sum;
            n += 1;
        }
        sums[n..].fill(sum);
        let (mut since_start, mut until_end) = ([0.0; CHUNK], [0.0; CHUNK]);
        for i in 0..CHUNK {
            since_start[i] = exp(sums[i] as f32);
            until_end[i] = exp((sum - sums[i]) as f32);
        }
        Self { sums, since_start, until_end, whole: exp(sum as f32) }
    }

    /// Decays from after token `j` until token `i`, for each `j` up to `i`; zero beyond.
    #[inline(always)]
    pub fn until(&self, i: usize) -> [f32; CHUNK] {
        let mut decays = [0.0; CHUNK];
        let whole = (i + 1).next_multiple_of(LANES);
        for (decay, sum) in decays[..whole].iter_mut().zip(&self.sums) {
            *decay = exp((self.sums[i] - sum) as f32);
        }
        decays[i + 1..].fill(0.0);
        decays
    }
}

/// Columns that the triangular systems are solved for at a time, and rows.
const COLUMNS: usize = 32;
const ROWS: usize = 4;

/// Distance between rows of `n` sums: whole panels, and whole blocks of columns.
pub(super) fn sum_stride<M: Tile>(n: usize) -> usize {
    panel_cols::<M>(n).next_multiple_of(COLUMNS)
}

/// The largest [`sum_stride`] of any instruction set.
pub(super) fn max_sum_stride(n: usize) -> usize {
    n.next_multiple_of(WHOLE_PANELS).next_multiple_of(COLUMNS)
}

/// Solves `(I + L) x = r` for rows `first..n` of `x`, given those before, which are rounded as they
/// are kept: a later row makes up for what rounding a row left out. `l` has [`CHUNK`] columns.
///
/// `x` has room for whole blocks of columns in each row, `stride` apart.
#[inline(always)]
pub(super) fn solve<T: Typed>(
    l: &[f32],
    (x, stride): (&mut [f32], usize),
    (first, n): (usize, usize),
) {
    for start in (0..stride).step_by(COLUMNS) {
        let mut i = first;
        while i < n {
            if n - i >= ROWS {
                solve_rows::<T, ROWS>(l, (x, stride), (start, i));
                i += ROWS;
            } else {
                solve_rows::<T, 1>(l, (x, stride), (start, i));
                i += 1;
            }
        }
    }
}

/// Rows `i..i + R` for the columns that begin at `start`.
#[inline(always)]
fn solve_rows<T: Typed, const R: usize>(
    l: &[f32],
    (x, stride): (&mut [f32], usize),
    (start, i): (usize, usize),
) {
    let (before, own) = x.split_at_mut(i * stride);
    let block = |row: &[f32]| -> [f32; COLUMNS] {
        *row[start..].first_chunk().expect("whole blocks of columns")
    };
    let mut sums: [[f32; COLUMNS]; R] = std::array::from_fn(|r| block(&own[r * stride..]));
    for (j, row) in before.chunks_exact(stride).enumerate() {
        let row = block(row);
        for r in 0..R {
            subtract(&mut sums[r], l[(i + r) * CHUNK + j], &row);
        }
    }
    for r in 0..R {
        for j in 0..r {
            let row = sums[j];
            subtract(&mut sums[r], l[(i + r) * CHUNK + i + j], &row);
        }
        sums[r].iter_mut().for_each(|x| *x = T::from_f32(*x).to_f32());
        own[r * stride + start..][..COLUMNS].copy_from_slice(&sums[r]);
    }
}

/// Solves `(I + L)ᵀ x = r` in place, for `n` rows of `x`, laid out as for [`solve`].
#[inline(always)]
pub(super) fn solve_transposed(l: &[f32], (x, stride): (&mut [f32], usize), n: usize) {
    for start in (0..stride).step_by(COLUMNS) {
        let mut end = n;
        while end > 0 {
            if end >= ROWS {
                end -= ROWS;
                solve_transposed_rows::<ROWS>(l, (x, stride), start, end..n);
            } else {
                end -= 1;
                solve_transposed_rows::<1>(l, (x, stride), start, end..n);
            }
        }
    }
}

/// The first `R` of `rows`, for the columns that begin at `start`, given the others.
#[inline(always)]
fn solve_transposed_rows<const R: usize>(
    l: &[f32],
    (x, stride): (&mut [f32], usize),
    start: usize,
    rows: Range<usize>,
) {
    let i = rows.start;
    let (own, after) = x[i * stride..rows.end * stride].split_at_mut(R * stride);
    let block = |row: &[f32]| -> [f32; COLUMNS] {
        *row[start..].first_chunk().expect("whole blocks of columns")
    };
    let mut sums: [[f32; COLUMNS]; R] = std::array::from_fn(|r| block(&own[r * stride..]));
    for (j, row) in (i + R..rows.end).zip(after.chunks_exact(stride)) {
        let row = block(row);
        for r in 0..R {
            subtract(&mut sums[r], l[j * CHUNK + i + r], &row);
        }
    }
    for r in (0..R).rev() {
        for j in r + 1..R {
            let row = sums[j];
            subtract(&mut sums[r], l[(i + j) * CHUNK + i + r], &row);
        }
        own[r * stride + start..][..COLUMNS].copy_from_slice(&sums[r]);
    }
}

#[inline(always)]
fn subtract(sums: &mut [f32; COLUMNS], factor: f32, row: &[f32; COLUMNS]) {
    sums.iter_mut().zip(row).for_each(|(sum, x)| *sum = (-factor).mul_add(*x, *sum));
}
