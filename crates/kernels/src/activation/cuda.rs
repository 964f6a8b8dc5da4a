//! Launches over all elements.

use super::Activation;
use crate::cuda::{Gpu, Launch, Slice, Source, args};

pub(crate) static SOURCE: Source = Source {
    name: "activation",
    texts: &[CURVES, include_str!("kernel.cu")],
    kernels: &[
        "activate<float,Silu>",
        "activate<float,Gelu>",
        "activate<float,GeluTanh>",
        "activate<float,ClampedSilu>",
        "activate<bf16,Silu>",
        "activate<bf16,Gelu>",
        "activate<bf16,GeluTanh>",
        "activate<bf16,ClampedSilu>",
        "activate<f16,Silu>",
        "activate<f16,Gelu>",
        "activate<f16,GeluTanh>",
        "activate<f16,ClampedSilu>",
        "activate_backward<float,Silu>",
        "activate_backward<float,Gelu>",
        "activate_backward<float,GeluTanh>",
        "activate_backward<float,ClampedSilu>",
        "activate_backward<bf16,Silu>",
        "activate_backward<bf16,Gelu>",
        "activate_backward<bf16,GeluTanh>",
        "activate_backward<bf16,ClampedSilu>",
        "activate_backward<f16,Silu>",
        "activate_backward<f16,Gelu>",
        "activate_backward<f16,GeluTanh>",
        "activate_backward<f16,ClampedSilu>",
    ],
};

/// The activations themselves.
pub(crate) const CURVES: &str = include_str!("curves.cuh");

impl Activation {
    /// Name in CUDA sources.
    pub(crate) fn in_kernels(self) -> &'static str {
        match self {
            Self::Silu => "Silu",
            Self::Gelu => "Gelu",
            Self::GeluTanh => "GeluTanh",
            Self::ClampedSilu => "ClampedSilu",
        }
    }
}

pub(super) fn forward(gpu: &Gpu, activation: Activation, x: Slice<'_>, y: Slice<'_>) {
    assert!(x.len() == y.len() && x.dtype() == y.dtype());
    let kernel = format!("activate<{},{}>", y.type_name(), activation.in_kernels());
    gpu.launch(&SOURCE, &kernel, Launch::elements(y.len()), args![x, y.len(), y]);
}

pub(super) fn backward(
    gpu: &Gpu,
    activation: Activation,
    x: Slice<'_>,
    d_y: Slice<'_>,
    d_x: Slice<'_>,
) {
    assert!([x, d_y].iter().all(|other| (other.len(), other.dtype()) == (d_x.len(), d_x.dtype())));
    let kernel = format!("activate_backward<{},{}>", d_x.type_name(), activation.in_kernels());
    gpu.launch(&SOURCE, &kernel, Launch::elements(d_x.len()), args![x, d_y, d_x.len(), d_x]);
}
