//! ModernBERT: `ModernBertForMaskedLM` of transformers, without a head too. An encoder with rotary
//! positions, a gated MLP, layer norms without biases before attention and MLP, and windows in two
//! of three blocks. The first block's attention reads the normalised embedding as it is.

use super::bert::activation;
use super::{Defaults, blocks, each, read_attention_bias, read_mlp_bias, size, sliding_layers};
use crate::config::{DecoderConfig, EncoderConfig, EncoderNames, MaskedHead, NormNames};
use crate::heads::OF_MODERNBERT;
use crate::raw_config::{ConfigError, RawConfig};
use crate::rope::{RopeConfig, RopeDefaults, RopeKeys};

const NORMS: NormNames = NormNames {
    attention_input: Some("attn_norm"),
    attention_output: None,
    mlp_input: Some("mlp_norm"),
    mlp_output: None,
};

/// A decoder's names of linear layers, and these.
const MODULES: &[(&str, &str)] = &[
    ("self_attn.qkv_proj", "attn.Wqkv"),
    ("self_attn.o_proj", "attn.Wo"),
    ("mlp.gate_up_proj", "mlp.Wi"),
    ("mlp.down_proj", "mlp.Wo"),
];

static NAMES: EncoderNames = EncoderNames {
    prefix: "model.",
    embedding: "embeddings.tok_embeddings",
    embedding_norm: "embeddings.norm",
    blocks: "layers",
    modules: MODULES,
    final_norm: Some("final_norm"),
    head_dense: "head.dense",
    head_norm: "head.norm",
    logit_bias: "decoder.bias",
    decoder: "decoder",
    heads: OF_MODERNBERT,
};

/// Index of the rotary embedding of blocks with a window in [`DecoderConfig::ropes`].
const LOCAL: usize = 1;

pub(super) fn decoder_config(raw: &RawConfig) -> Result<DecoderConfig, ConfigError> {
    // Of training with transformers, and of heads for other tasks.
    for key in [
        "classifier_dropout",
        "classifier_pooling",
        "cls_token_id",
        "compile_mode",
        "deterministic_flash_attn",
        "embedding_dropout",
        "gradient_checkpointing",
        "initializer_cutoff_factor",
        "layer_norm_eps",
        "mlp_dropout",
        "position_embedding_type",
        "reference_compile",
        "repad_logits_with_grad",
        "sparse_pred_ignore_index",
        "sparse_prediction",
    ] {
        raw.get(key);
    }
    let defaults = Defaults {
        activation: activation(raw, "hidden_activation")?,
        vocab_size: Some(50_368),
        intermediate_size: Some(1152),
        max_position_embeddings: 8192,
        tie_word_embeddings: true,
        ropes,
        ..Defaults::LLAMA
    };
    let mut config = blocks(raw, &defaults)?;
    read_attention_bias(raw, &mut config)?;
    read_mlp_bias(raw, &mut config)?;
    let reach = size(raw, "local_attention", Some(128))? / 2;
    expect_window(raw, reach)?;
    let every = size(raw, "global_attn_every_n_layers", Some(3))?;
    let by_rule = |layer: usize| !layer.is_multiple_of(every);
    let is_local = sliding_layers(raw, config.layers.len(), by_rule)?;
    let mut is_local = is_local.into_iter();
    each(&mut config, |layer| {
        let (attention, is_local) = (&mut layer.attention, is_local.next().unwrap_or(false));
        attention.heads = attention.heads.two_sided(is_local.then_some(reach));
        attention.rope = Some(if is_local { LOCAL } else { 0 });
        attention.fused_qkv = true;
        layer.mlp.fused = true;
        layer.norms = NORMS;
    });
    config.layers[0].norms.attention_input = None;
    config.norm.eps = raw.optional_number("norm_eps")?.unwrap_or(1e-5) as f32;
    let (_, _, activation) = activation(raw, "classifier_activation")?;
    config.encoder = Some(EncoderConfig {
        positions: None,
        num_token_types: 0,
        norm_bias: raw.flag("norm_bias", false)?,
        norms_sums: false,
        head: Some(MaskedHead {
            activation,
            dense_bias: raw.flag("classifier_bias", false)?,
            logit_bias: raw.flag("decoder_bias", true)?,
        }),
        names: &NAMES,
    });
    Ok(config)
}

/// Refuses `sliding_window` where it says something else than `local_attention`: which of them
/// takes effect depends on the version of transformers.
fn expect_window(raw: &RawConfig, reach: usize) -> Result<(), ConfigError> {
    const KEY: &str = "sliding_window";
    match raw.optional_size(KEY)?.filter(|window| *window != reach) {
        None => Ok(()),
        Some(window) => {
            let problem = format!("is {window}, but half of local_attention is {reach}");
            Err(raw.ruled_out(KEY, problem))
        }
    }
}

/// That of full attention and that of windows: by kind of attention, or from two bases.
fn ropes(
    raw: &RawConfig,
    defaults: RopeDefaults,
    head_dim: usize,
    max: usize,
) -> Result<Vec<RopeConfig>, ConfigError> {
    let by_kind = raw.object("rope_parameters")?;
    let rope = |theta_key, theta, kind| {
        let parameters = by_kind.as_ref().map(|all| all.object(kind)).transpose()?.flatten();
        let defaults = RopeDefaults { theta, ..defaults };
        let keys = RopeKeys { theta_key, parameters, ..RopeKeys::of(raw, defaults)? };
        RopeConfig::from_keys(&keys, head_dim, max)
    };
    let ropes = vec![
        rope("global_rope_theta", 160_000.0, "full_attention")?,
        rope("local_rope_theta", 10_000.0, "sliding_attention")?,
    ];
    by_kind.iter().try_for_each(|all| all.refuse_unread(&[]))?;
    Ok(ropes)
}
