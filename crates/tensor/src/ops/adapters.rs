//! Rounds all adapters of a pass to the compute type at once: one by one, this would be a quarter
//! of a GPU's launches.

use crate::{AdapterId, Category, Cost, DType, Lora, ParamId, Projection, Tape, Tensor};
use hone_kernels::gemm::converts_in_memory;
use hone_kernels::vector::Scaled;
use std::collections::BTreeMap;
use std::sync::Arc;

/// The parts of adapters in projections of one input, by the `A` of the first part. Ordered, since
/// a plan fixes the order of releases.
#[derive(Clone, Default)]
pub(crate) struct RoundedAdapters(Arc<BTreeMap<ParamId, Rounded>>);

/// The parts of an adapter in projections of one input.
#[derive(Clone)]
pub(crate) struct Rounded {
    /// `scale · A` of all parts, stacked: `[Σ rank, in_features]`.
    pub(crate) a: Tensor,
    /// `B` of all parts, concatenated.
    pub(crate) b: Tensor,
}

impl RoundedAdapters {
    /// The parts whose first `A` this is, if they were rounded.
    pub(crate) fn of(&self, first: ParamId) -> Option<&Rounded> {
        self.0.get(&first)
    }
}

/// Rounds the adapters of this pass in `layers`, each a list of projections of one input. Does
/// nothing in f32, or on the CPU, which rounds while it packs.
pub fn round_adapters<'p>(tape: &mut Tape<'_>, layers: impl Iterator<Item = &'p [Projection]>) {
    let (device, params, dtype) = (tape.device(), tape.params(), tape.dtype());
    if !converts_in_memory(device.target()) || dtype == DType::F32 {
        return;
    }
    let mut ids: Vec<AdapterId> = tape.adapter_rows().iter().map(|rows| rows.adapter).collect();
    ids.sort();
    ids.dedup();
    let mut all: Vec<(Vec<&Lora>, Rounded)> = Vec::new();
    for (layer, &id) in layers.flat_map(|layer| ids.iter().map(move |id| (layer, id))) {
        let parts: Vec<&Lora> = layer.iter().filter_map(|p| p.adapter(id)).collect();
        if parts.is_empty() {
            continue;
        }
        let rank = parts.iter().map(|lora| lora.rank).sum();
        let b_len = parts.iter().map(|lora| params.value(lora.b).len()).sum();
        let a = device.alloc(Category::Activations, dtype, &[rank, layer[0].in_features()]);
        let b = device.alloc(Category::Activations, dtype, &[b_len]);
        all.push((parts, Rounded { a, b }));
    }
    let elements: usize = all.iter().map(|(_, Rounded { a, b })| a.len() + b.len()).sum();
    if elements == 0 {
        return;
    }
    if let Some(on) =
        device.begin(Cost::memory_bound("round_adapters", (4 + dtype.size()) * elements))
    {
        let mut scaled = Vec::new();
        for (parts, Rounded { a, b }) in &mut all {
            let scaled_a = |lora: &&Lora| (params.value(lora.a).view(), lora.scale);
            let scaled_b = |lora: &&Lora| (params.value(lora.b).view(), 1.0);
            scaled.push(Scaled { parts: parts.iter().map(scaled_a).collect(), y: a.view_mut() });
            scaled.push(Scaled { parts: parts.iter().map(scaled_b).collect(), y: b.view_mut() });
        }
        on.scale_all(scaled);
    }
    let rounded = all.into_iter().map(|(parts, rounded)| (parts[0].a, rounded)).collect();
    tape.set_adapters(RoundedAdapters(Arc::new(rounded)));
}
