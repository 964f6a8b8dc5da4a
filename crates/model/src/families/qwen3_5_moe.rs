//! Qwen3.5 and 3.6 with experts, the text part: `Qwen3_5MoeForCausalLM` of transformers. Qwen3.5
//! with a mixture of experts in every block, whose weights always add up to 1, and beside it a
//! gated expert for every token.

use super::mixtures::{mixture_sizes, set_experts, softmax_mixture};
use super::{Defaults, qwen3_5, size};
use crate::config::{DecoderConfig, ExpertNames, SharedExpertConfig};
use crate::raw_config::{ConfigError, RawConfig};

pub(super) fn decoder_config(raw: &RawConfig) -> Result<DecoderConfig, ConfigError> {
    // No block has a dense MLP.
    let defaults = Defaults { intermediate_size: Some(512), ..qwen3_5::DEFAULTS };
    let mut config = qwen3_5::read(raw, &defaults)?;
    let sizes = mixture_sizes(raw, ("num_experts", 256), 8)?;
    let every = vec![true; config.layers.len()];
    read_experts(raw, &mut config, every, (sizes, true))?;
    Ok(config)
}

/// Gives the blocks for which `is_sparse` says so experts, and beside them a gated one for every
/// token.
pub(super) fn read_experts(
    raw: &RawConfig,
    config: &mut DecoderConfig,
    is_sparse: Vec<bool>,
    (sizes, normalise): ([usize; 2], bool),
) -> Result<(), ConfigError> {
    let mut experts = softmax_mixture(raw, sizes, normalise, &ExpertNames::QWEN)?;
    let shared = size(raw, "shared_expert_intermediate_size", Some(512))?;
    experts.shared = Some(SharedExpertConfig { intermediate_size: shared, gated: true });
    let width = size(raw, "moe_intermediate_size", Some(512))?;
    set_experts(config, is_sparse, width, &experts);
    Ok(())
}
