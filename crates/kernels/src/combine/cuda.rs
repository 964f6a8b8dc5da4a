//! Launches with one block per token.

use super::Chosen;
use crate::cuda::{Address, Gpu, Launch, Slice, Source, args};

pub(crate) static SOURCE: Source = Source {
    name: "combine",
    texts: &[include_str!("kernel.cu")],
    kernels: &[
        "combine_forward<float,float>",
        "combine_forward<bf16,float>",
        "combine_forward<bf16,bf16>",
        "combine_forward<f16,float>",
        "combine_forward<f16,f16>",
        "combine_backward<float,float>",
        "combine_backward<bf16,float>",
        "combine_backward<bf16,bf16>",
        "combine_backward<f16,float>",
        "combine_backward<f16,f16>",
    ],
};

/// Threads per block.
const THREADS: u32 = 256;

pub(super) fn forward(
    gpu: &Gpu,
    chosen: Chosen<'_>,
    h: usize,
    x: Slice<'_>,
    add: Option<Slice<'_>>,
    y: Slice<'_>,
) {
    let Chosen { slots, k, weights } = chosen;
    let kernel = format!("combine_forward<{},{}>", x.type_name(), y.type_name());
    let weights: Address = weights.map_or(0, |weights| weights.cuda().f32().address());
    let add: Address = add.map_or(0, |add| add.address());
    let at = Launch::blocks(slots.len() / k, THREADS);
    gpu.launch(&SOURCE, &kernel, at, args![x, gpu.upload(slots), k, weights, add, h, y]);
}

pub(super) fn backward(
    gpu: &Gpu,
    chosen: Chosen<'_>,
    h: usize,
    x: Slice<'_>,
    d_y: Slice<'_>,
    d_x: Slice<'_>,
    d_weights: Slice<'_>,
) {
    let Chosen { slots, k, weights } = chosen;
    assert_eq!(x.dtype(), d_x.dtype());
    let weights = weights.expect("rows are weighted").cuda().f32();
    let kernel = format!("combine_backward<{},{}>", x.type_name(), d_y.type_name());
    let at = Launch::blocks(slots.len(), THREADS);
    let args = args![x, gpu.upload(slots), k, weights, d_y, h, d_x, d_weights];
    gpu.launch(&SOURCE, &kernel, at, args);
}
