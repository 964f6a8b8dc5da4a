//! Qwen3 with experts: `Qwen3MoeForCausalLM` of transformers. Qwen3 with a mixture of experts in
//! most blocks; its window, if it is used, is that of every block.

use super::mixtures::{mixture_sizes, sparse_layers};
use super::{expect_activation, head_dim, heads, norm_eps, num_layers, refuse_quantised};
use crate::config::{
    AttentionConfig, DecoderConfig, ExpertNames, ExpertsConfig, LayerConfig, MlpConfig,
};
use crate::raw_config::{ConfigError, RawConfig};
use crate::rope::RopeConfig;
use hone_tensor::Heads;
use hone_tensor::ops::{Activation, RmsNorm, Router, Scoring};

/// Reads a Qwen3-MoE `config.json`; absent keys have the defaults of transformers.
pub(super) fn decoder_config(raw: &RawConfig) -> Result<DecoderConfig, ConfigError> {
    expect_activation(raw, "hidden_act", "silu")?;
    raw.expect_neutral("attention_dropout", 0.0)?;
    refuse_quantised(raw)?;
    let heads = heads(raw, head_dim(raw)?)?;
    let max_position_embeddings = raw.optional_size("max_position_embeddings")?.unwrap_or(32_768);
    let attention_bias = raw.flag("attention_bias", false)?;
    let window = raw.optional_size("sliding_window")?.unwrap_or(4096);
    let uses_window = raw.flag("use_sliding_window", false)?;
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
    let dense_width = raw.optional_size("intermediate_size")?.unwrap_or(6144);
    let layer = |is_sparse: bool| LayerConfig {
        attention: AttentionConfig {
            heads: Heads { window: uses_window.then_some(window), ..heads },
            rope: 0,
            qk_norm: true,
            qkv_bias: attention_bias,
            o_bias: attention_bias,
        },
        mlp: MlpConfig {
            intermediate_size: if is_sparse { width } else { dense_width },
            activation: Activation::Silu,
            bias: false,
            experts: is_sparse.then(|| experts.clone()),
        },
        post_norms: false,
    };
    Ok(DecoderConfig {
        vocab_size: raw.size("vocab_size")?,
        hidden_size: raw.size("hidden_size")?,
        layers: sparse_layers(raw, num_layers(raw)?)?.into_iter().map(layer).collect(),
        ropes: vec![RopeConfig::read(raw, heads.head_dim, max_position_embeddings)?],
        norm: RmsNorm { eps: norm_eps(raw)?, plus_one: false },
        embedding_scale: 1.0,
        max_position_embeddings,
        tie_word_embeddings: raw.flag("tie_word_embeddings", false)?,
        eos_token_ids: raw.token_ids("eos_token_id")?,
    })
}
