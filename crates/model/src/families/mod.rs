//! Model families: each translates its `config.json` into a [`DecoderConfig`].
//!
//! A family is a small file over the shared decoder: it reads what it has in common with others by
//! [`blocks`], and changes what differs. A new one adds a file here, a line in [`FAMILIES`], and
//! any block that no earlier family needed.

mod bert;
mod classes;
mod distilbert;
mod gemma2;
mod gemma3;
mod gemma4;
mod glm4;
mod glm4_moe;
mod gpt_oss;
mod granite;
mod llama;
mod ministral3;
mod mistral;
mod mixtral;
mod mixtures;
mod modernbert;
mod olmo;
mod olmoe;
mod phi3;
mod quantised;
mod qwen2;
mod qwen2_moe;
mod qwen3;
mod qwen3_5;
mod qwen3_5_moe;
mod qwen3_moe;
mod qwen3_next;
mod smollm3;

use crate::config::{
    AttentionConfig, DecoderConfig, EmbeddingScale, LayerConfig, MlpConfig, NormNames, QkNorm,
};
use crate::gguf::{GgufModel, is_gguf};
use crate::raw_config::{ConfigError, RawConfig};
use crate::rope::{RopeConfig, RopeDefaults};
use classes::{num_labels, prefix_of_class};
use hone_tensor::Heads;
use hone_tensor::ops::{Activation, Logits, RmsNorm};
pub(crate) use quantised::Quantised;
use serde_json::Value;
use std::path::Path;

/// Reads a family's configuration. Absent settings have the defaults of transformers; absent sizes
/// are refused, except where published files leave them out.
type Read = fn(&RawConfig) -> Result<DecoderConfig, ConfigError>;

/// Supported values of `model_type`.
const FAMILIES: &[(&str, Read)] = &[
    ("llama", llama::decoder_config),
    ("qwen2", qwen2::decoder_config),
    ("qwen2_moe", qwen2_moe::decoder_config),
    ("qwen3", qwen3::decoder_config),
    ("qwen3_5_text", qwen3_5::decoder_config),
    ("qwen3_5_moe_text", qwen3_5_moe::decoder_config),
    ("qwen3_moe", qwen3_moe::decoder_config),
    ("qwen3_next", qwen3_next::decoder_config),
    ("gemma2", gemma2::decoder_config),
    ("gemma3_text", gemma3::decoder_config),
    ("gemma4_text", gemma4::decoder_config),
    ("mistral", mistral::decoder_config),
    ("ministral3", ministral3::decoder_config),
    ("mixtral", mixtral::decoder_config),
    ("phi3", phi3::decoder_config),
    ("smollm3", smollm3::decoder_config),
    ("olmo2", olmo::olmo2),
    ("olmo3", olmo::olmo3),
    ("olmoe", olmoe::decoder_config),
    ("gpt_oss", gpt_oss::decoder_config),
    ("granite", granite::decoder_config),
    ("glm4", glm4::decoder_config),
    ("glm4_moe", glm4_moe::decoder_config),
    ("bert", bert::bert),
    ("roberta", bert::roberta),
    ("xlm-roberta", bert::roberta),
    ("distilbert", distilbert::decoder_config),
    ("modernbert", modernbert::decoder_config),
];

/// Values of `model_type` of files that hold a text model, which `text_config` describes, and
/// others; and what names of blocks begin with in transformers' default class for generation.
const WITH_OTHERS: &[(&str, &str)] = &[
    ("gemma3", "model.language_model."),
    ("gemma4", "model.language_model."),
    ("mistral3", "model.language_model."),
    ("qwen3_5", "model."),
    ("qwen3_5_moe", "model."),
];

/// Supported values of `model_type` of files that hold one model.
pub fn single() -> impl Iterator<Item = &'static str> {
    FAMILIES.iter().map(|(name, _)| *name)
}

/// Supported values of `model_type`.
pub fn supported() -> impl Iterator<Item = &'static str> {
    single().chain(WITH_OTHERS.iter().map(|(name, _)| *name))
}

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
    /// Reads `config.json` (and the end tokens of `generation_config.json`) of a model directory,
    /// or the metadata of a GGUF file.
    ///
    /// # Errors
    /// [`ConfigError`], naming file and key.
    pub fn load(dir: &Path) -> Result<Self, ConfigError> {
        if is_gguf(dir) {
            return decoder_config(&GgufModel::open(dir)?.raw_config()?);
        }
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
    let Some(name) = raw.text("model_type")? else {
        return Err(raw.error("model_type", "is missing; expected a family such as \"llama\""));
    };
    let architecture = raw.get("architectures").and_then(|classes| classes.get(0)?.as_str());
    if let Some((_, of_text)) = WITH_OTHERS.iter().find(|(outer, _)| *outer == name) {
        let mut config = text_part(raw)?;
        config.class_prefix = prefix_of_class(architecture, &config, Some(of_text));
        config.num_labels = num_labels(raw, architecture);
        return Ok(config);
    }
    refuse_parts(raw)?;
    let Some((_, read)) = FAMILIES.iter().find(|(family, _)| *family == name) else {
        return Err(ConfigError::Family {
            path: raw.path().to_owned(),
            model_type: name.to_owned(),
            supported: supported().collect::<Vec<_>>().join(", "),
        });
    };
    let mut config = read(raw)?;
    config.class_prefix = prefix_of_class(architecture, &config, None);
    config.num_labels = num_labels(raw, architecture);
    raw.refuse_unread(NEUTRAL)?;
    Ok(config)
}

/// Parts that no family here has, by keys that only models with them have.
const PARTS: &[(&str, &str)] = &[
    ("kv_lora_rank", "multi-head latent attention (MLA)"),
    ("index_topk", "a sparse indexer"),
    ("index_n_heads", "a sparse indexer"),
    ("hc_mult", "hyper-connections"),
    ("mamba_d_state", "Mamba's state spaces"),
    ("ssm_state_size", "Mamba's state spaces"),
    ("rwkv_heads", "RWKV's recurrence"),
    ("cross_attention_layers", "cross-attention"),
];

/// Refuses parts that are not supported by their names.
fn refuse_parts(raw: &RawConfig) -> Result<(), ConfigError> {
    let Some((key, part)) = PARTS.iter().find(|(key, _)| raw.has(key)) else { return Ok(()) };
    let value = raw.get(key).map(ToString::to_string).unwrap_or_default();
    let families = supported().collect::<Vec<_>>().join(", ");
    let problem = format!(
        "is {value}: {part} is not supported yet; use a model without it, of one of these \
         families: {families}"
    );
    Err(raw.error(key, problem))
}

/// The text model of files that hold others too. What the outer object says of it, it says last.
fn text_part(raw: &RawConfig) -> Result<DecoderConfig, ConfigError> {
    const TEXT: &str = "text_config";
    Quantised::read(raw)?;
    let text = raw.object(TEXT)?.ok_or_else(|| raw.missing(TEXT))?;
    let mut config = decoder_config(&text)?;
    config.is_part = true;
    config.tie_word_embeddings = raw.flag("tie_word_embeddings", config.tie_word_embeddings)?;
    let ids = raw.token_ids("eos_token_id")?;
    if !ids.is_empty() {
        config.eos_token_ids = ids;
    }
    Ok(config)
}

/// Reads rotary embeddings, given dimensions of a head and the longest sequence.
type ReadRopes = fn(&RawConfig, RopeDefaults, usize, usize) -> Result<Vec<RopeConfig>, ConfigError>;

/// What differs between families in what they have in common: names and defaults of keys.
struct Defaults {
    /// Key of the activation, and the only one that is supported.
    activation: (&'static str, &'static str, Activation),
    /// Dimensions of a head; `None`: the width of the residual stream divided among the heads.
    head_dim: Option<usize>,
    /// Heads of queries and of keys and values; `None`: keys must be there.
    num_heads: Option<[usize; 2]>,
    vocab_size: Option<usize>,
    /// Width of the MLP; `None`: the key must be there.
    intermediate_size: Option<usize>,
    max_position_embeddings: usize,
    norm_eps: f64,
    tie_word_embeddings: bool,
    eos_token_ids: &'static [u32],
    /// Of the rotary embeddings.
    rope: RopeDefaults,
    /// Reads them.
    ropes: ReadRopes,
}

impl Defaults {
    const LLAMA: Self = Self {
        activation: ("hidden_act", "silu", Activation::Silu),
        head_dim: None,
        num_heads: None,
        vocab_size: None,
        intermediate_size: None,
        max_position_embeddings: 2048,
        norm_eps: 1e-6,
        tie_word_embeddings: false,
        eos_token_ids: &[],
        rope: RopeDefaults::LLAMA,
        ropes: |raw, rope, head_dim, max| Ok(vec![RopeConfig::read(raw, rope, head_dim, max)?]),
    };
}

/// Blocks as in Llama, all alike and without biases: a norm before attention with rotary positions,
/// and one before a gated MLP.
fn blocks(raw: &RawConfig, defaults: &Defaults) -> Result<DecoderConfig, ConfigError> {
    let (key, name, activation) = defaults.activation;
    expect_kind(raw, key, name)?;
    raw.expect_neutral("attention_dropout", 0.0)?;
    Quantised::read(raw)?;
    let head_dim = match defaults.head_dim {
        Some(default) => raw.optional_size("head_dim")?.unwrap_or(default),
        None => head_dim(raw)?,
    };
    let heads = heads(raw, ("head_dim", head_dim), defaults.num_heads)?;
    let max_position_embeddings =
        raw.optional_size("max_position_embeddings")?.unwrap_or(defaults.max_position_embeddings);
    let layer = LayerConfig {
        attention: AttentionConfig {
            heads,
            rope: Some(0),
            qk_norm: QkNorm::None,
            output_gate: false,
            fused_qkv: false,
            qkv_bias: false,
            o_bias: false,
            sinks: false,
            keys_as_values: false,
            norms_values: false,
            keys_of: None,
        },
        delta: None,
        mlp: MlpConfig {
            intermediate_size: size(raw, "intermediate_size", defaults.intermediate_size)?,
            activation,
            gated: true,
            fused: false,
            bias: false,
            experts: None,
        },
        norms: NormNames::PRE,
        embedding: None,
        scaled: false,
    };
    let eps = raw.optional_number("rms_norm_eps")?.unwrap_or(defaults.norm_eps);
    Ok(DecoderConfig {
        vocab_size: size(raw, "vocab_size", defaults.vocab_size)?,
        hidden_size: raw.size("hidden_size")?,
        layers: vec![layer; num_layers(raw)?],
        ropes: (defaults.ropes)(raw, defaults.rope, head_dim, max_position_embeddings)?,
        norm: RmsNorm { eps: eps as f32, plus_one: false },
        embedding_scale: EmbeddingScale::Exact(1.0),
        logits: Logits::PLAIN,
        max_position_embeddings,
        tie_word_embeddings: raw.flag("tie_word_embeddings", defaults.tie_word_embeddings)?,
        eos_token_ids: match raw.get("eos_token_id") {
            None => defaults.eos_token_ids.to_vec(),
            Some(_) => raw.token_ids("eos_token_id")?,
        },
        is_part: false,
        class_prefix: "model.",
        has_mtp: false,
        block_embeddings: None,
        encoder: None,
        num_labels: None,
        heads: Vec::new(),
        lacks_lm_head: false,
    })
}

/// A number of blocks, which may be 0.
fn count(raw: &RawConfig, key: &str, default: usize) -> Result<usize, ConfigError> {
    match raw.get(key) {
        Some(count) if *count == 0 => Ok(0),
        _ => size(raw, key, Some(default)),
    }
}

/// A size, which must be there if it has no default.
fn size(raw: &RawConfig, key: &str, default: Option<usize>) -> Result<usize, ConfigError> {
    match default {
        Some(default) => Ok(raw.optional_size(key)?.unwrap_or(default)),
        None => raw.size(key),
    }
}

/// Changes every block.
fn each(config: &mut DecoderConfig, change: impl FnMut(&mut LayerConfig)) {
    config.layers.iter_mut().for_each(change);
}

/// Whether one of these keys says that there are blocks for tokens after the next.
fn has_mtp(raw: &RawConfig, keys: &[&str]) -> bool {
    // Each is read, so that none counts as unknown.
    let counts = keys.iter().filter(|key| raw.get(key).is_some_and(|count| *count != 0));
    counts.count() > 0
}

/// `attention_bias`, for all four projections.
fn read_attention_bias(raw: &RawConfig, config: &mut DecoderConfig) -> Result<(), ConfigError> {
    let bias = raw.flag("attention_bias", false)?;
    each(config, |layer| {
        (layer.attention.qkv_bias, layer.attention.o_bias) = (bias, bias);
    });
    Ok(())
}

/// `mlp_bias`.
fn read_mlp_bias(raw: &RawConfig, config: &mut DecoderConfig) -> Result<(), ConfigError> {
    let bias = raw.flag("mlp_bias", false)?;
    each(config, |layer| layer.mlp.bias = bias);
    Ok(())
}

/// Gives the blocks for which `is_sliding` says so a window.
fn set_windows(config: &mut DecoderConfig, is_sliding: &[bool], window: Option<usize>) {
    for (layer, _) in config.layers.iter_mut().zip(is_sliding).filter(|(_, is)| **is) {
        layer.attention.heads.window = window;
    }
}

/// The window of Qwen's blocks from `max_window_layers` on, or of those that `layer_types` names,
/// if `use_sliding_window` turns it on.
fn read_qwen_windows(raw: &RawConfig, config: &mut DecoderConfig) -> Result<(), ConfigError> {
    let window = window(raw)?;
    let uses_window = raw.flag("use_sliding_window", false)?;
    let first_windowed = count(raw, "max_window_layers", 28)?;
    let by_rule = |layer| uses_window && layer >= first_windowed;
    let is_sliding = sliding_layers(raw, config.layers.len(), by_rule)?;
    set_windows(config, &is_sliding, window.filter(|_| uses_window));
    Ok(())
}

/// `sliding_window`, which `null` turns off; without the key it is on.
fn window(raw: &RawConfig) -> Result<Option<usize>, ConfigError> {
    const KEY: &str = "sliding_window";
    let given = raw.optional_size(KEY)?;
    Ok(if raw.is_null(KEY) { None } else { given.or(Some(4096)) })
}

/// `head_dim`, which defaults to the width of the residual stream divided among the heads.
fn head_dim(raw: &RawConfig) -> Result<usize, ConfigError> {
    let (hidden_size, num_heads) = (raw.size("hidden_size")?, raw.size("num_attention_heads")?);
    match raw.optional_size("head_dim")? {
        Some(head_dim) => Ok(head_dim),
        None if hidden_size.is_multiple_of(num_heads) => Ok(hidden_size / num_heads),
        None => {
            let problem = format!(
                "must divide {} ({hidden_size}) where head_dim is not given, found {num_heads}",
                raw.name("hidden_size")
            );
            Err(raw.ruled_out("num_attention_heads", problem))
        }
    }
}

/// Attention heads without a window, of `head_dim` dimensions by the key `of_dim`.
fn heads(
    raw: &RawConfig,
    (of_dim, head_dim): (&str, usize),
    defaults: Option<[usize; 2]>,
) -> Result<Heads, ConfigError> {
    let num_heads = size(raw, "num_attention_heads", defaults.map(|[heads, _]| heads))?;
    let num_kv_heads = raw.optional_size("num_key_value_heads")?;
    let num_kv_heads = num_kv_heads.unwrap_or(defaults.map_or(num_heads, |[_, heads]| heads));
    if !num_heads.is_multiple_of(num_kv_heads) {
        let heads = raw.name("num_attention_heads");
        let problem = format!("must divide {heads} ({num_heads}), found {num_kv_heads}");
        return Err(raw.ruled_out("num_key_value_heads", problem));
    }
    if !head_dim.is_multiple_of(2) {
        let default = match of_dim {
            "head_dim" => " (it defaults to hidden_size / num_attention_heads)",
            _ => "",
        };
        let problem = format!("must be even for rotary embeddings, found {head_dim}{default}");
        return Err(raw.ruled_out(of_dim, problem));
    }
    let scale = (head_dim as f32).powf(-0.5);
    Ok(Heads { num_heads, num_kv_heads, head_dim, scale, window: None, ahead: 0, softcap: None })
}

fn num_layers(raw: &RawConfig) -> Result<usize, ConfigError> {
    let key = "num_hidden_layers";
    let num_layers = raw.size(key)?;
    if num_layers > MAX_LAYERS {
        let problem = format!("must be at most {MAX_LAYERS}, found {num_layers}");
        return Err(raw.ruled_out(key, problem));
    }
    Ok(num_layers)
}

/// Whether each block's attention has a window: from `layer_types`, or by the family's own rule.
fn sliding_layers(
    raw: &RawConfig,
    num_layers: usize,
    rule: impl Fn(usize) -> bool,
) -> Result<Vec<bool>, ConfigError> {
    layers_of_kind(raw, "sliding_attention", num_layers, rule)
}

/// Whether each block is of this kind and not of full attention: from `layer_types`, or by the
/// family's own rule.
fn layers_of_kind(
    raw: &RawConfig,
    kind: &str,
    num_layers: usize,
    rule: impl Fn(usize) -> bool,
) -> Result<Vec<bool>, ConfigError> {
    const FULL: &str = "full_attention";
    let Some(types) = raw.get("layer_types") else {
        return Ok((0..num_layers).map(rule).collect());
    };
    let list = list_of_layers(raw, "layer_types", types, num_layers)?;
    let is_of_kind = |(layer, found): (usize, &Value)| match found.as_str() {
        Some(found) if found == kind => Ok(true),
        Some(FULL) => Ok(false),
        _ => {
            let problem = format!(
                "has {found} for block {layer}, which is not supported; only {FULL:?} and \
                 {kind:?} are: use a model without such blocks"
            );
            Err(raw.error("layer_types", problem))
        }
    };
    list.iter().enumerate().map(is_of_kind).collect()
}

/// The elements of a list with one for each block.
fn list_of_layers<'a>(
    raw: &RawConfig,
    key: &str,
    list: &'a Value,
    num_layers: usize,
) -> Result<&'a [Value], ConfigError> {
    let Some(list) = list.as_array() else {
        return Err(raw.ruled_out(key, format!("must be a list, found {list}")));
    };
    if list.len() != num_layers {
        let (found, entries) = (list.len(), if list.len() == 1 { "entry" } else { "entries" });
        let problem = format!("has {found} {entries}, but num_hidden_layers is {num_layers}");
        return Err(raw.ruled_out(key, problem));
    }
    Ok(list)
}

/// Refuses kinds of something other than the family's own.
fn expect_kind(raw: &RawConfig, key: &str, expected: &str) -> Result<(), ConfigError> {
    match raw.text(key)?.filter(|found| *found != expected) {
        None => Ok(()),
        Some(found) => {
            let problem = format!(
                "is `{found}`, which is not supported; only `{expected}` is: use a \
                 checkpoint that was trained with it"
            );
            Err(raw.error(key, problem))
        }
    }
}
