//! Launches with one block per row.

use super::{Groups, Routed, Router, Scoring};
use crate::cuda::{Address, Gpu, Launch, Slice, Source, args};
use crate::element::DType;
use crate::vector;

pub(crate) static SOURCE: Source = Source {
    name: "router",
    texts: &[include_str!("kernel.cu")],
    kernels: &[
        "router_forward<float>",
        "router_forward<bf16>",
        "router_forward<f16>",
        "router_backward<float>",
        "router_backward<bf16>",
        "router_backward<f16>",
        "router_probabilities<float>",
        "router_probabilities<bf16>",
        "router_probabilities<f16>",
    ],
};

/// Threads per block.
const THREADS: u32 = 128;

/// Bits of a router's options in kernels.
fn options(router: &Router) -> u32 {
    u32::from(router.scoring == Scoring::Sigmoid) | u32::from(router.normalise) << 1
}

pub(super) fn forward(
    gpu: &Gpu,
    router: &Router,
    logits: Slice<'_>,
    bias: Option<Slice<'_>>,
    weights: Slice<'_>,
) -> Vec<u32> {
    let Router { num_experts: n, top_k: k, scale, .. } = *router;
    let t = logits.len() / n;
    let Groups { count, kept } = router.groups.unwrap_or(Groups { count: 1, kept: 1 });
    // As floats, which are what is downloaded; they hold such numbers exactly.
    let chosen = gpu.scratch(4 * t * k);
    let bias: Address = bias.map_or(0, |bias| bias.address());
    let kernel = format!("router_forward<{}>", logits.type_name());
    let args = args![logits, bias, n, k, options(router), scale, count, kept, weights, chosen];
    gpu.launch(&SOURCE, &kernel, Launch::blocks(t, THREADS), args);
    // Of a device that failed, zeros are downloaded, or nothing.
    let mut chosen: Vec<u32> = gpu.download(chosen, t * k).iter().map(|&e| e as u32).collect();
    chosen.resize(t * k, 0);
    chosen
}

pub(super) fn backward(gpu: &Gpu, router: &Router, routed: Routed<'_>, d_logits: Slice<'_>) {
    let Router { num_experts: n, top_k: k, scale, .. } = *router;
    let logits = routed.logits.cuda();
    assert_eq!(logits.dtype(), d_logits.dtype());
    let (d_probabilities, num_rows) = match routed.balance {
        Some(balance) => {
            let words: Vec<u32> = balance.d_probabilities.iter().map(|d| d.to_bits()).collect();
            (gpu.upload(&words), balance.num_rows)
        }
        None => (0, 0),
    };
    let kernel = format!("router_backward<{}>", logits.type_name());
    let (chosen, d_weights) = (gpu.upload(routed.chosen), routed.d_weights.cuda().f32());
    let options = options(router);
    let args =
        args![logits, n, k, options, scale, chosen, d_weights, d_probabilities, num_rows, d_logits];
    gpu.launch(&SOURCE, &kernel, Launch::blocks(logits.len() / n, THREADS), args);
}

pub(super) fn probability_sums(gpu: &Gpu, router: &Router, logits: Slice<'_>) -> Vec<f32> {
    let n = router.num_experts;
    let (probabilities, sums) = (gpu.scratch(4 * logits.len()), gpu.scratch(4 * n));
    let kernel = format!("router_probabilities<{}>", logits.type_name());
    let at = Launch::blocks(logits.len() / n, THREADS);
    gpu.launch(&SOURCE, &kernel, at, args![logits, n, probabilities]);
    let f32s = |address, len| Slice::new(address, DType::F32, len, len);
    gpu.zero(f32s(sums, n));
    vector::cuda::add_column_sums(gpu, f32s(probabilities, logits.len()), n, 0, f32s(sums, n));
    gpu.download(sums, n)
}
