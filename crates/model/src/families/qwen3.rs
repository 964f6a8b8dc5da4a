//! Qwen3: `Qwen3ForCausalLM` of transformers. Llama with norms of query and key heads.

use super::{Defaults, blocks, each, read_attention_bias, read_qwen_windows};
use crate::config::{DecoderConfig, QkNorm};
use crate::raw_config::{ConfigError, RawConfig};

pub(super) fn decoder_config(raw: &RawConfig) -> Result<DecoderConfig, ConfigError> {
    let (head_dim, max_position_embeddings) = (Some(128), 32_768);
    let defaults = Defaults { head_dim, max_position_embeddings, ..Defaults::LLAMA };
    let mut config = blocks(raw, &defaults)?;
    each(&mut config, |layer| layer.attention.qk_norm = QkNorm::Heads);
    read_attention_bias(raw, &mut config)?;
    read_qwen_windows(raw, &mut config)?;
    Ok(config)
}
