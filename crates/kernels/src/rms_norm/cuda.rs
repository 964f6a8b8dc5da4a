//! Launches with one block per row; gradients of the weight by groups of columns.

use super::{Inputs, RmsNorm, Rows, Saved};
use crate::cuda::{Gpu, Launch, Slice, Source, args};

pub(crate) static SOURCE: Source = Source {
    name: "rms_norm",
    texts: &[include_str!("kernel.cu")],
    kernels: &[
        "rms_norm_forward<float,float>",
        "rms_norm_forward<float,bf16>",
        "rms_norm_forward<float,f16>",
        "rms_norm_forward<bf16,float>",
        "rms_norm_forward<bf16,bf16>",
        "rms_norm_forward<f16,float>",
        "rms_norm_forward<f16,f16>",
        "rms_norm_backward<float,float>",
        "rms_norm_backward<float,bf16>",
        "rms_norm_backward<float,f16>",
        "rms_norm_backward<bf16,float>",
        "rms_norm_backward<bf16,bf16>",
        "rms_norm_backward<f16,float>",
        "rms_norm_backward<f16,f16>",
        "rms_norm_backward_weight<float,float>",
        "rms_norm_backward_weight<float,bf16>",
        "rms_norm_backward_weight<float,f16>",
        "rms_norm_backward_weight<bf16,float>",
        "rms_norm_backward_weight<bf16,bf16>",
        "rms_norm_backward_weight<f16,float>",
        "rms_norm_backward_weight<f16,f16>",
    ],
};

/// Threads per block.
const THREADS: u32 = 256;

pub(super) fn forward(gpu: &Gpu, norm: RmsNorm, inputs: Inputs<'_>, y: Slice<'_>, rstd: Slice<'_>) {
    let (x, w, rows) = (inputs.x.cuda(), inputs.weight.cuda().f32(), inputs.rows);
    let residual = inputs.residual.map(|residual| residual.cuda().f32());
    let h = check(rows, w.len(), rstd.len(), &[x, y]);
    assert!(residual.is_none_or(|residual| residual.len() == x.len()));
    let kernel = format!("rms_norm_forward<{},{}>", x.type_name(), y.type_name());
    // Any pointer will do if there is no residual: it is not read.
    let (adds, residual) = (u32::from(residual.is_some()), residual.unwrap_or(w));
    let Rows { stride, offset, count } = rows;
    let args =
        args![x, w, norm.offset(), norm.eps, h, stride, offset, count, residual, adds, y, rstd];
    gpu.launch(&SOURCE, &kernel, Launch::blocks(rstd.len(), THREADS), args);
}

pub(super) fn backward(
    gpu: &Gpu,
    norm: RmsNorm,
    saved: Saved<'_>,
    d_y: Slice<'_>,
    adds: bool,
    d_x: Slice<'_>,
) {
    let (x, w, rstd) = (saved.x.cuda(), saved.weight.cuda().f32(), saved.rstd.cuda().f32());
    let h = check(saved.rows, w.len(), rstd.len(), &[x, d_y, d_x]);
    assert_eq!(x.dtype(), d_x.dtype());
    let kernel = format!("rms_norm_backward<{},{}>", x.type_name(), d_y.type_name());
    let Rows { stride, offset, count } = saved.rows;
    let adds = u32::from(adds);
    let args = args![x, w, norm.offset(), rstd, d_y, h, stride, offset, count, adds, d_x];
    gpu.launch(&SOURCE, &kernel, Launch::blocks(rstd.len(), THREADS), args);
}

pub(super) fn backward_weight(gpu: &Gpu, saved: Saved<'_>, d_y: Slice<'_>, d_w: Slice<'_>) {
    let (x, rstd) = (saved.x.cuda(), saved.rstd.cuda().f32());
    let h = check(saved.rows, d_w.len(), rstd.len(), &[x, d_y]);
    let kernel = format!("rms_norm_backward_weight<{},{}>", x.type_name(), d_y.type_name());
    let Rows { stride, offset, count } = saved.rows;
    let args = args![x, rstd, d_y, rstd.len(), h, stride, offset, count, d_w];
    gpu.launch(&SOURCE, &kernel, Launch::columns(h), args);
}

/// Checks that all `matrices` have `num_rows` normalised rows, and returns the length of a row.
fn check(rows: Rows, h: usize, num_rows: usize, matrices: &[Slice<'_>]) -> usize {
    assert!(rows.offset + rows.count * h <= rows.stride && num_rows.is_multiple_of(rows.count));
    let len = num_rows / rows.count * rows.stride;
    assert!(matrices.iter().all(|matrix| matrix.len() == len));
    h
}
