//! LoRA (Hu et al., 2021), with rank-stabilised scaling (Kalajdzievski, 2023) on request.

use super::patterns::RankAndScale;
use super::{AdapterError, TargetModules};
use crate::load::Model;
use hone_tensor::{AdapterId, Category, DType, Device, Lora, Philox, Tensor};
use std::collections::HashSet;

/// Settings of LoRA adapters.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraConfig {
    /// Rank.
    pub rank: usize,
    /// The adapter's output is multiplied by `alpha / rank`.
    pub alpha: f64,
    /// Dropout probability of an adapter's input in training.
    pub dropout: f32,
    /// Layers that get an adapter.
    pub target_modules: TargetModules,
    /// Multiply by `alpha / sqrt(rank)` instead.
    pub use_rslora: bool,
}

impl LoraConfig {
    /// Multiplier of an adapter's output.
    pub fn scale(&self) -> f32 {
        let rank = self.rank as f64;
        (if self.use_rslora { self.alpha / rank.sqrt() } else { self.alpha / rank }) as f32
    }
}

/// Adds new adapters to the target layers: `A` uniform in ±1/√in_features (as in PEFT), `B` zero,
/// so that the model's outputs do not change. Adapters of a model are numbered in the order in
/// which they are added; a pass maps rows to adapters ([`hone_tensor::AdapterRows`]).
///
/// # Errors
/// If a target matches no layer, or there is no memory for the adapters.
pub fn attach(
    model: &mut Model,
    device: &Device,
    config: &LoraConfig,
    seed: u64,
) -> Result<(), AdapterError> {
    let targets = config.target_modules.resolve(&model.decoder)?;
    let same = |_: &str| (config.rank, config.scale());
    add(model, &targets, config, same, |index, which, shape| {
        let mut value = device.persistent(Category::Parameters, DType::F32, shape)?;
        if which == Matrix::A && !device.is_dry() {
            fill_uniform(&mut value, Philox::new(seed, INIT_STREAM | index as u64), shape[1]);
        }
        Ok(value)
    })?;
    Ok(device.settle()?)
}

/// Separates the random streams of initialisation from those of dropout, which start with the step.
const INIT_STREAM: u64 = 1 << 63;

/// One of the two matrices of an adapter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Matrix {
    /// `[rank, in_features]`.
    A,
    /// `[out_features, rank]`.
    B,
}

impl Matrix {
    /// The tensor name of this matrix in PEFT's files.
    pub(super) fn key(self, module: &str) -> String {
        let name = if self == Matrix::A { "lora_A" } else { "lora_B" };
        format!("base_model.model.{module}.{name}.weight")
    }

    /// The parameter's name: the key, prefixed with the adapter's number except for the first.
    fn param_name(self, module: &str, id: AdapterId) -> String {
        let key = self.key(module);
        if id == AdapterId::default() { key } else { format!("adapter {}: {key}", id.0) }
    }
}

/// Adds an adapter to each module in `targets`, with the rank and scale that `size` gives it.
/// `value` creates its matrices, given the index of the projection in the model, which matrix, and
/// its shape.
pub(super) fn add(
    model: &mut Model,
    targets: &[String],
    config: &LoraConfig,
    size: impl Fn(&str) -> RankAndScale,
    mut value: impl FnMut(usize, Matrix, &[usize]) -> Result<Tensor, AdapterError>,
) -> Result<(), AdapterError> {
    let Model { decoder, params, .. } = model;
    let ids = decoder.projections().flat_map(|(_, p)| p.adapters.iter().map(|lora| lora.id.0));
    let id = AdapterId(ids.max().map_or(0, |last| last + 1));
    // With experts there are tens of thousands.
    let targets: HashSet<&String> = targets.iter().collect();
    for (index, (name, projection)) in decoder.projections_mut().enumerate() {
        if !targets.contains(&name) {
            continue;
        }
        let (n, k) = (projection.out_features(), projection.in_features());
        let (rank, scale) = size(&name);
        let a = params.add(Matrix::A.param_name(&name, id), value(index, Matrix::A, &[rank, k])?);
        let b = params.add(Matrix::B.param_name(&name, id), value(index, Matrix::B, &[n, rank])?);
        let (dropout, stream) = (config.dropout, index as u32);
        projection.adapters.push(Lora { id, a, b, rank, scale, dropout, stream });
    }
    Ok(())
}

fn fill_uniform(value: &mut Tensor, random: Philox, in_features: usize) {
    let bound = 1.0 / (in_features as f32).sqrt();
    let uniform = |i| (2.0 * random.uniform(i) - 1.0) * bound;
    value.copy_from_f32(&(0..value.len() as u64).map(uniform).collect::<Vec<_>>());
}
