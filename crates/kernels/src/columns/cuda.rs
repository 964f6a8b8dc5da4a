//! Launches with one block per row.

use super::Span;
use crate::cuda::{Gpu, Launch, Slice, Source, args};

pub(crate) static SOURCE: Source = Source {
    name: "columns",
    texts: &[include_str!("kernel.cu")],
    kernels: &["copy_columns<float>", "copy_columns<bf16>", "copy_columns<f16>"],
};

/// Threads per block.
const THREADS: u32 = 256;

pub(super) fn copy(gpu: &Gpu, span: Span, x: Slice<'_>, adds: bool, y: Slice<'_>) {
    assert_eq!(x.dtype(), y.dtype());
    let Span { from: [width, from], to: [y_width, to], count } = span;
    let kernel = format!("copy_columns<{}>", y.type_name());
    let args = args![count, width, from, y_width, to, u32::from(adds), x, y];
    gpu.launch(&SOURCE, &kernel, Launch::blocks(x.len() / width, THREADS), args);
}
