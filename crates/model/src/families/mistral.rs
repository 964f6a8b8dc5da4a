//! Mistral: `MistralForCausalLM` of transformers. Llama with a window in every block.

use super::{Defaults, blocks, each, window};
use crate::config::DecoderConfig;
use crate::raw_config::{ConfigError, RawConfig};

pub(super) fn decoder_config(raw: &RawConfig) -> Result<DecoderConfig, ConfigError> {
    let defaults =
        Defaults { max_position_embeddings: 131_072, eos_token_ids: &[2], ..Defaults::LLAMA };
    let mut config = blocks(raw, &defaults)?;
    let window = window(raw)?;
    each(&mut config, |layer| layer.attention.heads.window = window);
    Ok(config)
}
