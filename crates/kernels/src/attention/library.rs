//! Attention by a library where a GPU has one that serves it: sequences that attend to themselves,
//! in packed rows of 16-bit numbers. All else is left to our own kernels.

use super::{Heads, Inputs, Sequence};
use crate::cuda::{
    Address, AttentionArrays, AttentionPlan, AttentionShape, Gpu, Launch, LseLayout, Pass, Slice,
    args,
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
/// Bytes that a library may work in in the forward pass: 300 sequences take 80 kB.
const WORKSPACE_BYTES: usize = 1 << 20;
/// Bytes at most of starts and lengths.
const LIST_BYTES: usize = (4 * 8 + 4) * (MOST_SEQUENCES + 1) + 5 * 256;
const THREADS: u32 = 256;

/// Most bytes that a library's forward pass takes inside the operation, whatever the sequences are.
pub fn scratch_bytes(heads: &Heads, num_tokens: usize) -> usize {
    WORKSPACE_BYTES + LIST_BYTES + 4 * heads.num_heads * most_padded(num_tokens)
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
mod tests {
    use super::*;

    const HEADS: Heads =
        Heads { num_heads: 4, num_kv_heads: 2, head_dim: 64, scale: 0.125, window: None };

    /// The 64-bit numbers in pairs of words.
    fn wide(words: &[u32]) -> Vec<u64> {
        words.chunks(2).map(|w| u64::from(w[0]) | u64::from(w[1]) << 32).collect()
    }

    #[test]
    fn lists_say_where_sequences_are() {
        let sequences = Sequence::packed(&[0, 3, 5, 12]);
        let [packed, out, lse, keys] = row_lens(&HEADS);
        assert_eq!((packed, out, lse, keys), (512, 256, 4, 128));
        assert_eq!(wide(&starts(&sequences, packed, 3)), [0, 3 * 512, 5 * 512, 12 * 512]);
        assert_eq!(lengths(&sequences, 3), [3, 2, 7]);
        // Room for five: two that are empty, after the last.
        assert_eq!(wide(&starts(&sequences, lse, 5)), [0, 12, 20, 48, 48, 48]);
        assert_eq!(lengths(&sequences, 5), [3, 2, 7, 0, 0]);
        // Beyond 32 bits.
        let far = [Sequence::new(0, 1), Sequence::new(1 << 31, 1)];
        assert_eq!(wide(&starts(&far, packed, 2))[1], 1 << 40);
    }

    #[test]
    fn shapes_that_a_library_does_well_at() {
        let of = |cu_seqlens: &[u32], heads: &Heads| {
            shape(Pass::Forward, DType::Bf16, heads, &Sequence::packed(cu_seqlens))
        };
        let one = of(&[0, 300], &HEADS).unwrap();
        assert_eq!((one.num_sequences, one.longest, one.is_windowed), (1, 300, false));
        let windowed = |window| Heads { window: Some(window), ..HEADS };
        assert!(of(&[0, 300], &windowed(299)).unwrap().is_windowed);
        assert!(!of(&[0, 300], &windowed(300)).unwrap().is_windowed);
        assert!(of(&[0, 300, 301], &HEADS).is_some(), "few sequences");
        let many_short: Vec<u32> = (0..64).chain([64 + 4096]).collect();
        assert!(of(&many_short, &HEADS).is_none(), "blocks for tokens that are not there");
        assert!(of(&[0, 127, 254], &HEADS).is_none(), "short ones");
        let cached = Sequence { q_start: 0, q_len: 200, k_start: 0, k_len: 300 };
        assert!(shape(Pass::Forward, DType::Bf16, &HEADS, &[cached]).is_none());
    }

    #[test]
    fn padding_stays_within_bounds() {
        for cu_seqlens in [vec![0, 128], vec![0, 1025], vec![0, 1025, 1030], vec![0, 200, 400]] {
            let sequences = Sequence::packed(&cu_seqlens);
            let shape = shape(Pass::Forward, DType::F16, &HEADS, &sequences).unwrap();
            let rows =
                shape.num_sequences.next_power_of_two().max(8) * shape.longest.next_power_of_two();
            assert!(rows <= most_padded(*cu_seqlens.last().unwrap() as usize));
        }
    }
}
