//! A block a row; gradients of the weight by groups of columns.

use crate::cuda::{Gpu, Launch, Slice, Source, args};

pub(crate) static SOURCE: Source = Source {
    name: "rms_norm",
    texts: &[include_str!("kernel.cu")],
    kernels: &[
        "rms_norm_forward<float>",
        "rms_norm_forward<bf16>",
        "rms_norm_forward<f16>",
        "rms_norm_backward<float>",
        "rms_norm_backward<bf16>",
        "rms_norm_backward<f16>",
        "rms_norm_backward_weight<float>",
        "rms_norm_backward_weight<bf16>",
        "rms_norm_backward_weight<f16>",
    ],
};

/// Threads of a block that takes a row.
const THREADS: u32 = 256;

pub(super) fn forward(
    gpu: &Gpu,
    x: Slice<'_>,
    w: Slice<'_>,
    eps: f32,
    y: Slice<'_>,
    rstd: Slice<'_>,
) {
    let (rows, h) = (rstd.len(), w.len());
    assert!(x.len() == rows * h && y.len() == x.len());
    let kernel = format!("rms_norm_forward<{}>", y.type_name());
    gpu.launch(&SOURCE, &kernel, Launch::blocks(rows, THREADS), args![x, w, eps, h, y, rstd]);
}

pub(super) fn backward(
    gpu: &Gpu,
    (x, w, rstd): (Slice<'_>, Slice<'_>, Slice<'_>),
    d_y: Slice<'_>,
    adds: bool,
    d_x: Slice<'_>,
) {
    let (rows, h) = (rstd.len(), w.len());
    assert!(x.len() == rows * h && d_y.len() == x.len() && d_x.len() == x.len());
    let kernel = format!("rms_norm_backward<{}>", d_y.type_name());
    let args = args![x, w, rstd, d_y, h, u32::from(adds), d_x];
    gpu.launch(&SOURCE, &kernel, Launch::blocks(rows, THREADS), args);
}

pub(super) fn backward_weight(
    gpu: &Gpu,
    x: Slice<'_>,
    rstd: Slice<'_>,
    d_y: Slice<'_>,
    d_w: Slice<'_>,
) {
    let (rows, h) = (rstd.len(), d_w.len());
    assert!(x.len() == rows * h && d_y.len() == x.len());
    let kernel = format!("rms_norm_backward_weight<{}>", d_y.type_name());
    let at = Launch::columns(h);
    gpu.launch(&SOURCE, &kernel, at, args![x, rstd, d_y, rows, h, d_w]);
}
