//! Launches with one block of threads per block of queries, or keys, and head: on tensor cores if
//! possible, otherwise with general kernels.

use super::rows::check_pages;
use super::{Gradients, Heads, Inputs, PAGE_ROWS, Rows, Saved, Sequence};
use crate::cuda::{Address, Arg, Gpu, Launch, Slice, Source, args};
use crate::element::DType;
use crate::view::View;

pub(crate) static GENERAL: Source = Source {
    name: "attention",
    texts: &["#define MAX_HEAD_DIM 256\n", SHAPES, GENERAL_KERNELS],
    kernels: &GENERAL_NAMES,
};

/// The same for wider heads, whose sums take twice the registers.
pub(crate) static WIDE: Source = Source {
    name: "attention_wide",
    texts: &["#define MAX_HEAD_DIM 512\n", SHAPES, GENERAL_KERNELS],
    kernels: &GENERAL_NAMES,
};

const GENERAL_KERNELS: &str = include_str!("kernel.cu");
const GENERAL_NAMES: [&str; 13] = [
    "attention_forward_general<float>",
    "attention_forward_general<bf16>",
    "attention_forward_general<f16>",
    "attention_delta<float>",
    "attention_delta<bf16>",
    "attention_delta<f16>",
    "attention_backward_kv_general<float>",
    "attention_backward_kv_general<bf16>",
    "attention_backward_kv_general<f16>",
    "attention_backward_q_general<float>",
    "attention_backward_q_general<bf16>",
    "attention_backward_q_general<f16>",
    "attention_backward_sinks",
];

/// Tensor-core kernels for bf16; need compute capability 8.0.
pub(crate) static MMA: Source = Source {
    name: "attention_mma",
    texts: &["typedef bf16 Element;\n", SHAPES, PRIMITIVES, KERNELS],
    kernels: &MMA_KERNELS,
};

/// Tensor-core kernels for f16.
pub(crate) static MMA_F16: Source = Source {
    name: "attention_mma_f16",
    texts: &["typedef f16 Element;\n", SHAPES, PRIMITIVES, KERNELS],
    kernels: &MMA_KERNELS,
};

const SHAPES: &str = include_str!("shapes.cuh");
const PRIMITIVES: &str = include_str!("../cuda/mma.cuh");
const KERNELS: &str = include_str!("kernel_mma.cu");
const MMA_KERNELS: [&str; 9] = [
    "attention_forward_mma<64>",
    "attention_forward_mma<96>",
    "attention_forward_mma<128>",
    "attention_backward_kv_mma<64>",
    "attention_backward_kv_mma<96>",
    "attention_backward_kv_mma<128>",
    "attention_backward_q_mma<64>",
    "attention_backward_q_mma<96>",
    "attention_backward_q_mma<128>",
];

/// Threads of a block.
const THREADS: u32 = 128;

/// Elements (f32) of workspace of the backward pass: `delta` for every query and head.
pub(super) fn workspace_len(heads: &Heads, t: usize) -> usize {
    heads.num_heads * t
}

/// Largest head dimension that the general kernels support, and the narrower ones of them.
const MAX_HEAD_DIM: usize = 512;
const NARROW: usize = 256;

/// Bytes of shared memory of the general kernels, for each [`Pass`].
fn general_shared_bytes(head_dim: usize) -> [usize; 3] {
    // The stride of a tile's rows is odd.
    let (own, tile) = (16 * head_dim, 32 * (head_dim | 1));
    [own + tile, 2 * own + tile, 2 * own + tile].map(|floats| 4 * floats)
}

/// Largest head dimension that the kernels support on a GPU with this much shared memory per block.
pub fn max_head_dim(shared_bytes: u32) -> usize {
    let fits = |&d: &usize| general_shared_bytes(d).iter().all(|&b| b <= shared_bytes as usize);
    (1..=MAX_HEAD_DIM).rev().find(fits).unwrap_or(0)
}

/// Whether there are kernels for these heads that use tensor cores, on a GPU that has what they
/// need.
pub(super) fn suits_tensor_cores(heads: &Heads, dtype: DType) -> bool {
    matches!(dtype, DType::Bf16 | DType::F16)
        && heads.softcap.is_none()
        && heads.ahead == 0
        && matches!(heads.head_dim, 64 | 96 | 128)
}

/// The kernels for a shape.
struct Kernels {
    source: &'static Source,
    /// Suffix of kernel names: `general<bf16>`, `mma<128>`.
    suffix: String,
    /// Queries per block in the forward pass.
    forward_rows: usize,
    /// Queries, and keys, per block in the backward passes.
    backward_rows: usize,
    /// Bytes of shared memory of each [`Pass`].
    shared: [usize; 3],
}

impl Kernels {
    fn of(gpu: &Gpu, heads: &Heads, inputs: &[Rows<'_>], dtype: DType) -> Self {
        let d = heads.head_dim;
        let is_aligned = |x: &Rows<'_>| {
            let address = x.data.cuda().address() + 2 * x.offset as u64;
            address.is_multiple_of(16) && x.stride.is_multiple_of(8)
        };
        let tensor_cores = suits_tensor_cores(heads, dtype)
            && gpu.info().compute_capability >= (8, 0)
            && inputs.iter().all(is_aligned);
        if tensor_cores {
            let keys = if d == 64 { 64 } else { 32 };
            return Self {
                source: if dtype == DType::Bf16 { &MMA } else { &MMA_F16 },
                suffix: format!("mma<{d}>"),
                forward_rows: 128,
                backward_rows: 64,
                shared: [512 * d, 128 * d + keys * (8 * d + 16), 512 * d],
            };
        }
        Self::general(heads, dtype)
    }

    /// The kernels for any head.
    fn general(heads: &Heads, dtype: DType) -> Self {
        let d = heads.head_dim;
        assert!(d <= MAX_HEAD_DIM, "head dimension {d} is not supported");
        let name = dtype.in_kernels();
        Self {
            source: if d <= NARROW { &GENERAL } else { &WIDE },
            suffix: format!("general<{name}>"),
            forward_rows: 16,
            backward_rows: 16,
            shared: general_shared_bytes(d),
        }
    }

    /// Launches a pass for `num_heads` heads.
    fn launch(&self, gpu: &Gpu, pass: Pass, blocks: &Blocks, num_heads: usize, args: &[Arg]) {
        let grid = [blocks.num as u32, num_heads as u32, 1];
        let shared_bytes = self.shared[pass as usize] as u32;
        let at = Launch { grid, threads: THREADS, shared_bytes };
        let name = match pass {
            Pass::Forward => "forward",
            Pass::BackwardKv => "backward_kv",
            Pass::BackwardQ => "backward_q",
        };
        gpu.launch(self.source, &format!("attention_{name}_{}", self.suffix), at, args);
    }
}

#[derive(Clone, Copy)]
enum Pass {
    Forward,
    BackwardKv,
    BackwardQ,
}

/// The queries, or keys, of each block of threads, on the GPU. The number of blocks depends on
/// little else than the number of tokens, so that one graph serves many batches: surplus blocks get
/// an empty sequence.
struct Blocks {
    sequences: Address,
    blocks: Address,
    num: usize,
}

impl Blocks {
    /// Blocks of `rows` queries of each sequence; `num_tokens` in all.
    fn new(gpu: &Gpu, sequences: &[Sequence], num_tokens: usize, rows: usize) -> Self {
        let fields = |s: &Sequence| [s.q_start, s.q_len, s.k_start, s.k_len].map(|x| x as u32);
        let mut words: Vec<u32> = sequences.iter().flat_map(fields).collect();
        let sequence_blocks = |(i, s): (usize, &Sequence)| {
            let starts = (0..s.q_len).step_by(rows);
            starts.map(move |first| [i as u32, first as u32])
        };
        let mut blocks: Vec<[u32; 2]> =
            sequences.iter().enumerate().flat_map(sequence_blocks).collect();
        // Queries with the most keys first, so that none of them runs last.
        blocks.sort_by_key(|&[_, first]| std::cmp::Reverse(first));
        // Each sequence but one may add a partial block.
        let max_sequences = sequences.len().next_power_of_two();
        let num = num_tokens.div_ceil(rows) + max_sequences - 1;
        words.resize(4 * (max_sequences + 1), 0);
        assert!(blocks.len() <= num);
        blocks.resize(num, [max_sequences as u32, 0]);
        Self { sequences: gpu.upload(&words), blocks: gpu.upload(blocks.as_flattened()), num }
    }
}

pub(super) fn forward(
    gpu: &Gpu,
    inputs: Inputs<'_>,
    heads: &Heads,
    sequences: &[Sequence],
    out: Slice<'_>,
    lse: Slice<'_>,
) {
    let num_tokens = out.len() / heads.out_width();
    check(sequences, num_tokens);
    zero_unused(gpu, sequences, num_tokens, out);
    check_pages(&inputs, sequences);
    // Only the general kernels support pages: decoding has too few rows for tensor cores.
    let kernels = match inputs.pages {
        None => Kernels::of(gpu, heads, &[inputs.q, inputs.k, inputs.v], out.dtype()),
        Some(_) => Kernels::general(heads, out.dtype()),
    };
    let blocks = Blocks::new(gpu, sequences, num_tokens, kernels.forward_rows);
    let out = rows(out, heads.out_width(), 0);
    let (q, k, v) = (rows_of(inputs.q), rows_of(inputs.k), rows_of(inputs.v));
    let (heads_arg, tokens) = (heads_arg(heads), num_tokens as u32);
    let sinks = inputs.sinks.map_or(0, |sinks| sinks.cuda().f32().address());
    let Blocks { sequences, blocks: list, .. } = blocks;
    let mut args = args![q, k, v, heads_arg, sequences, list, out, lse, tokens, sinks].to_vec();
    if *kernels.source == GENERAL || *kernels.source == WIDE {
        args.push(inputs.pages.map_or(0, |pages| gpu.upload(pages)).into());
        args.push((PAGE_ROWS as u32).into());
    }
    kernels.launch(gpu, Pass::Forward, &blocks, heads.num_heads, &args);
}

pub(super) fn backward(
    gpu: &Gpu,
    saved: Saved<'_>,
    heads: &Heads,
    sequences: &[Sequence],
    d_out: Slice<'_>,
    Gradients { d_qkv, sinks }: Gradients<'_>,
    delta: Slice<'_>,
) {
    let d_qkv = d_qkv.cuda();
    let (qkv, out, lse) = (saved.qkv.cuda(), saved.out.cuda(), saved.lse.cuda().f32());
    let num_tokens = qkv.len() / heads.qkv_width();
    check(sequences, num_tokens);
    // Queries and keys are the same rows, so one list of blocks serves both.
    assert!(sequences.iter().all(|s| s.q_start == s.k_start && s.q_len == s.k_len));
    assert!(delta.len() >= heads.num_heads * num_tokens);
    zero_unused(gpu, sequences, num_tokens, d_qkv);
    let (heads_arg, tokens) = (heads_arg(heads), num_tokens as u32);
    let out_rows = |slice| Rows { data: View::Cuda(slice), stride: heads.out_width(), offset: 0 };
    let (out, d_out) = (out_rows(out), out_rows(d_out));
    let warps = THREADS as usize / 32;
    let grid = [num_tokens.div_ceil(warps) as u32, heads.num_heads as u32, 1];
    let at = Launch { grid, threads: THREADS, shared_bytes: 0 };
    let args = args![rows_of(out), rows_of(d_out), heads_arg, delta, tokens];
    gpu.launch(&GENERAL, &format!("attention_delta<{}>", qkv.type_name()), at, args);

    let Inputs { q, k, v, .. } = Inputs::packed(View::Cuda(qkv), heads);
    let d = Inputs::packed(View::Cuda(d_qkv), heads);
    let kernels = Kernels::of(gpu, heads, &[q, k, v, d_out], qkv.dtype());
    let blocks = Blocks::new(gpu, sequences, num_tokens, kernels.backward_rows);
    let (q, k, v, d_out) = (rows_of(q), rows_of(k), rows_of(v), rows_of(d_out));
    let (d_k, d_v, d_q) = (rows_of(d.k), rows_of(d.v), rows_of(d.q));
    let Blocks { sequences, blocks: list, .. } = blocks;
    let args = args![q, k, v, d_out, lse, delta, heads_arg, sequences, list, d_k, d_v, tokens];
    kernels.launch(gpu, Pass::BackwardKv, &blocks, heads.num_kv_heads, args);
    let args = args![q, k, v, d_out, lse, delta, heads_arg, sequences, list, d_q, tokens];
    kernels.launch(gpu, Pass::BackwardQ, &blocks, heads.num_heads, args);
    if let Some((sinks, d_sinks)) = sinks {
        let args = args![sinks.cuda().f32(), lse, delta, tokens, d_sinks.cuda().f32()];
        let at = Launch { grid: [heads.num_heads as u32, 1, 1], threads: 256, shared_bytes: 0 };
        gpu.launch(&GENERAL, "attention_backward_sinks", at, args);
    }
}

fn check(sequences: &[Sequence], num_tokens: usize) {
    assert!(sequences.iter().all(|s| s.q_start + s.q_len <= num_tokens && s.q_len <= s.k_len));
}

/// Zeroes the output if some of its rows belong to no sequence.
fn zero_unused(gpu: &Gpu, sequences: &[Sequence], num_tokens: usize, out: Slice<'_>) {
    let used: usize = sequences.iter().map(|s| s.q_len).sum();
    if used < num_tokens {
        gpu.zero(out);
    }
}

fn rows(data: Slice<'_>, stride: usize, offset: usize) -> Arg {
    Arg::pair(data.part(offset, 0).address(), stride as u64)
}

fn rows_of(x: Rows<'_>) -> Arg {
    rows(x.data.cuda(), x.stride, x.offset)
}

/// `Heads` in CUDA.
fn heads_arg(heads: &Heads) -> Arg {
    let words = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
    let window = heads.window.map_or(u32::MAX, |window| window as u32);
    let ahead = u32::try_from(heads.ahead).unwrap_or(u32::MAX);
    let softcap = heads.softcap.map_or(0.0, |cap| cap.0).to_bits();
    Arg::words([
        words(heads.group() as u32, heads.head_dim as u32),
        words(window, ahead),
        words(heads.scale.to_bits(), softcap),
    ])
}
