//! What families with mixtures of experts have in common.

use super::{expect_kind, num_layers, size};
use crate::config::{DecoderConfig, ExpertNames, ExpertsConfig};
use crate::raw_config::{ConfigError, RawConfig};
use hone_tensor::ops::{MAX_EXPERTS, MAX_TOP_K, Router, Scoring};

/// A third more weights in all blocks than the largest published models have; bounds what a small
/// file can make us allocate.
const MAX_WEIGHTS: usize = 1 << 17;

/// At least as many weights as a block has besides its experts'.
const OTHER_WEIGHTS: usize = 16;

/// A mixture whose router is a softmax over all experts, and nothing else.
pub(super) fn softmax_mixture(
    raw: &RawConfig,
    [num_experts, top_k]: [usize; 2],
    normalise: bool,
    names: &'static ExpertNames,
) -> Result<ExpertsConfig, ConfigError> {
    mixture(raw, Scoring::Softmax, [num_experts, top_k], normalise, names)
}

/// A mixture whose router has this scoring; files may name it, and no other.
pub(super) fn mixture(
    raw: &RawConfig,
    scoring: Scoring,
    [num_experts, top_k]: [usize; 2],
    normalise: bool,
    names: &'static ExpertNames,
) -> Result<ExpertsConfig, ConfigError> {
    let (function, method) = match scoring {
        Scoring::Softmax => ("softmax", "greedy"),
        Scoring::Sigmoid => ("sigmoid", "noaux_tc"),
    };
    expect_kind(raw, "scoring_func", function)?;
    expect_kind(raw, "topk_method", method)?;
    // The auxiliary loss is a matter of training.
    raw.get("router_aux_loss_coef");
    raw.get("output_router_logits");
    let (scale, groups) = (1.0, None);
    let router = Router { num_experts, top_k, scoring, normalise, scale, groups };
    Ok(ExpertsConfig {
        router,
        router_bias: false,
        correction_bias: false,
        shared: None,
        is_parallel: false,
        names,
    })
}

/// Gives the blocks for which `is_sparse` says so experts of this width.
pub(super) fn set_experts(
    config: &mut DecoderConfig,
    is_sparse: impl IntoIterator<Item = bool>,
    width: usize,
    experts: &ExpertsConfig,
) {
    for (layer, _) in config.layers.iter_mut().zip(is_sparse).filter(|(_, is)| *is) {
        layer.mlp.intermediate_size = width;
        layer.mlp.experts = Some(experts.clone());
    }
}

/// Number of experts, under a family's own key and with its default, and how many a token chooses.
pub(super) fn mixture_sizes(
    raw: &RawConfig,
    of_experts: (&str, usize),
    default_top_k: usize,
) -> Result<[usize; 2], ConfigError> {
    sizes_of_experts(raw, of_experts, default_top_k, 3)
}

/// [`mixture_sizes`] of experts that have so many weights each.
pub(super) fn sizes_of_experts(
    raw: &RawConfig,
    (key, default): (&str, usize),
    default_top_k: usize,
    weights_of_each: usize,
) -> Result<[usize; 2], ConfigError> {
    let keys = [(key, Some(default)), ("num_experts_per_tok", Some(default_top_k))];
    sizes_under(raw, keys, weights_of_each)
}

/// The same under two keys, which must be there if they have no default.
pub(super) fn sizes_under(
    raw: &RawConfig,
    [(key, default), (top_k_key, default_top_k)]: [(&str, Option<usize>); 2],
    weights_of_each: usize,
) -> Result<[usize; 2], ConfigError> {
    let num_experts = size(raw, key, default)?;
    if num_experts > MAX_EXPERTS {
        let problem = format!("must be at most {MAX_EXPERTS}, found {num_experts}");
        return Err(raw.ruled_out(key, problem));
    }
    let layers = num_layers(raw)?;
    let most = (MAX_WEIGHTS / layers).saturating_sub(OTHER_WEIGHTS) / weights_of_each;
    if num_experts > most {
        let problem =
            format!("must be at most {most} with num_hidden_layers {layers}, found {num_experts}");
        return Err(raw.ruled_out(key, problem));
    }
    let top_k = size(raw, top_k_key, default_top_k)?;
    let most = num_experts.min(MAX_TOP_K);
    if top_k > most {
        let problem = format!("must be at most {most} with {key} {num_experts}, found {top_k}");
        return Err(raw.ruled_out(top_k_key, problem));
    }
    Ok([num_experts, top_k])
}

/// Whether each block has experts: every `decoder_sparse_step`-th, but none of `mlp_only_layers`.
pub(super) fn sparse_layers(raw: &RawConfig, num_layers: usize) -> Result<Vec<bool>, ConfigError> {
    let step = raw.optional_size("decoder_sparse_step")?.unwrap_or(1);
    let mut is_sparse: Vec<bool> =
        (0..num_layers).map(|layer| (layer + 1).is_multiple_of(step)).collect();
    let Some(dense) = raw.get("mlp_only_layers") else { return Ok(is_sparse) };
    let expected = format!("a list of blocks below num_hidden_layers ({num_layers})");
    let unexpected =
        || raw.ruled_out("mlp_only_layers", format!("must be {expected}, found {dense}"));
    for layer in dense.as_array().ok_or_else(unexpected)? {
        let layer = layer.as_u64().and_then(|layer| usize::try_from(layer).ok());
        let sparse = layer.and_then(|layer| is_sparse.get_mut(layer));
        *sparse.ok_or_else(unexpected)? = false;
    }
    Ok(is_sparse)
}
