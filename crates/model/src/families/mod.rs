//! Model families: each translates its `config.json` into a [`DecoderConfig`].
//!
//! A family is a small file over the shared decoder. A new one adds a file here, a line in
//! [`decoder_config`], and any block that no earlier family needed.

mod gemma3;
mod llama;
mod mixtures;
mod qwen3;
mod qwen3_moe;

use crate::config::DecoderConfig;
use crate::raw_config::{ConfigError, RawConfig};
use hone_tensor::Heads;
use serde_json::Value;
use std::path::Path;

/// Supported values of `model_type`.
pub const SUPPORTED: [&str; 4] = ["llama", "qwen3", "qwen3_moe", "gemma3_text"];

/// Keys that do not affect what any family computes from tokens: keys that transformers writes into
/// every configuration, generation defaults, and marks left by other tools.
const NEUTRAL: &[&str] = &[
    "architectures",
    "attn_implementation",
    "auto_map",
    "begin_suppress_tokens",
    "bos_token_id",
    "cache_implementation",
    "chunk_size_feed_forward",
    "decoder_start_token_id",
    "diversity_penalty",
    "do_sample",
    "dtype",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "finetuned_from",
    "id2label",
    "initializer_range",
    "is_llama_config",
    "label2id",
    "length_penalty",
    "max_length",
    "min_length",
    "model_max_length",
    "name_or_path",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_return_sequences",
    "pad_token_id",
    "pretraining_tp",
    "problem_type",
    "repetition_penalty",
    "return_dict",
    "sep_token_id",
    "suppress_tokens",
    "task_specific_params",
    "temperature",
    "tokenizer_class",
    "top_k",
    "top_p",
    "torch_dtype",
    "transformers.js_config",
    "transformers_version",
    "typical_p",
    "unk_token_id",
    "unsloth_fixed",
    "unsloth_version",
    "use_cache",
];

/// More blocks than any model has; bounds what a file can make us allocate.
const MAX_LAYERS: usize = 4096;

impl DecoderConfig {
    /// Reads `config.json` (and the end tokens of `generation_config.json`) of a model directory.
    ///
    /// # Errors
    /// [`ConfigError`], naming file and key.
    pub fn load(dir: &Path) -> Result<Self, ConfigError> {
        let path = dir.join("config.json");
        if !path.exists() && dir.join("adapter_config.json").is_file() {
            return Err(ConfigError::IsAdapter { dir: dir.to_owned() });
        }
        let mut config = decoder_config(&RawConfig::read(&path)?)?;
        let generation = dir.join("generation_config.json");
        if generation.is_file() {
            let ids = RawConfig::read(&generation)?.token_ids("eos_token_id")?;
            if !ids.is_empty() {
                config.eos_token_ids = ids;
            }
        }
        Ok(config)
    }
}

/// The decoder that a `config.json` describes.
///
/// # Errors
/// [`ConfigError`], naming file and key.
pub fn decoder_config(raw: &RawConfig) -> Result<DecoderConfig, ConfigError> {
    let config = match raw.text("model_type")? {
        Some("llama") => llama::decoder_config(raw),
        Some("qwen3") => qwen3::decoder_config(raw),
        Some("qwen3_moe") => qwen3_moe::decoder_config(raw),
        Some("gemma3_text") => gemma3::decoder_config(raw),
        Some(other) => Err(ConfigError::Family {
            path: raw.path().to_owned(),
            model_type: other.to_owned(),
            supported: SUPPORTED.join(", "),
        }),
        None => Err(raw.error("model_type", "is missing; expected a family such as \"llama\"")),
    }?;
    raw.refuse_unread(NEUTRAL)?;
    Ok(config)
}

/// `head_dim`, which defaults to the width of the residual stream divided among the heads.
fn head_dim(raw: &RawConfig) -> Result<usize, ConfigError> {
    let (hidden_size, num_heads) = (raw.size("hidden_size")?, raw.size("num_attention_heads")?);
    match raw.optional_size("head_dim")? {
        Some(head_dim) => Ok(head_dim),
        None if hidden_size.is_multiple_of(num_heads) => Ok(hidden_size / num_heads),
        None => {
            let problem = format!(
                "must divide hidden_size ({hidden_size}) where head_dim is not given, found \
                 {num_heads}"
            );
            Err(raw.error("num_attention_heads", problem))
        }
    }
}

/// Attention heads without a window.
fn heads(raw: &RawConfig, head_dim: usize) -> Result<Heads, ConfigError> {
    let num_heads = raw.size("num_attention_heads")?;
    let num_kv_heads = raw.optional_size("num_key_value_heads")?.unwrap_or(num_heads);
    if !num_heads.is_multiple_of(num_kv_heads) {
        let problem =
            format!("must divide num_attention_heads ({num_heads}), found {num_kv_heads}");
        return Err(raw.error("num_key_value_heads", problem));
    }
    if !head_dim.is_multiple_of(2) {
        let problem = format!(
            "must be even for rotary embeddings, found {head_dim} (it defaults to hidden_size / \
             num_attention_heads)"
        );
        return Err(raw.error("head_dim", problem));
    }
    let scale = (head_dim as f32).powf(-0.5);
    Ok(Heads { num_heads, num_kv_heads, head_dim, scale, window: None })
}

fn num_layers(raw: &RawConfig) -> Result<usize, ConfigError> {
    let key = "num_hidden_layers";
    let num_layers = raw.size(key)?;
    if num_layers > MAX_LAYERS {
        return Err(raw.error(key, format!("must be at most {MAX_LAYERS}, found {num_layers}")));
    }
    Ok(num_layers)
}

/// Whether each block's attention has a window: from `layer_types`, or by the family's own rule.
fn sliding_layers(
    raw: &RawConfig,
    num_layers: usize,
    rule: impl Fn(usize) -> bool,
) -> Result<Vec<bool>, ConfigError> {
    let Some(types) = raw.get("layer_types") else {
        return Ok((0..num_layers).map(rule).collect());
    };
    let is_sliding = |kind: &Value| match kind.as_str() {
        Some("sliding_attention") => Some(true),
        Some("full_attention") => Some(false),
        _ => None,
    };
    let layers = types.as_array().and_then(|types| types.iter().map(is_sliding).collect());
    layers.filter(|layers: &Vec<bool>| layers.len() == num_layers).ok_or_else(|| {
        let problem = format!(
            "must be a list of {num_layers}, each \"full_attention\" or \"sliding_attention\""
        );
        raw.error("layer_types", problem)
    })
}

fn norm_eps(raw: &RawConfig) -> Result<f32, ConfigError> {
    Ok(raw.optional_number("rms_norm_eps")?.unwrap_or(1e-6) as f32)
}

/// Refuses activations other than the family's own.
fn expect_activation(raw: &RawConfig, key: &str, expected: &str) -> Result<(), ConfigError> {
    match raw.text(key)?.filter(|found| *found != expected) {
        None => Ok(()),
        Some(found) => {
            Err(raw
                .error(key, format!("is `{found}`, which is not supported; only `{expected}` is")))
        }
    }
}

fn refuse_quantised(raw: &RawConfig) -> Result<(), ConfigError> {
    if raw.get("quantization_config").is_some() {
        let problem = "indicates quantised weights, which are not supported yet; use the \
                       unquantised model";
        return Err(raw.error("quantization_config", problem));
    }
    Ok(())
}
