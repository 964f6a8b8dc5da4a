//! OLMo 2 and 3: `Olmo2ForCausalLM` and `Olmo3ForCausalLM` of transformers. Attention and MLP read
//! the residual stream as it is, and what they add is normalised; so are queries and keys, all
//! heads at once. OLMo 3 has windows in three of four blocks.

use super::{Defaults, blocks, each, read_attention_bias, set_windows, sliding_layers, window};
use crate::config::{DecoderConfig, NormNames, QkNorm};
use crate::raw_config::{ConfigError, RawConfig};
use crate::rope::{RopeConfig, RopeDefaults, RopeKeys, RopeScaling};

const NORMS: NormNames = NormNames {
    attention_input: None,
    attention_output: Some("post_attention_layernorm"),
    mlp_input: None,
    mlp_output: Some("post_feedforward_layernorm"),
};

const DEFAULTS: Defaults = Defaults { norm_eps: 1e-5, eos_token_ids: &[50_279], ..Defaults::LLAMA };

/// Index of the rotary embedding of blocks with a window in [`DecoderConfig::ropes`] of OLMo 3.
const SLIDING: usize = 1;

pub(super) fn olmo2(raw: &RawConfig) -> Result<DecoderConfig, ConfigError> {
    read(raw, &DEFAULTS)
}

pub(super) fn olmo3(raw: &RawConfig) -> Result<DecoderConfig, ConfigError> {
    let rope = RopeDefaults { theta: 500_000.0, ..RopeDefaults::LLAMA };
    let mut config = read(raw, &Defaults { rope, ropes, ..DEFAULTS })?;
    let window = window(raw)?;
    let by_rule = |layer: usize| !(layer + 1).is_multiple_of(4);
    let is_sliding = sliding_layers(raw, config.layers.len(), by_rule)?;
    set_windows(&mut config, &is_sliding, window);
    for (layer, _) in config.layers.iter_mut().zip(is_sliding).filter(|(_, is)| *is) {
        layer.attention.rope = Some(SLIDING);
    }
    Ok(config)
}

fn read(raw: &RawConfig, defaults: &Defaults) -> Result<DecoderConfig, ConfigError> {
    let mut config = blocks(raw, defaults)?;
    read_attention_bias(raw, &mut config)?;
    each(&mut config, |layer| {
        layer.norms = NORMS;
        layer.attention.qk_norm = QkNorm::Rows;
    });
    Ok(config)
}

/// That of full attention, and that of windows, which is never scaled.
fn ropes(
    raw: &RawConfig,
    defaults: RopeDefaults,
    head_dim: usize,
    max: usize,
) -> Result<Vec<RopeConfig>, ConfigError> {
    let by_kind = raw.object("rope_parameters")?.filter(|all| all.has("full_attention"));
    let Some(by_kind) = by_kind else {
        let full = RopeConfig::read(raw, defaults, head_dim, max)?;
        let sliding = RopeConfig { scaling: RopeScaling::Default, ..full.clone() };
        return Ok(vec![full, sliding]);
    };
    let rope = |kind, scaling| {
        let parameters = by_kind.object(kind)?;
        let keys = RopeKeys { scaling, parameters, ..RopeKeys::of(raw, defaults)? };
        RopeConfig::from_keys(&keys, head_dim, max)
    };
    let scaling = raw.object("rope_scaling")?;
    let ropes = vec![rope("full_attention", scaling)?, rope("sliding_attention", None)?];
    by_kind.refuse_unread(&[])?;
    Ok(ropes)
}
