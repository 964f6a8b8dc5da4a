//! Launches with one block per row.

use crate::activation::Activation;
use crate::activation::cuda::CURVES;
use crate::cuda::{Gpu, Launch, Slice, Source, args};

pub(crate) static SOURCE: Source = Source {
    name: "glu",
    texts: &[CURVES, include_str!("kernel.cu")],
    kernels: &[
        "glu_forward<float,Silu>",
        "glu_forward<float,Gelu>",
        "glu_forward<float,GeluTanh>",
        "glu_forward<float,ClampedSilu>",
        "glu_forward<bf16,Silu>",
        "glu_forward<bf16,Gelu>",
        "glu_forward<bf16,GeluTanh>",
        "glu_forward<bf16,ClampedSilu>",
        "glu_forward<f16,Silu>",
        "glu_forward<f16,Gelu>",
        "glu_forward<f16,GeluTanh>",
        "glu_forward<f16,ClampedSilu>",
        "glu_backward<float,Silu>",
        "glu_backward<float,Gelu>",
        "glu_backward<float,GeluTanh>",
        "glu_backward<float,ClampedSilu>",
        "glu_backward<bf16,Silu>",
        "glu_backward<bf16,Gelu>",
        "glu_backward<bf16,GeluTanh>",
        "glu_backward<bf16,ClampedSilu>",
        "glu_backward<f16,Silu>",
        "glu_backward<f16,Gelu>",
        "glu_backward<f16,GeluTanh>",
        "glu_backward<f16,ClampedSilu>",
    ],
};

/// Threads per block.
const THREADS: u32 = 256;

pub(super) fn forward(
    gpu: &Gpu,
    activation: Activation,
    gate_up: Slice<'_>,
    i: usize,
    y: Slice<'_>,
) {
    assert!(gate_up.len() == 2 * y.len() && gate_up.dtype() == y.dtype());
    let kernel = format!("glu_forward<{},{}>", y.type_name(), activation.in_kernels());
    let at = Launch::blocks(y.len() / i, THREADS);
    gpu.launch(&SOURCE, &kernel, at, args![gate_up, i, y]);
}

pub(super) fn backward(
    gpu: &Gpu,
    activation: Activation,
    gate_up: Slice<'_>,
    i: usize,
    d_y: Slice<'_>,
    d: Slice<'_>,
) {
    assert!(gate_up.len() == 2 * d_y.len() && d.len() == gate_up.len());
    assert!(gate_up.dtype() == d_y.dtype() && d.dtype() == d_y.dtype());
    let kernel = format!("glu_backward<{},{}>", d_y.type_name(), activation.in_kernels());
    let at = Launch::blocks(d_y.len() / i, THREADS);
    gpu.launch(&SOURCE, &kernel, at, args![gate_up, i, d_y, d]);
}
