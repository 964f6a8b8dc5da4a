//! Logits of many rows and one panel of the vocabulary at a time, by a matmul, followed by the
//! kernels that use them. As in attention, the mean of the weight's rows is accumulated panel by
//! panel, so that each panel is read, and converted if necessary, only once.

use super::{Inputs, Logits, Outputs, Saved, Sizes};
use crate::cuda::{Address, Arg, Gpu, Launch, Matmul, Operand, Operands, Slice, Source, args};
use crate::element::DType;
use crate::format::Storage;
use crate::gemm;
use crate::vector;

pub(crate) static SOURCE: Source = Source {
    name: "head",
    texts: &[include_str!("direction.cuh"), include_str!("kernel.cu")],
    kernels: &[
        "head_update_softmax<float>",
        "head_update_softmax<bf16>",
        "head_update_softmax<f16>",
        "head_rescale",
        "head_finish",
        "head_direction<float,float>",
        "head_direction<float,bf16>",
        "head_direction<float,f16>",
        "head_direction<bf16,float>",
        "head_direction<bf16,bf16>",
        "head_direction<bf16,f16>",
        "head_direction<f16,float>",
        "head_direction<f16,bf16>",
        "head_direction<f16,f16>",
        "head_d_logits<float>",
        "head_d_logits<bf16>",
        "head_d_logits<f16>",
        "head_fill",
        "head_logits",
        "head_backward<float>",
        "head_backward<bf16>",
        "head_backward<f16>",
    ],
};

/// Maximum rows whose logits exist at a time.
pub(super) const MAX_ROWS: usize = 4096;

/// Tokens of the vocabulary whose logits exist at a time: enough for matmuls to run at full speed.
pub(super) const PANEL: usize = 8192;

/// Row counts of matmuls are rounded up to a multiple of this.
const ROW_MULTIPLE: usize = 64;

/// Threads per block; one block per row.
const THREADS: u32 = 256;

/// Elements (f32) of workspace, with or without directions.
pub(super) fn workspace_len(sizes: Sizes, direction: bool) -> usize {
    let Sizes { rows, hidden_size, .. } = sizes;
    let mean = if direction { padded(rows * hidden_size) } else { 0 };
    weight_workspace_len(sizes) + padded(4 * rows) + mean
}

/// Elements (f32) of workspace for the gradient of a trained head's weight.
pub(super) fn weight_workspace_len(sizes: Sizes) -> usize {
    let len = sizes.rows * sizes.vocab_size.min(PANEL);
    padded(len) + compute_type_len(len, sizes.dtype)
}

/// Scratch bytes for converting a panel of a weight to the type of the hidden states.
pub(super) fn panel_bytes(storage: Storage, sizes: Sizes) -> usize {
    let Sizes { hidden_size, vocab_size, dtype, .. } = sizes;
    gemm::cuda::converted_bytes(storage, dtype, vocab_size.min(PANEL) * hidden_size)
}

/// Elements (f32) of workspace for `len` elements of the compute type; none if that is f32, since
/// they overwrite the logits.
fn compute_type_len(len: usize, dtype: DType) -> usize {
    if dtype == DType::F32 { 0 } else { padded(len.div_ceil(2)) }
}

/// Aligns each part of the workspace for cuBLASLt.
fn padded(len: usize) -> usize {
    len.next_multiple_of(64)
}

/// The parts of a workspace.
struct Parts {
    logits: Address,
    /// Computed from the logits, in the compute type: weights of the mean, or their gradients.
    derived: Address,
    state: Address,
    mean: Address,
}

impl Parts {
    fn new(workspace: Slice<'_>, n: usize, v: usize, dtype: DType) -> Self {
        let (logits, len) = (workspace.address(), n * v.min(PANEL));
        let after = logits + 4 * padded(len) as u64;
        let derived = if dtype == DType::F32 { logits } else { after };
        let state = after + 4 * compute_type_len(len, dtype) as u64;
        Self { logits, derived, state, mean: state + 4 * padded(4 * n) as u64 }
    }
}

/// Rows `first..first + width` of the head's weight in the compute type.
struct Panel {
    first: usize,
    width: usize,
    address: Address,
}

/// The panels of a weight `[v, h]`, converted into one buffer if the weight has another type.
fn panels<'a>(
    gpu: &'a Gpu,
    dtype: DType,
    weight: Slice<'a>,
    (v, h): (usize, usize),
) -> impl Iterator<Item = Panel> + 'a {
    let sizes = Sizes { rows: 0, hidden_size: h, vocab_size: v, dtype };
    let bytes = panel_bytes(weight.storage(), sizes);
    let converted = (bytes > 0).then(|| gpu.scratch(bytes));
    (0..v).step_by(PANEL).map(move |first| {
        let width = PANEL.min(v - first);
        let address = match converted {
            None => weight.part(first * h, 0).address(),
            Some(address) => {
                let to = Slice::new(address, dtype, width * h, h);
                vector::cuda::convert_rows(gpu, weight, (first, h), to);
                address
            }
        };
        Panel { first, width, address }
    })
}

pub(super) fn forward(gpu: &Gpu, inputs: Inputs<'_>, workspace: Slice<'_>, outputs: Outputs<'_>) {
    let (n, h) = (inputs.targets.len(), inputs.hidden_size);
    let (x, weight) = (inputs.x.cuda(), inputs.weight.cuda());
    let (v, dtype) = (weight.len() / h, x.dtype());
    inputs.check_bias(v);
    assert!(inputs.targets.iter().all(|&target| (target as usize) < v));
    let max_rows = x.len() / h;
    let sizes = Sizes { rows: max_rows, hidden_size: h, vocab_size: v, dtype };
    assert!(workspace.len() >= workspace_len(sizes, outputs.direction.is_some()));
    // The number of rows with a target varies from step to step, and cuBLASLt searches for an
    // algorithm for each count: padding rows are multiplied too, to keep the counts few.
    let rows = n.next_multiple_of(ROW_MULTIPLE).min(max_rows);
    let parts = Parts::new(workspace, rows, v, dtype);
    let (log_probs, lse) = (outputs.log_probs.cuda().f32(), outputs.lse.cuda().f32());
    let targets = gpu.upload(inputs.targets);
    let by_row = Launch::blocks(n, THREADS);
    let weights = if outputs.direction.is_some() { parts.derived } else { 0 };
    let shape = logits_arg(inputs.logits);
    for Panel { first, width, address } in panels(gpu, dtype, weight, (v, h)) {
        let bias = inputs.bias.map(|bias| bias.cuda().f32().part(first, width));
        logits(gpu, [rows, width, h], x, (address, bias), parts.logits);
        let args = args![parts.logits, shape, width, first, targets, parts.state, weights];
        gpu.launch(&SOURCE, &format!("head_update_softmax<{}>", x.type_name()), by_row, args);
        if weights == 0 {
            continue;
        }
        if first > 0 {
            gpu.launch(&SOURCE, "head_rescale", by_row, args![parts.mean, parts.state, h]);
        }
        gpu.matmul(Matmul {
            m: rows,
            n: h,
            k: width,
            operands: Operands::Floats(dtype),
            a: row_major(weights, width),
            b: row_major(address, h),
            c: (first > 0).then_some(parts.mean),
            d: row_major(parts.mean, h),
            d_dtype: DType::F32,
            alpha: 1.0,
        });
    }
    let args = args![parts.state, n, log_probs, lse];
    gpu.launch(&SOURCE, "head_finish", Launch::elements(n), args);
    let Some(direction) = outputs.direction else { return };
    let kernel = format!("head_direction<{},{}>", x.type_name(), weight.type_name());
    let direction = direction.cuda();
    let args = args![parts.mean, shape, weight, targets, parts.state, log_probs, lse, h, direction];
    gpu.launch(weight.storage().source().unwrap_or(&SOURCE), &kernel, by_row, args);
}

/// Replaces products by logits.
pub(super) fn bound_logits(gpu: &Gpu, logits: Logits, products: Slice<'_>) {
    let args = args![products, logits_arg(logits), products.len()];
    gpu.launch(&SOURCE, "head_logits", Launch::elements(products.len().div_ceil(4)), args);
}

/// `Logits` in CUDA.
fn logits_arg(Logits { scale, softcap }: Logits) -> Arg {
    let softcap = softcap.map_or(0.0, |cap| cap.0);
    Arg::pair(u64::from(scale.to_bits()) | u64::from(softcap.to_bits()) << 32, 0)
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
    saved: Saved<'_>,
    d_log_probs: Slice<'_>,
    workspace: Slice<'_>,
    (d_w, d_bias): (Slice<'_>, Option<Slice<'_>>),
) {
    let (n, h) = (inputs.targets.len(), inputs.hidden_size);
    let (x, weight) = (inputs.x.cuda(), inputs.weight.cuda());
    let (v, dtype) = (weight.len() / h, x.dtype());
    let sizes = Sizes { rows: n, hidden_size: h, vocab_size: v, dtype };
    assert!(workspace.len() >= weight_workspace_len(sizes) && d_w.len() >= v * h);
    let parts = Parts::new(workspace, n, v, dtype);
    let (log_probs, lse) = (saved.log_probs.cuda().f32(), saved.lse.cuda().f32());
    let targets = gpu.upload(inputs.targets);
    let (kernel, shape) = (format!("head_d_logits<{}>", x.type_name()), logits_arg(inputs.logits));
    for Panel { first, width, address } in panels(gpu, dtype, weight, (v, h)) {
        let bias = inputs.bias.map(|bias| bias.cuda().f32().part(first, width));
        logits(gpu, [n, width, h], x, (address, bias), parts.logits);
        let (from, to) = (parts.logits, parts.derived);
        let args = args![from, shape, width, first, targets, log_probs, lse, d_log_probs, to];
        gpu.launch(&SOURCE, &kernel, over_logits(n, width), args);
        if let Some(d_bias) = d_bias {
            let d_logits = Slice::new(to, dtype, n * width, width);
            let sums = d_bias.part(first, width);
            vector::cuda::add_column_sums(gpu, d_logits, width, 0, sums);
        }
        let rows = d_w.part(first * h, 0).address();
        gpu.matmul(Matmul {
            m: width,
            n: h,
            k: n,
            operands: Operands::Floats(dtype),
            a: row_major(parts.derived, width).transposed(),
            b: row_major(x.address(), h),
            c: Some(rows),
            d: row_major(rows, h),
            d_dtype: DType::F32,
            alpha: 1.0,
        });
    }
}

/// `logits [n, v] = x Wᵀ`, plus the bias, f32.
fn logits(
    gpu: &Gpu,
    [n, v, h]: [usize; 3],
    x: Slice<'_>,
    (weight, bias): (Address, Option<Slice<'_>>),
    logits: Address,
) {
    if let Some(bias) = bias {
        gpu.launch(&SOURCE, "head_fill", over_logits(n, v), args![bias, v, logits]);
    }
    gpu.matmul(Matmul {
        m: n,
        n: v,
        k: h,
        operands: Operands::Floats(x.dtype()),
        a: row_major(x.address(), h),
        b: row_major(weight, h).transposed(),
        c: bias.map(|_| logits),
        d: row_major(logits, v),
        d_dtype: DType::F32,
        alpha: 1.0,
    });
}

fn row_major(address: Address, cols: usize) -> Operand {
    Operand { address, row_stride: cols, col_stride: 1 }
}

/// Rows along y; four columns per thread along x.
fn over_logits(n: usize, v: usize) -> Launch {
    let Launch { grid: [x, ..], threads, shared_bytes } = Launch::elements(v.div_ceil(4));
    Launch { grid: [x, n as u32, 1], threads, shared_bytes }
}
