//! BERT, RoBERTa and XLM-RoBERTa: `BertForMaskedLM` and the others of transformers, without a head
//! too. Encoders with learned positions, a layer norm after each sum, and an MLP without a gate.
//! RoBERTa differs in names and in where positions begin: after the padding token's id.
//!
//! Dropout of the files' own (`hidden_dropout_prob`) is not applied in training.

use super::{Defaults, blocks, each, expect_kind, size};
use crate::config::{
    DecoderConfig, EncoderConfig, EncoderNames, LearnedPositions, MaskedHead, NormNames,
};
use crate::heads::{OF_BERT, OF_ROBERTA};
use crate::raw_config::{ConfigError, RawConfig};
use hone_tensor::ops::Activation;

const NORMS: NormNames = NormNames {
    attention_input: None,
    attention_output: Some("attention.output.LayerNorm"),
    mlp_input: None,
    mlp_output: Some("output.LayerNorm"),
};

/// A decoder's names of linear layers, and these.
const MODULES: &[(&str, &str)] = &[
    ("self_attn.q_proj", "attention.self.query"),
    ("self_attn.k_proj", "attention.self.key"),
    ("self_attn.v_proj", "attention.self.value"),
    ("self_attn.o_proj", "attention.output.dense"),
    ("mlp.up_proj", "intermediate.dense"),
    ("mlp.down_proj", "output.dense"),
];

static BERT: EncoderNames = EncoderNames {
    prefix: "bert.",
    embedding: "embeddings.word_embeddings",
    embedding_norm: "embeddings.LayerNorm",
    blocks: "encoder.layer",
    modules: MODULES,
    final_norm: None,
    head_dense: "cls.predictions.transform.dense",
    head_norm: "cls.predictions.transform.LayerNorm",
    logit_bias: "cls.predictions.bias",
    decoder: "cls.predictions.decoder",
    heads: OF_BERT,
};

static ROBERTA: EncoderNames = EncoderNames {
    prefix: "roberta.",
    embedding: "embeddings.word_embeddings",
    embedding_norm: "embeddings.LayerNorm",
    blocks: "encoder.layer",
    modules: MODULES,
    final_norm: None,
    head_dense: "lm_head.dense",
    head_norm: "lm_head.layer_norm",
    logit_bias: "lm_head.bias",
    decoder: "lm_head.decoder",
    heads: OF_ROBERTA,
};

pub(super) fn bert(raw: &RawConfig) -> Result<DecoderConfig, ConfigError> {
    read(raw, &BERT, |_, _| Ok(0))
}

pub(super) fn roberta(raw: &RawConfig) -> Result<DecoderConfig, ConfigError> {
    read(raw, &ROBERTA, |raw, count| {
        let padding = super::count(raw, "pad_token_id", 1)?;
        if padding + 1 >= count {
            let problem = format!(
                "is {padding}, but positions begin after it and there are {count} \
                 (`max_position_embeddings`)"
            );
            return Err(raw.ruled_out("pad_token_id", problem));
        }
        Ok(padding + 1)
    })
}

/// The row of the first position, given their number.
type FirstPosition = fn(&RawConfig, usize) -> Result<usize, ConfigError>;

fn read(
    raw: &RawConfig,
    names: &'static EncoderNames,
    first_position: FirstPosition,
) -> Result<DecoderConfig, ConfigError> {
    for key in ["is_decoder", "add_cross_attention"] {
        if raw.flag(key, false)? {
            return Err(raw.error(key, "is true: only encoders are supported"));
        }
    }
    expect_kind(raw, "position_embedding_type", "absolute")?;
    // Of training with transformers, and of heads for other tasks.
    for key in [
        "attention_probs_dropout_prob",
        "hidden_dropout_prob",
        "classifier_dropout",
        "gradient_checkpointing",
        "output_past",
        "directionality",
        "pooler_fc_size",
        "pooler_num_attention_heads",
        "pooler_num_fc_layers",
        "pooler_size_per_head",
        "pooler_type",
    ] {
        raw.get(key);
    }
    let activation = activation(raw, "hidden_act")?;
    let mut config = blocks(raw, &defaults(activation))?;
    config.norm.eps = raw.optional_number("layer_norm_eps")?.unwrap_or(1e-12) as f32;
    let first = first_position(raw, config.max_position_embeddings)?;
    let num_token_types = size(raw, "type_vocab_size", Some(2))?;
    // RoBERTa's head has its own, whatever the blocks have.
    let of_head = if names == &ROBERTA { Activation::Gelu } else { activation.2 };
    Ok(encoder(config, (names, NORMS), (first, num_token_types), of_head))
}

/// What files of encoders like BERT leave out: learned positions, no rotary ones.
pub(super) fn defaults(activation: (&'static str, &'static str, Activation)) -> Defaults {
    Defaults {
        activation,
        max_position_embeddings: 512,
        tie_word_embeddings: true,
        ropes: |_, _, _, _| Ok(Vec::new()),
        ..Defaults::LLAMA
    }
}

/// An encoder as BERT is one, of these sizes: biases everywhere, norms of sums, no gates, and
/// learned positions, of which a sequence's first token has the row `first`.
pub(super) fn encoder(
    mut config: DecoderConfig,
    (names, norms): (&'static EncoderNames, NormNames),
    (first, num_token_types): (usize, usize),
    activation_of_head: Activation,
) -> DecoderConfig {
    each(&mut config, |layer| {
        let attention = &mut layer.attention;
        attention.heads = attention.heads.two_sided(None);
        (attention.rope, attention.qkv_bias, attention.o_bias) = (None, true, true);
        (layer.mlp.gated, layer.mlp.bias) = (false, true);
        layer.norms = norms;
    });
    let count = config.max_position_embeddings;
    config.max_position_embeddings = count - first;
    config.encoder = Some(EncoderConfig {
        positions: Some(LearnedPositions { count, first }),
        num_token_types,
        norm_bias: true,
        norms_sums: true,
        head: Some(MaskedHead {
            activation: activation_of_head,
            dense_bias: true,
            logit_bias: true,
        }),
        names,
    });
    config
}

/// An activation that encoders have, with key and name.
pub(super) fn activation(
    raw: &RawConfig,
    key: &'static str,
) -> Result<(&'static str, &'static str, Activation), ConfigError> {
    const KNOWN: [(&str, Activation); 6] = [
        ("gelu", Activation::Gelu),
        ("gelu_python", Activation::Gelu),
        ("gelu_new", Activation::GeluTanh),
        ("gelu_pytorch_tanh", Activation::GeluTanh),
        ("silu", Activation::Silu),
        ("swish", Activation::Silu),
    ];
    let found = raw.text(key)?.unwrap_or("gelu");
    let known = KNOWN.iter().find(|(name, _)| *name == found).ok_or_else(|| {
        let names = KNOWN.map(|(name, _)| format!("`{name}`")).join(", ");
        let problem = format!(
            "is `{found}`, which is not supported; supported: {names}. Use a \
             checkpoint with one of these"
        );
        raw.error(key, problem)
    })?;
    Ok((key, known.0, known.1))
}
