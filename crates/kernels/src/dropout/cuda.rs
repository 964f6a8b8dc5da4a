//! Launches with one thread per counter, which gives four elements.

use super::Mask;
use crate::cuda::{Address, Gpu, Launch, Slice, Source, args};

pub(crate) static SOURCE: Source = Source {
    name: "dropout",
    texts: &[include_str!("kernel.cu")],
    kernels: &[
        "dropout_apply<float,float>",
        "dropout_apply<bf16,bf16>",
        "dropout_apply<f16,f16>",
        "dropout_add_masked<float>",
        "dropout_add_masked<bf16>",
        "dropout_add_masked<f16>",
    ],
};

pub(super) fn apply(gpu: &Gpu, mask: Mask, x: Slice<'_>, y: Slice<'_>) {
    assert_eq!(x.len(), y.len());
    let kernel = format!("dropout_apply<{},{}>", x.type_name(), y.type_name());
    let at = Launch::elements(x.len().div_ceil(4));
    let (key, stream_bits) = random(gpu, mask);
    gpu.launch(&SOURCE, &kernel, at, args![key, stream_bits, mask.probability, x, y, x.len()]);
}

pub(super) fn add_masked(gpu: &Gpu, mask: Mask, d_y: Slice<'_>, d_x: Slice<'_>) {
    assert_eq!(d_y.len(), d_x.len());
    let kernel = format!("dropout_add_masked<{}>", d_x.type_name());
    let at = Launch::elements(d_y.len().div_ceil(4));
    let (key, stream_bits) = random(gpu, mask);
    gpu.launch(
        &SOURCE,
        &kernel,
        at,
        args![key, stream_bits, mask.probability, d_y, d_x, d_y.len()],
    );
}

/// The key of the random numbers: the part that changes from step to step, in GPU memory, and the
/// low bits of the stream, which distinguish the masks of a pass.
fn random(gpu: &Gpu, mask: Mask) -> (Address, u32) {
    let ([low, high], stream, first) = mask.random.parts();
    let (stream_bits, pass_bits) = (stream as u32 & 0xffff, stream as u32 & !0xffff);
    let words = [pass_bits, (stream >> 32) as u32, first as u32, (first >> 32) as u32];
    (gpu.upload(&[[low, high].as_slice(), &words].concat()), stream_bits)
}
