//! SmolLM3: `SmolLM3ForCausalLM` of transformers. Llama without positions in every fourth block.

use super::{
    Defaults, blocks, list_of_layers, read_attention_bias, read_mlp_bias, set_windows,
    sliding_layers,
};
use crate::config::DecoderConfig;
use crate::raw_config::{ConfigError, RawConfig};
use crate::rope::RopeDefaults;
use serde_json::Value;

pub(super) fn decoder_config(raw: &RawConfig) -> Result<DecoderConfig, ConfigError> {
    let defaults = Defaults {
        max_position_embeddings: 32_768,
        tie_word_embeddings: true,
        eos_token_ids: &[128_001],
        rope: RopeDefaults { theta: 2_000_000.0, ..RopeDefaults::LLAMA },
        ..Defaults::LLAMA
    };
    let mut config = blocks(raw, &defaults)?;
    read_attention_bias(raw, &mut config)?;
    read_mlp_bias(raw, &mut config)?;
    // Of Qwen's files; transformers does not read it here.
    raw.get("max_window_layers");
    let embeds_positions = embeds_positions(raw, config.layers.len())?;
    let (window, uses) =
        (raw.optional_size("sliding_window")?, raw.flag("use_sliding_window", false)?);
    let by_rule = |layer: usize| uses && !embeds_positions[layer];
    let is_sliding = sliding_layers(raw, config.layers.len(), by_rule)?;
    set_windows(&mut config, &is_sliding, window.filter(|_| uses));
    for (layer, embeds) in config.layers.iter_mut().zip(embeds_positions) {
        layer.attention.rope = embeds.then_some(0);
    }
    Ok(config)
}

/// `no_rope_layers`, in which 0 stands for a block without positions, or every so many.
fn embeds_positions(raw: &RawConfig, num_layers: usize) -> Result<Vec<bool>, ConfigError> {
    const KEY: &str = "no_rope_layers";
    let interval = raw.optional_size("no_rope_layer_interval")?.unwrap_or(4);
    let Some(given) = raw.get(KEY) else {
        return Ok((1..=num_layers).map(|layer| !layer.is_multiple_of(interval)).collect());
    };
    let flag = |flag: &Value| match flag.as_u64() {
        Some(0) => Ok(false),
        Some(1) => Ok(true),
        _ => {
            let problem = format!("must hold 1, or 0 for a block without positions; found {flag}");
            Err(raw.ruled_out(KEY, problem))
        }
    };
    list_of_layers(raw, KEY, given, num_layers)?.iter().map(flag).collect()
}
