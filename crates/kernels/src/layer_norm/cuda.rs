//! Launches with one block per row; gradients of the weight by groups of columns.

use super::{Inputs, Saved};
use crate::cuda::{Gpu, Launch, Slice, Source, args};

pub(crate) static SOURCE: Source = Source {
    name: "layer_norm",
    texts: &[include_str!("kernel.cu")],
    kernels: &[
        "layer_norm_forward<float,float>",
        "layer_norm_forward<float,bf16>",
        "layer_norm_forward<float,f16>",
        "layer_norm_forward<bf16,bf16>",
        "layer_norm_forward<f16,f16>",
        "layer_norm_backward<float,float>",
        "layer_norm_backward<float,bf16>",
        "layer_norm_backward<float,f16>",
        "layer_norm_backward<bf16,bf16>",
        "layer_norm_backward<f16,f16>",
        "layer_norm_backward_weight<float,float>",
        "layer_norm_backward_weight<float,bf16>",
        "layer_norm_backward_weight<float,f16>",
        "layer_norm_backward_weight<bf16,bf16>",
        "layer_norm_backward_weight<f16,f16>",
    ],
};

/// Threads per block.
const THREADS: u32 = 256;

pub(super) fn forward(gpu: &Gpu, inputs: Inputs<'_>, y: Slice<'_>, statistics: Slice<'_>) {
    let (x, w) = (inputs.x.cuda(), inputs.weight.cuda().f32());
    let bias = inputs.bias.map(|bias| bias.cuda().f32());
    let (rows, h) = (statistics.len() / 2, w.len());
    assert!(x.len() == rows * h && y.len() == x.len());
    assert!(bias.is_none_or(|bias| bias.len() == h));
    let kernel = format!("layer_norm_forward<{},{}>", x.type_name(), y.type_name());
    // Any pointer will do if there is no bias: it is not read.
    let (adds, bias) = (u32::from(bias.is_some()), bias.unwrap_or(w));
    let args = args![x, w, bias, adds, inputs.eps, h, y, statistics];
    gpu.launch(&SOURCE, &kernel, Launch::blocks(rows, THREADS), args);
}

pub(super) fn backward(gpu: &Gpu, saved: Saved<'_>, d_y: Slice<'_>, adds: bool, d_x: Slice<'_>) {
    let (x, w, statistics) =
        (saved.x.cuda(), saved.weight.cuda().f32(), saved.statistics.cuda().f32());
    let (rows, h) = (statistics.len() / 2, w.len());
    assert!([x, d_y, d_x].iter().all(|matrix| matrix.len() == rows * h));
    assert_eq!(x.dtype(), d_x.dtype());
    let kernel = format!("layer_norm_backward<{},{}>", x.type_name(), d_y.type_name());
    let args = args![x, w, statistics, d_y, h, u32::from(adds), d_x];
    gpu.launch(&SOURCE, &kernel, Launch::blocks(rows, THREADS), args);
}

pub(super) fn backward_weight(gpu: &Gpu, saved: Saved<'_>, d_y: Slice<'_>, d_w: Slice<'_>) {
    let (x, statistics) = (saved.x.cuda(), saved.statistics.cuda().f32());
    let (rows, h) = (statistics.len() / 2, d_w.len());
    assert!([x, d_y].iter().all(|matrix| matrix.len() == rows * h));
    let kernel = format!("layer_norm_backward_weight<{},{}>", x.type_name(), d_y.type_name());
    gpu.launch(&SOURCE, &kernel, Launch::columns(h), args![x, statistics, d_y, rows, h, d_w]);
}
