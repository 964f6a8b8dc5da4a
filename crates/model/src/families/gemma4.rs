//! Gemma 4, the text part: `Gemma4ForCausalLM` of transformers. Norms before and after attention
//! and MLP, values that are normalised, and blocks whose output is multiplied by a number. Most
//! blocks have windows; the others have wider heads, fewer keys, whose values they may be, and
//! rotate the quarter of each head that turns fastest. Small models embed tokens for each block,
//! and their last blocks read keys and values of earlier ones. Others have experts besides the MLP.

mod full;

use super::mixtures::{sizes_under, softmax_mixture};
use super::{Defaults, blocks, count, each, gemma2, read_attention_bias, sliding_layers};
use crate::config::{
    BlockEmbedding, BlockEmbeddings, DecoderConfig, EmbeddingScale, ExpertNames, QkNorm,
    SharedExpertConfig,
};
use crate::raw_config::{ConfigError, RawConfig};
use crate::rope::{RopeConfig, RopeDefaults, RopeKeys};
use hone_tensor::ops::Softcap;

/// Indices of [`DecoderConfig::ropes`].
const FULL: usize = 0;
const SLIDING: usize = 1;
/// Entries in the tables of Gemma's embeddings.
const VOCABULARY: usize = 262_144;

const NAMES: ExpertNames =
    ExpertNames { router: "router.proj", experts: "experts", shared: "mlp", ..ExpertNames::QWEN };

pub(super) fn decoder_config(raw: &RawConfig) -> Result<DecoderConfig, ConfigError> {
    refuse_looking_ahead(raw)?;
    let defaults = Defaults {
        num_heads: Some([8, 4]),
        vocab_size: Some(VOCABULARY),
        max_position_embeddings: 131_072,
        // Read once the heads of both kinds are known.
        ropes: |_, _, _, _| Ok(Vec::new()),
        ..gemma2::DEFAULTS
    };
    let mut config = blocks(raw, &defaults)?;
    read_attention_bias(raw, &mut config)?;
    let by_rule = |layer: usize| !(layer + 1).is_multiple_of(6);
    let mut is_sliding = sliding_layers(raw, config.layers.len(), by_rule)?;
    if let Some(last) = is_sliding.last_mut() {
        *last = false; // as in transformers
    }
    let window = Some(raw.optional_size("sliding_window")?.unwrap_or(512));
    let keys_as_values = raw.flag("attention_k_eq_v", false)?;
    let full = full::heads(raw, keys_as_values, &is_sliding)?;
    for (layer, &is_sliding) in config.layers.iter_mut().zip(&is_sliding) {
        let attention = &mut layer.attention;
        if is_sliding {
            attention.heads.window = window;
        } else {
            (attention.heads, attention.keys_as_values) = (full, keys_as_values);
        }
        attention.heads.scale = 1.0;
        attention.rope = Some(if is_sliding { SLIDING } else { FULL });
    }
    each(&mut config, |layer| {
        layer.attention.qk_norm = QkNorm::Heads;
        layer.attention.norms_values = true;
        layer.norms = gemma2::NORMS;
        layer.scaled = true;
    });
    let head_dims = [full.head_dim, raw.optional_size("head_dim")?.unwrap_or(256)];
    config.ropes = ropes(raw, defaults.rope, head_dims, config.max_position_embeddings)?;
    share_keys(raw, &mut config, &is_sliding)?;
    read_block_embeddings(raw, &mut config)?;
    read_experts(raw, &mut config)?;
    let cap = raw.optional_number("final_logit_softcapping")?;
    config.logits.softcap = cap.map(|cap| Softcap(cap as f32));
    config.embedding_scale = EmbeddingScale::Rounded((config.hidden_size as f64).sqrt() as f32);
    Ok(config)
}

fn refuse_looking_ahead(raw: &RawConfig) -> Result<(), ConfigError> {
    const LATER: &str = "use_bidirectional_attention";
    match raw.text(LATER)? {
        // Of pictures, which are not read.
        None | Some("vision") => Ok(()),
        Some(other) => {
            let problem = format!(
                "is {other:?}, which is not supported; only \"vision\" and null are: use a \
                 checkpoint with causal attention, such as google/gemma-4-31B"
            );
            Err(raw.error(LATER, problem))
        }
    }
}

/// Lets the last blocks read the keys and values of the last block before them that has the same
/// kind of attention, and widens their MLPs.
fn share_keys(
    raw: &RawConfig,
    config: &mut DecoderConfig,
    is_sliding: &[bool],
) -> Result<(), ConfigError> {
    const KEY: &str = "num_kv_shared_layers";
    let (num_layers, shared) = (config.layers.len(), count(raw, KEY, 0)?);
    let is_wide = raw.flag("use_double_wide_mlp", false)?;
    let makers = &is_sliding[..num_layers.saturating_sub(shared)];
    let readers = config.layers.iter_mut().zip(is_sliding).enumerate().skip(makers.len());
    for (block, (layer, kind)) in readers {
        let Some(maker) = makers.iter().rposition(|maker| maker == kind) else {
            let kind = if *kind { "sliding_attention" } else { "full_attention" };
            let problem = format!(
                "is {shared} of num_hidden_layers {num_layers}, so that block {block} would read \
                 the keys and values of an earlier block of {kind}, of which `layer_types` has none"
            );
            return Err(raw.ruled_out(KEY, problem));
        };
        layer.attention.keys_of = Some(maker);
        if is_wide {
            layer.mlp.intermediate_size *= 2;
        }
    }
    Ok(())
}

/// Embeddings of the blocks.
fn read_block_embeddings(raw: &RawConfig, config: &mut DecoderConfig) -> Result<(), ConfigError> {
    let width = count(raw, "hidden_size_per_layer_input", 256)?;
    const TABLE: &str = "vocab_size_per_layer_input";
    let vocab_size = raw.optional_size(TABLE)?.unwrap_or(VOCABULARY);
    if width == 0 {
        return Ok(());
    }
    if vocab_size < config.vocab_size {
        let least = config.vocab_size;
        let problem = format!("must be at least vocab_size ({least}), found {vocab_size}");
        return Err(raw.ruled_out(TABLE, problem));
    }
    let num_layers = config.layers.len();
    config.block_embeddings = Some(BlockEmbeddings { vocab_size, width });
    for (block, layer) in config.layers.iter_mut().enumerate() {
        let projected = if block == 0 { num_layers * width } else { 0 };
        layer.embedding = Some(BlockEmbedding { width, projected });
    }
    Ok(())
}

/// Experts in every block, besides its MLP.
fn read_experts(raw: &RawConfig, config: &mut DecoderConfig) -> Result<(), ConfigError> {
    if !raw.flag("enable_moe_block", false)? {
        for key in ["num_experts", "top_k_experts", "moe_intermediate_size"] {
            raw.get(key); // which may be there all the same
        }
        return Ok(());
    }
    if !raw.has("num_experts") {
        return Err(raw.ruled_out("enable_moe_block", "is true, but `num_experts` is missing"));
    }
    let sizes = sizes_under(raw, [("num_experts", None), ("top_k_experts", None)], 3)?;
    let width = raw.size("moe_intermediate_size")?;
    let mut experts = softmax_mixture(raw, sizes, true, &NAMES)?;
    experts.is_parallel = true;
    for layer in &mut config.layers {
        let intermediate_size = layer.mlp.intermediate_size;
        experts.shared = Some(SharedExpertConfig { intermediate_size, gated: false });
        layer.mlp.intermediate_size = width;
        layer.mlp.experts = Some(experts.clone());
    }
    Ok(())
}

/// RoPE of full and of sliding attention, from `rope_parameters`, by kind of attention.
fn ropes(
    raw: &RawConfig,
    sliding: RopeDefaults,
    head_dims: [usize; 2],
    max: usize,
) -> Result<Vec<RopeConfig>, ConfigError> {
    const KEY: &str = "rope_parameters";
    let parameters = raw.object(KEY)?.ok_or_else(|| raw.missing(KEY))?;
    let full = RopeDefaults { theta: 1_000_000.0, proportional: true, ..sliding };
    let kinds = ["full_attention", "sliding_attention"].into_iter().zip([full, sliding]);
    let ropes = kinds.zip(head_dims).map(|((kind, defaults), head_dim)| {
        let of_kind = Some(parameters.object(kind)?.ok_or_else(|| parameters.missing(kind))?);
        let keys = RopeKeys { parameters: of_kind, ..RopeKeys::of(raw, defaults)? };
        RopeConfig::from_keys(&keys, head_dim, max)
    });
    let ropes = ropes.collect::<Result<_, _>>()?;
    parameters.refuse_unread(&[])?;
    Ok(ropes)
}
