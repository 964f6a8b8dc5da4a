//! GLM-4: `Glm4ForCausalLM` of transformers. Llama with norms around attention and MLP, gate and up
//! in one matrix, and neighbouring dimensions of half a head rotated.

use super::{Defaults, blocks, each};
use crate::config::{DecoderConfig, NormNames};
use crate::raw_config::{ConfigError, RawConfig};
use crate::rope::RopeDefaults;

const NORMS: NormNames = NormNames {
    attention_input: Some("input_layernorm"),
    attention_output: Some("post_self_attn_layernorm"),
    mlp_input: Some("post_attention_layernorm"),
    mlp_output: Some("post_mlp_layernorm"),
};

pub(super) fn decoder_config(raw: &RawConfig) -> Result<DecoderConfig, ConfigError> {
    let defaults = Defaults {
        head_dim: Some(128),
        max_position_embeddings: 131_072,
        norm_eps: 1.5625e-7,
        eos_token_ids: &[151_329, 151_336, 151_338],
        rope: RopeDefaults { fraction: Some(0.5), interleaved: true, ..RopeDefaults::LLAMA },
        ..Defaults::LLAMA
    };
    let mut config = blocks(raw, &defaults)?;
    let bias = raw.flag("attention_bias", true)?;
    each(&mut config, |layer| {
        layer.norms = NORMS;
        layer.attention.qkv_bias = bias;
        layer.mlp.fused = true;
    });
    Ok(config)
}
