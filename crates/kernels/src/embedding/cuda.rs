//! Launches with one block per token.

use crate::cuda::{Gpu, Launch, Slice, Source, args};

pub(crate) static SOURCE: Source = Source {
    name: "embedding",
    texts: &[include_str!("forward.cuh"), include_str!("kernel.cu")],
    kernels: &[
        "embedding_forward<float>",
        "embedding_forward<bf16>",
        "embedding_forward<f16>",
        "embedding_backward",
    ],
};

pub(super) fn forward(gpu: &Gpu, table: Slice<'_>, ids: &[u32], scale: f32, y: Slice<'_>) {
    let h = y.len() / ids.len().max(1);
    let v = table.len() / h.max(1);
    assert!(ids.iter().all(|&id| (id as usize) < v));
    let at = Launch::blocks(ids.len(), 128);
    let kernel = format!("embedding_forward<{}>", table.type_name());
    let source = table.storage().source().unwrap_or(&SOURCE);
    gpu.launch(source, &kernel, at, args![table, h, gpu.upload(ids), scale, y]);
}

pub(super) fn backward(gpu: &Gpu, ids: &[u32], scale: f32, d_y: Slice<'_>, d_table: Slice<'_>) {
    let h = d_y.len() / ids.len().max(1);
    let v = d_table.len() / h.max(1);
    assert!(ids.iter().all(|&id| (id as usize) < v));
    // The block of the first token with an id adds the rows of all tokens with that id.
    let at =
        Launch { grid: [ids.len() as u32, h.div_ceil(1024) as u32, 1], ..Launch::blocks(1, 256) };
    gpu.launch(
        &SOURCE,
        "embedding_backward",
        at,
        args![gpu.upload(ids), ids.len(), scale, d_y, h, d_table],
    );
}
