//! Launches with one block per row.

use super::width;
use crate::cuda::{Arg, Gpu, Launch, Slice, Source, args};
use crate::gated_delta_rule::DeltaHeads;

pub(crate) static SOURCE: Source = Source {
    name: "delta_columns",
    texts: &[include_str!("kernel.cu")],
    kernels: &[
        "delta_columns<float>",
        "delta_columns<bf16>",
        "delta_columns<f16>",
        "delta_columns_backward<float>",
        "delta_columns_backward<bf16>",
        "delta_columns_backward<f16>",
    ],
};

/// Threads per block.
const THREADS: u32 = 256;

pub(super) fn forward(gpu: &Gpu, heads: &DeltaHeads, x: Slice<'_>, y: Slice<'_>) {
    launch(gpu, "delta_columns", heads, (x, y));
}

pub(super) fn backward(gpu: &Gpu, heads: &DeltaHeads, d_y: Slice<'_>, d_x: Slice<'_>) {
    launch(gpu, "delta_columns_backward", heads, (d_y, d_x));
}

fn launch(gpu: &Gpu, kernel: &str, heads: &DeltaHeads, (from, to): (Slice<'_>, Slice<'_>)) {
    assert!(from.len() == to.len() && from.dtype() == to.dtype());
    let kernel = format!("{kernel}<{}>", to.type_name());
    let launch = Launch::blocks(to.len() / width(heads), THREADS);
    gpu.launch(&SOURCE, &kernel, launch, args![heads_arg(heads), from, to]);
}

/// `DeltaColumns` in CUDA.
fn heads_arg(heads: &DeltaHeads) -> Arg {
    let [keys, group] = [heads.num_key_heads, heads.group()].map(|n| n as u64);
    let [key_dim, value_dim] = [heads.key_dim, heads.value_dim].map(|n| n as u64);
    Arg::pair(keys | group << 32, key_dim | value_dim << 32)
}
