//! Launches with one block per head; the weight's gradient by groups of columns.

use super::{Gradients, Inputs};
use crate::cuda::{Gpu, Launch, Slice, Source, args};
use crate::view::ViewMut;

pub(crate) static SOURCE: Source = Source {
    name: "gated_rms_norm",
    texts: &[include_str!("kernel.cu")],
    kernels: &[
        "gated_rms_norm_forward<float>",
        "gated_rms_norm_forward<bf16>",
        "gated_rms_norm_forward<f16>",
        "gated_rms_norm_backward<float>",
        "gated_rms_norm_backward<bf16>",
        "gated_rms_norm_backward<f16>",
        "gated_rms_norm_backward_weight<float>",
        "gated_rms_norm_backward_weight<bf16>",
        "gated_rms_norm_backward_weight<f16>",
    ],
};

/// Threads per block.
const THREADS: u32 = 128;

/// Bytes of scratch memory that the backward pass takes for `num_heads` heads of all tokens.
pub(super) fn scratch_bytes(num_heads: usize) -> usize {
    4 * num_heads
}

pub(super) fn forward(gpu: &Gpu, inputs: Inputs<'_>, y: Slice<'_>) {
    let (n, x, z) = (inputs.n(), inputs.x.cuda(), inputs.z.x.cuda());
    let (w, h) = (inputs.weight.cuda().f32(), inputs.weight.len());
    assert!(y.len() == x.len() && y.dtype() == x.dtype() && z.dtype() == x.dtype());
    let (first, stride) = (z.part(inputs.z.col, 0), inputs.z.width as u32);
    let kernel = format!("gated_rms_norm_forward<{}>", x.type_name());
    let args = args![x, first, stride, w, inputs.eps, h as u32, (n / h) as u32, y];
    gpu.launch(&SOURCE, &kernel, Launch::blocks(x.len() / h, THREADS), args);
}

pub(super) fn backward(gpu: &Gpu, inputs: Inputs<'_>, d_y: Slice<'_>, gradients: Gradients<'_>) {
    let (n, x, z) = (inputs.n(), inputs.x.cuda(), inputs.z.x.cuda());
    let (w, h) = (inputs.weight.cuda().f32(), inputs.weight.len());
    let (d_x, d_z) = (gradients.d_x.cuda(), gradients.d_z.map(ViewMut::cuda));
    for other in [z, d_y, d_x].into_iter().chain(d_z) {
        assert!(other.dtype() == x.dtype());
    }
    assert!(d_y.len() == x.len() && d_x.len() == x.len());
    assert!(d_z.is_none_or(|d_z| d_z.len() == z.len()));
    let (num_heads, heads) = (x.len() / h, (n / h) as u32);
    let (first, stride) = (z.part(inputs.z.col, 0), inputs.z.width as u32);
    let d_z = d_z.map_or(0, |d_z| d_z.part(inputs.z.col, 0).address());
    let rstds = gpu.scratch(scratch_bytes(num_heads));
    let kernel = format!("gated_rms_norm_backward<{}>", x.type_name());
    let args = args![x, first, stride, w, inputs.eps, h as u32, heads, d_y, d_x, d_z, rstds];
    gpu.launch(&SOURCE, &kernel, Launch::blocks(num_heads, THREADS), args);
    let Some(d_weight) = gradients.d_weight else { return };
    let d_weight = d_weight.cuda().f32();
    assert_eq!(d_weight.len(), h);
    let kernel = format!("gated_rms_norm_backward_weight<{}>", x.type_name());
    let args = args![x, first, stride, heads, rstds, d_y, num_heads, h, d_weight];
    gpu.launch(&SOURCE, &kernel, Launch::columns(h), args);
}
