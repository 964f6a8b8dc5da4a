//! DistilBERT: `DistilBertForMaskedLM` of transformers, without a head too. BERT with other names
//! of keys and tensors, and without token types.
//!
//! Dropout of the files' own (`dropout`, `attention_dropout`) is not applied in training.

use super::bert::{activation, defaults, encoder};
use super::{NEUTRAL, blocks};
use crate::config::{DecoderConfig, EncoderNames, NormNames};
use crate::heads::OF_DISTILBERT;
use crate::raw_config::{ConfigError, RawConfig};

const NORMS: NormNames = NormNames {
    attention_input: None,
    attention_output: Some("sa_layer_norm"),
    mlp_input: None,
    mlp_output: Some("output_layer_norm"),
};

static NAMES: EncoderNames = EncoderNames {
    prefix: "distilbert.",
    embedding: "embeddings.word_embeddings",
    embedding_norm: "embeddings.LayerNorm",
    blocks: "transformer.layer",
    modules: &[
        ("self_attn.q_proj", "attention.q_lin"),
        ("self_attn.k_proj", "attention.k_lin"),
        ("self_attn.v_proj", "attention.v_lin"),
        ("self_attn.o_proj", "attention.out_lin"),
        ("mlp.up_proj", "ffn.lin1"),
        ("mlp.down_proj", "ffn.lin2"),
    ],
    final_norm: None,
    head_dense: "vocab_transform",
    head_norm: "vocab_layer_norm",
    logit_bias: "vocab_projector.bias",
    decoder: "vocab_projector",
    heads: OF_DISTILBERT,
};

/// Keys as other families have them, and these.
const KEYS: [(&str, &str); 4] = [
    ("hidden_size", "dim"),
    ("num_attention_heads", "n_heads"),
    ("num_hidden_layers", "n_layers"),
    ("intermediate_size", "hidden_dim"),
];

pub(super) fn decoder_config(raw: &RawConfig) -> Result<DecoderConfig, ConfigError> {
    // Of training with transformers, of heads for other tasks, and of how positions began.
    const OTHERS: [&str; 7] = [
        "attention_dropout",
        "dropout",
        "gradient_checkpointing",
        "qa_dropout",
        "seq_classif_dropout",
        "sinusoidal_pos_embds",
        "tie_weights_",
    ];
    let raw = raw.renamed(&KEYS, &OTHERS)?;
    let activation = activation(&raw, "activation")?;
    let mut config = blocks(&raw, &defaults(activation))?;
    config.norm.eps = 1e-12;
    raw.refuse_unread(NEUTRAL)?;
    Ok(encoder(config, (&NAMES, NORMS), (0, 0), activation.2))
}
