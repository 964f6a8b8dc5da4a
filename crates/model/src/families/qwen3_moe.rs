//! Qwen3 with experts: `Qwen3MoeForCausalLM` of transformers. Qwen3 with a mixture of experts in
//! most blocks; its window, if it is used, is that of every block.

use super::mixtures::{mixture_sizes, set_experts, softmax_mixture, sparse_layers};
use super::{Defaults, blocks, each, read_attention_bias, window};
use crate::config::{DecoderConfig, ExpertNames, QkNorm};
use crate::raw_config::{ConfigError, RawConfig};

pub(super) fn decoder_config(raw: &RawConfig) -> Result<DecoderConfig, ConfigError> {
    let defaults = Defaults {
        max_position_embeddings: 32_768,
        intermediate_size: Some(6144),
        ..Defaults::LLAMA
    };
    let mut config = blocks(raw, &defaults)?;
    read_attention_bias(raw, &mut config)?;
    let uses_window = raw.flag("use_sliding_window", false)?;
    let window = window(raw)?.filter(|_| uses_window);
    each(&mut config, |layer| {
        layer.attention.qk_norm = QkNorm::Heads;
        layer.attention.heads.window = window;
    });
    raw.get("max_window_layers");
    // transformers 5 writes it under the other name.
    let key = match raw.has("num_local_experts") && !raw.has("num_experts") {
        true => "num_local_experts",
        false => "num_experts",
    };
    let sizes = mixture_sizes(raw, (key, 128), 8)?;
    let normalise = raw.flag("norm_topk_prob", false)?;
    let experts = softmax_mixture(raw, sizes, normalise, &ExpertNames::QWEN)?;
    let width = raw.optional_size("moe_intermediate_size")?.unwrap_or(768);
    let is_sparse = sparse_layers(raw, config.layers.len())?;
    set_experts(&mut config, is_sparse, width, &experts);
    Ok(config)
}
