//! Attention over packed sequences, and over a cache of keys and values.

use super::rows_cols;
use crate::{Category, Cost, DType, Device, Heads, Sequence, Tape, Target, Tensor, Var, Work};
use hone_kernels::Processor;
use hone_kernels::attention::{self as kernel, Inputs, Rows};

/// `qkv [t, qkv_width]` → `[t, out_width]`. Sequences follow one another; rows after the last give
/// zeros.
pub fn attention<'a>(
    tape: &mut Tape<'a>,
    qkv: Var,
    heads: &Heads,
    sequences: &'a [Sequence],
) -> Var {
    let (t, width) = rows_cols(qkv.value().shape());
    assert_eq!(width, heads.qkv_width());
    let (heads, dtype) = (*heads, qkv.value().dtype());
    let mut out = tape.activation(dtype, &[t, heads.out_width()]);
    let mut lse = tape.activation(DType::F32, &[heads.num_heads, t]);
    let bytes = qkv.value().num_bytes() + out.num_bytes();
    let forward = cost("attention", &heads, sequences, 2, bytes);
    if let Some(on) = tape.device().begin(forward) {
        let inputs = Inputs::packed(qkv.value().view(), &heads);
        on.attention(inputs, &heads, sequences, out.view_mut(), lse.view_mut());
    }
    let (requires_grad, input) = (qkv.requires_grad(), qkv.id());
    if !(tape.is_recording() && requires_grad) {
        return tape.push(out, requires_grad, |_, _| {});
    }
    let (qkv, saved_out) = (qkv.into_value(), out.clone());
    tape.push(out, requires_grad, move |sweep, d_out| {
        let mut d_qkv = sweep.activation(dtype, &[t, width]);
        let len = match sweep.device.target() {
            Target::Cpu => kernel::workspace_len(&heads, t),
            Target::Cuda => heads.num_heads * t,
        };
        let mut workspace = sweep.workspace(DType::F32, &[len]);
        let bytes = 2 * qkv.num_bytes() + 2 * d_out.num_bytes();
        let backward = cost("d_attention", &heads, sequences, 5, bytes);
        if let Some(on) = sweep.device.begin(backward) {
            let saved = (saved_out.view(), lse.view());
            let (d_qkv, workspace) = (d_qkv.view_mut(), workspace.view_mut());
            let d_out = d_out.view();
            on.attention_backward(qkv.view(), &heads, sequences, saved, d_out, d_qkv, workspace);
        }
        drop((qkv, saved_out, lse, workspace, d_out));
        sweep.add(input, d_qkv);
    })
}

/// Keys and values of one layer, for generation: `[capacity, num_kv_heads * head_dim]` each.
pub struct KvCache {
    k: Tensor,
    v: Tensor,
    len: usize,
}

impl KvCache {
    /// An empty cache for up to `capacity` tokens.
    pub fn new(device: &Device, dtype: DType, heads: &Heads, capacity: usize) -> Self {
        let shape = [capacity, heads.num_kv_heads * heads.head_dim];
        let zeros = || device.persistent(Category::Cache, dtype, &shape);
        Self { k: zeros(), v: zeros(), len: 0 }
    }

    /// Tokens held.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no token is held.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Forgets all tokens.
    pub fn clear(&mut self) {
        self.len = 0;
    }
}

/// Appends the keys and values of `qkv [t, qkv_width]` to `cache` and lets the queries attend to
/// everything in it. Inference only.
///
/// # Panics
/// If the cache has no room for `t` more tokens, or the tape records.
pub fn attend_cached(tape: &mut Tape<'_>, qkv: Var, heads: &Heads, cache: &mut KvCache) -> Var {
    assert!(!tape.is_recording(), "attention over a cache has no backward pass");
    let (t, _) = rows_cols(qkv.value().shape());
    let capacity = cache.k.shape()[0];
    assert!(cache.len + t <= capacity, "the cache has no room: {} + {t} > {capacity}", cache.len);
    let mut out = tape.activation(qkv.value().dtype(), &[t, heads.out_width()]);
    let mut lse = tape.device().alloc(Category::Workspace, DType::F32, &[heads.num_heads, t]);
    let sequence = Sequence { q_start: 0, q_len: t, k_start: 0, k_len: cache.len + t };
    let bytes = qkv.value().num_bytes() + 2 * cache.len * cache.k.num_bytes() / capacity;
    if let Some(on) = tape.device().begin(cost("attend_cached", heads, &[sequence], 2, bytes)) {
        let packed = Inputs::packed(qkv.value().view(), heads);
        append(on, &mut cache.k, cache.len, packed.k);
        append(on, &mut cache.v, cache.len, packed.v);
        let stride = cache.k.shape()[1];
        let rows = |tensor| Rows { data: Tensor::view(tensor), stride, offset: 0 };
        let inputs = Inputs { q: packed.q, k: rows(&cache.k), v: rows(&cache.v) };
        on.attention(inputs, heads, &[sequence], out.view_mut(), lse.view_mut());
    }
    cache.len += t;
    tape.push(out, false, |_, _| {})
}

fn append(on: &Processor, cache: &mut Tensor, len: usize, rows: Rows<'_>) {
    let width = cache.shape()[1];
    on.copy_rows(rows.data, (rows.stride, rows.offset), cache.view_mut(), (width, len * width));
}

/// Keys that a query does not see but whose tiles it shares, with packing and what else is done
/// once for a row counted in: measured in training steps on sequences of 256 to 8,192.
const UNSEEN: usize = 48;

fn cost(
    name: &'static str,
    heads: &Heads,
    sequences: &[Sequence],
    products: usize,
    bytes: usize,
) -> Cost {
    let pairs: usize = sequences.iter().map(|s| s.num_pairs(heads.window)).sum();
    let rows: usize = sequences.iter().map(|s| s.q_len).sum();
    let flops = |pairs: usize| 2 * products * pairs * heads.out_width();
    Cost::memory(name, bytes)
        .with(Work::Attention, flops(pairs))
        .with_padding(Work::Attention, flops(rows * UNSEEN))
}
