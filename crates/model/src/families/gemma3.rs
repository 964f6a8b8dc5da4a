//! Gemma 3, text only: `Gemma3ForCausalLM` of transformers. Norms before and after attention and
//! MLP, norms of query and key heads, and sliding windows with their own RoPE in most blocks.

use super::{expect_activation, heads, norm_eps, num_layers, refuse_quantised, sliding_layers};
use crate::config::{AttentionConfig, DecoderConfig, LayerConfig, MlpConfig};
use crate::raw_config::{ConfigError, RawConfig};
use crate::rope::{RopeConfig, RopeKeys};
use hone_tensor::Heads;
use hone_tensor::ops::{Activation, RmsNorm};

/// Indices of [`DecoderConfig::ropes`].
const FULL: usize = 0;
const SLIDING: usize = 1;

/// Reads the `config.json` of a Gemma 3 text model; absent keys have the defaults of transformers.
pub(super) fn decoder_config(raw: &RawConfig) -> Result<DecoderConfig, ConfigError> {
    refuse_unsupported(raw)?;
    let heads = heads(raw, raw.optional_size("head_dim")?.unwrap_or(256))?;
    let scale = raw.optional_number("query_pre_attn_scalar")?.unwrap_or(256.0).powf(-0.5) as f32;
    let max_position_embeddings = raw.optional_size("max_position_embeddings")?.unwrap_or(131_072);
    let window = raw.optional_size("sliding_window")?.unwrap_or(4096);
    let pattern = raw.optional_size("sliding_window_pattern")?.unwrap_or(6);
    let is_sliding =
        sliding_layers(raw, num_layers(raw)?, |layer| !(layer + 1).is_multiple_of(pattern))?;
    let bias = raw.flag("attention_bias", false)?;
    let (hidden_size, intermediate_size) =
        (raw.size("hidden_size")?, raw.size("intermediate_size")?);
    let layer = |is_sliding: bool| LayerConfig {
        attention: AttentionConfig {
            heads: Heads { scale, window: is_sliding.then_some(window), ..heads },
            rope: if is_sliding { SLIDING } else { FULL },
            qk_norm: true,
            qkv_bias: bias,
            o_bias: bias,
        },
        mlp: MlpConfig {
            intermediate_size,
            activation: Activation::GeluTanh,
            bias: false,
            experts: None,
        },
        post_norms: true,
    };
    Ok(DecoderConfig {
        vocab_size: raw.size("vocab_size")?,
        hidden_size,
        layers: is_sliding.into_iter().map(layer).collect(),
        ropes: ropes(raw, heads.head_dim, max_position_embeddings)?,
        norm: RmsNorm { eps: norm_eps(raw)?, plus_one: true },
        embedding_scale: (hidden_size as f64).sqrt() as f32,
        max_position_embeddings,
        tie_word_embeddings: raw.flag("tie_word_embeddings", true)?,
        eos_token_ids: match raw.get("eos_token_id") {
            None => vec![1],
            Some(_) => raw.token_ids("eos_token_id")?,
        },
    })
}

fn refuse_unsupported(raw: &RawConfig) -> Result<(), ConfigError> {
    expect_activation(raw, "hidden_activation", "gelu_pytorch_tanh")?;
    raw.expect_neutral("attention_dropout", 0.0)?;
    refuse_quantised(raw)?;
    for key in ["attn_logit_softcapping", "final_logit_softcapping"] {
        if let Some(cap) = raw.get(key) {
            let problem = format!("is {cap}, which is not supported; only null is");
            return Err(raw.error(key, problem));
        }
    }
    if raw.flag("use_bidirectional_attention", false)? {
        let problem = "is true, which is not supported; only causal attention is";
        return Err(raw.error("use_bidirectional_attention", problem));
    }
    Ok(())
}

/// RoPE of full and of sliding attention: from `rope_parameters`, by kind of attention, or from
/// `rope_theta`, `rope_scaling` and `rope_local_base_freq`.
fn ropes(raw: &RawConfig, head_dim: usize, max: usize) -> Result<Vec<RopeConfig>, ConfigError> {
    let parameters = raw.object("rope_parameters")?;
    let for_kind = |kind| match &parameters {
        Some(parameters) => parameters.object(kind),
        None => Ok(None),
    };
    let full = RopeKeys {
        raw,
        theta_key: "rope_theta",
        default_theta: 1_000_000.0,
        scaling: raw.object("rope_scaling")?,
        parameters: for_kind("full_attention")?,
    };
    let sliding = RopeKeys {
        raw,
        theta_key: "rope_local_base_freq",
        default_theta: 10_000.0,
        scaling: None,
        parameters: for_kind("sliding_attention")?,
    };
    if let Some(parameters) = &parameters {
        parameters.refuse_unread(&[])?;
    }
    let ropes = [full, sliding];
    ropes.iter().map(|keys| RopeConfig::from_keys(keys, head_dim, max)).collect()
}
