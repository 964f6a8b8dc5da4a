//! LoRA (Hu et al., 2021), with rank-stabilised scaling (Kalajdzievski, 2023) on request.

use super::patterns::RankAndScale;
use super::{AdapterError, TargetModules};
use crate::config::DecoderConfig;
use crate::load::Model;
use hone_tensor::{AdapterId, Category, DType, Device, Lora, ParamId, Philox, Tensor};
use std::collections::{HashMap, HashSet};

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
    /// All experts of a block have the same two matrices, for each of their projections. PEFT's
    /// files cannot say so: each expert has a copy there, and one that is read its own.
    pub share_experts: bool,
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
/// If a target matches no layer, if no expert that could share is among the targets, or if there
/// is no memory for the adapters.
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
    let shared_modules = match config.share_experts {
        true => shared_modules(&decoder.config, targets),
        false => HashMap::new(),
    };
    if config.share_experts && shared_modules.is_empty() {
        return Err(AdapterError::NothingToShare);
    }
    let mut shared: HashMap<&str, [ParamId; 2]> = HashMap::new();
    // With experts there are tens of thousands.
    let targets: HashSet<&String> = targets.iter().collect();
    for (index, (name, projection)) in decoder.projections_mut().enumerate() {
        if !targets.contains(&name) {
            continue;
        }
        let (n, k) = (projection.out_features(), projection.in_features());
        let (rank, scale) = size(&name);
        let of_all = shared_modules.get(&name);
        let [a, b] = match of_all.and_then(|of_all| shared.get(of_all.as_str())) {
            Some(&matrices) => matrices,
            None => {
                let of = of_all.unwrap_or(&name);
                let a = value(index, Matrix::A, &[rank, k])?;
                let a = params.add(Matrix::A.param_name(of, id), a);
                let b = value(index, Matrix::B, &[n, rank])?;
                [a, params.add(Matrix::B.param_name(of, id), b)]
            }
        };
        if let Some(of_all) = of_all {
            shared.insert(of_all, [a, b]);
        }
        let (dropout, stream) = (config.dropout, index as u32);
        projection.adapters.push(Lora { id, a, b, rank, scale, dropout, stream });
    }
    Ok(())
}

/// Of each expert's module among `targets` the name under which all experts of its block share:
/// `model.layers.0.mlp.experts.up_proj` of `model.layers.0.mlp.experts.7.up_proj`.
fn shared_modules(config: &DecoderConfig, targets: &[String]) -> HashMap<String, String> {
    let targets: HashSet<&String> = targets.iter().collect();
    let of_layer = |layer: usize| {
        let mixture = config.layers[layer].mlp.experts.as_ref();
        let experts = mixture.map_or("", |mixture| mixture.names.experts);
        config.experts_of(layer).map(move |(module, _)| {
            let part = module.rsplit('.').next().unwrap_or(&module);
            let of_all = format!("model.layers.{layer}.{experts}.{part}");
            (module, of_all)
        })
    };
    let modules = (0..config.layers.len()).flat_map(of_layer);
    modules.filter(|(module, _)| targets.contains(module)).collect()
}

fn fill_uniform(value: &mut Tensor, random: Philox, in_features: usize) {
    let bound = 1.0 / (in_features as f32).sqrt();
    let uniform = |i| (2.0 * random.uniform(i) - 1.0) * bound;
    value.copy_from_f32(&(0..value.len() as u64).map(uniform).collect::<Vec<_>>());
}
