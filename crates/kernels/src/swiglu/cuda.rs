//! A block a row.

use crate::cuda::{Gpu, Launch, Slice, Source, args};

pub(crate) static SOURCE: Source = Source {
    name: "swiglu",
    texts: &[include_str!("kernel.cu")],
    kernels: &[
        "swiglu_forward<float>",
        "swiglu_forward<bf16>",
        "swiglu_forward<f16>",
        "swiglu_backward<float>",
        "swiglu_backward<bf16>",
        "swiglu_backward<f16>",
    ],
};

/// Threads of a block that takes a row.
const THREADS: u32 = 256;

pub(super) fn forward(gpu: &Gpu, gate_up: Slice<'_>, i: usize, y: Slice<'_>) {
    assert!(gate_up.len() == 2 * y.len() && gate_up.dtype() == y.dtype());
    let kernel = format!("swiglu_forward<{}>", y.type_name());
    let at = Launch::blocks(y.len() / i, THREADS);
    gpu.launch(&SOURCE, &kernel, at, args![gate_up, i, y]);
}

pub(super) fn backward(gpu: &Gpu, gate_up: Slice<'_>, i: usize, d_y: Slice<'_>, d: Slice<'_>) {
    assert!(gate_up.len() == 2 * d_y.len() && d.len() == gate_up.len());
    assert!(gate_up.dtype() == d_y.dtype() && d.dtype() == d_y.dtype());
    let kernel = format!("swiglu_backward<{}>", d_y.type_name());
    let at = Launch::blocks(d_y.len() / i, THREADS);
    gpu.launch(&SOURCE, &kernel, at, args![gate_up, i, d_y, d]);
}
