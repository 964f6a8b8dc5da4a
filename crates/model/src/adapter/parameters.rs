//! Adapters of parameters, as PEFT writes them for what is no linear layer in transformers' memory:
//! the experts of a block together, and their router. The counterpart of [`super::fused`]. PEFT
//! also reads adapters of each expert's layers, but not for all families, nor of some layers alone,
//! nor with a rank-stabilised scale.
//!
//! Gate and up projection are one parameter, so its adapter has the ranks of both, one after the
//! other, and a `B` of two blocks.

use super::lora::Matrix;
use super::names::in_memory;
use super::patterns::RankAndScale;
use crate::config::{DecoderConfig, ExpertLayout, ExpertsConfig, LayerConfig};
use crate::load::Model;
use crate::weights::{ExpertPart, Linear};
use hone_tensor::safetensors::Lazy;
use hone_tensor::{DType, DeviceError, Lora, Params, Tensor};
use std::collections::BTreeMap;

/// The adapter of a parameter.
pub(super) struct Parameter<'m> {
    /// Its name, by which PEFT is told of it.
    pub(super) name: String,
    /// The module under whose name PEFT keeps the matrices.
    module: String,
    /// Of each part, such as gate and up, the adapters of all experts.
    parts: Vec<Vec<Option<&'m Lora>>>,
    /// `[out_features, in_features]` of a part.
    shape: [usize; 2],
    /// How rows of parts follow each other.
    layout: ExpertLayout,
}

/// A family's adapters by module and by parameter.
pub(super) type Split<'m> = (Vec<(String, &'m Lora)>, Vec<Parameter<'m>>);

/// Tells adapters of modules from those of parameters.
pub(super) fn split<'m>(model: &'m Model, adapted: Vec<(String, &'m Lora)>) -> Split<'m> {
    let config = &model.decoder.config;
    let mut loras: BTreeMap<String, &Lora> = adapted.iter().map(|(n, l)| (n.clone(), *l)).collect();
    let mut parameters = Vec::new();
    for (layer, LayerConfig { mlp, .. }) in config.layers.iter().enumerate() {
        if let Some(mixture) = &mlp.experts {
            parameters.extend(of_layer(config, layer, mixture, &mut loras));
        }
    }
    let is_left = |(name, _): &(String, &Lora)| loras.contains_key(name);
    (adapted.into_iter().filter(is_left).collect(), parameters)
}

/// Takes what a block's parameters have of the adapters.
fn of_layer<'m>(
    config: &DecoderConfig,
    layer: usize,
    mixture: &ExpertsConfig,
    loras: &mut BTreeMap<String, &'m Lora>,
) -> Vec<Parameter<'m>> {
    let (i, h) = (config.layers[layer].mlp.intermediate_size, config.hidden_size);
    let (num_experts, layout) = (mixture.router.num_experts, mixture.names.layout);
    let router = format!("model.layers.{layer}.{}", mixture.names.router);
    let experts = in_memory(config, &format!("model.layers.{layer}.{}", mixture.names.experts));
    let mut of_part: BTreeMap<ExpertPart, Vec<Option<&Lora>>> = BTreeMap::new();
    for (name, linear) in config.experts_of(layer) {
        let Linear::Expert(_, part) = linear else { continue };
        of_part.entry(part).or_default().push(loras.remove(&name));
    }
    let mut take = |parts: &[ExpertPart]| {
        let parts: Vec<_> = parts.iter().filter_map(|part| of_part.remove(part)).collect();
        let is_adapted = parts.iter().flatten().any(Option::is_some);
        is_adapted.then_some(parts)
    };
    let (gate_up, down) = (take(&[ExpertPart::Gate, ExpertPart::Up]), take(&[ExpertPart::Down]));
    // PEFT wraps the module once for each of its parameters, the first one inside.
    let inner = if down.is_some() { ".base_layer" } else { "" };
    let mut parameters = Vec::new();
    if let Some(lora) = loras.remove(&router) {
        let module = in_memory(config, &router);
        parameters.push(Parameter {
            name: format!("{module}.weight"),
            module,
            parts: vec![vec![Some(lora)]],
            shape: [num_experts, h],
            layout,
        });
    }
    for (parts, name, inner, shape) in
        [(gate_up, "gate_up_proj", inner, [i, h]), (down, "down_proj", "", [h, i])]
    {
        let (name, module) = (format!("{experts}.{name}"), format!("{experts}{inner}"));
        parameters.extend(parts.map(|parts| Parameter { name, module, parts, shape, layout }));
    }
    parameters
}

impl Parameter<'_> {
    fn loras(&self) -> impl Iterator<Item = &Lora> {
        self.parts.iter().flatten().flatten().copied()
    }

    /// The rank of each part, that of the expert with the greatest.
    fn ranks(&self) -> Vec<usize> {
        let rank = |part: &Vec<Option<&Lora>>| part.iter().flatten().map(|lora| lora.rank).max();
        self.parts.iter().map(|part| rank(part).unwrap_or(0)).collect()
    }

    /// Its rank, and the scale of the first adapter in it, to which the others are brought.
    pub(super) fn size(&self) -> RankAndScale {
        let scale = self.loras().next().map_or(1.0, |lora| lora.scale);
        (self.ranks().iter().sum(), scale)
    }

    /// Both matrices, made when they are written.
    pub(super) fn tensors<'a>(&'a self, params: &'a Params) -> [(String, Lazy<'a>); 2] {
        [Matrix::A, Matrix::B].map(|which| {
            let make = Box::new(move || self.matrix(params, which));
            let shape = self.matrix_shape(which).to_vec();
            (which.key(&self.module), Lazy::Deferred { dtype: DType::F32, shape, make })
        })
    }

    fn matrix_shape(&self, which: Matrix) -> [usize; 2] {
        let ([n, k], (rank, _)) = (self.shape, self.size());
        let num_experts = self.parts[0].len();
        match which {
            Matrix::A => [num_experts * rank, k],
            Matrix::B => [self.parts.len() * n, rank * num_experts],
        }
    }

    /// `A` has experts slowest, `B` fastest.
    fn matrix(&self, params: &Params, which: Matrix) -> Result<Tensor, DeviceError> {
        let shape @ [_, cols] = self.matrix_shape(which);
        let (num_parts, num_experts) = (self.parts.len(), self.parts[0].len());
        let (rank, scale) = self.size();
        let mut all = Tensor::try_zeros(DType::F32, &shape)?;
        let to = all.f32_mut();
        let mut first = 0;
        for (part, (experts, of_part)) in self.parts.iter().zip(self.ranks()).enumerate() {
            for (expert, lora) in experts.iter().enumerate() {
                let Some(lora) = lora else { continue };
                let param = if which == Matrix::A { lora.a } else { lora.b };
                let values = params.value(param).try_to_vec_f32()?;
                if which == Matrix::A {
                    to[(expert * rank + first) * cols..][..values.len()].copy_from_slice(&values);
                    continue;
                }
                let factor = lora.scale / scale;
                for (i, value) in values.iter().enumerate() {
                    let (row, of) = (i / lora.rank, first + i % lora.rank);
                    let row = match self.layout {
                        ExpertLayout::Rows => part * self.shape[0] + row,
                        ExpertLayout::Columns => row * num_parts + part,
                    };
                    to[row * cols + of * num_experts + expert] = factor * value;
                }
            }
            first += of_part;
        }
        Ok(all)
    }
}
