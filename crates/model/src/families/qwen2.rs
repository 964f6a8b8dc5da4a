//! Qwen2 and Qwen2.5: `Qwen2ForCausalLM` of transformers. Llama with biases of queries, keys and
//! values.

use super::{Defaults, blocks, each, read_qwen_windows};
use crate::config::DecoderConfig;
use crate::raw_config::{ConfigError, RawConfig};

pub(super) fn decoder_config(raw: &RawConfig) -> Result<DecoderConfig, ConfigError> {
    let defaults = Defaults { max_position_embeddings: 32_768, ..Defaults::LLAMA };
    let mut config = blocks(raw, &defaults)?;
    each(&mut config, |layer| layer.attention.qkv_bias = true);
    read_qwen_windows(raw, &mut config)?;
    Ok(config)
}
