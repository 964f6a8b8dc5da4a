//! Blocks of 32 queries against blocks of 64 keys.
//!
//! Keys are transposed into scratch so that scores of 64 keys come out of one vectorised loop.
//! The backward pass runs twice over the blocks: once by query block for `d_q`, once by key block
//! for `d_k` and `d_v`, so that each gradient is summed by one task in a fixed order.

use super::{Heads, Inputs, Rows, Sequence};
use crate::cpu::{Cpu, Kernel, Split};
use crate::element::{Element, View, ViewMut};
use crate::math::{exp, max, sum_by};

const QUERIES: usize = 32;
const KEYS: usize = 64;

/// `out [t, out_width]` and `lse [num_heads, t]` (log of the softmax's denominator). Rows of `out`
/// after the last sequence become zero.
///
/// # Panics
/// If queries of the sequences do not follow one another from row 0 on.
pub fn forward(
    cpu: &Cpu,
    inputs: Inputs<'_>,
    heads: &Heads,
    sequences: &[Sequence],
    out: ViewMut<'_>,
    lse: &mut [f32],
) {
    match (inputs.q.data, out) {
        (View::F32(_), ViewMut::F32(out)) => {
            forward_typed::<f32>(cpu, inputs, heads, sequences, out, lse)
        }
        (View::Bf16(_), ViewMut::Bf16(out)) => {
            forward_typed::<crate::bf16>(cpu, inputs, heads, sequences, out, lse)
        }
        _ => panic!("queries and output have the same element type"),
    }
}

/// Gradients of packed rows: `d_qkv [t, qkv_width]`, overwritten, for `d_out [t, out_width]`.
/// `delta [num_heads, t]` is workspace.
///
/// # Panics
/// If the sequences do not follow one another from row 0 on, or have keys of other rows than their
/// queries.
#[allow(clippy::too_many_arguments)]
pub fn backward(
    cpu: &Cpu,
    qkv: View<'_>,
    heads: &Heads,
    sequences: &[Sequence],
    (out, lse): (View<'_>, &[f32]),
    d_out: View<'_>,
    d_qkv: ViewMut<'_>,
    delta: &mut [f32],
) {
    match (out, d_out, d_qkv) {
        (View::F32(out), View::F32(d_out), ViewMut::F32(d_qkv)) => {
            backward_typed(cpu, qkv, heads, sequences, (out, lse), d_out, d_qkv, delta)
        }
        (View::Bf16(out), View::Bf16(d_out), ViewMut::Bf16(d_qkv)) => {
            backward_typed(cpu, qkv, heads, sequences, (out, lse), d_out, d_qkv, delta)
        }
        _ => panic!("outputs and gradients have the same element type"),
    }
}

/// An element type that a [`View`] can be taken apart into.
trait Typed: Element {
    fn slice(view: View<'_>) -> &[Self];
}

impl Typed for f32 {
    fn slice(view: View<'_>) -> &[f32] {
        view.f32()
    }
}

impl Typed for crate::bf16 {
    fn slice(view: View<'_>) -> &[Self] {
        match view {
            View::Bf16(x) => x,
            other => panic!("expected bf16, found {}", other.dtype().name()),
        }
    }
}

/// One head's rows: row `t` is `data[t * stride + offset..][..d]`.
#[derive(Clone, Copy)]
struct HeadRows<'a, T> {
    data: &'a [T],
    stride: usize,
    offset: usize,
    d: usize,
}

impl<'a, T: Typed> HeadRows<'a, T> {
    fn new(rows: Rows<'a>, head: usize, d: usize) -> Self {
        let data = T::slice(rows.data);
        Self { data, stride: rows.stride, offset: rows.offset + head * d, d }
    }

    #[inline(always)]
    fn row(&self, t: usize) -> &'a [T] {
        &self.data[t * self.stride + self.offset..][..self.d]
    }

    /// `out[c][j] =` dimension `c` of row `first + j`, for `count ≤ KEYS` rows; the rest zero.
    #[inline(always)]
    fn transpose(&self, first: usize, count: usize, out: &mut [f32]) {
        if count < KEYS {
            out.fill(0.0);
        }
        for j in 0..count {
            for (c, x) in self.row(first + j).iter().enumerate() {
                out[c * KEYS + j] = x.to_f32();
            }
        }
    }
}

/// A block of query rows of one sequence and what it may see.
#[derive(Clone, Copy)]
struct QueryBlock {
    sequence: Sequence,
    /// First query of the block, counted from the sequence's first query.
    first: usize,
    count: usize,
}

impl QueryBlock {
    /// Keys, counted from the sequence's first key, that query `i` of the block sees: `0..this`.
    #[inline(always)]
    fn visible(&self, i: usize) -> usize {
        self.sequence.k_len - self.sequence.q_len + self.first + i + 1
    }
}

fn query_blocks(sequences: &[Sequence]) -> Vec<QueryBlock> {
    let of_one = |sequence: Sequence| {
        (0..sequence.q_len).step_by(QUERIES).map(move |first| QueryBlock {
            sequence,
            first,
            count: QUERIES.min(sequence.q_len - first),
        })
    };
    let mut blocks: Vec<_> = sequences.iter().copied().flat_map(of_one).collect();
    // The longest first, so that no thread is left with a long task at the end.
    blocks.sort_by_key(|b| std::cmp::Reverse(b.visible(b.count - 1)));
    blocks
}

/// Rows that belong to sequences; those after them are padding.
fn used_rows(sequences: &[Sequence]) -> usize {
    sequences.iter().fold(0, |end, s| {
        assert_eq!(s.q_start, end, "sequences follow one another from row 0 on");
        end + s.q_len
    })
}

fn forward_typed<T: Typed>(
    cpu: &Cpu,
    inputs: Inputs<'_>,
    heads: &Heads,
    sequences: &[Sequence],
    out: &mut [T],
    lse: &mut [f32],
) {
    let (d, width) = (heads.head_dim, heads.out_width());
    let num_tokens = out.len() / width;
    let used = used_rows(sequences);
    out[used * width..].fill(T::from_f32(0.0));
    let blocks = query_blocks(sequences);
    let (out, lse) = (Split::new(out), Split::new(lse));
    cpu.pool.run(blocks.len() * heads.num_heads, &|task| {
        let (block, head) = (blocks[task / heads.num_heads], task % heads.num_heads);
        let kv = head / heads.group();
        let kernel = Forward::<T> {
            block,
            scale: heads.scale,
            q: HeadRows::new(inputs.q, head, d),
            k: HeadRows::new(inputs.k, kv, d),
            v: HeadRows::new(inputs.v, kv, d),
        };
        let state = cpu.isa.run(kernel);
        for i in 0..block.count {
            let t = block.sequence.q_start + block.first + i;
            // SAFETY: this head of this row belongs to this task.
            let (out, lse) = unsafe {
                (out.slice(t * width + head * d, d), lse.slice(head * num_tokens + t, 1))
            };
            for (out, x) in out.iter_mut().zip(&state.acc[i * d..]) {
                *out = T::from_f32(x / state.sum[i]);
            }
            lse[0] = state.max[i] + state.sum[i].ln();
        }
    });
}

struct Forward<'a, T> {
    block: QueryBlock,
    scale: f32,
    q: HeadRows<'a, T>,
    k: HeadRows<'a, T>,
    v: HeadRows<'a, T>,
}

/// Online softmax of a block of queries.
struct Running {
    max: [f32; QUERIES],
    sum: [f32; QUERIES],
    /// `[QUERIES, d]`.
    acc: Vec<f32>,
}

impl<T: Typed> Kernel for Forward<'_, T> {
    type Output = Running;

    #[inline(always)]
    fn run(self) -> Running {
        let (block, d) = (self.block, self.q.d);
        let mut state = Running {
            max: [f32::NEG_INFINITY; QUERIES],
            sum: [0.0; QUERIES],
            acc: vec![0.0; QUERIES * d],
        };
        let (mut keys, mut values) = (vec![0.0; d * KEYS], vec![0.0; d * KEYS]);
        for k0 in (0..block.visible(block.count - 1)).step_by(KEYS) {
            let first = block.sequence.k_start + k0;
            let loaded = KEYS.min(block.sequence.k_len - k0);
            self.k.transpose(first, loaded, &mut keys);
            self.v.transpose(first, loaded, &mut values);
            for i in 0..block.count {
                let count = block.visible(i).saturating_sub(k0).min(KEYS);
                if count > 0 {
                    let t = block.sequence.q_start + block.first + i;
                    let mut p = [0.0; KEYS];
                    scores(self.q.row(t), self.scale, &keys, &mut p);
                    state.absorb(i, count, &mut p, &values);
                }
            }
        }
        state
    }
}

impl Running {
    /// Takes in the scores `p` of query `i`, `count` of them visible, with transposed values.
    #[inline(always)]
    fn absorb(&mut self, i: usize, count: usize, p: &mut [f32; KEYS], values: &[f32]) {
        let d = values.len() / KEYS;
        let acc = &mut self.acc[i * d..(i + 1) * d];
        p[count..].fill(f32::NEG_INFINITY);
        let new_max = self.max[i].max(max(p));
        let shrink = exp(self.max[i] - new_max);
        p.iter_mut().for_each(|p| *p = exp(*p - new_max));
        self.sum[i] = self.sum[i] * shrink + sum_by(KEYS, |j| p[j]);
        self.max[i] = new_max;
        acc.iter_mut().for_each(|a| *a *= shrink);
        add_products(p, values, acc);
    }
}

/// `out[c] += Σ_j p[j] · columns[c][j]`.
#[inline(always)]
fn add_products(p: &[f32; KEYS], columns: &[f32], out: &mut [f32]) {
    let (columns, _) = columns.as_chunks::<KEYS>();
    for (out, column) in out.iter_mut().zip(columns) {
        *out += sum_by(KEYS, |j| p[j] * column[j]);
    }
}

/// `columns[c][j] += x[c] · p[j]`.
#[inline(always)]
fn add_outer<T: Element>(x: &[T], p: &[f32; KEYS], columns: &mut [f32]) {
    let (columns, _) = columns.as_chunks_mut::<KEYS>();
    for (x, column) in x.iter().zip(columns) {
        let x = x.to_f32();
        for (column, p) in column.iter_mut().zip(p) {
            *column = x.mul_add(*p, *column);
        }
    }
}

/// `out[j] = scale · Σ_c x[c] · columns[c][j]`.
#[inline(always)]
fn scores<T: Element>(x: &[T], scale: f32, columns: &[f32], out: &mut [f32; KEYS]) {
    *out = [0.0; KEYS];
    let (columns, _) = columns.as_chunks::<KEYS>();
    for (x, column) in x.iter().zip(columns) {
        let x = x.to_f32() * scale;
        for (o, c) in out.iter_mut().zip(column) {
            *o = x.mul_add(*c, *o);
        }
    }
}

#[allow(clippy::too_many_arguments)]
fn backward_typed<T: Typed>(
    cpu: &Cpu,
    qkv: View<'_>,
    heads: &Heads,
    sequences: &[Sequence],
    (out, lse): (&[T], &[f32]),
    d_out: &[T],
    d_qkv: &mut [T],
    delta: &mut [f32],
) {
    let used = used_rows(sequences);
    assert!(sequences.iter().all(|s| *s == Sequence::new(s.q_start, s.q_len)));
    d_qkv[used * heads.qkv_width()..].fill(T::from_f32(0.0));
    let (d, num_tokens) = (heads.head_dim, out.len() / heads.out_width());
    cpu.rows(delta, num_tokens, 2 * num_tokens * d, |head, delta| {
        for (t, delta) in delta.iter_mut().enumerate() {
            let at = t * heads.out_width() + head * d;
            let (o, d_o) = (&out[at..at + d], &d_out[at..at + d]);
            *delta = sum_by(d, |c| o[c].to_f32() * d_o[c].to_f32());
        }
    });
    let pass = Pass {
        cpu,
        heads,
        inputs: Inputs::packed(qkv, heads),
        sequences,
        lse,
        delta,
        d_out,
        num_tokens,
        d_qkv: Split::new(d_qkv),
    };
    pass.d_queries();
    pass.d_keys_and_values();
}

/// What both passes of the backward computation share.
struct Pass<'a, T> {
    cpu: &'a Cpu,
    heads: &'a Heads,
    inputs: Inputs<'a>,
    sequences: &'a [Sequence],
    lse: &'a [f32],
    delta: &'a [f32],
    d_out: &'a [T],
    num_tokens: usize,
    d_qkv: Split<'a, T>,
}

impl<T: Typed> Pass<'_, T> {
    fn head(&self, head: usize) -> OneHead<'_, T> {
        let (d, kv) = (self.heads.head_dim, head / self.heads.group());
        let saved = head * self.num_tokens..(head + 1) * self.num_tokens;
        OneHead {
            scale: self.heads.scale,
            q: HeadRows::new(self.inputs.q, head, d),
            k: HeadRows::new(self.inputs.k, kv, d),
            v: HeadRows::new(self.inputs.v, kv, d),
            d_out: HeadRows {
                data: self.d_out,
                stride: self.heads.out_width(),
                offset: head * d,
                d,
            },
            lse: &self.lse[saved.clone()],
            delta: &self.delta[saved],
        }
    }

    fn write(&self, t: usize, offset: usize, values: &[f32]) {
        // SAFETY: each row of each head of queries, keys and values is written by one task.
        let out = unsafe { self.d_qkv.slice(t * self.heads.qkv_width() + offset, values.len()) };
        for (out, &x) in out.iter_mut().zip(values) {
            *out = T::from_f32(x);
        }
    }

    fn d_queries(&self) {
        let (blocks, d) = (query_blocks(self.sequences), self.heads.head_dim);
        let num_heads = self.heads.num_heads;
        self.cpu.pool.run(blocks.len() * num_heads, &|task| {
            let (block, head) = (blocks[task / num_heads], task % num_heads);
            let d_q = self.cpu.isa.run(QueryGradient { block, head: self.head(head) });
            for i in 0..block.count {
                let t = block.sequence.q_start + block.first + i;
                self.write(t, head * d, &d_q[i * d..(i + 1) * d]);
            }
        });
    }

    fn d_keys_and_values(&self) {
        let (d, num_kv) = (self.heads.head_dim, self.heads.num_kv_heads);
        let blocks: Vec<(Sequence, usize)> = self
            .sequences
            .iter()
            .flat_map(|&s| (0..s.k_len).step_by(KEYS).map(move |first| (s, first)))
            .collect();
        self.cpu.pool.run(blocks.len() * num_kv, &|task| {
            let ((sequence, first), kv) = (blocks[task / num_kv], task % num_kv);
            let group = self.heads.group();
            let mut sums = (vec![0.0; KEYS * d], vec![0.0; KEYS * d]);
            for head in kv * group..(kv + 1) * group {
                let head = self.head(head);
                self.cpu.isa.run(KeyGradient { sequence, first, head, sums: &mut sums });
            }
            let mut row = vec![0.0; d];
            for j in 0..KEYS.min(sequence.k_len - first) {
                let t = sequence.k_start + first + j;
                for (inputs, sums) in [(self.inputs.k, &sums.0), (self.inputs.v, &sums.1)] {
                    (0..d).for_each(|c| row[c] = sums[c * KEYS + j]);
                    self.write(t, inputs.offset + kv * d, &row);
                }
            }
        });
    }
}

/// The operands of one query head.
struct OneHead<'a, T> {
    scale: f32,
    q: HeadRows<'a, T>,
    k: HeadRows<'a, T>,
    v: HeadRows<'a, T>,
    d_out: HeadRows<'a, T>,
    lse: &'a [f32],
    delta: &'a [f32],
}

impl<T: Typed> OneHead<'_, T> {
    /// Probabilities `p` of query `t` over a block of keys, and gradients `d_s` of the scaled
    /// scores, given the block's transposed keys and values.
    #[inline(always)]
    fn gradients(
        &self,
        t: usize,
        count: usize,
        (keys, values): (&[f32], &[f32]),
        p: &mut [f32; KEYS],
        d_s: &mut [f32; KEYS],
    ) {
        scores(self.q.row(t), self.scale, keys, p);
        scores(self.d_out.row(t), 1.0, values, d_s);
        p[count..].fill(f32::NEG_INFINITY);
        let (lse, delta, scale) = (self.lse[t], self.delta[t], self.scale);
        for (p, d_s) in p.iter_mut().zip(d_s) {
            *p = exp(*p - lse);
            *d_s = *p * (*d_s - delta) * scale;
        }
    }
}

struct QueryGradient<'a, T> {
    block: QueryBlock,
    head: OneHead<'a, T>,
}

impl<T: Typed> Kernel for QueryGradient<'_, T> {
    /// `d_q [QUERIES, d]`.
    type Output = Vec<f32>;

    #[inline(always)]
    fn run(self) -> Vec<f32> {
        let Self { block, head } = self;
        let d = head.q.d;
        let mut d_q = vec![0.0; QUERIES * d];
        let (mut keys, mut values) = (vec![0.0; d * KEYS], vec![0.0; d * KEYS]);
        let (mut p, mut d_s) = ([0.0; KEYS], [0.0; KEYS]);
        for k0 in (0..block.visible(block.count - 1)).step_by(KEYS) {
            let first = block.sequence.k_start + k0;
            let loaded = KEYS.min(block.sequence.k_len - k0);
            head.k.transpose(first, loaded, &mut keys);
            head.v.transpose(first, loaded, &mut values);
            for i in 0..block.count {
                let count = block.visible(i).saturating_sub(k0).min(KEYS);
                let t = block.sequence.q_start + block.first + i;
                head.gradients(t, count, (&keys, &values), &mut p, &mut d_s);
                add_products(&d_s, &keys, &mut d_q[i * d..(i + 1) * d]);
            }
        }
        d_q
    }
}

struct KeyGradient<'a, 'b, T> {
    sequence: Sequence,
    /// First key of the block, counted from the sequence's first key.
    first: usize,
    head: OneHead<'a, T>,
    /// `d_k` and `d_v`, transposed: `[d, KEYS]`, added to.
    sums: &'b mut (Vec<f32>, Vec<f32>),
}

impl<T: Typed> Kernel for KeyGradient<'_, '_, T> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { sequence, first, head, sums: (d_k, d_v) } = self;
        let d = head.q.d;
        let loaded = KEYS.min(sequence.k_len - first);
        let (mut keys, mut values) = (vec![0.0; d * KEYS], vec![0.0; d * KEYS]);
        head.k.transpose(sequence.k_start + first, loaded, &mut keys);
        head.v.transpose(sequence.k_start + first, loaded, &mut values);
        let (mut p, mut d_s) = ([0.0; KEYS], [0.0; KEYS]);
        // Packed rows: a query sees the keys up to its own position.
        for t in sequence.q_start + first..sequence.q_start + sequence.q_len {
            let count = (t - sequence.q_start - first + 1).min(loaded);
            head.gradients(t, count, (&keys, &values), &mut p, &mut d_s);
            add_outer(head.d_out.row(t), &p, d_v);
            add_outer(head.q.row(t), &d_s, d_k);
        }
    }
}
