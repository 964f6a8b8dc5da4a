//! OLMoE: `OlmoeForCausalLM` of transformers. Llama with experts in every block, whose weights are
//! not renormalised, and norms of all queries and all keys.

use super::mixtures::{mixture_sizes, softmax_mixture};
use super::{Defaults, blocks, each, read_attention_bias};
use crate::config::{DecoderConfig, ExpertNames, QkNorm};
use crate::raw_config::{ConfigError, RawConfig};

pub(super) fn decoder_config(raw: &RawConfig) -> Result<DecoderConfig, ConfigError> {
    let defaults = Defaults {
        max_position_embeddings: 4096,
        intermediate_size: Some(2048),
        norm_eps: 1e-5,
        eos_token_ids: &[50_279],
        ..Defaults::LLAMA
    };
    let mut config = blocks(raw, &defaults)?;
    read_attention_bias(raw, &mut config)?;
    if let Some(bound) = raw.get("clip_qkv") {
        let problem = format!("is {bound}: clipping of queries, keys and values is not supported");
        return Err(raw.error("clip_qkv", problem));
    }
    let sizes = mixture_sizes(raw, ("num_experts", 64), 8)?;
    let normalise = raw.flag("norm_topk_prob", false)?;
    let experts = softmax_mixture(raw, sizes, normalise, &ExpertNames::QWEN)?;
    each(&mut config, |layer| {
        layer.attention.qk_norm = QkNorm::Rows;
        layer.mlp.experts = Some(experts.clone());
    });
    Ok(config)
}
