//! Launches with one block per row.

use super::GatedRows;
use crate::cuda::{Arg, Gpu, Launch, Slice, Source, args};

pub(crate) static SOURCE: Source = Source {
    name: "output_gate",
    texts: &[include_str!("kernel.cu")],
    kernels: &[
        "without_gates<float>",
        "without_gates<bf16>",
        "without_gates<f16>",
        "without_gates_backward<float>",
        "without_gates_backward<bf16>",
        "without_gates_backward<f16>",
        "gate_output<float>",
        "gate_output<bf16>",
        "gate_output<f16>",
        "gate_output_backward<float>",
        "gate_output_backward<bf16>",
        "gate_output_backward<f16>",
    ],
};

/// Threads per block.
const THREADS: u32 = 256;

pub(super) fn without_gates(gpu: &Gpu, rows: GatedRows, x: Slice<'_>, y: Slice<'_>) {
    let t = y.len() / rows.ungated_width();
    assert!(x.len() == t * rows.width() && x.dtype() == y.dtype());
    launch(gpu, "without_gates", t, args![rows_arg(rows), x, y], y);
}

pub(super) fn without_gates_backward(gpu: &Gpu, rows: GatedRows, d_y: Slice<'_>, d_x: Slice<'_>) {
    let t = d_y.len() / rows.ungated_width();
    assert!(d_x.len() == t * rows.width() && d_x.dtype() == d_y.dtype());
    launch(gpu, "without_gates_backward", t, args![rows_arg(rows), d_y, d_x], d_y);
}

pub(super) fn gate(gpu: &Gpu, rows: GatedRows, attended: Slice<'_>, x: Slice<'_>, y: Slice<'_>) {
    let t = y.len() / rows.queries();
    assert!(x.len() == t * rows.width() && attended.len() == y.len());
    assert!(x.dtype() == y.dtype() && attended.dtype() == y.dtype());
    launch(gpu, "gate_output", t, args![rows_arg(rows), attended, x, y], y);
}

pub(super) fn gate_backward(
    gpu: &Gpu,
    rows: GatedRows,
    (attended, x, d_y): (Slice<'_>, Slice<'_>, Slice<'_>),
    (d_attended, d_x): (Slice<'_>, Slice<'_>),
) {
    let t = d_y.len() / rows.queries();
    assert!(x.len() == t * rows.width() && d_x.len() == x.len());
    assert!(attended.len() == d_y.len() && d_attended.len() == d_y.len());
    assert!([attended, x, d_attended, d_x].iter().all(|slice| slice.dtype() == d_y.dtype()));
    let args = args![rows_arg(rows), attended, x, d_y, d_attended, d_x];
    launch(gpu, "gate_output_backward", t, args, d_y);
}

fn launch(gpu: &Gpu, kernel: &str, t: usize, args: &[Arg], of: Slice<'_>) {
    let kernel = format!("{kernel}<{}>", of.type_name());
    gpu.launch(&SOURCE, &kernel, Launch::blocks(t, THREADS), args);
}

/// `GatedRows` in CUDA.
fn rows_arg(rows: GatedRows) -> Arg {
    let [heads, d, rest] = [rows.num_heads, rows.head_dim, rows.rest].map(|x| x as u64);
    Arg::pair(heads | d << 32, rest)
}
