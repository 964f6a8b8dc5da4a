//! Mistral: `MistralForCausalLM` of transformers. Llama with a window in every block.

use super::{Defaults, blocks, each};
use crate::config::DecoderConfig;
use crate::raw_config::{ConfigError, RawConfig};

pub(super) fn decoder_config(raw: &RawConfig) -> Result<DecoderConfig, ConfigError> {
    let defaults =
        Defaults { max_position_embeddings: 131_072, eos_token_ids: &[2], ..Defaults::LLAMA };
    let mut config = blocks(raw, &defaults)?;
    // `null` turns the window off; without the key it is on.
    let window = match raw.is_null("sliding_window") {
        true => None,
        false => Some(raw.optional_size("sliding_window")?.unwrap_or(4096)),
    };
    each(&mut config, |layer| layer.attention.heads.window = window);
    Ok(config)
}
