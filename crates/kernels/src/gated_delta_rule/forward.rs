//! Forward pass: a task is a key head of one sequence, with all its value heads, which walks along
//! the chunks and carries the states.

use super::chunk::{
    CHUNK, Decays, KeyOperands, Keys, STRIDE, columns, lines, max_keys_len, max_sum_stride,
    normalise, solve, sum_stride, update_state,
};
use super::{DeltaHeads, Inputs, KEPT_CHUNKS, Kept, State, check_slots, kept_of};
use crate::attention::{Sequence, used_rows};
use crate::cpu::{Cpu, Kernel, Scratch, Split, with_scratch};
use crate::element::bf16;
use crate::gemm::WHOLE_PANELS;
use crate::gemm::block::{Left, Typed, left, max_padded, multiply, padded, panel_cols, right};
use crate::gemm::tile::{Part, Store, Tile, with_tiles};
use crate::view::{View, ViewMut};
use std::marker::PhantomData;

/// See [`crate::Processor::gated_delta_rule`].
pub(super) fn forward(
    cpu: &Cpu,
    inputs: Inputs<'_>,
    heads: &DeltaHeads,
    sequences: &[Sequence],
    (kept, state): (Option<Kept<'_>>, Option<State<'_>>),
    out: ViewMut<'_>,
) {
    match inputs.qkv {
        View::F32(_) => typed::<f32>(cpu, inputs, heads, sequences, (kept, state), out),
        View::Bf16(_) => {
            typed::<bf16>(cpu, inputs, heads, sequences, (kept, state), out);
        }
        _ => panic!("the CPU computes in f32 or bf16"),
    }
}

fn typed<T: Typed>(
    cpu: &Cpu,
    inputs: Inputs<'_>,
    heads: &DeltaHeads,
    sequences: &[Sequence],
    (kept, state): (Option<Kept<'_>>, Option<State<'_>>),
    out: ViewMut<'_>,
) {
    let out = T::slice_mut(out);
    check_slots(sequences, state.as_ref().map(|state| state.slots));
    let tasks = tasks(heads, sequences, state.as_ref().map(|state| state.slots));
    let used = used_rows(sequences);
    out[used * heads.out_width()..].fill(T::from_f32(0.0));
    let pass = Pass {
        heads,
        qkv: T::slice(inputs.qkv),
        gates: inputs.gates.f32(),
        out: Split::new(out),
        kept: kept.map(|Kept { written, states }| {
            (Split::new(T::slice_mut(written)), Split::new(states.f32()))
        }),
        carried: state.map(|State { states, open, .. }| Carried {
            states: Split::new(states.f32()),
            keys: Split::new(T::slice_mut(open.keys)),
            written: Split::new(T::slice_mut(open.written)),
            decays: Split::new(open.decays.f32()),
        }),
    };
    with_tiles!(cpu.isa, I => cpu.pool.run(tasks.len(), &|task| {
        with_scratch(scratch_bytes(heads), |scratch| {
            let (pass, task, tile) = (&pass, tasks[task], PhantomData::<T::TileOf<I>>);
            cpu.isa.run(Forward { pass, task, scratch, tile });
        });
    }));
}

/// Bytes of scratch memory that a thread needs on any instruction set.
pub(super) fn scratch_bytes(heads: &DeltaHeads) -> usize {
    let (dk, dv, sums) = (heads.key_dim, heads.value_dim, max_sum_stride(heads.value_dim));
    let wide = dv.next_multiple_of(WHOLE_PANELS);
    let keys = max_keys_len(dk) + dk * CHUNK;
    let values = 3 * CHUNK * CHUNK + 2 * CHUNK * (dv + sums) + (CHUNK + max_padded(dk)) * wide;
    4 * (keys + values + heads.group() * dk * sums) + 24 * 64
}

/// A key head of one sequence.
#[derive(Clone, Copy)]
struct Task {
    sequence: Sequence,
    key_head: usize,
    slot: Option<usize>,
    /// Where the sequence's first state is kept.
    first_kept: usize,
}

/// Long sequences first, so that no thread is left with one at the end.
fn tasks(heads: &DeltaHeads, sequences: &[Sequence], slots: Option<&[u32]>) -> Vec<Task> {
    let (mut tasks, mut first_kept) = (Vec::new(), 0);
    for (i, &sequence) in sequences.iter().enumerate() {
        let slot = slots.map(|slots| slots[i] as usize);
        let task = |key_head| Task { sequence, key_head, slot, first_kept };
        tasks.extend((0..heads.num_key_heads).map(task));
        first_kept += kept_of(sequence.q_len);
    }
    tasks.sort_by_key(|task| std::cmp::Reverse(task.sequence.q_len));
    tasks
}

struct Pass<'a, T> {
    heads: &'a DeltaHeads,
    qkv: &'a [T],
    gates: &'a [f32],
    out: Split<'a, T>,
    /// `U` and states for the backward pass.
    kept: Option<(Split<'a, T>, Split<'a, f32>)>,
    carried: Option<Carried<'a, T>>,
}

/// What goes from pass to pass: see [`State`].
struct Carried<'a, T> {
    states: Split<'a, f32>,
    keys: Split<'a, T>,
    written: Split<'a, T>,
    decays: Split<'a, f32>,
}

struct Forward<'a, T, M> {
    pass: &'a Pass<'a, T>,
    task: Task,
    scratch: Scratch<'a>,
    tile: PhantomData<M>,
}

/// Rows `first..n` of a chunk are new, and the first of them is row `t` of the pass.
#[derive(Clone, Copy)]
struct Chunk {
    /// Number of the chunk in its sequence.
    number: usize,
    first: usize,
    n: usize,
    t: usize,
}

/// Buffers of a value head.
struct Values<'a, T, M: Tile> {
    keys: KeyOperands<'a, M>,
    s_panels: &'a mut [M::Elem],
    u_panels: &'a mut [M::Elem],
    a_rows: &'a mut [M::Elem],
    /// `L`, `[CHUNK, CHUNK]`.
    l: &'a mut [f32],
    a: &'a mut [T],
    /// `[CHUNK, sum_stride]`.
    out: &'a mut [f32],
    u: &'a mut [f32],
    /// `[CHUNK, value_dim]`.
    written: &'a mut [T],
    scaled: &'a mut [T],
}

impl<T: Typed, M: Tile> Kernel for Forward<'_, T, M> {
    type Output = ();
    const RUNS_TILES: bool = true;

    #[inline(always)]
    fn run(mut self) {
        let Task { sequence, .. } = self.task;
        let (dk, dv, group) =
            (self.pass.heads.key_dim, self.pass.heads.value_dim, self.pass.heads.group());
        let stride = sum_stride::<M>(dv);
        let scratch = &mut self.scratch;
        let mut keys = Keys::<T>::take(scratch, dk);
        let kt_rows = scratch.take(dk * padded::<M>(CHUNK));
        let mut values = Values::<T, M> {
            keys: KeyOperands::take(scratch, dk),
            s_panels: scratch.take(padded::<M>(dk) * panel_cols::<M>(dv)),
            u_panels: scratch.take(padded::<M>(CHUNK) * panel_cols::<M>(dv)),
            a_rows: scratch.take(CHUNK * padded::<M>(CHUNK)),
            l: scratch.take(CHUNK * CHUNK),
            a: scratch.take(CHUNK * CHUNK),
            out: scratch.take(CHUNK * stride),
            u: scratch.take(CHUNK * stride),
            written: scratch.take(CHUNK * dv),
            scaled: scratch.take(CHUNK * dv),
        };
        let states = scratch.take(group * dk * stride);
        let before = sequence.k_len - sequence.q_len;
        self.load_states(states, before);
        let mut done = 0;
        while done < sequence.q_len {
            let first = (before + done) % CHUNK;
            let n = CHUNK.min(first + sequence.q_len - done);
            let (number, t) = ((before + done) / CHUNK, sequence.q_start + done);
            let chunk = Chunk { number, first, n, t };
            done += n - first;
            let goes_on = n == CHUNK && (done < sequence.q_len || self.task.slot.is_some());
            self.load_chunk(&mut keys, chunk);
            keys.multiply(&mut values.keys, first, n);
            let kt = goes_on.then(|| {
                let all = Part { line: 0, lines: dk, k0: 0, k: CHUNK };
                left::<M>(columns(keys.k, dk), all, kt_rows)
            });
            for (g, state) in states.chunks_exact_mut(dk * stride).enumerate() {
                self.value_head(&mut values, &keys, kt, (g, state), chunk);
            }
            if goes_on && done < sequence.q_len && (number + 1).is_multiple_of(KEPT_CHUNKS) {
                self.keep_states(states, (number + 1) / KEPT_CHUNKS - 1);
            }
        }
        self.store_states(states);
    }
}

impl<T: Typed, M: Tile> Forward<'_, T, M> {
    /// The value heads of this key head.
    fn head(&self, g: usize) -> usize {
        self.task.key_head * self.pass.heads.group() + g
    }

    /// States at the start of the first chunk: `[group, key_dim, sum_stride]`.
    #[inline(always)]
    fn load_states(&self, states: &mut [f32], before: usize) {
        states.fill(0.0);
        let (Some(carried), Some(slot)) = (&self.pass.carried, self.task.slot) else { return };
        if before > 0 {
            self.each_state_row(states, |row, at| {
                // SAFETY: this head of this slot belongs to this task, as for the other methods.
                row.copy_from_slice(unsafe {
                    carried.states.slice(self.state_at(slot) + at, row.len())
                });
            });
        }
    }

    /// Keeps the states for the next pass, if they are others than before.
    #[inline(always)]
    fn store_states(&self, states: &mut [f32]) {
        let (Some(carried), Some(slot)) = (&self.pass.carried, self.task.slot) else { return };
        let Sequence { q_len, k_len, .. } = self.task.sequence;
        if k_len == q_len || (k_len - q_len) / CHUNK < k_len / CHUNK {
            self.each_state_row(states, |row, at| {
                // SAFETY: as above.
                unsafe { carried.states.slice(self.state_at(slot) + at, row.len()) }
                    .copy_from_slice(row);
            });
        }
    }

    /// Keeps the states for the backward pass.
    #[inline(always)]
    fn keep_states(&self, states: &mut [f32], number: usize) {
        let Some((_, kept)) = &self.pass.kept else { return };
        let first = self.state_at(self.task.first_kept + number);
        self.each_state_row(states, |row, at| {
            // SAFETY: this head of this state belongs to this task.
            unsafe { kept.slice(first + at, row.len()) }.copy_from_slice(row);
        });
    }

    /// Position of this task's states in array number `i` of states.
    fn state_at(&self, i: usize) -> usize {
        let heads = self.pass.heads;
        i * heads.state_len() + self.head(0) * heads.key_dim * heads.value_dim
    }

    /// Calls `body(row, its position)` for the rows of all states of this task.
    #[inline(always)]
    fn each_state_row(&self, states: &mut [f32], body: impl Fn(&mut [f32], usize)) {
        let dv = self.pass.heads.value_dim;
        for (i, row) in states.chunks_exact_mut(sum_stride::<M>(dv)).enumerate() {
            body(&mut row[..dv], i * dv);
        }
    }

    /// Queries and keys of a chunk.
    #[inline(always)]
    fn load_chunk(&self, keys: &mut Keys<'_, T>, chunk: Chunk) {
        let (heads, dk) = (self.pass.heads, keys.dk);
        let Chunk { first, n, t, .. } = chunk;
        let width = heads.num_key_heads * dk;
        let scale = 1.0 / (dk as f32).sqrt();
        for i in first..n {
            let row =
                &self.pass.qkv[(t + i - first) * heads.qkv_width() + self.task.key_head * dk..];
            normalise(&row[..dk], scale, &mut keys.q[i * dk..][..dk]);
            normalise(&row[width..][..dk], 1.0, &mut keys.k[i * dk..][..dk]);
        }
        let (Some(carried), Some(slot)) = (&self.pass.carried, self.task.slot) else { return };
        for i in 0..if n < CHUNK { n } else { first } {
            let at = (slot * CHUNK + i) * width + self.task.key_head * dk;
            // SAFETY: this head of this slot belongs to this task.
            let kept = unsafe { carried.keys.slice(at, dk) };
            let own = &mut keys.k[i * dk..][..dk];
            if i < first { own.copy_from_slice(kept) } else { kept.copy_from_slice(own) }
        }
    }

    /// Decays of a chunk, and `U` of its earlier rows.
    #[inline(always)]
    fn load_values(&self, b: &mut Values<'_, T, M>, head: usize, chunk: Chunk) -> Decays {
        let (heads, dv) = (self.pass.heads, self.pass.heads.value_dim);
        let Chunk { first, n, t, .. } = chunk;
        let num = heads.num_value_heads;
        let mut g = [0.0; CHUNK];
        for (i, g) in g.iter_mut().enumerate().take(n).skip(first) {
            *g = self.pass.gates[(2 * (t + i - first) + 1) * num + head];
        }
        if let (Some(carried), Some(slot)) = (&self.pass.carried, self.task.slot) {
            let stride = sum_stride::<M>(dv);
            for (i, g) in g.iter_mut().enumerate().take(n) {
                // SAFETY: this head of this slot belongs to this task, as below.
                let kept = unsafe { carried.decays.slice((slot * CHUNK + i) * num + head, 1) };
                let (from, to) = if i < first { (kept[0], g) } else { (*g, &mut kept[0]) };
                *to = from;
            }
            for i in 0..first {
                let at = (slot * CHUNK + i) * heads.out_width() + head * dv;
                // SAFETY: as above.
                let kept = unsafe { carried.written.slice(at, dv) };
                b.written[i * dv..][..dv].copy_from_slice(kept);
                let u = b.u[i * stride..][..dv].iter_mut().zip(kept);
                u.for_each(|(u, kept)| *u = kept.to_f32());
            }
        }
        Decays::new(g[..n].iter().copied())
    }

    /// Outputs of a chunk, and its `U`; the state at its end if the columns of `K` are given.
    #[inline(always)]
    fn value_head(
        &self,
        b: &mut Values<'_, T, M>,
        keys: &Keys<'_, T>,
        kt: Option<Left<'_, M::Elem>>,
        (g, state): (usize, &mut [f32]),
        chunk: Chunk,
    ) {
        let (dk, dv, head) = (keys.dk, self.pass.heads.value_dim, self.head(g));
        let (Chunk { number, first, n, .. }, stride) = (chunk, sum_stride::<M>(dv));
        let decays = self.load_values(b, head, chunk);
        self.factors(b, keys, &decays, head, chunk);
        let (count, new) = (n - first, first * stride);
        if number > 0 {
            let of_state = Part { line: 0, lines: dv, k0: 0, k: dk };
            let s = right::<M>(columns(state, stride), of_state, b.s_panels);
            let [q, k] = b.keys.left(keys, first..n);
            for (x, out) in [(q, &mut b.out[new..]), (k, &mut b.u[new..])] {
                multiply::<M>(x, count, s, (out, stride), Store::Overwrite, |_, _| 0..dk);
            }
        } else {
            b.out[new..n * stride].fill(0.0);
            b.u[new..n * stride].fill(0.0);
        }
        self.right_sides(b, &decays, head, chunk);
        solve::<T>(b.l, (b.u, stride), (first, n));
        for i in first..n {
            let written = &mut b.written[i * dv..][..dv];
            // SAFETY: the tile was chosen by the instruction set.
            unsafe { T::narrow::<M>(&b.u[i * stride..][..dv], written) };
        }
        let of_written = Part { line: 0, lines: dv, k0: 0, k: n };
        let written = right::<M>(columns(b.written, dv), of_written, b.u_panels);
        let of_a = Part { line: first, lines: count, k0: 0, k: written.depth };
        let a = left::<M>(lines(b.a, CHUNK), of_a, b.a_rows);
        let out = (&mut b.out[new..], stride);
        multiply::<M>(a, count, written, out, Store::Add, |rows, _| 0..first + rows.end);
        self.write(b, head, chunk);
        if let Some(kt) = kt {
            let written = (&*b.written, dv);
            update_state::<T, M>((state, stride), &decays, kt, written, b.scaled, b.u_panels);
        }
    }

    /// `L` and `tril(D ∘ Q Kᵀ)` of the new rows.
    #[inline(always)]
    fn factors(
        &self,
        b: &mut Values<'_, T, M>,
        keys: &Keys<'_, T>,
        decays: &Decays,
        head: usize,
        chunk: Chunk,
    ) {
        for i in chunk.first..chunk.n {
            let (beta, until) = (self.beta(head, chunk, i), decays.until(i));
            let (qk, kk) = (&keys.qk[i * STRIDE..][..CHUNK], &keys.kk[i * STRIDE..][..CHUNK]);
            let (mut a, l) = ([0.0; CHUNK], &mut b.l[i * CHUNK..][..CHUNK]);
            for j in 0..CHUNK {
                a[j] = until[j] * qk[j];
                l[j] = beta * until[j] * kk[j];
            }
            a[i + 1..].fill(0.0);
            // SAFETY: the tile was chosen by the instruction set.
            unsafe { T::narrow::<M>(&a, &mut b.a[i * CHUNK..][..CHUNK]) };
        }
    }

    /// `β (V - E K S)` in place of `K S`, and `E Q S` in place of `Q S`, of the new rows.
    #[inline(always)]
    fn right_sides(&self, b: &mut Values<'_, T, M>, decays: &Decays, head: usize, chunk: Chunk) {
        let (heads, dv) = (self.pass.heads, self.pass.heads.value_dim);
        let stride = sum_stride::<M>(dv);
        for i in chunk.first..chunk.n {
            let at = (chunk.t + i - chunk.first) * heads.qkv_width() + heads.v_at() + head * dv;
            let (beta, decay) = (self.beta(head, chunk, i), decays.since_start[i]);
            let u = b.u[i * stride..][..dv].iter_mut().zip(&self.pass.qkv[at..at + dv]);
            u.for_each(|(u, v)| *u = beta * (v.to_f32() - decay * *u));
            b.out[i * stride..][..dv].iter_mut().for_each(|out| *out *= decay);
        }
    }

    /// Writes outputs of the new rows, and their `U` where it is kept.
    #[inline(always)]
    fn write(&self, b: &Values<'_, T, M>, head: usize, chunk: Chunk) {
        let (heads, dv) = (self.pass.heads, self.pass.heads.value_dim);
        let (Chunk { first, n, t, .. }, stride) = (chunk, sum_stride::<M>(dv));
        for i in first..n {
            let at = (t + i - first) * heads.out_width() + head * dv;
            let written = &b.written[i * dv..][..dv];
            // SAFETY: this head of this row belongs to this task; the tile was chosen by the
            // instruction set.
            unsafe { T::narrow::<M>(&b.out[i * stride..][..dv], self.pass.out.slice(at, dv)) };
            if let Some((kept, _)) = &self.pass.kept {
                // SAFETY: as above.
                unsafe { kept.slice(at, dv) }.copy_from_slice(written);
            }
            if let (Some(carried), Some(slot)) = (&self.pass.carried, self.task.slot) {
                let at = (slot * CHUNK + i) * heads.out_width() + head * dv;
                // SAFETY: this head of this slot belongs to this task.
                unsafe { carried.written.slice(at, dv) }.copy_from_slice(written);
            }
        }
    }

    /// `β` of row `i` of a chunk.
    #[inline(always)]
    fn beta(&self, head: usize, chunk: Chunk, i: usize) -> f32 {
        self.pass.gates[2 * (chunk.t + i - chunk.first) * self.pass.heads.num_value_heads + head]
    }
}
