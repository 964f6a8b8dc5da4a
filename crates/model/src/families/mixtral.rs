//! Mixtral: `MixtralForCausalLM` of transformers. Mistral with experts in every block.

use super::mixtures::{mixture_sizes, softmax_mixture};
use super::{Defaults, blocks, each};
use crate::config::{DecoderConfig, ExpertNames};
use crate::raw_config::{ConfigError, RawConfig};
use crate::rope::RopeDefaults;

const NAMES: ExpertNames = ExpertNames {
    router: "block_sparse_moe.gate",
    experts: "block_sparse_moe.experts",
    parts: ["w1", "w3", "w2"],
    ..ExpertNames::QWEN
};

pub(super) fn decoder_config(raw: &RawConfig) -> Result<DecoderConfig, ConfigError> {
    let defaults = Defaults {
        max_position_embeddings: 131_072,
        intermediate_size: Some(14_336),
        norm_eps: 1e-5,
        eos_token_ids: &[2],
        rope: RopeDefaults { theta: 1_000_000.0, ..RopeDefaults::LLAMA },
        ..Defaults::LLAMA
    };
    let mut config = blocks(raw, &defaults)?;
    let window = raw.optional_size("sliding_window")?;
    each(&mut config, |layer| layer.attention.heads.window = window);
    raw.expect_neutral("router_jitter_noise", 0.0)?;
    let sizes = mixture_sizes(raw, ("num_local_experts", 8), 2)?;
    let experts = softmax_mixture(raw, sizes, true, &NAMES)?;
    each(&mut config, |layer| layer.mlp.experts = Some(experts.clone()));
    Ok(config)
}
