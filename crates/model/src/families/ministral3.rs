//! Ministral 3: `Ministral3ForCausalLM` of transformers. Mistral with YaRN, and queries that grow
//! with their position.

use super::{Defaults, blocks, each};
use crate::config::DecoderConfig;
use crate::raw_config::{ConfigError, RawConfig};
use crate::rope::{QueryScale, RopeDefaults};
use serde_json::Value;

const ROPE: &str = "rope_parameters";
const BETA: &str = "llama_4_scaling_beta";
const LENGTH: &str = "original_max_position_embeddings";

pub(super) fn decoder_config(raw: &RawConfig) -> Result<DecoderConfig, ConfigError> {
    let defaults = Defaults {
        max_position_embeddings: 262_144,
        norm_eps: 1e-5,
        eos_token_ids: &[2],
        rope: RopeDefaults {
            theta: 1_000_000.0,
            neutral: &[BETA, "max_position_embeddings"],
            ..RopeDefaults::LLAMA
        },
        ..Defaults::LLAMA
    };
    let mut config = blocks(raw, &defaults)?;
    let window = raw.optional_size("sliding_window")?;
    each(&mut config, |layer| layer.attention.heads.window = window);
    let rope = raw.object(ROPE)?.ok_or_else(|| raw.missing(ROPE))?;
    let original_length = rope.size(LENGTH)? as f64;
    if rope.get(BETA).and_then(Value::as_f64) != Some(0.0) {
        let beta = rope.number(BETA)?;
        config.ropes[0].query_scale = Some(QueryScale { beta, original_length });
    }
    Ok(config)
}
