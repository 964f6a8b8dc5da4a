//! Backward pass: a task is a key head of one sequence, with all its value heads, which walks along
//! the chunks from the last to the first.
//!
//! With `dR` for the gradient of `β (V - E K S)`, and `dS'` for that of the state at a chunk's end,
//! `dU = tril(D ∘ Q Kᵀ)ᵀ dO + F K dS'`, `dR = (I + L)⁻ᵀ dU`,
//! `dS = E dS' + (E Q)ᵀ dO - (β E K)ᵀ dR`, and all other gradients follow from `dO Uᵀ`, `dR Uᵀ`,
//! `dO Sᵀ`, `dR Sᵀ` and `U dS'ᵀ`. States between those that the forward pass kept are computed
//! again.

use super::buffers::{OfKeys, OfValues, scratch_bytes};
use super::chunk::{
    CHUNK, Decays, Keys, STRIDE, columns, lines, normalise, scale_rows, solve_transposed,
    sum_stride, update_state,
};
use super::{DeltaHeads, Inputs, KEPT_CHUNKS, Saved, check_slots, kept_of};
use crate::attention::{Sequence, used_rows};
use crate::cpu::{Cpu, Kernel, Scratch, Split, with_scratch};
use crate::element::bf16;
use crate::gemm::block::{Left, Right, Typed, left, multiply, right};
use crate::gemm::tile::{Part, Store, Tile, with_tiles};
use crate::math::{LANES, dot, sum};
use crate::view::{View, ViewMut};
use std::marker::PhantomData;
use std::ops::Range;

/// See [`crate::Processor::gated_delta_rule_backward`].
pub(super) fn backward(
    cpu: &Cpu,
    of: (Inputs<'_>, Saved<'_>),
    heads: &DeltaHeads,
    sequences: &[Sequence],
    d_out: View<'_>,
    d: (ViewMut<'_>, &mut [f32]),
) {
    match of.0.qkv {
        View::F32(_) => typed::<f32>(cpu, of, heads, sequences, d_out, d),
        View::Bf16(_) => typed::<bf16>(cpu, of, heads, sequences, d_out, d),
        _ => panic!("the CPU computes in f32 or bf16"),
    }
}

fn typed<T: Typed>(
    cpu: &Cpu,
    (inputs, saved): (Inputs<'_>, Saved<'_>),
    heads: &DeltaHeads,
    sequences: &[Sequence],
    d_out: View<'_>,
    (d_qkv, d_gates): (ViewMut<'_>, &mut [f32]),
) {
    check_slots(sequences, None);
    let (d_qkv, used, num) = (T::slice_mut(d_qkv), used_rows(sequences), heads.num_value_heads);
    d_qkv[used * heads.qkv_width()..].fill(T::from_f32(0.0));
    d_gates[used * 2 * num..].fill(0.0);
    let (mut tasks, mut first_kept) = (Vec::new(), 0);
    for &sequence in sequences {
        let task = |key_head| Task { sequence, key_head, first_kept };
        tasks.extend((0..heads.num_key_heads).map(task));
        first_kept += kept_of(sequence.q_len);
    }
    tasks.sort_by_key(|task| std::cmp::Reverse(task.sequence.q_len));
    let pass = Pass {
        heads,
        qkv: T::slice(inputs.qkv),
        gates: inputs.gates.f32(),
        written: T::slice(saved.written),
        states: saved.states.f32(),
        d_out: T::slice(d_out),
        d_qkv: Split::new(d_qkv),
        d_gates: Split::new(d_gates),
    };
    with_tiles!(cpu.isa, I => cpu.pool.run(tasks.len(), &|task| {
        with_scratch(scratch_bytes(heads), |scratch| {
            let (pass, task, tile) = (&pass, tasks[task], PhantomData::<T::TileOf<I>>);
            cpu.isa.run(Backward { pass, task, scratch, tile });
        });
    }));
}

/// A key head of one sequence.
#[derive(Clone, Copy)]
struct Task {
    sequence: Sequence,
    key_head: usize,
    /// Where the sequence's first state is kept.
    first_kept: usize,
}

struct Pass<'a, T> {
    heads: &'a DeltaHeads,
    qkv: &'a [T],
    gates: &'a [f32],
    written: &'a [T],
    states: &'a [f32],
    d_out: &'a [T],
    d_qkv: Split<'a, T>,
    d_gates: Split<'a, f32>,
}

struct Backward<'a, T, M> {
    pass: &'a Pass<'a, T>,
    task: Task,
    scratch: Scratch<'a>,
    tile: PhantomData<M>,
}

/// The first row of a chunk in the pass, the number of its rows, and what is on either side.
#[derive(Clone, Copy)]
struct Chunk {
    t: usize,
    n: usize,
    /// Whether its state is not zero, because it is not the first.
    has_state: bool,
    /// Whether its state at the end matters, because it is not the last.
    goes_on: bool,
}

/// A chunk of a value head.
#[derive(Clone, Copy)]
struct Of<'a> {
    head: usize,
    decays: &'a Decays,
    chunk: Chunk,
}

/// Queries and keys of a chunk, as columns.
#[derive(Clone, Copy)]
struct Columns<'a, E> {
    q_left: Left<'a, E>,
    k_left: Left<'a, E>,
    q_right: Right<'a, E>,
    k_right: Right<'a, E>,
}

impl<T: Typed, M: Tile> Kernel for Backward<'_, T, M> {
    type Output = ();
    const RUNS_TILES: bool = true;

    #[inline(always)]
    fn run(mut self) {
        let heads = self.pass.heads;
        let (dk, dv, group) = (heads.key_dim, heads.value_dim, heads.group());
        let mut of_keys = OfKeys::<T, M>::take(&mut self.scratch, dk);
        let mut of_values = OfValues::<T, M>::take(&mut self.scratch, (dk, dv));
        let len = group * dk * sum_stride::<M>(dv);
        let states = self.scratch.take(KEPT_CHUNKS * len);
        let d_states = self.scratch.take(len);
        let num_chunks = self.task.sequence.q_len.div_ceil(CHUNK);
        for first in (0..num_chunks).step_by(KEPT_CHUNKS).rev() {
            let end = num_chunks.min(first + KEPT_CHUNKS);
            self.states(&mut of_keys, &mut of_values, states, first..end);
            for number in (first..end).rev() {
                let chunk = self.chunk(number);
                self.load_keys(&mut of_keys, chunk);
                of_keys.keys.multiply(&mut of_values.keys, 0, chunk.n);
                let states = &states[(number - first) * len..][..len];
                self.key_head(&mut of_keys, &mut of_values, (states, d_states), chunk);
            }
        }
    }
}

impl<T: Typed, M: Tile> Backward<'_, T, M> {
    fn chunk(&self, number: usize) -> Chunk {
        let (before, len) = (number * CHUNK, self.task.sequence.q_len);
        let n = CHUNK.min(len - before);
        let t = self.task.sequence.q_start + before;
        Chunk { t, n, has_state: number > 0, goes_on: before + n < len }
    }

    fn head(&self, g: usize) -> usize {
        self.task.key_head * self.pass.heads.group() + g
    }

    /// States at the starts of some chunks, beginning with one that was kept or is zero.
    #[inline(always)]
    fn states(
        &self,
        of_keys: &mut OfKeys<'_, T, M>,
        b: &mut OfValues<'_, T, M>,
        states: &mut [f32],
        chunks: Range<usize>,
    ) {
        let heads = self.pass.heads;
        let (dk, dv) = (heads.key_dim, heads.value_dim);
        let stride = sum_stride::<M>(dv);
        let len = heads.group() * dk * stride;
        states[..len].fill(0.0);
        if chunks.start > 0 {
            let kept = self.task.first_kept + chunks.start / KEPT_CHUNKS - 1;
            let kept = &self.pass.states[kept * heads.state_len() + self.head(0) * dk * dv..];
            for (row, kept) in states[..len].chunks_exact_mut(stride).zip(kept.chunks_exact(dv)) {
                row[..dv].copy_from_slice(kept);
            }
        }
        for (i, number) in (chunks.start..chunks.end - 1).enumerate() {
            let chunk = self.chunk(number);
            self.load_keys(of_keys, chunk);
            let (before, after) = states.split_at_mut((i + 1) * len);
            let next = &mut after[..len];
            next.copy_from_slice(&before[i * len..]);
            let all = Part { line: 0, lines: dk, k0: 0, k: CHUNK };
            let kt = left::<M>(columns(of_keys.keys.k, dk), all, of_keys.left[1]);
            for (g, state) in next.chunks_exact_mut(dk * stride).enumerate() {
                let decays = self.load_written(b, self.head(g), chunk);
                let (written, panels) = ((&*b.u, dv), &mut *b.s_panels);
                let state = (state, stride);
                update_state::<T, M>(state, &decays, kt, written, b.scaled, panels);
            }
        }
    }

    /// Normalised queries and keys of a chunk, and their norms.
    #[inline(always)]
    fn load_keys(&self, of_keys: &mut OfKeys<'_, T, M>, chunk: Chunk) {
        let (heads, keys) = (self.pass.heads, &mut of_keys.keys);
        let (dk, scale) = (keys.dk, 1.0 / (keys.dk as f32).sqrt());
        let [q_norms, k_norms] = &mut of_keys.norms;
        for i in 0..chunk.n {
            let row = &self.pass.qkv[(chunk.t + i) * heads.qkv_width() + self.task.key_head * dk..];
            q_norms[i] = normalise(&row[..dk], scale, &mut keys.q[i * dk..][..dk]);
            let row = &row[heads.num_key_heads * dk..][..dk];
            k_norms[i] = normalise(row, 1.0, &mut keys.k[i * dk..][..dk]);
        }
    }

    /// `U` of a value head, and its decays.
    #[inline(always)]
    fn load_written(&self, b: &mut OfValues<'_, T, M>, head: usize, chunk: Chunk) -> Decays {
        let (heads, dv) = (self.pass.heads, self.pass.heads.value_dim);
        for (i, u) in b.u.chunks_exact_mut(dv).take(chunk.n).enumerate() {
            let at = (chunk.t + i) * heads.out_width() + head * dv;
            u.copy_from_slice(&self.pass.written[at..at + dv]);
        }
        let num = heads.num_value_heads;
        Decays::new((0..chunk.n).map(|i| self.pass.gates[(2 * (chunk.t + i) + 1) * num + head]))
    }

    /// All gradients of a chunk; `d_states` are those of the states at its end, and then of those
    /// at its start.
    #[inline(always)]
    fn key_head(
        &self,
        of_keys: &mut OfKeys<'_, T, M>,
        b: &mut OfValues<'_, T, M>,
        (states, d_states): (&[f32], &mut [f32]),
        chunk: Chunk,
    ) {
        let OfKeys { keys, norms, left: lefts, right: rights, d } = of_keys;
        let dk = keys.dk;
        let per_head = dk * sum_stride::<M>(self.pass.heads.value_dim);
        let of_columns = Part { line: 0, lines: dk, k0: 0, k: chunk.n };
        let [q_left, k_left] = lefts;
        let [q_right, k_right] = rights;
        let (q, k) = (columns(keys.q, dk), columns(keys.k, dk));
        let columns = Columns {
            q_left: left::<M>(q, of_columns, q_left),
            k_left: left::<M>(k, of_columns, k_left),
            q_right: right::<M>(q, of_columns, q_right),
            k_right: right::<M>(k, of_columns, k_right),
        };
        d.iter_mut().for_each(|d| d.fill(0.0));
        if !chunk.goes_on {
            d_states.fill(0.0);
        }
        let states = states.chunks_exact(per_head).zip(d_states.chunks_exact_mut(per_head));
        for (g, states) in states.enumerate() {
            let decays = self.load_written(b, self.head(g), chunk);
            let of = Of { head: self.head(g), decays: &decays, chunk };
            self.value_head(b, keys, &columns, d, states, of);
        }
        self.store_keys(dk, norms, d, chunk);
    }

    /// Gradients of a chunk of a value head; those of queries and keys are added to `d`.
    #[inline(always)]
    fn value_head(
        &self,
        b: &mut OfValues<'_, T, M>,
        keys: &Keys<'_, T>,
        of_columns: &Columns<'_, M::Elem>,
        d: &mut [&mut [f32]; 2],
        (state, d_state): (&[f32], &mut [f32]),
        of: Of<'_>,
    ) {
        let (Chunk { n, has_state, .. }, dk) = (of.chunk, keys.dk);
        self.factors(b, keys, of);
        let d_until = self.d_written(b, keys, d_state, of);
        self.products(b, dk, (state, d_state), of);
        let d_whole = self.d_whole((state, d_state), of);
        self.gates(b, keys, (&d_until, d_whole), of);
        self.add_reads(b, dk, d, of);
        let stride = sum_stride::<M>(dk);
        let of_rows = Part { line: 0, lines: n, k0: 0, k: of_columns.k_right.depth };
        let [p, both] = &b.squares;
        let [d_q, d_k] = d;
        let rows = left::<M>(lines(p, CHUNK), of_rows, b.square_rows);
        let d_q = (&mut **d_q, stride);
        multiply::<M>(rows, n, of_columns.k_right, d_q, Store::Add, |rows, _| 0..rows.end);
        let rows = left::<M>(lines(both, CHUNK), of_rows, b.square_rows);
        let out = (&mut **d_k, stride);
        multiply::<M>(rows, n, of_columns.k_right, out, Store::Add, |_, _| 0..n);
        let of_rows = Part { k: n, ..of_rows };
        let rows = left::<M>(columns(p, CHUNK), of_rows, b.square_rows);
        let out = (&mut **d_k, stride);
        multiply::<M>(rows, n, of_columns.q_right, out, Store::Add, |rows, _| rows.start..n);
        if has_state {
            self.d_state(b, of_columns, d_state, of);
        }
    }

    /// `D`, `L` and `tril(D ∘ Q Kᵀ)`.
    #[inline(always)]
    fn factors(&self, b: &mut OfValues<'_, T, M>, keys: &Keys<'_, T>, of: Of<'_>) {
        for i in 0..of.chunk.n {
            let (beta, until) = (self.beta(of, i), of.decays.until(i));
            let (qk, kk) = (&keys.qk[i * STRIDE..][..CHUNK], &keys.kk[i * STRIDE..][..CHUNK]);
            let (mut a, l) = ([0.0; CHUNK], &mut b.l[i * CHUNK..][..CHUNK]);
            for j in 0..CHUNK {
                a[j] = until[j] * qk[j];
                l[j] = beta * until[j] * kk[j];
            }
            a[i + 1..].fill(0.0);
            b.decays[i * CHUNK..][..CHUNK].copy_from_slice(&until);
            // SAFETY: the tile was chosen by the instruction set.
            unsafe { T::narrow::<M>(&a, &mut b.squares[0][i * CHUNK..][..CHUNK]) };
        }
    }

    /// `dU` and then `dR`; returns the gradients of the decays until the chunk's end.
    #[inline(always)]
    fn d_written(
        &self,
        b: &mut OfValues<'_, T, M>,
        keys: &Keys<'_, T>,
        d_state: &[f32],
        of: Of<'_>,
    ) -> [f32; CHUNK] {
        let (Chunk { t, n, goes_on, .. }, heads) = (of.chunk, self.pass.heads);
        let (dk, dv) = (heads.key_dim, heads.value_dim);
        let stride = sum_stride::<M>(dv);
        let mut d_until = [0.0; CHUNK];
        for (i, d_o) in b.d_o.chunks_exact_mut(dv).take(n).enumerate() {
            let at = (t + i) * heads.out_width() + of.head * dv;
            d_o.copy_from_slice(&self.pass.d_out[at..at + dv]);
        }
        if goes_on {
            let of_state = Part { line: 0, lines: dv, k0: 0, k: dk };
            let d_s = right::<M>(columns(d_state, stride), of_state, b.s_panels);
            let [_, k] = b.keys.left(keys, 0..n);
            multiply::<M>(k, n, d_s, (b.d_u, stride), Store::Overwrite, |_, _| 0..dk);
            let rows = b.d_u.chunks_exact_mut(stride).zip(b.u.chunks_exact(dv)).take(n);
            for (i, (d_u, u)) in rows.enumerate() {
                d_until[i] = dot(&d_u[..dv], u);
                d_u.iter_mut().for_each(|d| *d *= of.decays.until_end[i]);
            }
        } else {
            b.d_u[..n * stride].fill(0.0);
        }
        let of_d_o = Part { line: 0, lines: dv, k0: 0, k: n };
        let d_o = right::<M>(columns(b.d_o, dv), of_d_o, b.o_panels);
        let of_a = Part { line: 0, lines: n, k0: 0, k: n };
        let a = left::<M>(columns(b.squares[0], CHUNK), of_a, b.square_rows);
        multiply::<M>(a, n, d_o, (b.d_u, stride), Store::Add, |rows, _| rows.start..n);
        solve_transposed(b.l, (b.d_u, stride), n);
        let rows = b.d_r.chunks_exact_mut(dv).zip(b.d_u.chunks_exact(stride));
        for (i, (d_r, d_u)) in rows.take(n).enumerate() {
            // SAFETY: the tile was chosen by the instruction set.
            unsafe { T::narrow::<M>(&d_u[..dv], d_r) };
            let at = (t + i) * heads.qkv_width() + heads.v_at() + of.head * dv;
            // SAFETY: this head of this row belongs to this task.
            let d_v = unsafe { self.pass.d_qkv.slice(at, dv) };
            let beta = self.beta(of, i);
            d_v.iter_mut().zip(&d_u[..dv]).for_each(|(d_v, d)| *d_v = T::from_f32(beta * d));
        }
        d_until
    }

    /// `dO Uᵀ`, `dR Uᵀ`, and `dO Sᵀ`, `dR Sᵀ`, `U dS'ᵀ`.
    #[inline(always)]
    fn products(
        &self,
        b: &mut OfValues<'_, T, M>,
        dk: usize,
        (state, d_state): (&[f32], &[f32]),
        of: Of<'_>,
    ) {
        let (Chunk { n, has_state, goes_on, .. }, dv) = (of.chunk, self.pass.heads.value_dim);
        let (stride, wide) = (sum_stride::<M>(dv), sum_stride::<M>(dk));
        let of_rows = Part { line: 0, lines: n, k0: 0, k: dv };
        let [o_rows, r_rows, u_rows] = &mut b.rows;
        let d_o = left::<M>(lines(b.d_o, dv), of_rows, o_rows);
        let d_r = left::<M>(lines(b.d_r, dv), of_rows, r_rows);
        let written = left::<M>(lines(b.u, dv), of_rows, u_rows);
        let u = right::<M>(lines(b.u, dv), of_rows, b.u_panels);
        let [d_a, d_l] = &mut b.d_squares;
        for (x, out) in [(d_o, d_a), (d_r, d_l)] {
            multiply::<M>(x, n, u, (out, STRIDE), Store::Overwrite, |rows, cols| {
                if cols.start < rows.end { 0..dv } else { 0..0 }
            });
        }
        let of_state = Part { line: 0, lines: dk, k0: 0, k: dv };
        let [from_o, from_r, from_u] = &mut b.reads;
        if has_state {
            let s = right::<M>(lines(state, stride), of_state, b.row_panels);
            for (x, out) in [(d_o, from_o), (d_r, from_r)] {
                multiply::<M>(x, n, s, (out, wide), Store::Overwrite, |_, _| 0..dv);
            }
        } else {
            from_o[..n * wide].fill(0.0);
            from_r[..n * wide].fill(0.0);
        }
        if goes_on {
            let d_s = right::<M>(lines(d_state, stride), of_state, b.row_panels);
            multiply::<M>(written, n, d_s, (from_u, wide), Store::Overwrite, |_, _| 0..dv);
        } else {
            from_u[..n * wide].fill(0.0);
        }
    }

    /// The gradient of the logarithm of the whole chunk's decay, as far as the state goes.
    #[inline(always)]
    fn d_whole(&self, (state, d_state): (&[f32], &[f32]), of: Of<'_>) -> f32 {
        if !(of.chunk.has_state && of.chunk.goes_on) {
            return 0.0;
        }
        let dv = self.pass.heads.value_dim;
        let stride = sum_stride::<M>(dv);
        // Lanes enough to keep the adders busy, over all rows.
        let mut sums = [0.0; 4 * LANES];
        for (state, d) in state.chunks_exact(stride).zip(d_state.chunks_exact(stride)) {
            let pieces = state[..dv].chunks(sums.len()).zip(d[..dv].chunks(sums.len()));
            for (state, d) in pieces {
                let products = state.iter().zip(d);
                sums.iter_mut().zip(products).for_each(|(sum, (s, d))| *sum += s * d);
            }
        }
        of.decays.whole * sum(&sums)
    }

    /// Writes the gradients of the gates, and leaves `D ∘ dO Uᵀ` in the first square and the
    /// gradient of `K Kᵀ`, on both sides of the diagonal, in the second.
    #[inline(always)]
    fn gates(
        &self,
        b: &mut OfValues<'_, T, M>,
        keys: &Keys<'_, T>,
        (d_until, d_whole): (&[f32; CHUNK], f32),
        of: Of<'_>,
    ) {
        let (Chunk { t, n, .. }, heads) = (of.chunk, self.pass.heads);
        let (dk, dv, num) = (keys.dk, heads.value_dim, heads.num_value_heads);
        let wide = sum_stride::<M>(dk);
        let [p, both] = &mut b.squares;
        // Of the sums of `g` up to each token, and of `β`.
        let (mut d_sums, mut d_beta) = ([0.0; CHUNK], [0.0; CHUNK]);
        d_sums[n - 1] = d_whole;
        for i in 0..n {
            let (row, beta) = (i * CHUNK..(i + 1) * CHUNK, self.beta(of, i));
            let [from_o, from_r] = [0, 1].map(|which| &b.reads[which][i * wide..][..dk]);
            let q_read = dot(&keys.q[i * dk..][..dk], from_o);
            let k_read = dot(&keys.k[i * dk..][..dk], from_r);
            let at = (t + i) * heads.qkv_width() + heads.v_at() + of.head * dv;
            let d_u = &b.d_u[i * sum_stride::<M>(dv)..][..dv];
            let (since, until_end) = (of.decays.since_start[i], of.decays.until_end[i]);
            d_beta[i] = dot(&self.pass.qkv[at..at + dv], d_u) - since * k_read;
            d_sums[i] += since * (q_read - beta * k_read) - until_end * d_until[i];
            d_sums[n - 1] += until_end * d_until[i];
            let [d_a, d_r] = [0, 1].map(|which| &b.d_squares[which][i * STRIDE..][..CHUNK]);
            let (qk, kk) = (&keys.qk[i * STRIDE..][..CHUNK], &keys.kk[i * STRIDE..][..CHUNK]);
            let decays = &mut b.decays[i * CHUNK..][..CHUNK];
            let [mut d_qk, mut moved, mut d_l] = [[0.0; CHUNK]; 3];
            for j in 0..CHUNK {
                // Beyond the row's own token the products are not defined.
                d_qk[j] = if j <= i { decays[j] * d_a[j] } else { 0.0 };
                let d = if j < i { -decays[j] * d_r[j] } else { 0.0 };
                d_l[j] = if j < i { d * kk[j] } else { 0.0 };
                moved[j] = if j <= i { d_qk[j] * qk[j] } else { 0.0 } + beta * d_l[j];
                decays[j] = beta * d;
            }
            d_beta[i] += sum(&d_l);
            d_sums[i] += sum(&moved);
            d_sums.iter_mut().zip(moved).for_each(|(sum, moved)| *sum -= moved);
            // SAFETY: the tile was chosen by the instruction set.
            unsafe { T::narrow::<M>(&d_qk, &mut p[row]) };
        }
        mirror::<T, M>(b.decays, n, both);
        let mut d_g = 0.0;
        for i in (0..n).rev() {
            d_g += f64::from(d_sums[i]);
            for (at, d) in [(2 * (t + i), d_beta[i]), (2 * (t + i) + 1, d_g as f32)] {
                // SAFETY: this head of this row belongs to this task.
                let to = unsafe { self.pass.d_gates.slice(at * num + of.head, 1) };
                to[0] = d;
            }
        }
    }

    /// Adds what queries and keys have from the states.
    #[inline(always)]
    fn add_reads(&self, b: &OfValues<'_, T, M>, dk: usize, d: &mut [&mut [f32]; 2], of: Of<'_>) {
        let (wide, [d_q, d_k]) = (sum_stride::<M>(dk), d);
        for i in 0..of.chunk.n {
            let (since, until_end) = (of.decays.since_start[i], of.decays.until_end[i]);
            let from_r = -self.beta(of, i) * since;
            let row = i * wide..i * wide + dk;
            let [o, r, u] = b.reads.each_ref().map(|reads| &reads[row.clone()]);
            d_q[row.clone()].iter_mut().zip(o).for_each(|(d, o)| *d += since * o);
            for ((d, r), u) in d_k[row].iter_mut().zip(r).zip(u) {
                *d += from_r * r + until_end * u;
            }
        }
    }

    /// `dS = E dS' + (E Q)ᵀ dO - (β E K)ᵀ dR`.
    #[inline(always)]
    fn d_state(
        &self,
        b: &mut OfValues<'_, T, M>,
        columns_of: &Columns<'_, M::Elem>,
        d_state: &mut [f32],
        of: Of<'_>,
    ) {
        let (n, heads) = (of.chunk.n, self.pass.heads);
        let (dk, dv) = (heads.key_dim, heads.value_dim);
        let stride = sum_stride::<M>(dv);
        d_state.iter_mut().for_each(|d| *d *= of.decays.whole);
        let mut written = [0.0; CHUNK];
        for (i, factor) in written.iter_mut().enumerate().take(n) {
            *factor = -self.beta(of, i) * of.decays.since_start[i];
        }
        for (x, rows, factors) in [
            (columns_of.q_left, &*b.d_o, &of.decays.since_start),
            (columns_of.k_left, &*b.d_r, &written),
        ] {
            scale_rows(&factors[..n], (rows, dv), b.scaled);
            let of_rows = Part { line: 0, lines: dv, k0: 0, k: n };
            let scaled = right::<M>(columns(b.scaled, dv), of_rows, b.s_panels);
            multiply::<M>(x, dk, scaled, (&mut *d_state, stride), Store::Add, |_, _| 0..n);
        }
    }

    /// Writes gradients of queries and keys, through their normalisation.
    #[inline(always)]
    fn store_keys(&self, dk: usize, norms: &[&mut [f32]; 2], d: &[&mut [f32]; 2], chunk: Chunk) {
        let (heads, wide) = (self.pass.heads, sum_stride::<M>(dk));
        for (which, scale) in [(0, 1.0 / (dk as f32).sqrt()), (1, 1.0)] {
            for i in 0..chunk.n {
                let head = which * heads.num_key_heads + self.task.key_head;
                let at = (chunk.t + i) * heads.qkv_width() + head * dk;
                let (x, d) = (&self.pass.qkv[at..at + dk], &d[which][i * wide..][..dk]);
                let norm = norms[which][i];
                let along = norm * norm * dot(x, d);
                // SAFETY: this head of this row belongs to this task.
                let out = unsafe { self.pass.d_qkv.slice(at, dk) };
                for ((out, x), d) in out.iter_mut().zip(x).zip(d) {
                    *out = T::from_f32(scale * norm * (d - along * x.to_f32()));
                }
            }
        }
    }

    /// `β` of row `i` of a chunk.
    #[inline(always)]
    fn beta(&self, of: Of<'_>, i: usize) -> f32 {
        self.pass.gates[2 * (of.chunk.t + i) * self.pass.heads.num_value_heads + of.head]
    }
}

/// Rows of a lower triangle, `[CHUNK, CHUNK]` with zeros elsewhere, on both sides of the diagonal.
#[inline(always)]
fn mirror<T: Typed, M: Tile>(lower: &mut [f32], n: usize, both: &mut [T]) {
    for i in 0..n {
        for j in i + 1..n {
            lower[i * CHUNK + j] = lower[j * CHUNK + i];
        }
        let row = i * CHUNK..(i + 1) * CHUNK;
        // SAFETY: the tile was chosen by the instruction set.
        unsafe { T::narrow::<M>(&lower[row.clone()], &mut both[row]) };
    }
}
