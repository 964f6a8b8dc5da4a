//! Adapters in the type that products are in, all of a pass at once: one by one they would be a
//! quarter of what a GPU is asked for.

use crate::{Category, Cost, DType, Lora, ParamId, Projection, Tape, Tensor};
use hone_kernels::gemm::converts_in_memory;
use hone_kernels::vector::Scaled;
use std::collections::BTreeMap;
use std::sync::Arc;

/// The adapters of projections that stand side by side, by the `A` of the first; in an order, since
/// a plan knows when each is released.
#[derive(Clone, Default)]
pub(crate) struct RoundedAdapters(Arc<BTreeMap<ParamId, Rounded>>);

/// Those of one input.
#[derive(Clone)]
pub(crate) struct Rounded {
    /// `scale · A` of all, one below the other: `[Σ rank, in_features]`.
    pub(crate) a: Tensor,
    /// `B` of all, one after another.
    pub(crate) b: Tensor,
}

impl RoundedAdapters {
    /// Those whose first `A` this is, if they were rounded.
    pub(crate) fn of(&self, first: ParamId) -> Option<&Rounded> {
        self.0.get(&first)
    }
}

/// Rounds the adapters of `layers`, each the projections that stand side by side, for the rest of
/// this pass. On the CPU, where products round what they pack, and in f32 nothing is done.
pub fn round_adapters<'p>(tape: &mut Tape<'_>, layers: impl Iterator<Item = &'p [Projection]>) {
    let (device, params, dtype) = (tape.device(), tape.params(), tape.dtype());
    if !converts_in_memory(device.target()) || dtype == DType::F32 {
        return;
    }
    let adapters = |layer: &'p [Projection]| layer.iter().filter_map(|p| p.lora.as_ref());
    let mut rounded = BTreeMap::new();
    let mut all: Vec<(&[Projection], Rounded)> = Vec::new();
    for layer in layers.filter(|layer| adapters(layer).next().is_some()) {
        let rank = adapters(layer).map(|lora| lora.rank).sum();
        let len_of_b = adapters(layer).map(|lora| params.value(lora.b).len()).sum();
        let a = device.alloc(Category::Activations, dtype, &[rank, layer[0].in_features()]);
        let b = device.alloc(Category::Activations, dtype, &[len_of_b]);
        all.push((layer, Rounded { a, b }));
    }
    let elements: usize = all.iter().map(|(_, Rounded { a, b })| a.len() + b.len()).sum();
    if elements == 0 {
        return;
    }
    if let Some(on) = device.begin(Cost::memory("round_adapters", (4 + dtype.size()) * elements)) {
        let mut scaled = Vec::new();
        for (layer, Rounded { a, b }) in &mut all {
            let of_a = |lora: &Lora| (params.value(lora.a).view(), lora.scale);
            let of_b = |lora: &Lora| (params.value(lora.b).view(), 1.0);
            scaled.push(Scaled { parts: adapters(layer).map(of_a).collect(), y: a.view_mut() });
            scaled.push(Scaled { parts: adapters(layer).map(of_b).collect(), y: b.view_mut() });
        }
        on.scale_all(scaled);
    }
    for (layer, of_layer) in all {
        let first = adapters(layer).next().expect("layers without were left out");
        rounded.insert(first.a, of_layer);
    }
    tape.set_adapters(RoundedAdapters(Arc::new(rounded)));
}
