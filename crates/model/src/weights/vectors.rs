//! Weights of a block that are neither matrices with biases nor norms.

use super::{DeltaPart, Role, WeightSpec};
use crate::config::{DeltaConfig, LayerConfig};

impl LayerConfig {
    pub(super) fn delta_parts(&self, layer: usize) -> impl Iterator<Item = WeightSpec> {
        let parts = self.delta.map(|DeltaConfig { heads, conv_width, .. }| {
            let spec = |part, name: &str, shape: &[usize]| WeightSpec {
                role: Role::Delta(layer, part),
                name: format!("model.layers.{layer}.linear_attn.{name}"),
                shape: shape.to_vec(),
            };
            [
                spec(DeltaPart::Conv, "conv1d.weight", &[heads.qkv_width(), 1, conv_width]),
                spec(DeltaPart::DtBias, "dt_bias", &[heads.num_value_heads]),
                spec(DeltaPart::ALog, "A_log", &[heads.num_value_heads]),
            ]
        });
        parts.into_iter().flatten()
    }

    pub(super) fn router_bias(&self, layer: usize) -> Option<WeightSpec> {
        let mixture = self.experts().filter(|mixture| mixture.correction_bias)?;
        let name = format!("model.layers.{layer}.{}.e_score_correction_bias", mixture.names.router);
        let (role, shape) = (Role::RouterBias(layer), vec![mixture.router.num_experts]);
        Some(WeightSpec { role, name, shape })
    }

    pub(super) fn expert_scales(&self, layer: usize) -> Option<WeightSpec> {
        let mixture = self.experts().filter(|mixture| mixture.is_parallel)?;
        Some(WeightSpec {
            role: Role::ExpertScales(layer),
            name: format!("model.layers.{layer}.router.per_expert_scale"),
            shape: vec![mixture.router.num_experts],
        })
    }
}
