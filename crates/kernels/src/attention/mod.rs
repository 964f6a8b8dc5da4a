//! Attention over sequences of different lengths, with grouped queries.
//!
//! `out = softmax(q kᵀ · scale) v`, with scores softly bounded where the heads say so, for each
//! query head, where query head `i` reads key-value head `i / (num_heads / num_kv_heads)`. A query
//! sees the keys of its sequence up to its own, with a sliding window only the last of them, and as
//! many after its own as the mask says: none in decoders, all in encoders. The forward pass is
//! blocked with an online softmax (Milakov & Gimelshein, 2018; Dao et al., 2022), so no score
//! matrix exists; the backward pass recomputes scores from the saved log-sum-exp. Blocks are
//! aligned to the start of each sequence, so a sequence gives the same bits at any position in a
//! batch.
//!
//! Heads may have a sink (Xiao et al., 2023, with a learned logit as in gpt-oss): one more logit of
//! the softmax, whose share is dropped. It is in the denominator from the start, and so in the
//! log-sum-exp, from which the backward pass has it.

mod backward;
pub(crate) mod cuda;
mod forward;
#[cfg(any(test, feature = "reference"))]
pub mod reference;
mod rows;

pub use backward::backward;
pub use cuda::max_head_dim;
pub use forward::forward;
pub(crate) use rows::used_rows;

/// Bytes of scratch memory that each thread keeps after its first attention.
pub fn scratch_bytes(heads: &Heads) -> usize {
    forward::scratch_bytes(heads).max(backward::scratch_bytes(heads))
}

/// Elements (f32) of workspace for the backward pass over `t` rows.
pub fn workspace_len(target: Target, heads: &Heads, t: usize) -> usize {
    match target {
        Target::Cpu => backward::workspace_len(heads, t),
        Target::Cuda => cuda::workspace_len(heads, t),
    }
}

/// Whether passes over whole sequences run a GPU's general kernels, which are slower than those on
/// its tensor cores; the CPU has one kernel for all. Over pages a GPU's are always general.
pub fn is_general(target: Target, heads: &Heads, dtype: DType) -> bool {
    target == Target::Cuda && !cuda::suits_tensor_cores(heads, dtype)
}

use crate::element::DType;
use crate::math::Softcap;
use crate::processor::{Processor, Target};
use crate::view::{View, ViewMut};

impl Processor {
    /// Attention of queries to keys and values: `out [t, out_width]`, zero for rows of no sequence,
    /// and `lse [num_heads, t]` f32, the logarithms of the softmaxes' denominators.
    pub fn attention(
        &self,
        inputs: Inputs<'_>,
        heads: &Heads,
        sequences: &[Sequence],
        out: ViewMut<'_>,
        lse: ViewMut<'_>,
    ) {
        match self {
            Self::Cpu(cpu) => forward(cpu, inputs, heads, sequences, out, lse.f32()),
            Self::Cuda(gpu) => {
                cuda::forward(gpu, inputs, heads, sequences, out.cuda(), lse.cuda().f32());
            }
        }
    }

    /// `d_qkv [t, qkv_width]`, overwritten, for `d_out [t, out_width]`, and what is added to the
    /// gradient of sinks. `workspace` is f32: [`workspace_len`] elements.
    pub fn attention_backward(
        &self,
        saved: Saved<'_>,
        heads: &Heads,
        sequences: &[Sequence],
        d_out: View<'_>,
        gradients: Gradients<'_>,
        workspace: ViewMut<'_>,
    ) {
        match self {
            Self::Cpu(cpu) => {
                backward(cpu, saved, heads, sequences, d_out, gradients, workspace.f32());
            }
            Self::Cuda(gpu) => {
                let delta = workspace.cuda().f32();
                cuda::backward(gpu, saved, heads, sequences, d_out.cuda(), gradients, delta);
            }
        }
    }
}

/// What the backward pass writes.
pub struct Gradients<'a> {
    /// `[t, qkv_width]`, overwritten.
    pub d_qkv: ViewMut<'a>,
    /// Sinks, and their gradient, to which it is added; both `[num_heads]` f32.
    pub sinks: Option<(View<'a>, ViewMut<'a>)>,
}

/// Values that the backward pass needs from the forward pass.
#[derive(Clone, Copy)]
pub struct Saved<'a> {
    /// Queries, keys and values, `[t, qkv_width]`.
    pub qkv: View<'a>,
    /// Output, `[t, out_width]`.
    pub out: View<'a>,
    /// Logarithms of the softmaxes' denominators, `[num_heads, t]` f32.
    pub lse: View<'a>,
}

/// Number and size of heads, and the mask.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Heads {
    /// Query heads.
    pub num_heads: usize,
    /// Key and value heads; divides `num_heads`.
    pub num_kv_heads: usize,
    /// Dimensions of a head.
    pub head_dim: usize,
    /// Factor of scores before the softmax.
    pub scale: f32,
    /// Number of keys up to its own that a query sees, including that; `None`: all.
    pub window: Option<usize>,
    /// Number of keys after its own that a query sees: 0 is causal, [`ALL_AHEAD`] all.
    pub ahead: usize,
    /// Bound of scaled scores.
    pub softcap: Option<Softcap>,
}

/// [`Heads::ahead`] of queries that see all later keys of their sequence.
pub const ALL_AHEAD: usize = usize::MAX;

impl Heads {
    /// These heads with a mask that is the same on both sides: a query sees the keys at most
    /// `reach` from its own, or with `None` all of its sequence.
    pub fn two_sided(self, reach: Option<usize>) -> Self {
        let window = reach.map(|reach| reach + 1);
        Self { window, ahead: reach.unwrap_or(ALL_AHEAD), ..self }
    }

    /// Elements of a packed row: queries, keys, values.
    pub fn qkv_width(&self) -> usize {
        (self.num_heads + 2 * self.num_kv_heads) * self.head_dim
    }

    /// Elements of an output row.
    pub fn out_width(&self) -> usize {
        self.num_heads * self.head_dim
    }

    /// Query heads per key-value head.
    pub fn group(&self) -> usize {
        self.num_heads / self.num_kv_heads
    }
}

/// Rows of heads inside a slice: head `h` of row `t` starts at
/// `t * stride + offset + h * head_dim`.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    /// The elements.
    pub data: View<'a>,
    /// Distance between rows.
    pub stride: usize,
    /// Index of head 0 of row 0.
    pub offset: usize,
}

/// Queries, keys and values; all of one element type.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// Queries.
    pub q: Rows<'a>,
    /// Keys.
    pub k: Rows<'a>,
    /// Values.
    pub v: Rows<'a>,
    /// Logits of sinks, `[num_heads]` f32.
    pub sinks: Option<View<'a>>,
    /// Page table, if keys and values are stored in pages of [`PAGE_ROWS`] rows: row `r` is row
    /// `r % PAGE_ROWS` of page `pages[r / PAGE_ROWS]`, and sequences begin at multiples of
    /// `PAGE_ROWS`. `None`: keys and values are contiguous. Forward pass only.
    pub pages: Option<&'a [u32]>,
}

/// Rows of a page of keys and values: the CPU kernel's block of keys, and a whole number of the GPU
/// kernels' tiles, so that neither straddles pages and paging changes no sum.
pub const PAGE_ROWS: usize = 96;

impl<'a> Inputs<'a> {
    /// Queries, keys and values in packed rows of [`Heads::qkv_width`].
    pub fn packed(qkv: View<'a>, heads: &Heads) -> Self {
        let stride = heads.qkv_width();
        let k = heads.num_heads * heads.head_dim;
        let v = k + heads.num_kv_heads * heads.head_dim;
        let rows = |offset| Rows { data: qkv, stride, offset };
        Self { q: rows(0), k: rows(k), v: rows(v), sinks: None, pages: None }
    }

    /// Physical index of key row `row`.
    fn key_row(&self, row: usize) -> usize {
        let in_page = |pages: &[u32]| pages[row / PAGE_ROWS] as usize * PAGE_ROWS + row % PAGE_ROWS;
        self.pages.map_or(row, in_page)
    }
}

/// One sequence: the key of query row `q_start + i` is key row `k_start + k_len - q_len + i`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sequence {
    /// First query row.
    pub q_start: usize,
    /// Number of query rows.
    pub q_len: usize,
    /// First key row; if keys are paged, the first of a page.
    pub k_start: usize,
    /// Number of key rows, at least `q_len`.
    pub k_len: usize,
}

impl Sequence {
    /// A sequence whose queries and keys are the same rows.
    pub fn new(start: usize, len: usize) -> Self {
        Self { q_start: start, q_len: len, k_start: start, k_len: len }
    }

    /// The sequences with cumulative lengths `cu_seqlens`, beginning with 0.
    pub fn packed(cu_seqlens: &[u32]) -> Vec<Self> {
        cu_seqlens.windows(2).map(|w| Self::new(w[0] as usize, (w[1] - w[0]) as usize)).collect()
    }

    /// The keys that query `i` sees, both counted from the start of the sequence.
    pub fn visible(&self, i: usize, heads: &Heads) -> std::ops::Range<usize> {
        let own = self.k_len - self.q_len + i;
        let start = (own + 1).saturating_sub(heads.window.unwrap_or(usize::MAX));
        start..own.saturating_add(heads.ahead).min(self.k_len - 1) + 1
    }

    /// Number of unmasked pairs of query and key.
    pub fn num_pairs(&self, heads: &Heads) -> usize {
        (0..self.q_len).map(|i| self.visible(i, heads).len()).sum()
    }
}

#[cfg(test)]
mod tests;
