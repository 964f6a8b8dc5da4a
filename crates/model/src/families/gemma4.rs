//! Gemma 4, the text part of dense models: `Gemma4ForCausalLM` of transformers. Norms before and
//! after attention and MLP, values that are normalised, and blocks whose output is multiplied by a
//! number. Most blocks have windows; the others have wider heads, fewer keys, whose values they may
//! be, and rotate the quarter of each head that turns fastest.
//!
//! Left out, and refused: embeddings of each block, keys and values of other blocks, experts.

use super::{Defaults, blocks, count, each, gemma2, heads, read_attention_bias, sliding_layers};
use crate::config::{DecoderConfig, EmbeddingScale, QkNorm};
use crate::raw_config::{ConfigError, RawConfig};
use crate::rope::{RopeConfig, RopeDefaults, RopeKeys};
use hone_tensor::ops::Softcap;

/// Indices of [`DecoderConfig::ropes`].
const FULL: usize = 0;
const SLIDING: usize = 1;

pub(super) fn decoder_config(raw: &RawConfig) -> Result<DecoderConfig, ConfigError> {
    refuse_parts(raw)?;
    let defaults = Defaults {
        num_heads: Some([8, 4]),
        vocab_size: Some(262_144),
        max_position_embeddings: 131_072,
        ropes,
        ..gemma2::DEFAULTS
    };
    let mut config = blocks(raw, &defaults)?;
    read_attention_bias(raw, &mut config)?;
    let by_rule = |layer: usize| !(layer + 1).is_multiple_of(6);
    let mut is_sliding = sliding_layers(raw, config.layers.len(), by_rule)?;
    if let Some(last) = is_sliding.last_mut() {
        *last = false; // as in transformers
    }
    let window = Some(raw.optional_size("sliding_window")?.unwrap_or(512));
    let keys_as_values = raw.flag("attention_k_eq_v", false)?;
    let full = full_heads(raw, keys_as_values)?;
    for (layer, is_sliding) in config.layers.iter_mut().zip(is_sliding) {
        let attention = &mut layer.attention;
        if is_sliding {
            attention.heads.window = window;
        } else {
            (attention.heads, attention.keys_as_values) = (full, keys_as_values);
        }
        attention.heads.scale = 1.0;
        attention.rope = Some(if is_sliding { SLIDING } else { FULL });
    }
    each(&mut config, |layer| {
        layer.attention.qk_norm = QkNorm::Heads;
        layer.attention.norms_values = true;
        layer.norms = gemma2::NORMS;
        layer.scaled = true;
    });
    let cap = raw.optional_number("final_logit_softcapping")?;
    config.logits.softcap = cap.map(|cap| Softcap(cap as f32));
    config.embedding_scale = EmbeddingScale::Rounded((config.hidden_size as f64).sqrt() as f32);
    Ok(config)
}

/// Parts that models of this family have and Hone does not.
fn refuse_parts(raw: &RawConfig) -> Result<(), ConfigError> {
    let refuse = |key: &str, value: String, part: &str| {
        let problem = format!(
            "is {value}: {part} not supported yet; use a model without, such as google/gemma-4-31B"
        );
        Err(raw.error(key, problem))
    };
    let width = count(raw, "hidden_size_per_layer_input", 256)?;
    if width > 0 {
        let part = "embeddings of each block are";
        return refuse("hidden_size_per_layer_input", width.to_string(), part);
    }
    let shared = count(raw, "num_kv_shared_layers", 0)?;
    if shared > 0 {
        let part = "keys and values of other blocks are";
        return refuse("num_kv_shared_layers", shared.to_string(), part);
    }
    if raw.flag("enable_moe_block", false)? {
        return refuse("enable_moe_block", "true".to_owned(), "experts beside a dense MLP are");
    }
    // Of what was refused, and of pictures, which attend to later ones.
    raw.get("vocab_size_per_layer_input");
    raw.get("use_double_wide_mlp");
    match raw.get("use_bidirectional_attention").and_then(|value| value.as_str()) {
        Some("all") => {
            let problem =
                "is \"all\", which is not supported: use a checkpoint with causal attention";
            Err(raw.error("use_bidirectional_attention", problem))
        }
        _ => Ok(()),
    }
}

/// Heads of blocks without a window.
fn full_heads(raw: &RawConfig, keys_as_values: bool) -> Result<hone_tensor::Heads, ConfigError> {
    const OF_DIM: &str = "global_head_dim";
    let head_dim = raw.optional_size(OF_DIM)?.unwrap_or(512);
    let mut full = heads(raw, (OF_DIM, head_dim), Some([8, 4]))?;
    const KEY: &str = "num_global_key_value_heads";
    let keys = raw.optional_size(KEY)?.filter(|_| keys_as_values);
    full.num_kv_heads = keys.unwrap_or(full.num_kv_heads);
    if !full.num_heads.is_multiple_of(full.num_kv_heads) {
        let (heads, found) = (full.num_heads, full.num_kv_heads);
        let problem = format!("must divide num_attention_heads ({heads}), found {found}");
        return Err(raw.ruled_out(KEY, problem));
    }
    Ok(full)
}

/// RoPE of full and of sliding attention, from `rope_parameters`, by kind of attention.
fn ropes(
    raw: &RawConfig,
    sliding: RopeDefaults,
    head_dim: usize,
    max: usize,
) -> Result<Vec<RopeConfig>, ConfigError> {
    const KEY: &str = "rope_parameters";
    let parameters = raw.object(KEY)?.ok_or_else(|| raw.missing(KEY))?;
    let full = RopeDefaults { theta: 1_000_000.0, proportional: true, ..sliding };
    let full_head_dim = raw.optional_size("global_head_dim")?.unwrap_or(512);
    let kinds = [("full_attention", full, full_head_dim), ("sliding_attention", sliding, head_dim)];
    let ropes = kinds.map(|(kind, defaults, head_dim)| {
        let of_kind = Some(parameters.object(kind)?.ok_or_else(|| parameters.missing(kind))?);
        let keys = RopeKeys { parameters: of_kind, ..RopeKeys::of(raw, defaults)? };
        RopeConfig::from_keys(&keys, head_dim, max)
    });
    let ropes = ropes.into_iter().collect::<Result<_, _>>()?;
    parameters.refuse_unread(&[])?;
    Ok(ropes)
}
