//! GLM-4 with experts: `Glm4MoeForCausalLM` of transformers. Llama with half of each head rotated
//! and, after the first blocks, a mixture that is routed as DeepSeek-V3's, with shared experts
//! beside it.

use super::mixtures::{mixture, mixture_sizes, set_experts};
use super::{Defaults, blocks, count, each, has_mtp};
use crate::config::{DecoderConfig, ExpertNames, QkNorm, SharedExpertConfig};
use crate::raw_config::{ConfigError, RawConfig};
use crate::rope::RopeDefaults;
use hone_tensor::ops::{Groups, Scoring};

const NAMES: ExpertNames =
    ExpertNames { shared: "mlp.shared_experts", shared_gate: "", ..ExpertNames::QWEN };

pub(super) fn decoder_config(raw: &RawConfig) -> Result<DecoderConfig, ConfigError> {
    let defaults = Defaults {
        intermediate_size: Some(10_944),
        max_position_embeddings: 131_072,
        norm_eps: 1e-5,
        rope: RopeDefaults { fraction: Some(0.5), ..RopeDefaults::LLAMA },
        ..Defaults::LLAMA
    };
    let mut config = blocks(raw, &defaults)?;
    config.has_mtp = has_mtp(raw, &["num_nextn_predict_layers", "num_mtp_layers"]);
    let bias = raw.flag("attention_bias", false)?;
    let norms_heads = raw.flag("use_qk_norm", false)?;
    each(&mut config, |layer| {
        layer.attention.qkv_bias = bias;
        layer.attention.qk_norm = if norms_heads { QkNorm::Heads } else { QkNorm::None };
    });
    let sizes = mixture_sizes(raw, ("n_routed_experts", 128), 8)?;
    let normalise = raw.flag("norm_topk_prob", true)?;
    let mut experts = mixture(raw, Scoring::Sigmoid, sizes, normalise, &NAMES)?;
    experts.router.scale = raw.optional_number("routed_scaling_factor")?.unwrap_or(1.0) as f32;
    experts.router.groups = groups(raw, sizes)?;
    experts.correction_bias = true;
    let width = raw.optional_size("moe_intermediate_size")?.unwrap_or(1408);
    let num_shared = raw.optional_size("n_shared_experts")?.unwrap_or(1);
    experts.shared =
        Some(SharedExpertConfig { intermediate_size: width * num_shared, gated: false });
    let num_dense = count(raw, "first_k_dense_replace", 1)?;
    let is_sparse = (0..config.layers.len()).map(|layer| layer >= num_dense);
    set_experts(&mut config, is_sparse, width, &experts);
    Ok(config)
}

/// Groups of experts, of which some are chosen first.
fn groups(
    raw: &RawConfig,
    [num_experts, top_k]: [usize; 2],
) -> Result<Option<Groups>, ConfigError> {
    let count = raw.optional_size("n_group")?.unwrap_or(1);
    if !num_experts.is_multiple_of(count) {
        let problem = format!("must divide n_routed_experts ({num_experts}), found {count}");
        return Err(raw.ruled_out("n_group", problem));
    }
    let (kept, least) =
        (raw.optional_size("topk_group")?.unwrap_or(1), top_k.div_ceil(num_experts / count));
    if !(least..=count).contains(&kept) {
        let problem = format!(
            "must be from {least}, in which a token finds num_experts_per_tok ({top_k}) experts, \
             to n_group ({count}), found {kept}"
        );
        return Err(raw.ruled_out("topk_group", problem));
    }
    Ok((kept < count).then_some(Groups { count, kept }))
}
