//! Llama: `LlamaForCausalLM` of transformers.

use super::{expect_activation, heads, num_layers, refuse_quantised};
use crate::config::{AttentionConfig, DecoderConfig, LayerConfig, MlpConfig};
use crate::raw_config::{ConfigError, RawConfig};
use crate::rope::RopeConfig;

/// Reads a Llama `config.json`; absent keys mean what they mean in transformers.
pub(super) fn decoder_config(raw: &RawConfig) -> Result<DecoderConfig, ConfigError> {
    expect_activation(raw, "hidden_act", "silu")?;
    raw.expect_neutral("attention_dropout", 0.0)?;
    raw.expect_neutral("partial_rotary_factor", 1.0)?;
    refuse_quantised(raw)?;
    let heads = heads(raw)?;
    let max_position_embeddings = raw.optional_size("max_position_embeddings")?.unwrap_or(2048);
    let attention_bias = raw.flag("attention_bias", false)?;
    let layer = LayerConfig {
        attention: AttentionConfig {
            heads,
            rope: 0,
            qkv_bias: attention_bias,
            o_bias: attention_bias,
        },
        mlp: MlpConfig {
            intermediate_size: raw.size("intermediate_size")?,
            bias: raw.flag("mlp_bias", false)?,
        },
    };
    Ok(DecoderConfig {
        vocab_size: raw.size("vocab_size")?,
        hidden_size: raw.size("hidden_size")?,
        layers: vec![layer; num_layers(raw)?],
        ropes: vec![RopeConfig::read(raw, heads.head_dim, max_position_embeddings)?],
        rms_norm_eps: raw.optional_number("rms_norm_eps")?.unwrap_or(1e-6) as f32,
        max_position_embeddings,
        tie_word_embeddings: raw.flag("tie_word_embeddings", false)?,
        eos_token_ids: raw.token_ids("eos_token_id")?,
    })
}
