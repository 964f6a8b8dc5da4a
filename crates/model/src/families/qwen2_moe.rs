//! Qwen1.5 and Qwen2 with experts: `Qwen2MoeForCausalLM` of transformers. Qwen2 with a mixture of
//! experts in most blocks, and beside it a gated expert for every token.

use super::mixtures::{mixture_sizes, set_experts, softmax_mixture, sparse_layers};
use super::{Defaults, blocks, count, each, set_windows, sliding_layers, window};
use crate::config::{DecoderConfig, ExpertNames, SharedExpertConfig};
use crate::raw_config::{ConfigError, RawConfig};

pub(super) fn decoder_config(raw: &RawConfig) -> Result<DecoderConfig, ConfigError> {
    let defaults = Defaults {
        max_position_embeddings: 32_768,
        intermediate_size: Some(5632),
        ..Defaults::LLAMA
    };
    let mut config = blocks(raw, &defaults)?;
    let (bias, num_layers) = (raw.flag("qkv_bias", true)?, config.layers.len());
    each(&mut config, |layer| layer.attention.qkv_bias = bias);
    // Unlike in Qwen2, every other block below `max_window_layers`.
    let window = window(raw)?;
    let uses_window = raw.flag("use_sliding_window", false)?;
    let num_windowed = count(raw, "max_window_layers", 28)?;
    let by_rule = |layer: usize| uses_window && layer.is_multiple_of(2) && layer < num_windowed;
    let is_sliding = sliding_layers(raw, num_layers, by_rule)?;
    set_windows(&mut config, &is_sliding, window.filter(|_| uses_window));
    let sizes = mixture_sizes(raw, ("num_experts", 60), 4)?;
    let normalise = raw.flag("norm_topk_prob", false)?;
    let mut experts = softmax_mixture(raw, sizes, normalise, &ExpertNames::QWEN)?;
    let shared = raw.optional_size("shared_expert_intermediate_size")?.unwrap_or(5632);
    experts.shared = Some(SharedExpertConfig { intermediate_size: shared, gated: true });
    let width = raw.optional_size("moe_intermediate_size")?.unwrap_or(1408);
    let is_sparse = sparse_layers(raw, num_layers)?;
    set_experts(&mut config, is_sparse, width, &experts);
    Ok(config)
}
