//! Attention over packed sequences, and over pages of keys and values.

use super::{grow, rows_cols};
use crate::tape::Sweep;
use crate::{
    Category, Cost, DType, Device, DeviceError, Heads, ParamId, Sequence, Tape, Target, Tensor,
    Var, Weight, Work,
};
use hone_kernels::attention::{self as kernel, Inputs, PAGE_ROWS, Rows};

/// `qkv [t, qkv_width]` → `[t, out_width]`. Sequences are contiguous; rows after the last give
/// zeros.
pub fn attention<'a>(
    tape: &mut Tape<'a>,
    qkv: Var,
    heads: &Heads,
    sequences: &'a [Sequence],
) -> Var {
    attention_with_sinks(tape, qkv, heads, None, sequences)
}

/// [`attention`] with a logit for each query head, `sinks [num_heads]`, that takes a share of its
/// softmax.
pub fn attention_with_sinks<'a>(
    tape: &mut Tape<'a>,
    qkv: Var,
    heads: &Heads,
    sinks: Option<&'a Weight>,
    sequences: &'a [Sequence],
) -> Var {
    let attention = Attention { heads: *heads, sinks, sequences };
    let (out, lse) = attention.forward(tape, qkv.value());
    let requires_grad = qkv.requires_grad() || attention.trained_sinks().is_some();
    if !(tape.is_recording() && requires_grad) {
        return tape.push(out, requires_grad, |_, _| {});
    }
    let (input, qkv, saved_out) = (qkv.id(), qkv.into_value(), out.clone());
    tape.push(out, requires_grad, move |sweep, d_out| {
        let d_qkv = attention.backward(sweep, (&qkv, saved_out, lse), d_out);
        drop(qkv);
        sweep.add(input, d_qkv);
    })
}

/// [`attention_with_sinks`] over what `prepare` makes of `x`, such as its normalised heads: the
/// backward pass prepares it again, so that only `x` is kept; not on a GPU, and not in a block that
/// is run again as a whole. Worth it where `prepare` costs little and does not work in place.
pub fn attention_over<'a>(
    tape: &mut Tape<'a>,
    x: Var,
    prepare: impl Fn(&mut Tape<'a>, Var) -> Var + 'a,
    heads: &Heads,
    sinks: Option<&'a Weight>,
    sequences: &'a [Sequence],
) -> Var {
    if tape.keeps_what_is_cheap() {
        let qkv = prepare(tape, x);
        return attention_with_sinks(tape, qkv, heads, sinks, sequences);
    }
    let attention = Attention { heads: *heads, sinks, sequences };
    let qkv = tape.unrecorded(|tape| prepare(tape, x.clone()));
    let (out, lse) = attention.forward(tape, qkv.value());
    let requires_grad = qkv.requires_grad() || attention.trained_sinks().is_some();
    drop(qkv);
    let saved_out = out.clone();
    tape.push(out, requires_grad, move |sweep, d_out| {
        let (input, input_grad) = (x.id(), x.requires_grad());
        let mut tape = Tape::training(sweep.device, sweep.params, sweep.compute, None);
        let leaf = tape.leaf(x.into_value(), input_grad);
        let leaf_id = leaf.id();
        let qkv = prepare(&mut tape, leaf);
        let d_qkv = attention.backward(sweep, (qkv.value(), saved_out, lse), d_out);
        let mut inner = tape.backward(qkv, d_qkv, sweep.gradients);
        if let Some(d_x) = inner.take(leaf_id).filter(|_| input_grad) {
            sweep.add(input, d_x);
        }
    })
}

/// Attention of a pass.
#[derive(Clone, Copy)]
struct Attention<'a> {
    heads: Heads,
    sinks: Option<&'a Weight>,
    sequences: &'a [Sequence],
}

impl Attention<'_> {
    fn trained_sinks(&self) -> Option<ParamId> {
        self.sinks.and_then(Weight::param)
    }

    /// Where a GPU has a faster kernel for some heads and masks than for others.
    fn work(&self, device: &Device, dtype: DType) -> Work {
        match kernel::is_general(device.target(), &self.heads, dtype) {
            true => Work::GeneralAttention,
            false => Work::Attention,
        }
    }

    /// The output, and the logarithms of the softmaxes' denominators.
    fn forward(&self, tape: &Tape<'_>, qkv: &Tensor) -> (Tensor, Tensor) {
        let (Self { heads, sequences, .. }, (t, width)) = (self, rows_cols(qkv.shape()));
        assert_eq!(width, heads.qkv_width());
        let mut out = tape.activation(qkv.dtype(), &[t, heads.out_width()]);
        let mut lse = tape.activation(DType::F32, &[heads.num_heads, t]);
        let (device, bytes) = (tape.device(), qkv.num_bytes() + out.num_bytes());
        let work = self.work(device, qkv.dtype());
        if let Some(on) = device.begin(cost("attention", work, heads, sequences, 2, bytes)) {
            let sinks = self.sinks.map(|sinks| tape.params().resolve(sinks).view());
            let inputs = Inputs { sinks, ..Inputs::packed(qkv.view(), heads) };
            on.attention(inputs, heads, sequences, out.view_mut(), lse.view_mut());
        }
        (out, lse)
    }

    /// The gradient of `qkv`, given what the forward pass found.
    fn backward(
        &self,
        sweep: &mut Sweep<'_, '_>,
        (qkv, out, lse): (&Tensor, Tensor, Tensor),
        d_out: Tensor,
    ) -> Tensor {
        let (Self { heads, sequences, .. }, (t, width)) = (self, rows_cols(qkv.shape()));
        let mut d_qkv = sweep.activation(qkv.dtype(), &[t, width]);
        let len = kernel::workspace_len(sweep.device.target(), heads, t);
        let mut workspace = sweep.workspace(DType::F32, &[len]);
        let bytes = 2 * qkv.num_bytes() + 2 * d_out.num_bytes();
        let work = self.work(sweep.device, qkv.dtype());
        if let Some(on) = sweep.device.begin(cost("d_attention", work, heads, sequences, 5, bytes))
        {
            let saved = kernel::Saved { qkv: qkv.view(), out: out.view(), lse: lse.view() };
            let [d_sinks] = sweep.gradients.each_mut([self.trained_sinks()]);
            let sinks = self.sinks.map(|sinks| sweep.params.resolve(sinks).view());
            let sinks = sinks.zip(d_sinks.map(Tensor::view_mut));
            let gradients = kernel::Gradients { d_qkv: d_qkv.view_mut(), sinks };
            let workspace = workspace.view_mut();
            on.attention_backward(saved, heads, sequences, d_out.view(), gradients, workspace);
        }
        d_qkv
    }
}

/// Keys and values of one layer in pages of [`PAGE_ROWS`] rows, `num_kv_heads * head_dim` wide.
/// The caller assigns pages to sequences.
pub struct KvPages {
    k: Tensor,
    v: Tensor,
}

impl KvPages {
    /// `num_pages` pages.
    ///
    /// # Errors
    /// If memory runs out.
    pub fn new(
        device: &Device,
        dtype: DType,
        heads: &Heads,
        num_pages: usize,
    ) -> Result<Self, DeviceError> {
        let shape = [num_pages * PAGE_ROWS, heads.num_kv_heads * heads.head_dim];
        let zeros = || device.persistent(Category::Cache, dtype, &shape);
        Ok(Self { k: zeros()?, v: zeros()? })
    }

    /// Bytes of `num_pages` pages.
    pub fn bytes(dtype: DType, heads: &Heads, num_pages: usize) -> usize {
        2 * dtype.num_bytes(&[num_pages * PAGE_ROWS, heads.num_kv_heads * heads.head_dim])
    }

    /// Number of pages.
    pub fn num_pages(&self) -> usize {
        // Growing may have failed after the first.
        self.k.shape()[0].min(self.v.shape()[0]) / PAGE_ROWS
    }

    /// Appends pages, keeping the contents of the existing ones. Old and new memory exist at the
    /// same time.
    ///
    /// # Errors
    /// If memory runs out; the existing pages are kept.
    pub fn grow(&mut self, device: &Device, num_pages: usize) -> Result<(), DeviceError> {
        [&mut self.k, &mut self.v]
            .into_iter()
            .try_for_each(|tensor| grow(device, tensor, num_pages * PAGE_ROWS))
    }

    /// Copies rows `from` of the pages to rows `to`, none of which is among `from`.
    ///
    /// # Panics
    /// If a row does not exist.
    pub fn copy_rows(&mut self, device: &Device, from: &[u32], to: &[u32]) {
        if from.is_empty() {
            return;
        }
        for tensor in [&mut self.k, &mut self.v] {
            let (_, width) = rows_cols(tensor.shape());
            let mut rows = device.alloc(Category::Workspace, tensor.dtype(), &[from.len(), width]);
            let cost = Cost::memory_bound("copy_keys", 4 * rows.num_bytes());
            if let Some(on) = device.begin(cost) {
                on.gather_rows(tensor.view(), width, from, rows.view_mut());
                on.scatter_rows(rows.view(), width, 0..width, to, tensor.view_mut());
            }
        }
    }
}

/// Maps the rows of a pass to pages of keys and values.
#[derive(Clone, Debug, Default)]
pub struct PagedRows {
    /// Page table: the pages of each sequence in turn.
    pub pages: Vec<u32>,
    /// Queries and keys of each sequence; `k_start` is [`PAGE_ROWS`] times the index of the
    /// sequence's first entry in `pages`, and the queries' own keys are the last ones.
    pub sequences: Vec<Sequence>,
    /// Row of the pages that each query's key and value are written to.
    pub slots: Vec<u32>,
}

impl PagedRows {
    /// Appends a sequence of `new` rows after the `old` rows that `pages` already contain.
    ///
    /// # Panics
    /// If the pages have no room for them.
    pub fn push(&mut self, pages: &[u32], old: usize, new: usize) {
        assert!(old + new <= pages.len() * PAGE_ROWS, "{old} + {new} rows in {pages:?}");
        let k_start = self.pages.len() * PAGE_ROWS;
        let (q_start, k_len) = (self.slots.len(), old + new);
        self.sequences.push(Sequence { q_start, q_len: new, k_start, k_len });
        let slot =
            |row: usize| pages[row / PAGE_ROWS] * PAGE_ROWS as u32 + (row % PAGE_ROWS) as u32;
        self.slots.extend((old..k_len).map(slot));
        self.pages.extend(pages);
    }
}

/// Writes the keys and values of `qkv [t, qkv_width]` to their pages, and attends to all keys of
/// each sequence. Rows beyond those of `rows` give zeros. Inference only.
///
/// # Panics
/// If there are more rows than `t`, a page does not exist, or the tape records.
pub fn attend_paged(
    tape: &mut Tape<'_>,
    qkv: Var,
    heads: &Heads,
    sinks: Option<&Weight>,
    rows: &PagedRows,
    cache: &mut KvPages,
) -> Var {
    check_pages(tape, &qkv, rows, cache);
    let width = heads.num_kv_heads * heads.head_dim;
    let bytes = 4 * cache.k.dtype().num_bytes(&[rows.slots.len(), width]);
    if let Some(on) = tape.device().begin(Cost::memory_bound("keep_keys", bytes)) {
        let packed = Inputs::packed(qkv.value().view(), heads);
        for (from, to) in [(packed.k, &mut cache.k), (packed.v, &mut cache.v)] {
            let cols = from.offset..from.offset + width;
            on.scatter_rows(from.data, from.stride, cols, &rows.slots, to.view_mut());
        }
    }
    attend_kept(tape, qkv, heads, sinks, rows, cache)
}

/// Attends to keys and values that are in their pages, with queries that are the first columns of
/// `q [t, _]`. Rows beyond those of `rows` give zeros. Inference only.
///
/// # Panics
/// If there are more rows than `t`, a page does not exist, or the tape records.
pub fn attend_kept(
    tape: &mut Tape<'_>,
    q: Var,
    heads: &Heads,
    sinks: Option<&Weight>,
    rows: &PagedRows,
    cache: &KvPages,
) -> Var {
    check_pages(tape, &q, rows, cache);
    assert!(heads.ahead == 0, "later keys are not in their pages yet");
    let (t, stride) = rows_cols(q.value().shape());
    let mut out = tape.activation(q.value().dtype(), &[t, heads.out_width()]);
    let mut lse = tape.device().alloc(Category::Workspace, DType::F32, &[heads.num_heads, t]);
    let num_keys: usize = rows.sequences.iter().map(|s| s.k_len).sum();
    let width = heads.num_kv_heads * heads.head_dim;
    let bytes = 2 * out.num_bytes() + 2 * cache.k.dtype().num_bytes(&[num_keys, width]);
    let work = match tape.device().target() {
        Target::Cpu => Work::Attention,
        Target::Cuda => Work::GeneralAttention,
    };
    let cost = cost("attend_paged", work, heads, &rows.sequences, 2, bytes);
    if let Some(on) = tape.device().begin(cost) {
        let q = Rows { data: q.value().view(), stride, offset: 0 };
        let kept = |tensor| Rows { data: Tensor::view(tensor), stride: width, offset: 0 };
        let (k, v) = (kept(&cache.k), kept(&cache.v));
        let sinks = sinks.map(|sinks| tape.params().resolve(sinks).view());
        let inputs = Inputs { q, k, v, sinks, pages: Some(&rows.pages) };
        on.attention(inputs, heads, &rows.sequences, out.view_mut(), lse.view_mut());
    }
    tape.push(out, false, |_, _| {})
}

fn check_pages(tape: &Tape<'_>, x: &Var, rows: &PagedRows, cache: &KvPages) {
    assert!(!tape.is_recording(), "attention over pages has no backward pass");
    let (t, _) = rows_cols(x.value().shape());
    assert!(rows.slots.len() <= t, "{} rows in a pass of {t}", rows.slots.len());
    assert!(rows.pages.iter().all(|&page| (page as usize) < cache.num_pages()));
}

/// Overhead per query, in keys: masked keys in its tiles, packing, and other work per row; measured
/// in training steps on sequences of 256 to 8,192.
const OVERHEAD_KEYS: usize = 48;

fn cost(
    name: &'static str,
    work: Work,
    heads: &Heads,
    sequences: &[Sequence],
    products: usize,
    bytes: usize,
) -> Cost {
    let pairs: usize = sequences.iter().map(|s| s.num_pairs(heads)).sum();
    let rows: usize = sequences.iter().map(|s| s.q_len).sum();
    let flops = |pairs: usize| 2 * products * pairs * heads.out_width();
    Cost::memory_bound(name, bytes)
        .with(work, flops(pairs))
        .with_padding(work, flops(rows * OVERHEAD_KEYS))
}
