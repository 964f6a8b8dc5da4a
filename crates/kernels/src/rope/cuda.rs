//! Launches with one block per row, in place.

use super::{Direction, Rotation};
use crate::cuda::{Gpu, Launch, Slice, Source, args};

pub(crate) static SOURCE: Source = Source {
    name: "rope",
    texts: &[include_str!("kernel.cu")],
    kernels: &["rope_rotate<float>", "rope_rotate<bf16>", "rope_rotate<f16>"],
};

pub(super) fn rotate(gpu: &Gpu, x: Slice<'_>, width: usize, rotation: Rotation<'_>) {
    let Rotation { first_head, num_heads: heads, head_dim: d, rotated, cos, sin, direction } =
        rotation;
    let (cos, sin) = (cos.cuda().f32(), sin.cuda().f32());
    let rows = x.len() / width;
    assert!(
        cos.len() == rows * rotated.dim / 2
            && rotated.dim <= d
            && sin.len() == cos.len()
            && (first_head + heads) * d <= width
    );
    let sign = if direction == Direction::Backward { -1.0f32 } else { 1.0 };
    let kernel = format!("rope_rotate<{}>", x.type_name());
    let (half, interleaved) = (rotated.dim as u32 / 2, u32::from(rotated.interleaved));
    let x = x.part(first_head * d, x.len() - first_head * d);
    let args = args![x, width, heads as u32, d as u32, half, interleaved, cos, sin, sign];
    gpu.launch(&SOURCE, &kernel, Launch::blocks(rows, 128), args);
}
