//! Llama: `LlamaForCausalLM` of transformers.

use super::{Defaults, blocks, read_attention_bias, read_mlp_bias};
use crate::config::DecoderConfig;
use crate::raw_config::{ConfigError, RawConfig};

pub(super) fn decoder_config(raw: &RawConfig) -> Result<DecoderConfig, ConfigError> {
    let mut config = blocks(raw, &Defaults::LLAMA)?;
    read_attention_bias(raw, &mut config)?;
    read_mlp_bias(raw, &mut config)?;
    Ok(config)
}
