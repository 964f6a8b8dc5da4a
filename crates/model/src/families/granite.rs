//! Granite: `GraniteForCausalLM` of transformers. Llama with four multipliers.

use super::{Defaults, blocks, each, read_attention_bias, read_mlp_bias};
use crate::config::{DecoderConfig, EmbeddingScale};
use crate::raw_config::{ConfigError, RawConfig};

pub(super) fn decoder_config(raw: &RawConfig) -> Result<DecoderConfig, ConfigError> {
    let mut config = blocks(raw, &Defaults { eos_token_ids: &[2], ..Defaults::LLAMA })?;
    read_attention_bias(raw, &mut config)?;
    read_mlp_bias(raw, &mut config)?;
    let number = |key| Ok::<f64, ConfigError>(raw.optional_number(key)?.unwrap_or(1.0));
    let scale = number("attention_multiplier")? as f32;
    each(&mut config, |layer| layer.attention.heads.scale = scale);
    config.logits.scale = number("logits_scaling")?.recip() as f32;
    // What blocks add is multiplied. Norms do not see how long their input is, but for their
    // epsilon: so the stream may be divided by the multiplier instead, which costs nothing.
    let residual = number("residual_multiplier")?;
    let embedding = number("embedding_multiplier")? / residual;
    config.embedding_scale = EmbeddingScale::Exact(embedding as f32);
    config.norm.eps = (f64::from(config.norm.eps) / (residual * residual)) as f32;
    Ok(config)
}
