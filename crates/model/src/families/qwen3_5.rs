//! Qwen3.5 and 3.6, the text part: `Qwen3_5ForCausalLM` of transformers. Qwen3 with norms of one
//! plus the weight, gated delta nets in three of four blocks, and output gates in the others, which
//! embed positions in a quarter of each head.

use super::{Defaults, blocks, each, has_mtp, read_attention_bias};
use crate::config::{DecoderConfig, DeltaConfig, QkNorm};
use crate::raw_config::{ConfigError, RawConfig};
use crate::rope::{RopeConfig, RopeKeys};
use hone_tensor::ops::{DeltaHeads, MAX_CONV_WIDTH};
use serde_json::Value;

/// What `layer_types` calls a gated delta net.
const DELTA: &str = "linear_attention";
const FULL: &str = "full_attention";

pub(super) fn decoder_config(raw: &RawConfig) -> Result<DecoderConfig, ConfigError> {
    let defaults = Defaults {
        head_dim: Some(256),
        max_position_embeddings: 32_768,
        ropes: |raw, head_dim, max| {
            let keys = RopeKeys { fraction: Some(0.25), ..RopeKeys::of(raw)? };
            // Of positions of pictures; the three of a text's token are the same.
            for object in keys.parameters.iter().chain(&keys.scaling) {
                object.get("mrope_section");
                object.get("mrope_interleaved");
            }
            Ok(vec![RopeConfig::from_keys(&keys, head_dim, max)?])
        },
        ..Defaults::LLAMA
    };
    let mut config = blocks(raw, &defaults)?;
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
    let is_delta = delta_layers(raw, config.layers.len())?;
    for (layer, is_delta) in config.layers.iter_mut().zip(is_delta) {
        layer.delta = is_delta.then_some(delta);
    }
    Ok(config)
}

fn delta(raw: &RawConfig) -> Result<DeltaConfig, ConfigError> {
    let size = |key, default| -> Result<usize, ConfigError> {
        Ok(raw.optional_size(key)?.unwrap_or(default))
    };
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
        return Err(raw.error("linear_num_key_heads", problem));
    }
    const WIDTH: &str = "linear_conv_kernel_dim";
    let conv_width = size(WIDTH, 4)?;
    if !(2..=MAX_CONV_WIDTH).contains(&conv_width) {
        let problem = format!("must be from 2 to {MAX_CONV_WIDTH}, found {conv_width}");
        return Err(raw.error(WIDTH, problem));
    }
    Ok(DeltaConfig { heads, conv_width })
}

/// Whether each block has a gated delta net: from `layer_types`, or all but every so many.
fn delta_layers(raw: &RawConfig, num_layers: usize) -> Result<Vec<bool>, ConfigError> {
    let interval = raw.optional_size("full_attention_interval")?.unwrap_or(4);
    let Some(types) = raw.get("layer_types") else {
        return Ok((1..=num_layers).map(|layer| !layer.is_multiple_of(interval)).collect());
    };
    let is_delta = |kind: &Value| match kind.as_str() {
        Some(DELTA) => Some(true),
        Some(FULL) => Some(false),
        _ => None,
    };
    let layers = types.as_array().and_then(|types| types.iter().map(is_delta).collect());
    layers.filter(|layers: &Vec<bool>| layers.len() == num_layers).ok_or_else(|| {
        let problem = format!("must be a list of {num_layers}, each {DELTA:?} or {FULL:?}");
        raw.error("layer_types", problem)
    })
}
