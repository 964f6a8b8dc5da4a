//! Launches with one block per row.

use super::KeyedRows;
use crate::cuda::{Gpu, Launch, Slice, Source, args};

pub(crate) static SOURCE: Source = Source {
    name: "keys_as_values",
    texts: &[include_str!("kernel.cu")],
    kernels: &[
        "keys_as_values<float>",
        "keys_as_values<bf16>",
        "keys_as_values<f16>",
        "keys_as_values_backward<float>",
        "keys_as_values_backward<bf16>",
        "keys_as_values_backward<f16>",
    ],
};

/// Threads per block.
const THREADS: u32 = 256;

pub(super) fn forward(gpu: &Gpu, rows: KeyedRows, x: Slice<'_>, y: Slice<'_>) {
    let t = x.len() / rows.width();
    assert!(y.len() == t * rows.valued_width() && x.dtype() == y.dtype());
    let kernel = format!("keys_as_values<{}>", y.type_name());
    let args = args![rows.queries as u32, rows.keys as u32, x, y];
    gpu.launch(&SOURCE, &kernel, Launch::blocks(t, THREADS), args);
}

pub(super) fn backward(gpu: &Gpu, rows: KeyedRows, d_y: Slice<'_>, d_x: Slice<'_>) {
    let t = d_x.len() / rows.width();
    assert!(d_y.len() == t * rows.valued_width() && d_x.dtype() == d_y.dtype());
    let kernel = format!("keys_as_values_backward<{}>", d_x.type_name());
    let args = args![rows.queries as u32, rows.keys as u32, d_y, d_x];
    gpu.launch(&SOURCE, &kernel, Launch::blocks(t, THREADS), args);
}
