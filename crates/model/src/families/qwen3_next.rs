//! Qwen3-Next: `Qwen3NextForCausalLM` of transformers. Qwen3.5 with experts in most blocks, whose
//! gated delta nets have two matrices before them, key head by key head.

use super::mixtures::{mixture_sizes, sparse_layers};
use super::{Defaults, each, qwen3_5, qwen3_5_moe};
use crate::config::DecoderConfig;
use crate::raw_config::{ConfigError, RawConfig};

pub(super) fn decoder_config(raw: &RawConfig) -> Result<DecoderConfig, ConfigError> {
    let defaults = Defaults { intermediate_size: Some(5632), ..qwen3_5::DEFAULTS };
    let mut config = qwen3_5::read(raw, &defaults)?;
    // No key tells of them.
    config.has_mtp = true;
    each(&mut config, |layer| {
        if let Some(delta) = &mut layer.delta {
            delta.fused = true;
        }
    });
    let sizes = mixture_sizes(raw, ("num_experts", 512), 10)?;
    let normalise = raw.flag("norm_topk_prob", true)?;
    let is_sparse = sparse_layers(raw, config.layers.len())?;
    qwen3_5_moe::read_experts(raw, &mut config, is_sparse, (sizes, normalise))?;
    Ok(config)
}
