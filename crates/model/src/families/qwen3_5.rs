//! Qwen3.5 and 3.6, the text part: `Qwen3_5ForCausalLM` of transformers. Qwen3 with norms of one
//! plus the weight, gated delta nets in three of four blocks, and output gates in the others, which
//! embed positions in a quarter of each head.

use super::{Defaults, blocks, each, has_mtp, layers_of_kind, read_attention_bias, size};
use crate::config::{DecoderConfig, DeltaConfig, QkNorm};
use crate::raw_config::{ConfigError, RawConfig};
use crate::rope::RopeDefaults;
use hone_tensor::ops::{DeltaHeads, MAX_CONV_WIDTH};

pub(super) const DEFAULTS: Defaults = Defaults {
    head_dim: Some(256),
    max_position_embeddings: 32_768,
    rope: RopeDefaults {
        fraction: Some(0.25),
        // Of positions of pictures; the three of a text's token are the same.
        neutral: &["mrope_section", "mrope_interleaved"],
        ..RopeDefaults::LLAMA
    },
    ..Defaults::LLAMA
};

pub(super) fn decoder_config(raw: &RawConfig) -> Result<DecoderConfig, ConfigError> {
    read(raw, &DEFAULTS)
}

/// Blocks with gated delta nets in three of four, and a dense MLP.
pub(super) fn read(raw: &RawConfig, defaults: &Defaults) -> Result<DecoderConfig, ConfigError> {
    let mut config = blocks(raw, defaults)?;
    read_attention_bias(raw, &mut config)?;
    if !raw.flag("attn_output_gate", true)? {
        let problem = "is false, which is not supported: use a checkpoint with output gates";
        return Err(raw.error("attn_output_gate", problem));
    }
    // States are always in f32.
    raw.get("mamba_ssm_dtype");
    raw.get("mtp_use_dedicated_embeddings");
    config.has_mtp = has_mtp(raw, &["mtp_num_hidden_layers"]);
    config.norm.plus_one = true;
    each(&mut config, |layer| {
        layer.attention.qk_norm = QkNorm::Heads;
        layer.attention.output_gate = true;
    });
    let delta = delta(raw)?;
    let interval = size(raw, "full_attention_interval", Some(4))?;
    let by_rule = |layer: usize| !(layer + 1).is_multiple_of(interval);
    let is_delta = layers_of_kind(raw, "linear_attention", config.layers.len(), by_rule)?;
    for (layer, is_delta) in config.layers.iter_mut().zip(is_delta) {
        layer.delta = is_delta.then_some(delta);
    }
    Ok(config)
}

fn delta(raw: &RawConfig) -> Result<DeltaConfig, ConfigError> {
    let size = |key, default| size(raw, key, Some(default));
    let heads = DeltaHeads {
        num_key_heads: size("linear_num_key_heads", 16)?,
        num_value_heads: size("linear_num_value_heads", 32)?,
        key_dim: size("linear_key_head_dim", 128)?,
        value_dim: size("linear_value_head_dim", 128)?,
    };
    if !heads.num_value_heads.is_multiple_of(heads.num_key_heads) {
        let problem = format!(
            "must divide linear_num_value_heads ({}), found {}",
            heads.num_value_heads, heads.num_key_heads
        );
        return Err(raw.ruled_out("linear_num_key_heads", problem));
    }
    const WIDTH: &str = "linear_conv_kernel_dim";
    let conv_width = size(WIDTH, 4)?;
    if !(2..=MAX_CONV_WIDTH).contains(&conv_width) {
        let problem = format!("must be from 2 to {MAX_CONV_WIDTH}, found {conv_width}");
        return Err(raw.ruled_out(WIDTH, problem));
    }
    Ok(DeltaConfig { heads, conv_width, fused: false })
}
