//! Blocks of queries, or of keys, of each head: on tensor cores where there are such, by kernels
//! for any head otherwise.

use super::rows::check_pages;
use super::{Heads, Inputs, PAGE_ROWS, Rows, Sequence};
use crate::cuda::{Address, Arg, Gpu, Launch, Slice, Source, args};
use crate::element::{DType, View};

pub(crate) static GENERAL: Source = Source {
    name: "attention",
    texts: &[SHAPES, include_str!("kernel.cu")],
    kernels: &[
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
    ],
};

/// Needs compute capability 8.0.
pub(crate) static MMA: Source = Source {
    name: "attention_mma",
    texts: &["typedef bf16 Element;\n", SHAPES, WORDS, KERNELS],
    kernels: &OF_WIDTHS,
};

/// The same for f16.
pub(crate) static MMA_F16: Source = Source {
    name: "attention_mma_f16",
    texts: &["typedef f16 Element;\n", SHAPES, WORDS, KERNELS],
    kernels: &OF_WIDTHS,
};

const SHAPES: &str = include_str!("shapes.cuh");
const WORDS: &str = include_str!("../cuda/mma.cuh");
const KERNELS: &str = include_str!("kernel_mma.cu");
const OF_WIDTHS: [&str; 9] = [
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

/// Elements (f32) of workspace of the backward pass: `delta` of every query and head.
pub(super) fn workspace_len(heads: &Heads, t: usize) -> usize {
    heads.num_heads * t
}

/// Dimensions of the widest head that a GPU's kernels serve.
const MOST_DIMS: usize = 256;

/// Bytes of shared memory of the general kernels' three passes.
fn general_shared_bytes(head_dim: usize) -> [usize; 3] {
    // Rows of a tile are an odd number of elements apart.
    let (own, tile) = (16 * head_dim, 32 * (head_dim | 1));
    [own + tile, 2 * own + tile, 2 * own + tile].map(|floats| 4 * floats)
}

/// Dimensions of the widest head that the kernels serve on a GPU whose blocks may have so much
/// shared memory.
pub fn max_head_dim(shared_bytes: u32) -> usize {
    let fits = |&d: &usize| general_shared_bytes(d).iter().all(|&b| b <= shared_bytes as usize);
    (1..=MOST_DIMS).rev().find(fits).unwrap_or(0)
}

/// The kernels that serve a shape.
struct Kernels {
    source: &'static Source,
    /// What stands behind a kernel's name: `general<bf16>`, `mma<128>`.
    suffix: String,
    /// Queries of a block of the forward pass.
    forward_rows: usize,
    /// Queries, and keys, of a block of the backward pass.
    backward_rows: usize,
    /// Bytes of shared memory of the three passes.
    shared: [usize; 3],
}

impl Kernels {
    fn of(gpu: &Gpu, heads: &Heads, inputs: &[Rows<'_>], dtype: DType) -> Self {
        let d = heads.head_dim;
        let moved_together = |x: &Rows<'_>| {
            let address = x.data.cuda().address() + 2 * x.offset as u64;
            address.is_multiple_of(16) && x.stride.is_multiple_of(8)
        };
        let tensor_cores = matches!(dtype, DType::Bf16 | DType::F16)
            && matches!(d, 64 | 96 | 128)
            && gpu.info().compute_capability >= (8, 0)
            && inputs.iter().all(moved_together);
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

    /// Those for any head.
    fn general(heads: &Heads, dtype: DType) -> Self {
        let d = heads.head_dim;
        assert!(d <= MOST_DIMS, "heads of {d} dimensions");
        let name = dtype.in_kernels();
        Self {
            source: &GENERAL,
            suffix: format!("general<{name}>"),
            forward_rows: 16,
            backward_rows: 16,
            shared: general_shared_bytes(d),
        }
    }

    fn launch(
        &self,
        gpu: &Gpu,
        name: &str,
        (blocks, num_heads, shared): (&Blocks, usize, usize),
        args: &[Arg],
    ) {
        let grid = [blocks.num as u32, num_heads as u32, 1];
        let at = Launch { grid, threads: THREADS, shared_bytes: shared as u32 };
        gpu.launch(self.source, &format!("{name}_{}", self.suffix), at, args);
    }
}

/// Which queries, or keys, each block of threads takes, on the GPU. Their number depends on the
/// number of tokens and little else, so that one graph serves many batches: those left over take an
/// empty sequence.
struct Blocks {
    sequences: Address,
    blocks: Address,
    num: usize,
}

impl Blocks {
    /// Blocks of `rows` queries of each sequence, all of them together of `num_tokens`.
    fn new(gpu: &Gpu, sequences: &[Sequence], num_tokens: usize, rows: usize) -> Self {
        let fields = |s: &Sequence| [s.q_start, s.q_len, s.k_start, s.k_len].map(|x| x as u32);
        let mut words: Vec<u32> = sequences.iter().flat_map(fields).collect();
        let of_sequence = |(i, s): (usize, &Sequence)| {
            let starts = (0..s.q_len).step_by(rows);
            starts.map(move |first| [i as u32, first as u32])
        };
        let mut blocks: Vec<[u32; 2]> =
            sequences.iter().enumerate().flat_map(of_sequence).collect();
        // Queries that see most go first, so that none of them is left when the rest is done.
        blocks.sort_by_key(|&[_, first]| std::cmp::Reverse(first));
        // Each sequence but one may add a block that is not full.
        let most_sequences = sequences.len().next_power_of_two();
        let num = num_tokens.div_ceil(rows) + most_sequences - 1;
        words.resize(4 * (most_sequences + 1), 0);
        assert!(blocks.len() <= num);
        blocks.resize(num, [most_sequences as u32, 0]);
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
    // Only the kernels for any head look pages up: an answer has too few rows for tensor cores.
    let kernels = match inputs.pages {
        None => Kernels::of(gpu, heads, &[inputs.q, inputs.k, inputs.v], out.dtype()),
        Some(_) => Kernels::general(heads, out.dtype()),
    };
    let blocks = Blocks::new(gpu, sequences, num_tokens, kernels.forward_rows);
    let out = rows(out, heads.out_width(), 0);
    let (q, k, v) = (rows_of(inputs.q), rows_of(inputs.k), rows_of(inputs.v));
    let (words, tokens) = (of_heads(heads), num_tokens as u32);
    let mut args =
        args![q, k, v, words, blocks.sequences, blocks.blocks, out, lse, tokens].to_vec();
    if std::ptr::eq(kernels.source, &GENERAL) {
        args.push(inputs.pages.map_or(0, |pages| gpu.upload(pages)).into());
        args.push((PAGE_ROWS as u32).into());
    }
    let of = (&blocks, heads.num_heads, kernels.shared[0]);
    kernels.launch(gpu, "attention_forward", of, &args);
}

pub(super) fn backward(
    gpu: &Gpu,
    qkv: Slice<'_>,
    heads: &Heads,
    sequences: &[Sequence],
    (out, lse): (Slice<'_>, Slice<'_>),
    d_out: Slice<'_>,
    (d_qkv, delta): (Slice<'_>, Slice<'_>),
) {
    let num_tokens = qkv.len() / heads.qkv_width();
    check(sequences, num_tokens);
    // Queries and keys are the same rows, so one list of blocks serves both.
    assert!(sequences.iter().all(|s| s.q_start == s.k_start && s.q_len == s.k_len));
    assert!(delta.len() >= heads.num_heads * num_tokens);
    zero_unused(gpu, sequences, num_tokens, d_qkv);
    let (words, tokens) = (of_heads(heads), num_tokens as u32);
    let of_out = |slice| Rows { data: View::Cuda(slice), stride: heads.out_width(), offset: 0 };
    let (out, d_out) = (of_out(out), of_out(d_out));
    let warps = THREADS as usize / 32;
    let grid = [num_tokens.div_ceil(warps) as u32, heads.num_heads as u32, 1];
    let at = Launch { grid, threads: THREADS, shared_bytes: 0 };
    let args = args![rows_of(out), rows_of(d_out), words, delta, tokens];
    gpu.launch(&GENERAL, &format!("attention_delta<{}>", qkv.type_name()), at, args);

    let Inputs { q, k, v, .. } = Inputs::packed(View::Cuda(qkv), heads);
    let d = Inputs::packed(View::Cuda(d_qkv), heads);
    let kernels = Kernels::of(gpu, heads, &[q, k, v, d_out], qkv.dtype());
    let blocks = Blocks::new(gpu, sequences, num_tokens, kernels.backward_rows);
    let (q, k, v, d_out) = (rows_of(q), rows_of(k), rows_of(v), rows_of(d_out));
    let (of_sequences, of_blocks) = (blocks.sequences, blocks.blocks);
    let (d_k, d_v, d_q) = (rows_of(d.k), rows_of(d.v), rows_of(d.q));
    let args = args![q, k, v, d_out, lse, delta, words, of_sequences, of_blocks, d_k, d_v, tokens];
    let of = (&blocks, heads.num_kv_heads, kernels.shared[1]);
    kernels.launch(gpu, "attention_backward_kv", of, args);
    let args = args![q, k, v, d_out, lse, delta, words, of_sequences, of_blocks, d_q, tokens];
    let of = (&blocks, heads.num_heads, kernels.shared[2]);
    kernels.launch(gpu, "attention_backward_q", of, args);
}

fn check(sequences: &[Sequence], num_tokens: usize) {
    assert!(sequences.iter().all(|s| s.q_start + s.q_len <= num_tokens && s.q_len <= s.k_len));
}

/// Rows of no sequence are zero.
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

fn of_heads(heads: &Heads) -> Arg {
    let window = heads.window.map_or(u32::MAX, |window| window as u32);
    let (group, d, scale) = (heads.group() as u64, heads.head_dim as u64, heads.scale.to_bits());
    Arg::pair(group | d << 32, u64::from(window) | u64::from(scale) << 32)
}
