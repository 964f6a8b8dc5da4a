//! Llama: `LlamaForCausalLM` of transformers.

use super::{expect_activation, head_dim, heads, norm_eps, num_layers, refuse_quantised};
use crate::config::{AttentionConfig, DecoderConfig, LayerConfig, MlpConfig};
use crate::raw_config::{ConfigError, RawConfig};
use crate::rope::RopeConfig;
use hone_tensor::ops::{Activation, RmsNorm};

/// Reads a Llama `config.json`; absent keys have the defaults of transformers.
pub(super) fn decoder_config(raw: &RawConfig) -> Result<DecoderConfig, ConfigError> {
    expect_activation(raw, "hidden_act", "silu")?;
    raw.expect_neutral("attention_dropout", 0.0)?;
    raw.expect_neutral("partial_rotary_factor", 1.0)?;
    refuse_quantised(raw)?;
    let heads = heads(raw, head_dim(raw)?)?;
    let max_position_embeddings = raw.optional_size("max_position_embeddings")?.unwrap_or(2048);
    let attention_bias = raw.flag("attention_bias", false)?;
    let layer = LayerConfig {
        attention: AttentionConfig {
            heads,
            rope: 0,
            qk_norm: false,
            qkv_bias: attention_bias,
            o_bias: attention_bias,
        },
        mlp: MlpConfig {
            intermediate_size: raw.size("intermediate_size")?,
            activation: Activation::Silu,
            bias: raw.flag("mlp_bias", false)?,
            experts: None,
        },
        post_norms: false,
    };
    Ok(DecoderConfig {
        vocab_size: raw.size("vocab_size")?,
        hidden_size: raw.size("hidden_size")?,
        layers: vec![layer; num_layers(raw)?],
        ropes: vec![RopeConfig::read(raw, heads.head_dim, max_position_embeddings)?],
        norm: RmsNorm { eps: norm_eps(raw)?, plus_one: false },
        embedding_scale: 1.0,
        max_position_embeddings,
        tie_word_embeddings: raw.flag("tie_word_embeddings", false)?,
        eos_token_ids: raw.token_ids("eos_token_id")?,
    })
}
