//! Qwen3: `Qwen3ForCausalLM` of transformers. Llama with norms of query and key heads.

use super::{expect_activation, heads, norm_eps, num_layers, refuse_quantised, sliding_layers};
use crate::config::{AttentionConfig, DecoderConfig, LayerConfig, MlpConfig};
use crate::raw_config::{ConfigError, RawConfig};
use crate::rope::RopeConfig;
use hone_tensor::Heads;
use hone_tensor::ops::{Activation, RmsNorm};

/// Reads a Qwen3 `config.json`; absent keys have the defaults of transformers.
pub(super) fn decoder_config(raw: &RawConfig) -> Result<DecoderConfig, ConfigError> {
    expect_activation(raw, "hidden_act", "silu")?;
    raw.expect_neutral("attention_dropout", 0.0)?;
    refuse_quantised(raw)?;
    let heads = heads(raw, raw.optional_size("head_dim")?.unwrap_or(128))?;
    let max_position_embeddings = raw.optional_size("max_position_embeddings")?.unwrap_or(32_768);
    let attention_bias = raw.flag("attention_bias", false)?;
    let window = raw.optional_size("sliding_window")?.unwrap_or(4096);
    let uses_window = raw.flag("use_sliding_window", false)?;
    let first_windowed = match raw.get("max_window_layers") {
        Some(count) if *count == 0 => 0,
        _ => raw.optional_size("max_window_layers")?.unwrap_or(28),
    };
    let is_sliding =
        sliding_layers(raw, num_layers(raw)?, |layer| uses_window && layer >= first_windowed)?;
    let intermediate_size = raw.size("intermediate_size")?;
    let layer = |is_sliding: bool| LayerConfig {
        attention: AttentionConfig {
            heads: Heads { window: (is_sliding && uses_window).then_some(window), ..heads },
            rope: 0,
            qk_norm: true,
            qkv_bias: attention_bias,
            o_bias: attention_bias,
        },
        mlp: MlpConfig {
            intermediate_size,
            activation: Activation::Silu,
            bias: false,
            experts: None,
        },
        post_norms: false,
    };
    Ok(DecoderConfig {
        vocab_size: raw.size("vocab_size")?,
        hidden_size: raw.size("hidden_size")?,
        layers: is_sliding.into_iter().map(layer).collect(),
        ropes: vec![RopeConfig::read(raw, heads.head_dim, max_position_embeddings)?],
        norm: RmsNorm { eps: norm_eps(raw)?, plus_one: false },
        embedding_scale: 1.0,
        max_position_embeddings,
        tie_word_embeddings: raw.flag("tie_word_embeddings", false)?,
        eos_token_ids: raw.token_ids("eos_token_id")?,
    })
}
