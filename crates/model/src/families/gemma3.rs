//! Gemma 3, text only: `Gemma3ForCausalLM` of transformers. Gemma 2 with norms of query and key
//! heads instead of bounds, and with another RoPE in its windows, which most blocks have.

use super::gemma2::{self, DEFAULTS};
use super::{Defaults, set_windows, sliding_layers, window};
use crate::config::{DecoderConfig, QkNorm};
use crate::raw_config::{ConfigError, RawConfig};
use crate::rope::{RopeConfig, RopeDefaults, RopeKeys};

/// Indices of [`DecoderConfig::ropes`].
const FULL: usize = 0;
const SLIDING: usize = 1;

pub(super) fn decoder_config(raw: &RawConfig) -> Result<DecoderConfig, ConfigError> {
    for key in ["attn_logit_softcapping", "final_logit_softcapping"] {
        if let Some(cap) = raw.get(key) {
            let problem = format!("is {cap}, which is not supported: use a checkpoint without it");
            return Err(raw.error(key, problem));
        }
    }
    let defaults = Defaults {
        num_heads: Some([8, 4]),
        vocab_size: Some(262_208),
        max_position_embeddings: 131_072,
        ropes,
        ..DEFAULTS
    };
    let mut config = gemma2::read(raw, &defaults)?;
    let window = window(raw)?;
    let pattern = raw.optional_size("sliding_window_pattern")?.unwrap_or(6);
    let by_rule = |layer: usize| !(layer + 1).is_multiple_of(pattern);
    let is_sliding = sliding_layers(raw, config.layers.len(), by_rule)?;
    set_windows(&mut config, &is_sliding, window);
    for (layer, is_sliding) in config.layers.iter_mut().zip(is_sliding) {
        layer.attention.qk_norm = QkNorm::Heads;
        layer.attention.rope = Some(if is_sliding { SLIDING } else { FULL });
    }
    Ok(config)
}

/// RoPE of full and of sliding attention: from `rope_parameters`, by kind of attention, or from
/// `rope_theta`, `rope_scaling` and `rope_local_base_freq`.
fn ropes(
    raw: &RawConfig,
    sliding: RopeDefaults,
    head_dim: usize,
    max: usize,
) -> Result<Vec<RopeConfig>, ConfigError> {
    let parameters = raw.object("rope_parameters")?;
    let for_kind = |kind| match &parameters {
        Some(parameters) => parameters.object(kind),
        None => Ok(None),
    };
    let full = RopeDefaults { theta: 1_000_000.0, ..sliding };
    let full = RopeKeys { parameters: for_kind("full_attention")?, ..RopeKeys::of(raw, full)? };
    let sliding = RopeKeys {
        theta_key: "rope_local_base_freq",
        scaling: None,
        parameters: for_kind("sliding_attention")?,
        ..RopeKeys::of(raw, sliding)?
    };
    if let Some(parameters) = &parameters {
        parameters.refuse_unread(&[])?;
    }
    let ropes = [full, sliding];
    ropes.iter().map(|keys| RopeConfig::from_keys(keys, head_dim, max)).collect()
}
