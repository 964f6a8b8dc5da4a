//! Attention by a library where a GPU has one that serves it: sequences that attend to themselves,
//! in packed rows of 16-bit numbers. All else is left to our own kernels.

use super::{Heads, Inputs, Sequence};
use crate::cuda::{
    Address, AttentionArrays, AttentionGradients, AttentionPlan, AttentionShape, Gpu, Launch,
    LseLayout, Pass, Slice, args,
};
use crate::element::DType;

/// The most sequences that a library is asked for; so many are short ones.
const MOST_SEQUENCES: usize = 1024;
/// A library makes blocks for all sequences as if they were as long as the longest, rounded up to a
/// power of two: up to so many times the tokens that there are it is asked.
const MOST_PADDING: usize = 4;
/// So few sequences are always worth it.
const FEW_SEQUENCES: usize = 8;
/// The shortest longest sequence that it is asked for.
const SHORTEST: usize = 128;
/// Bytes that a library may work in, beside what is counted by rows: 300 sequences take 80 kB
/// forwards, and twice that backwards.
const WORKSPACE_BYTES: usize = 1 << 20;
/// Bytes at most of starts and lengths.
const LIST_BYTES: usize = (4 * 8 + 4) * (MOST_SEQUENCES + 1) + 8 * 256;
/// Bytes that a library works in for each dimension of a padded row in the backward pass.
const PADDED_WORKSPACE: usize = 8;
const THREADS: u32 = 256;

/// Most bytes that a library's forward pass takes inside the operation, whatever the sequences are.
pub fn scratch_bytes(heads: &Heads, num_tokens: usize) -> usize {
    WORKSPACE_BYTES + LIST_BYTES + 4 * heads.num_heads * most_padded(num_tokens)
}

/// The same for a library's backward pass, which is asked for only where bits may differ each time.
pub fn backward_scratch_bytes(heads: &Heads, num_tokens: usize) -> usize {
    let rows = backward_rows(num_tokens) * heads.num_heads;
    let sums = (4 + PADDED_WORKSPACE) * rows * heads.head_dim;
    let gradients = 2 * num_tokens * heads.qkv_width();
    WORKSPACE_BYTES + LIST_BYTES + 8 * rows + sums + gradients + 8 * 256
}

/// Most rows of padded sequences of so many tokens in the backward pass, whose arrays are large.
fn backward_rows(num_tokens: usize) -> usize {
    num_tokens + num_tokens / 2
}

/// Most rows of padded sequences of so many tokens.
fn most_padded(num_tokens: usize) -> usize {
    // Up to `FEW_SEQUENCES`, each padded to less than twice the longest.
    2 * FEW_SEQUENCES * num_tokens.max(SHORTEST)
}

/// Whether a library did it; if not, nothing is written.
pub(super) fn forward(
    gpu: &Gpu,
    inputs: Inputs<'_>,
    heads: &Heads,
    sequences: &[Sequence],
    (out, lse): (Slice<'_>, Slice<'_>),
) -> bool {
    if !is_packed(&inputs, heads) {
        return false;
    }
    let (qkv, shared) = (inputs.q.data.cuda(), [out]);
    let Some(asked) = Asked::new(gpu, Pass::Forward, heads, sequences, (qkv, &shared)) else {
        return false;
    };
    let num_tokens = out.len() / heads.out_width();
    if asked.plan.workspace_bytes > WORKSPACE_BYTES {
        return false;
    }
    let arrays = asked.arrays(gpu, num_tokens, qkv, out);
    gpu.attention(&asked.shape, &arrays);
    asked.move_lse(gpu, "from", &arrays, (arrays.lse, lse.address(), num_tokens));
    true
}

/// Whether a library did it, with sums in no fixed order; if not, nothing is written.
pub(super) fn backward(
    gpu: &Gpu,
    qkv: Slice<'_>,
    heads: &Heads,
    sequences: &[Sequence],
    (out, lse): (Slice<'_>, Slice<'_>),
    (d_out, d_qkv): (Slice<'_>, Slice<'_>),
) -> bool {
    let shared = [out, d_out, d_qkv];
    let Some(asked) = Asked::new(gpu, Pass::Backward, heads, sequences, (qkv, &shared)) else {
        return false;
    };
    let num_tokens = qkv.len() / heads.qkv_width();
    let Some(workspace_bytes) = asked.backward_workspace(num_tokens) else { return false };
    if asked.plan.workspace_bytes > workspace_bytes {
        return false;
    }
    let mut arrays = asked.arrays(gpu, num_tokens, qkv, out);
    let gradients = asked.gradients(gpu, num_tokens, d_out);
    arrays.gradients = Some(gradients);
    asked.move_lse(gpu, "to", &arrays, (lse.address(), arrays.lse, num_tokens));
    gpu.attention(&asked.shape, &arrays);
    asked.pack(gpu, &arrays, &gradients, d_qkv);
    true
}

/// Whether queries, keys and values are side by side in rows of one array.
fn is_packed(inputs: &Inputs<'_>, heads: &Heads) -> bool {
    let packed = Inputs::packed(inputs.q.data, heads);
    let pairs = [(inputs.q, packed.q), (inputs.k, packed.k), (inputs.v, packed.v)];
    pairs.iter().all(|(found, packed)| {
        (found.stride, found.offset) == (packed.stride, packed.offset)
            && found.data.cuda().address() == packed.data.cuda().address()
    })
}

/// What a library has agreed to do.
struct Asked {
    shape: AttentionShape,
    plan: AttentionPlan,
    heads: Heads,
    /// Those that are not empty.
    sequences: Vec<Sequence>,
}

impl Asked {
    fn new(
        gpu: &Gpu,
        pass: Pass,
        heads: &Heads,
        sequences: &[Sequence],
        (qkv, others): (Slice<'_>, &[Slice<'_>]),
    ) -> Option<Self> {
        let dtype = qkv.dtype();
        let aligned = |x: &Slice<'_>| x.address().is_multiple_of(16) && x.dtype() == dtype;
        if !matches!(dtype, DType::Bf16 | DType::F16)
            || !heads.head_dim.is_multiple_of(8)
            || ![&[qkv], others].concat().iter().all(aligned)
        {
            return None;
        }
        let sequences: Vec<Sequence> =
            sequences.iter().copied().filter(|sequence| sequence.q_len > 0).collect();
        let shape = shape(pass, dtype, heads, &sequences)?;
        let plan = gpu.attention_plan(&shape)?;
        Some(Self { shape, plan, heads: *heads, sequences })
    }

    /// Everything in its place, but for what only the backward pass has.
    fn arrays(
        &self,
        gpu: &Gpu,
        num_tokens: usize,
        qkv: Slice<'_>,
        out: Slice<'_>,
    ) -> AttentionArrays {
        let [packed, of_out, of_lse, keys] = row_lens(&self.heads).map(|row_len| {
            let starts = starts(&self.sequences, row_len, self.plan.num_sequences);
            gpu.upload(&starts)
        });
        AttentionArrays {
            scale: self.heads.scale,
            window: self.heads.window.map_or(0.0, |window| window as f32),
            qkv: qkv.address(),
            out: out.address(),
            lse: gpu.scratch(4 * self.num_lse(num_tokens)),
            starts: [packed, of_out, of_lse, keys],
            lengths: gpu.upload(&lengths(&self.sequences, self.plan.num_sequences)),
            workspace: gpu.scratch(self.plan.workspace_bytes),
            gradients: None,
        }
    }

    /// Bytes that the backward pass may work in; `None` where its padded arrays are too large.
    fn backward_workspace(&self, num_tokens: usize) -> Option<usize> {
        let padded = match self.plan.lse {
            LseLayout::Tokens => 0,
            LseLayout::Padded => self.plan.num_sequences * self.plan.longest,
        };
        let rows = (padded <= backward_rows(num_tokens)).then_some(padded)?;
        let dims = self.heads.num_heads * self.heads.head_dim;
        Some(WORKSPACE_BYTES + PADDED_WORKSPACE * rows * dims)
    }

    /// What only the backward pass has.
    fn gradients(&self, gpu: &Gpu, num_tokens: usize, d_out: Slice<'_>) -> AttentionGradients {
        let (num_lse, d) = (self.num_lse(num_tokens), self.heads.head_dim);
        let [_, of_queries, _, of_keys] = row_lens(&self.heads);
        // By its element type half would do; cuDNN's own interface takes as much.
        let by_head = || match self.plan.lse {
            LseLayout::Tokens if self.heads.group() > 1 => gpu.scratch(4 * num_tokens * of_queries),
            _ => 0,
        };
        AttentionGradients {
            d_out: d_out.address(),
            d_q: gpu.scratch(2 * num_tokens * of_queries),
            d_k: gpu.scratch(2 * num_tokens * of_keys),
            d_v: gpu.scratch(2 * num_tokens * of_keys),
            delta: gpu.scratch(4 * num_lse),
            sums: gpu.scratch(4 * num_lse * d),
            by_head: [by_head(), by_head()],
        }
    }

    /// Puts gradients of queries, keys and values side by side.
    fn pack(
        &self,
        gpu: &Gpu,
        arrays: &AttentionArrays,
        gradients: &AttentionGradients,
        d_qkv: Slice<'_>,
    ) {
        let AttentionGradients { d_q, d_k, d_v, .. } = *gradients;
        let [_, of_queries, _, of_keys] = row_lens(&self.heads);
        let (of_queries, of_keys) = (of_queries as u32, of_keys as u32);
        let blocks = self.shape.longest.div_ceil(THREADS as usize / 32);
        let grid = [blocks as u32, 1, self.sequences.len() as u32];
        let at = Launch { grid, threads: THREADS, shared_bytes: 0 };
        let (starts, lengths) = (arrays.starts[0], arrays.lengths);
        let args = args![d_q, d_k, d_v, starts, lengths, of_queries, of_keys, d_qkv];
        gpu.launch(&super::cuda::GENERAL, "attention_gradients_from_library", at, args);
    }

    /// Log-sum-exps as the library has them.
    fn num_lse(&self, num_tokens: usize) -> usize {
        match self.plan.lse {
            LseLayout::Tokens => num_tokens * self.heads.num_heads,
            LseLayout::Padded => self.plan.num_sequences * self.heads.num_heads * self.plan.longest,
        }
    }

    /// Moves log-sum-exps `from` the library's layout to ours or back (`to`).
    fn move_lse(
        &self,
        gpu: &Gpu,
        way: &str,
        arrays: &AttentionArrays,
        (from, to, num_tokens): (Address, Address, usize),
    ) {
        let blocks = self.shape.longest.div_ceil(THREADS as usize);
        let grid = [blocks, self.heads.num_heads, self.sequences.len()].map(|n| n as u32);
        let at = Launch { grid, threads: THREADS, shared_bytes: 0 };
        let padded = match self.plan.lse {
            LseLayout::Tokens => 0,
            LseLayout::Padded => self.plan.longest,
        };
        let [_, _, starts, _] = arrays.starts;
        let args = args![from, starts, arrays.lengths, padded as u32, to, num_tokens as u32];
        gpu.launch(&super::cuda::GENERAL, &format!("attention_lse_{way}_library"), at, args);
    }
}

/// The shape of an attention that a library may serve and does well at.
fn shape(
    pass: Pass,
    dtype: DType,
    heads: &Heads,
    sequences: &[Sequence],
) -> Option<AttentionShape> {
    let to_itself = |s: &Sequence| (s.q_start, s.q_len) == (s.k_start, s.k_len);
    if !sequences.iter().all(to_itself) || sequences.len() > MOST_SEQUENCES {
        return None;
    }
    let num_tokens: usize = sequences.iter().map(|s| s.q_len).sum();
    let longest = sequences.iter().map(|s| s.q_len).max().filter(|&len| len >= SHORTEST)?;
    let padded = sequences.len().next_power_of_two() * longest.next_power_of_two();
    if padded > MOST_PADDING * num_tokens && sequences.len() > FEW_SEQUENCES {
        return None;
    }
    Some(AttentionShape {
        pass,
        dtype,
        num_sequences: sequences.len(),
        longest,
        num_heads: heads.num_heads,
        num_kv_heads: heads.num_kv_heads,
        head_dim: heads.head_dim,
        // A window that holds all of every sequence hides nothing.
        is_windowed: heads.window.is_some_and(|window| window < longest),
    })
}

/// Elements of a row of packed ones, of outputs, of log-sum-exps by token, of keys alone.
fn row_lens(heads: &Heads) -> [usize; 4] {
    let keys = heads.num_kv_heads * heads.head_dim;
    [heads.qkv_width(), heads.out_width(), heads.num_heads, keys]
}

/// Where `room` sequences and what comes after them start, in elements of rows of `row_len`, each
/// an `i64` in two words; those that are not there, after the last.
fn starts(sequences: &[Sequence], row_len: usize, room: usize) -> Vec<u32> {
    let end = sequences.iter().map(|s| s.q_start + s.q_len).max().unwrap_or(0);
    let there = sequences.iter().map(|s| s.q_start);
    let rows = there.chain(std::iter::repeat(end)).take(room + 1);
    let words = |row: usize| {
        let start = (row * row_len) as u64;
        [start as u32, (start >> 32) as u32]
    };
    rows.flat_map(words).collect()
}

/// Tokens of `room` sequences, none for those that are not there.
fn lengths(sequences: &[Sequence], room: usize) -> Vec<u32> {
    let there = sequences.iter().map(|s| s.q_len as u32);
    there.chain(std::iter::repeat(0)).take(room).collect()
}

#[cfg(test)]
mod tests;
