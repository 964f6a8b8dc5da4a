//! Llama: `LlamaForCausalLM` of transformers.

use crate::config::{ConfigError, DecoderConfig, RawConfig};
use crate::rope::RopeConfig;
use hone_tensor::Heads;

/// Reads a Llama `config.json`; absent keys mean what they mean in transformers.
pub(super) fn decoder_config(raw: &RawConfig) -> Result<DecoderConfig, ConfigError> {
    refuse_unknown_parts(raw)?;
    let hidden_size = raw.size("hidden_size")?;
    let num_heads = raw.size("num_attention_heads")?;
    let num_kv_heads = raw.optional_size("num_key_value_heads")?.unwrap_or(num_heads);
    if !num_heads.is_multiple_of(num_kv_heads) {
        let problem =
            format!("must divide num_attention_heads ({num_heads}), found {num_kv_heads}");
        return Err(raw.error("num_key_value_heads", problem));
    }
    let head_dim = match raw.optional_size("head_dim")? {
        Some(head_dim) => head_dim,
        None if hidden_size.is_multiple_of(num_heads) => hidden_size / num_heads,
        None => {
            let problem = format!(
                "must divide hidden_size ({hidden_size}) where head_dim is not given, found \
                 {num_heads}"
            );
            return Err(raw.error("num_attention_heads", problem));
        }
    };
    if !head_dim.is_multiple_of(2) {
        let problem = format!(
            "must be even for rotary embeddings, found {head_dim} (where it is not given, it is \
             hidden_size / num_attention_heads)"
        );
        return Err(raw.error("head_dim", problem));
    }
    let max_position_embeddings = raw.optional_size("max_position_embeddings")?.unwrap_or(2048);
    Ok(DecoderConfig {
        vocab_size: raw.size("vocab_size")?,
        hidden_size,
        intermediate_size: raw.size("intermediate_size")?,
        num_hidden_layers: raw.size("num_hidden_layers")?,
        heads: Heads {
            num_heads,
            num_kv_heads,
            head_dim,
            scale: (head_dim as f32).powf(-0.5),
            window: None,
        },
        rms_norm_eps: raw.optional_number("rms_norm_eps")?.unwrap_or(1e-6) as f32,
        rope: RopeConfig::read(raw, head_dim, max_position_embeddings)?,
        max_position_embeddings,
        tie_word_embeddings: raw.flag("tie_word_embeddings", false)?,
        attention_bias: raw.flag("attention_bias", false)?,
        mlp_bias: raw.flag("mlp_bias", false)?,
        eos_token_ids: raw.token_ids("eos_token_id")?,
    })
}

fn refuse_unknown_parts(raw: &RawConfig) -> Result<(), ConfigError> {
    if let Some(act) = raw.text("hidden_act")?.filter(|act| *act != "silu") {
        let problem = format!("is `{act}`, which is not supported; Llama models have `silu`");
        return Err(raw.error("hidden_act", problem));
    }
    raw.expect_neutral("attention_dropout", 0.0)?;
    raw.expect_neutral("partial_rotary_factor", 1.0)?;
    if raw.get("quantization_config").is_some() {
        let problem = "says that the weights are quantised, which is not read yet; use the \
                       unquantised model";
        return Err(raw.error("quantization_config", problem));
    }
    Ok(())
}
