//! Qwen3 with experts: `Qwen3MoeForCausalLM` of transformers. Qwen3 with a mixture of experts in
//! most blocks; its window, if it is used, is that of every block.

use super::mixtures::{mixture_sizes, sparse_layers};
use super::{Defaults, blocks, each, read_attention_bias};
use crate::config::{DecoderConfig, ExpertNames, ExpertsConfig, QkNorm};
use crate::raw_config::{ConfigError, RawConfig};
use hone_tensor::ops::{Router, Scoring};

pub(super) fn decoder_config(raw: &RawConfig) -> Result<DecoderConfig, ConfigError> {
    let defaults = Defaults {
        max_position_embeddings: 32_768,
        intermediate_size: Some(6144),
        ..Defaults::LLAMA
    };
    let mut config = blocks(raw, &defaults)?;
    read_attention_bias(raw, &mut config)?;
    let window = raw.optional_size("sliding_window")?.unwrap_or(4096);
    let window = raw.flag("use_sliding_window", false)?.then_some(window);
    each(&mut config, |layer| {
        layer.attention.qk_norm = QkNorm::Heads;
        layer.attention.heads.window = window;
    });
    // The auxiliary loss is a matter of training.
    raw.get("router_aux_loss_coef");
    raw.get("output_router_logits");
    raw.get("max_window_layers");
    let [num_experts, top_k] = mixture_sizes(raw, ("num_experts", 128), 8)?;
    let experts = ExpertsConfig {
        router: Router {
            num_experts,
            top_k,
            scoring: Scoring::Softmax,
            normalise: raw.flag("norm_topk_prob", false)?,
            scale: 1.0,
            groups: None,
        },
        correction_bias: false,
        shared: None,
        names: &ExpertNames::QWEN,
    };
    let width = raw.optional_size("moe_intermediate_size")?.unwrap_or(768);
    let is_sparse = sparse_layers(raw, config.layers.len())?;
    for (layer, _) in config.layers.iter_mut().zip(is_sparse).filter(|(_, is)| *is) {
        layer.mlp.intermediate_size = width;
        layer.mlp.experts = Some(experts.clone());
    }
    Ok(config)
}
