//! Logits of some rows at a time, by a product, and what is made of them.

use super::{Inputs, Outputs};
use crate::cuda::{Address, Gpu, Launch, Matmul, Operand, Operands, Slice, Source, args};
use crate::element::DType;
use crate::gemm;

pub(crate) static SOURCE: Source = Source {
    name: "head",
    texts: &[include_str!("kernel.cu")],
    kernels: &[
        "head_softmax_stats",
        "head_probabilities<float>",
        "head_probabilities<bf16>",
        "head_probabilities<f16>",
        "head_direction<float,float>",
        "head_direction<float,bf16>",
        "head_direction<float,f16>",
        "head_direction<float,Int8Rows>",
        "head_direction<bf16,float>",
        "head_direction<bf16,bf16>",
        "head_direction<bf16,f16>",
        "head_direction<bf16,Int8Rows>",
        "head_direction<f16,float>",
        "head_direction<f16,bf16>",
        "head_direction<f16,f16>",
        "head_direction<f16,Int8Rows>",
        "head_d_logits<float>",
        "head_d_logits<bf16>",
        "head_d_logits<f16>",
        "head_backward<float>",
        "head_backward<bf16>",
        "head_backward<f16>",
    ],
};

/// Rows whose logits exist at a time: enough for products to run at full speed.
pub const MOST_ROWS: usize = 512;

/// Threads of a block that takes a row.
const THREADS: u32 = 256;

/// Elements (f32) of workspace for `n` rows, with or without directions.
pub fn workspace_len(
    n: usize,
    hidden_size: usize,
    vocab_size: usize,
    dtype: DType,
    direction: bool,
) -> usize {
    let logits = weight_workspace_len(n, vocab_size, dtype);
    if direction { logits + padded(n * hidden_size) } else { padded(n * vocab_size) }
}

/// Elements (f32) of workspace for the gradient of a trained head's weight from `n` rows.
pub fn weight_workspace_len(n: usize, vocab_size: usize, dtype: DType) -> usize {
    padded(n * vocab_size) + in_compute_type(n * vocab_size, dtype)
}

/// Elements (f32) beside the logits for as many in the compute type: none where that is f32, since
/// they take the logits' place.
fn in_compute_type(len: usize, dtype: DType) -> usize {
    if dtype == DType::F32 { 0 } else { padded(len.div_ceil(2)) }
}

/// So that each part of the workspace begins where cuBLASLt likes it.
fn padded(len: usize) -> usize {
    len.next_multiple_of(64)
}

/// The parts of a workspace.
struct Parts {
    logits: Address,
    /// Probabilities, or derivatives, in the compute type.
    of_logits: Address,
    mean: Address,
}

impl Parts {
    fn new(workspace: Slice<'_>, n: usize, v: usize, dtype: DType) -> Self {
        let logits = workspace.address();
        let after = logits + 4 * padded(n * v) as u64;
        let of_logits = if dtype == DType::F32 { logits } else { after };
        Self { logits, of_logits, mean: after + 4 * in_compute_type(n * v, dtype) as u64 }
    }
}

pub(super) fn forward(gpu: &Gpu, inputs: Inputs<'_>, workspace: Slice<'_>, outputs: Outputs<'_>) {
    let (n, h) = (inputs.targets.len(), inputs.hidden_size);
    let (x, weight) = (inputs.x.cuda(), inputs.weight.cuda());
    let (v, dtype) = (weight.len() / h, x.dtype());
    assert!(inputs.targets.iter().all(|&target| (target as usize) < v));
    assert!(workspace.len() >= workspace_len(n, h, v, dtype, outputs.direction.is_some()));
    let parts = Parts::new(workspace, n, v, dtype);
    let held = gemm::cuda::as_type(gpu, dtype, weight);
    logits(gpu, (n, v, h), (x, held), parts.logits);
    let (log_probs, lse) = (outputs.log_probs.cuda().f32(), outputs.lse.cuda().f32());
    let targets = gpu.upload(inputs.targets);
    let by_row = Launch::blocks(n, THREADS);
    let args = args![parts.logits, v, targets, log_probs, lse];
    gpu.launch(&SOURCE, "head_softmax_stats", by_row, args);
    let Some(direction) = outputs.direction else { return };
    let direction = direction.cuda();
    let kernel = format!("head_probabilities<{}>", x.type_name());
    let args = args![parts.logits, lse, targets, v, parts.of_logits];
    gpu.launch(&SOURCE, &kernel, over_logits(n, v), args);
    gpu.matmul(Matmul {
        m: n,
        n: h,
        k: v,
        operands: Operands::Floats(dtype),
        a: row_major(parts.of_logits, v),
        b: row_major(held.address(), h),
        c: None,
        d: row_major(parts.mean, h),
        d_dtype: DType::F32,
        alpha: 1.0,
    });
    let kernel = format!("head_direction<{},{}>", x.type_name(), weight.type_name());
    gpu.launch(
        &SOURCE,
        &kernel,
        by_row,
        args![parts.mean, weight, targets, log_probs, h, direction],
    );
}

pub(super) fn backward(
    gpu: &Gpu,
    direction: Slice<'_>,
    rows: &[u32],
    d_log_probs: Slice<'_>,
    h: usize,
    d_x: Slice<'_>,
) {
    gpu.zero(d_x);
    let kernel = format!("head_backward<{}>", d_x.type_name());
    let at = Launch::blocks(rows.len(), 128);
    gpu.launch(&SOURCE, &kernel, at, args![direction, gpu.upload(rows), d_log_probs, h, d_x]);
}

pub(super) fn backward_weight(
    gpu: &Gpu,
    inputs: Inputs<'_>,
    (lse, d_log_probs): (Slice<'_>, Slice<'_>),
    workspace: Slice<'_>,
    d_w: Slice<'_>,
) {
    let (n, h) = (inputs.targets.len(), inputs.hidden_size);
    let (x, weight) = (inputs.x.cuda(), inputs.weight.cuda());
    let (v, dtype) = (weight.len() / h, x.dtype());
    assert!(workspace.len() >= weight_workspace_len(n, v, dtype) && d_w.len() >= v * h);
    let parts = Parts::new(workspace, n, v, dtype);
    let held = gemm::cuda::as_type(gpu, dtype, weight);
    logits(gpu, (n, v, h), (x, held), parts.logits);
    let kernel = format!("head_d_logits<{}>", x.type_name());
    let targets = gpu.upload(inputs.targets);
    let args = args![parts.logits, lse, targets, d_log_probs, v, parts.of_logits];
    gpu.launch(&SOURCE, &kernel, over_logits(n, v), args);
    gpu.matmul(Matmul {
        m: v,
        n: h,
        k: n,
        operands: Operands::Floats(dtype),
        a: row_major(parts.of_logits, v).transposed(),
        b: row_major(x.address(), h),
        c: Some(d_w.address()),
        d: row_major(d_w.address(), h),
        d_dtype: DType::F32,
        alpha: 1.0,
    });
}

/// `logits [n, v] = x Wᵀ`, f32.
fn logits(
    gpu: &Gpu,
    (n, v, h): (usize, usize, usize),
    (x, weight): (Slice<'_>, Slice<'_>),
    logits: Address,
) {
    gpu.matmul(Matmul {
        m: n,
        n: v,
        k: h,
        operands: Operands::Floats(x.dtype()),
        a: row_major(x.address(), h),
        b: row_major(weight.address(), h).transposed(),
        c: None,
        d: row_major(logits, v),
        d_dtype: DType::F32,
        alpha: 1.0,
    });
}

fn row_major(address: Address, cols: usize) -> Operand {
    Operand { address, row_stride: cols, col_stride: 1 }
}

/// Rows along y, and enough threads for four columns each.
fn over_logits(n: usize, v: usize) -> Launch {
    let Launch { grid: [x, ..], threads, shared_bytes } = Launch::elements(v.div_ceil(4));
    Launch { grid: [x, n as u32, 1], threads, shared_bytes }
}
