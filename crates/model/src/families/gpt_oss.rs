//! gpt-oss: `GptOssForCausalLM` of transformers. Llama with biases, attention with sinks and a
//! window in every other block, positions by YaRN, and a mixture of experts in every block, whose
//! weights are a softmax over the chosen.

use super::mixtures::{sizes_of_experts, softmax_mixture};
use super::{Defaults, blocks, each, set_windows, sliding_layers};
use crate::config::{DecoderConfig, ExpertLayout, ExpertNames};
use crate::raw_config::{ConfigError, RawConfig};
use crate::rope::{RopeConfig, RopeDefaults, RopeScaling};
use hone_tensor::ops::Activation;

const NAMES: ExpertNames =
    ExpertNames { router: "mlp.router", layout: ExpertLayout::Columns, ..ExpertNames::QWEN };

pub(super) fn decoder_config(raw: &RawConfig) -> Result<DecoderConfig, ConfigError> {
    let defaults = Defaults {
        head_dim: Some(64),
        num_heads: Some([64, 8]),
        vocab_size: Some(201_088),
        intermediate_size: Some(2880),
        max_position_embeddings: 131_072,
        norm_eps: 1e-5,
        rope: RopeDefaults { theta: 150_000.0, ..RopeDefaults::LLAMA },
        ropes,
        ..Defaults::LLAMA
    };
    let mut config = blocks(raw, &defaults)?;
    // The activation is `silu` by name only.
    raw.expect_neutral("swiglu_alpha", 1.702)?;
    raw.expect_neutral("swiglu_limit", 7.0)?;
    let bias = raw.flag("attention_bias", true)?;
    // The same under the name that OpenAI's own loader reads.
    raw.get("experts_per_token");
    raw.get("initial_context_length");
    let sizes = sizes_of_experts(raw, ("num_local_experts", 128), 4, 6)?;
    let mut experts = softmax_mixture(raw, sizes, true, &NAMES)?;
    experts.router_bias = true;
    each(&mut config, |layer| {
        layer.attention.qkv_bias = bias;
        layer.attention.o_bias = bias;
        layer.attention.sinks = true;
        layer.mlp.activation = Activation::ClampedSilu;
        layer.mlp.bias = true;
        layer.mlp.experts = Some(experts.clone());
    });
    let window = match raw.is_null("sliding_window") {
        true => None,
        false => Some(raw.optional_size("sliding_window")?.unwrap_or(128)),
    };
    let is_sliding = sliding_layers(raw, config.layers.len(), |layer| layer.is_multiple_of(2))?;
    set_windows(&mut config, &is_sliding, window);
    Ok(config)
}

/// YaRN as it is published, unless the configuration says otherwise.
fn ropes(
    raw: &RawConfig,
    defaults: RopeDefaults,
    head_dim: usize,
    max: usize,
) -> Result<Vec<RopeConfig>, ConfigError> {
    let mut rope = RopeConfig::read(raw, defaults, head_dim, max)?;
    if !raw.has("rope_scaling") && !raw.has("rope_parameters") {
        let factor: f64 = 32.0;
        rope.scaling = RopeScaling::Yarn {
            factor,
            beta_fast: 32.0,
            beta_slow: 1.0,
            attention_factor: 0.1 * factor.ln() + 1.0,
            original_max_position_embeddings: 4096.0,
            truncate: false,
        };
    }
    Ok(vec![rope])
}
