//! Gemma 2: `Gemma2ForCausalLM` of transformers. Norms before and after attention and MLP, bounded
//! scores and logits, and windows in every other block.

use super::{Defaults, blocks, each, read_attention_bias, set_windows, sliding_layers, window};
use crate::config::{DecoderConfig, EmbeddingScale, NormNames};
use crate::raw_config::{ConfigError, RawConfig};
use hone_tensor::ops::{Activation, Softcap};

/// Names of the norms of Gemma 2 and 3.
pub(super) const NORMS: NormNames = NormNames {
    attention_input: Some("input_layernorm"),
    attention_output: Some("post_attention_layernorm"),
    mlp_input: Some("pre_feedforward_layernorm"),
    mlp_output: Some("post_feedforward_layernorm"),
};

/// What Gemma 2 and 3 have in common.
pub(super) const DEFAULTS: Defaults = Defaults {
    activation: ("hidden_activation", "gelu_pytorch_tanh", Activation::GeluTanh),
    head_dim: Some(256),
    max_position_embeddings: 8192,
    tie_word_embeddings: true,
    eos_token_ids: &[1],
    ..Defaults::LLAMA
};

pub(super) fn decoder_config(raw: &RawConfig) -> Result<DecoderConfig, ConfigError> {
    // Written by transformers 4 for programs that know Gemma 1 only.
    super::expect_kind(raw, "hidden_act", "gelu_pytorch_tanh")?;
    let mut config = read(raw, &DEFAULTS)?;
    let window = window(raw)?;
    let by_rule = |layer: usize| layer.is_multiple_of(2);
    let is_sliding = sliding_layers(raw, config.layers.len(), by_rule)?;
    set_windows(&mut config, &is_sliding, window);
    config.logits.softcap = softcap(raw, "final_logit_softcapping", 30.0)?;
    let softcap = softcap(raw, "attn_logit_softcapping", 50.0)?;
    each(&mut config, |layer| layer.attention.heads.softcap = softcap);
    Ok(config)
}

/// Blocks of Gemma 2 and 3.
pub(super) fn read(raw: &RawConfig, defaults: &Defaults) -> Result<DecoderConfig, ConfigError> {
    let mut config = blocks(raw, defaults)?;
    read_attention_bias(raw, &mut config)?;
    if raw.flag("use_bidirectional_attention", false)? {
        let problem = "is true, which is not supported: use a checkpoint with causal attention";
        return Err(raw.error("use_bidirectional_attention", problem));
    }
    let scale = raw.optional_number("query_pre_attn_scalar")?.unwrap_or(256.0).powf(-0.5) as f32;
    each(&mut config, |layer| {
        layer.norms = NORMS;
        layer.attention.heads.scale = scale;
    });
    config.norm.plus_one = true;
    config.embedding_scale = EmbeddingScale::Rounded((config.hidden_size as f64).sqrt() as f32);
    Ok(config)
}

/// A bound; `null` is none.
fn softcap(raw: &RawConfig, key: &str, default: f64) -> Result<Option<Softcap>, ConfigError> {
    let given = raw.optional_number(key)?;
    let cap = given.or(Some(default).filter(|_| !raw.is_null(key)));
    Ok(cap.map(|cap| Softcap(cap as f32)))
}
