//! Phi-3 and Phi-4(-mini): `Phi3ForCausalLM` of transformers. Llama with queries, keys and values
//! in one matrix, gate and up in another, and LongRoPE over a part of each head.

use super::{Defaults, blocks, each};
use crate::config::DecoderConfig;
use crate::raw_config::{ConfigError, RawConfig};
use crate::rope::RopeDefaults;

pub(super) fn decoder_config(raw: &RawConfig) -> Result<DecoderConfig, ConfigError> {
    for key in ["resid_pdrop", "embd_pdrop"] {
        raw.expect_neutral(key, 0.0)?;
    }
    for key in ["full_attn_mod", "interpolate_factor"] {
        raw.expect_neutral(key, 1.0)?;
    }
    let defaults = Defaults {
        max_position_embeddings: 4096,
        norm_eps: 1e-5,
        eos_token_ids: &[32_000],
        rope: RopeDefaults {
            fraction: Some(1.0),
            original_length: Some(4096),
            // Older files call it by these names.
            long_rope: &["longrope", "su", "yarn"],
            ..RopeDefaults::LLAMA
        },
        ..Defaults::LLAMA
    };
    let mut config = blocks(raw, &defaults)?;
    // Read with the rotary embedding where it matters.
    let _ = raw.optional_size("original_max_position_embeddings")?;
    let window = raw.optional_size("sliding_window")?;
    each(&mut config, |layer| {
        layer.attention.heads.window = window;
        layer.attention.fused_qkv = true;
        layer.mlp.fused = true;
    });
    Ok(config)
}
