//! Metadata of a model's configuration.

use super::GgufExportError;
use crate::config::{DecoderConfig, LayerConfig};
use crate::gguf::architectures::{
    Architecture, DELTA_WIDTH, GLM4_MOE, GPT_OSS, MISTRAL3, QUERY_GROWTH,
};
use crate::gguf::rope::{FACTORS, SHORT_AND_LONG};
use crate::rope::{RopeConfig, RopeScaling};
use hone_tensor::gguf::Meta;
use serde_json::Value;

/// Ends of keys whose numbers are floats though they may be whole.
const FLOATS: [&str; 3] = ["softcapping", "scale", "freq_base_swa"];

/// The configuration as the architecture's keys have it. `object` is the model's part of its
/// `config.json`.
pub(super) fn metadata(
    config: &DecoderConfig,
    object: &Value,
    architecture: &Architecture,
) -> Result<Vec<(String, Meta)>, GgufExportError> {
    let mut keys = Keys { architecture: architecture.name, all: Vec::new() };
    keys.all.push(("general.architecture".to_owned(), architecture.name.into()));
    keys.all.push(("general.type".to_owned(), "model".into()));
    let whole = |key: &str| object.get(key).and_then(Value::as_u64);
    let attention = config.layers.iter().find(|layer| layer.delta.is_none());
    let Some(LayerConfig { attention, mlp, .. }) = attention else {
        return Err(GgufExportError::Setting("a model without attention".to_owned()));
    };
    keys.size("context_length", config.max_position_embeddings);
    keys.size("embedding_length", config.hidden_size);
    keys.size("block_count", config.layers.len());
    let intermediate = whole("intermediate_size").map(|width| width as usize);
    keys.size("feed_forward_length", intermediate.unwrap_or(mlp.intermediate_size));
    keys.size("attention.head_count", attention.heads.num_heads);
    keys.size("attention.head_count_kv", attention.heads.num_kv_heads);
    keys.size("attention.key_length", attention.heads.head_dim);
    keys.size("attention.value_length", attention.heads.head_dim);
    // Granite's own is another, since the stream is divided by its multipliers.
    let eps = object.get("rms_norm_eps").and_then(Value::as_f64);
    keys.number("attention.layer_norm_rms_epsilon", eps.unwrap_or(config.norm.eps.into()));
    keys.size("vocab_size", config.vocab_size);
    for &(to, from) in architecture.keys {
        let is_float = FLOATS.iter().any(|end| to.ends_with(end));
        match (object.get(from), from) {
            (_, DELTA_WIDTH) => {
                let heads = config.layers.iter().find_map(|layer| layer.delta).map(|of| of.heads);
                keys.size(to, heads.map_or(0, |heads| heads.num_value_heads * heads.value_dim));
            }
            (Some(Value::Number(n)), _) if is_float => keys.number(to, n.as_f64().unwrap_or(0.0)),
            (Some(Value::Number(n)), _) => match n.as_u64() {
                Some(n) => keys.size(to, n as usize),
                None => keys.number(to, n.as_f64().unwrap_or(0.0)),
            },
            // Of Phi's models without a window.
            (Some(Value::Null) | None, "sliding_window") if architecture.name == "phi3" => {
                keys.size(to, 0);
            }
            _ => {}
        }
    }
    keys.blocks(config, object);
    let rope = rope_of(config);
    let of_window = config.layers.iter().find(|layer| has_window(layer));
    let of_window = of_window.and_then(|layer| layer.attention.rope);
    let base = of_window.map(|index| config.ropes[index].rope_theta);
    let is_other = |base: &f64| rope.is_some_and(|rope| rope.rope_theta != *base);
    let is_said = keys.has("rope.freq_base_swa");
    if let Some(base) = base.filter(|base| !is_said && is_other(base)) {
        keys.number("rope.freq_base_swa", base);
    }
    if let Some(rope) = rope {
        keys.rope(rope)?;
        if architecture.name == MISTRAL3 {
            let parameters = object.get("rope_parameters").unwrap_or(object);
            let all_dim = parameters.get("mscale_all_dim").and_then(Value::as_f64);
            keys.number("rope.scaling.yarn_log_multiplier", all_dim.unwrap_or(0.0));
            keys.number(QUERY_GROWTH, rope.query_scale.map_or(0.0, |scale| scale.beta));
        }
    }
    Ok(keys.all)
}

fn has_window(layer: &LayerConfig) -> bool {
    layer.attention.heads.window.is_some()
}

/// The rotary embedding of blocks that see all tokens, or of all blocks.
fn rope_of(config: &DecoderConfig) -> Option<&RopeConfig> {
    let of = |layer: &LayerConfig| layer.attention.rope;
    let attending = || config.layers.iter().filter(|layer| layer.delta.is_none());
    let whole = attending().filter(|layer| !has_window(layer)).find_map(of);
    whole.or_else(|| attending().find_map(of)).map(|index| &config.ropes[index])
}

/// Tensors of divisors of frequencies.
pub(super) fn factors(config: &DecoderConfig) -> Vec<(&'static str, Vec<f32>)> {
    let Some(rope) = rope_of(config) else { return Vec::new() };
    let narrow = |factors: &[f64]| factors.iter().map(|&x| x as f32).collect();
    match &rope.scaling {
        RopeScaling::Llama3 { .. } => {
            let unscaled = RopeConfig { scaling: RopeScaling::Default, ..rope.clone() };
            let pairs =
                unscaled.inverse_frequencies(0).into_iter().zip(rope.inverse_frequencies(0));
            vec![(FACTORS, pairs.map(|(unscaled, scaled)| unscaled / scaled).collect())]
        }
        RopeScaling::LongRope { short_factor, long_factor, .. } => {
            SHORT_AND_LONG.into_iter().zip([narrow(short_factor), narrow(long_factor)]).collect()
        }
        _ => Vec::new(),
    }
}

fn refused(what: &str) -> GgufExportError {
    GgufExportError::Setting(what.to_owned())
}

struct Keys {
    architecture: &'static str,
    all: Vec<(String, Meta)>,
}

impl Keys {
    /// What blocks differ in, and their experts.
    fn blocks(&mut self, config: &DecoderConfig, object: &Value) {
        let experts = config.layers.iter().find_map(|layer| layer.mlp.experts.as_ref());
        if let Some(experts) = experts.filter(|_| self.architecture == GLM4_MOE) {
            self.size("expert_gating_func", 2);
            self.push("expert_weights_norm", Meta::Bool(experts.router.normalise));
        }
        if self.architecture == "granite" && object.get("logits_scaling").is_none() {
            self.number("logit_scale", 1.0);
        }
        if config.layers.iter().any(|layer| layer.delta.is_some()) {
            let recurrent = config.layers.iter().map(|layer| layer.delta.is_some()).collect();
            self.push("attention.recurrent_layers", Meta::Bools(recurrent));
            if object.get("full_attention_interval").is_none() {
                // The default, which the list before takes the place of.
                self.size("full_attention_interval", 4);
            }
            // llama.cpp requires it; the positions of a text's token are all the same.
            let parameters = object.get("rope_parameters").unwrap_or(object);
            let given = parameters.get("mrope_section").and_then(Value::as_array);
            let given = given.map(|all| {
                all.iter().filter_map(Value::as_i64).filter_map(|n| n.try_into().ok()).collect()
            });
            let mut sections: Vec<i32> = given.unwrap_or_else(|| vec![11, 11, 10]);
            sections.resize(4, 0);
            self.push("rope.dimension_sections", Meta::I32s(sections));
        }
        // Of Gemma 3 every sixth block has none, unless the file says otherwise.
        let period = object.get("sliding_window_pattern").and_then(Value::as_u64);
        if let Some(period) = period.filter(|_| self.architecture == "gemma3") {
            self.size("attention.sliding_window_pattern", period as usize);
        }
        // OLMo's files say which blocks have a window; of others it is known.
        if self.architecture == "olmo2" && config.layers.iter().any(has_window) {
            let pattern = config.layers.iter().map(has_window).collect();
            self.push("attention.sliding_window_pattern", Meta::Bools(pattern));
        }
    }

    fn has(&self, key: &str) -> bool {
        let key = format!("{}.{key}", self.architecture);
        self.all.iter().any(|(other, _)| *other == key)
    }

    fn push(&mut self, key: &str, value: Meta) {
        self.all.push((format!("{}.{key}", self.architecture), value));
    }

    fn size(&mut self, key: &str, size: usize) {
        self.push(key, Meta::U32(u32::try_from(size).unwrap_or(u32::MAX)));
    }

    fn number(&mut self, key: &str, number: f64) {
        self.push(key, Meta::F32(number as f32));
    }

    fn rope(&mut self, rope: &RopeConfig) -> Result<(), GgufExportError> {
        self.number("rope.freq_base", rope.rope_theta);
        self.size("rope.dimension_count", rope.rotated.dim);
        match rope.scaling {
            // Llama 3's is a tensor.
            RopeScaling::Default | RopeScaling::Llama3 { .. } => {}
            RopeScaling::Linear { factor } => {
                self.push("rope.scaling.type", "linear".into());
                self.number("rope.scaling.factor", factor);
            }
            RopeScaling::Yarn {
                factor,
                beta_fast,
                beta_slow,
                attention_factor,
                original_max_position_embeddings,
                ..
            } => {
                self.push("rope.scaling.type", "yarn".into());
                self.number("rope.scaling.factor", factor);
                self.number("rope.scaling.yarn_beta_fast", beta_fast);
                self.number("rope.scaling.yarn_beta_slow", beta_slow);
                self.original(original_max_position_embeddings);
                let implied = 0.1 * factor.ln() + 1.0;
                let multiplier = attention_factor / implied;
                let is_implied = (multiplier - 1.0).abs() < 1e-6;
                match self.architecture {
                    // There it follows from `yarn_log_multiplier`.
                    MISTRAL3 => {}
                    _ if (beta_fast, beta_slow) != (32.0, 1.0) => {
                        return Err(refused(
                            "YaRN with bounds of its own (`beta_fast`, `beta_slow`)",
                        ));
                    }
                    // Files of OLMo 3 mean two things by the key.
                    "olmo2" if !is_implied => {
                        return Err(refused("YaRN with a factor of attention of its own"));
                    }
                    _ if is_implied => {}
                    // llama.cpp multiplies what follows from the factor by it.
                    _ => self.number("rope.scaling.attn_factor", multiplier),
                }
            }
            RopeScaling::LongRope {
                attention_factor, original_max_position_embeddings, ..
            } => {
                self.push("rope.scaling.type", "longrope".into());
                self.original(original_max_position_embeddings);
                self.number("rope.scaling.attn_factor", attention_factor);
            }
            RopeScaling::Dynamic { .. } => {
                return Err(refused("scaling of RoPE that grows with the sequence (`dynamic`)"));
            }
            RopeScaling::Proportional { .. } => {
                return Err(refused("RoPE of a share of a head's frequencies (`proportional`)"));
            }
        }
        Ok(())
    }

    fn original(&mut self, len: f64) {
        self.size("rope.scaling.original_context_length", len as usize);
    }
}

/// What llama.cpp's loader of an architecture does not know, though Hone would read it from a file.
pub(super) fn unknown_to_llama_cpp(
    config: &DecoderConfig,
    architecture: &Architecture,
) -> Option<&'static str> {
    let name = architecture.name;
    let is_llama = matches!(name, "llama" | "granite" | MISTRAL3);
    let attending = || config.layers.iter().filter(|layer| layer.delta.is_none());
    let scaling = rope_of(config).map(|rope| &rope.scaling);
    let experts = || config.layers.iter().filter_map(|layer| layer.mlp.experts.as_ref());
    let is_mixed = experts().next().is_some() && experts().count() < config.layers.len();
    let normalises = experts().any(|experts| experts.router.normalise);
    let is_narrow = |layer: &LayerConfig| {
        let heads = layer.attention.heads;
        heads.num_heads * heads.head_dim != config.hidden_size
    };
    let is_tied = config.tie_word_embeddings;
    [
        (
            matches!(scaling, Some(RopeScaling::Llama3 { .. })) && !is_llama,
            "scaling of RoPE as in Llama 3",
        ),
        (
            matches!(scaling, Some(RopeScaling::LongRope { .. })) && !is_llama && name != "phi3",
            "LongRoPE",
        ),
        (
            attending().any(|layer| layer.attention.o_bias) && !is_llama && name != GPT_OSS,
            "a bias of attention's output",
        ),
        (
            attending().any(|layer| layer.mlp.bias && layer.mlp.experts.is_none()) && !is_llama,
            "biases of the MLP",
        ),
        (
            is_tied && matches!(name, "qwen2moe" | "olmo2" | "olmoe" | GPT_OSS),
            "a head that is tied to the embedding",
        ),
        (!is_tied && name == "gemma2", "a head that is not tied to the embedding"),
        (is_mixed && name != GLM4_MOE, "a block without experts among blocks with them"),
        (
            attending().any(is_narrow)
                && matches!(name, "qwen2" | "qwen2moe" | "phi3" | "olmo2" | "olmoe"),
            "heads that are not as wide as the hidden size in all",
        ),
        (
            name == "llama" && attending().any(|layer| rotates_a_part(config, layer)),
            "RoPE of a part of each head",
        ),
        (
            normalises && matches!(name, "qwen2moe" | "olmoe"),
            "weights of experts that add up to 1 (`norm_topk_prob`)",
        ),
    ]
    .into_iter()
    .find_map(|(is_there, what)| is_there.then_some(what))
}

fn rotates_a_part(config: &DecoderConfig, layer: &LayerConfig) -> bool {
    let rope = layer.attention.rope.map(|index| &config.ropes[index]);
    rope.is_some_and(|rope| rope.rotated.dim != layer.attention.heads.head_dim)
}

/// What of a model's configuration a file says otherwise.
pub(super) fn difference(config: &DecoderConfig, written: &DecoderConfig) -> Option<String> {
    let same = [
        ("the size of the vocabulary", config.vocab_size == written.vocab_size),
        ("the hidden size", config.hidden_size == written.hidden_size),
        ("the number of blocks", config.layers.len() == written.layers.len()),
        ("the setting of norms", config.norm == written.norm),
        ("the multiplier of embeddings", config.embedding_scale == written.embedding_scale),
        ("the setting of logits", config.logits == written.logits),
        (
            "the tie of head and embedding",
            config.tie_word_embeddings == written.tie_word_embeddings,
        ),
        ("embeddings of blocks", config.block_embeddings == written.block_embeddings),
        ("an encoder", config.encoder.is_none()),
    ];
    if let Some((what, _)) = same.into_iter().find(|(_, is_same)| !is_same) {
        return Some(what.to_owned());
    }
    for (i, (layer, written)) in config.layers.iter().zip(&written.layers).enumerate() {
        if layer.mlp != written.mlp {
            return Some(format!("the MLP of block {i}"));
        }
        if layer.delta != written.delta || layer.attention != written.attention {
            return Some(format!("the attention of block {i} (heads, window, scale or norms)"));
        }
        if layer.norms != written.norms {
            return Some(format!("the norms of block {i}"));
        }
    }
    let mut ropes = config.ropes.iter().zip(&written.ropes);
    let is_same = config.ropes.len() == written.ropes.len()
        && ropes.all(|(wanted, found)| is_same_rope(wanted, found));
    (!is_same).then(|| "the setting of rotary embeddings".to_owned())
}

/// Files have numbers in 32 bits: frequencies and factors may differ by what that rounds.
fn is_same_rope(wanted: &RopeConfig, found: &RopeConfig) -> bool {
    let is_close = |(a, b): (&f32, &f32)| (a / b - 1.0).abs() < 1e-5 || a == b;
    let frequencies = |len: usize| {
        let (wanted, found) = (wanted.inverse_frequencies(len), found.inverse_frequencies(len));
        wanted.len() == found.len() && wanted.iter().zip(&found).all(is_close)
    };
    let longest = wanted.max_position_embeddings;
    wanted.rotated == found.rotated
        && wanted.query_scale == found.query_scale
        && is_close((&(wanted.attention_factor() as f32), &(found.attention_factor() as f32)))
        && [0, longest].into_iter().all(frequencies)
}
