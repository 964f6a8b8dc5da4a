//! Metadata as the `config.json` of its family.

use super::architectures::{
    Architecture, Biases, COMMON, COMMON_OPTIONAL, DELTA_WIDTH, GLM4_MOE, GPT_OSS, MINISTRAL3,
    QUERY_GROWTH,
};
use super::metadata::Metadata;
use super::rope;
use super::tensors::EMBEDDING;
use crate::raw_config::{ConfigError, RawConfig};
use crate::rope::{RopeConfig, RopeScaling};
use hone_tensor::gguf::{GgufFile, Value};
use hone_tensor::ops::Rotated;
use serde_json::{Map, json};
use std::collections::BTreeMap;

/// The family of OLMo 2's files that have windows.
const OLMO3: &str = "olmo3";

/// Blocks at the end that predict tokens after the next, which are left out.
pub(super) const FURTHER: &str = "nextn_predict_layers";

/// A `config.json` that is being made.
struct Translation<'a> {
    metadata: Metadata<'a>,
    architecture: &'static Architecture,
    object: Map<String, serde_json::Value>,
    /// The metadata's names of the configuration's keys, for messages.
    names: BTreeMap<String, String>,
}

/// The configuration in a file's metadata.
pub(super) fn raw_config(
    file: &GgufFile,
    architecture: &'static Architecture,
) -> Result<RawConfig, ConfigError> {
    let metadata = Metadata::new(file);
    let (object, names) = (Map::new(), BTreeMap::new());
    let mut config = Translation { metadata, architecture, object, names };
    config.translate()?;
    config.metadata.refuse_unread(&config.key(""))?;
    Ok(RawConfig::translated(file.path().to_owned(), config.object, config.names))
}

impl Translation<'_> {
    /// A key of the architecture.
    fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture.name)
    }

    fn set(&mut self, key: &str, value: impl Into<serde_json::Value>) {
        self.object.insert(key.to_owned(), value.into());
    }

    fn translate(&mut self) -> Result<(), ConfigError> {
        self.set("model_type", self.architecture.model_type);
        self.set("architectures", json!([self.architecture.class]));
        for (from, to) in COMMON {
            self.number(from, to)?;
            if !self.object.contains_key(to) {
                let problem = "is missing and has no default: fetch the model again";
                return Err(self.metadata.error(&self.key(from), problem));
            }
        }
        for &(from, to) in COMMON_OPTIONAL.iter().chain(self.architecture.keys) {
            self.number(from, to)?;
        }
        let Some(shape) = self.metadata.file.shape(EMBEDDING) else {
            let problem =
                "is a tensor that every model has, and it is missing: fetch the model again";
            return Err(self.metadata.error(EMBEDDING, problem));
        };
        self.set("vocab_size", shape[0]);
        self.architecture.flags.iter().for_each(|key| self.set(key, true));
        self.heads()?;
        self.delta()?;
        self.present();
        self.experts()?;
        self.routers()?;
        self.tokens()?;
        self.windows()?;
        self.gemma();
        self.rope()?;
        // The embedding's rows count; the tensors are there or not.
        self.metadata.get(&self.key("vocab_size"));
        self.expect("attention.causal", Value::Bool(true))
    }

    /// Copies a number. Of a list with one for each block, all must be the same.
    fn number(&mut self, from: &str, to: &str) -> Result<(), ConfigError> {
        let from = self.key(from);
        let Some(mut value) = self.metadata.get(&from) else { return Ok(()) };
        if let Value::Array(array) = value {
            let mut elements = array.iter().filter_map(Result::ok);
            let first = elements.next().filter(|first| elements.all(|other| other == *first));
            value = first.ok_or_else(|| {
                let problem = "differs from block to block, which is not supported yet";
                self.metadata.error(&from, problem)
            })?;
        }
        match value {
            Value::Integer(n) if i64::try_from(n).is_ok() => self.set(to, n as i64),
            Value::Float(x) if x.is_finite() => self.set(to, x),
            other => return Err(self.metadata.unexpected(&from, "a number", other)),
        }
        self.names.insert(to.to_owned(), from);
        Ok(())
    }

    /// `head_dim`, which is the hidden size divided among the heads where nothing says otherwise.
    fn heads(&mut self) -> Result<(), ConfigError> {
        self.number("attention.key_length", "head_dim")?;
        let whole = |object: &Map<_, serde_json::Value>, key| object.get(key)?.as_u64();
        let (hidden, heads) = (
            whole(&self.object, "hidden_size").unwrap_or(0),
            whole(&self.object, "num_attention_heads").unwrap_or(0),
        );
        let divides = heads > 0 && hidden > 0 && hidden.is_multiple_of(heads);
        if !self.object.contains_key("head_dim") && divides {
            self.set("head_dim", hidden / heads);
        }
        let key = self.key("rope.dimension_count");
        let turned = self.metadata.size(&key)?;
        let Some(head_dim) = whole(&self.object, "head_dim") else { return Ok(()) };
        self.expect("attention.value_length", Value::Integer(head_dim.into()))?;
        match turned {
            Some(turned) if turned < head_dim => {
                self.names.insert("partial_rotary_factor".to_owned(), key);
                self.set("partial_rotary_factor", turned as f64 / head_dim as f64);
            }
            Some(turned) if turned > head_dim => {
                let problem = format!("must be at most a head's {head_dim}, found {turned}");
                return Err(self.metadata.error(&key, problem));
            }
            _ => {}
        }
        Ok(())
    }

    fn rope(&mut self) -> Result<(), ConfigError> {
        let number = |key: &str| self.object.get(key).and_then(serde_json::Value::as_f64);
        let unscaled = RopeConfig {
            rope_theta: number("rope_theta").unwrap_or(10_000.0),
            rotated: Rotated {
                dim: (number("head_dim").unwrap_or(0.0)
                    * number("partial_rotary_factor").unwrap_or(1.0)) as usize,
                interleaved: false,
            },
            max_position_embeddings: number("max_position_embeddings").unwrap_or(0.0) as usize,
            query_scale: None,
            scaling: RopeScaling::Default,
        };
        // The format's default, which a family's may differ from.
        self.object.entry("rope_theta").or_insert(unscaled.rope_theta.into());
        let mut scaling = rope::scaling(&self.metadata, self.architecture.name, &unscaled)?;
        if self.architecture.name == GPT_OSS && !scaling.is_empty() {
            // As it was trained, which files do not say.
            scaling.insert("truncate".to_owned(), false.into());
        }
        if self.architecture.model_type == MINISTRAL3 {
            return self.ministral(scaling);
        }
        let of_windows = match self.object.get("model_type").is_some_and(|kind| kind == OLMO3) {
            true => self.metadata.number(&self.key("rope.freq_base_swa"))?,
            false => None,
        };
        if let Some(of_windows) = of_windows.filter(|base| *base != unscaled.rope_theta) {
            self.object.remove("rope_theta");
            scaling.insert("rope_theta".to_owned(), unscaled.rope_theta.into());
            scaling.entry("rope_type").or_insert("default".into());
            let sliding = json!({"rope_type": "default", "rope_theta": of_windows});
            let by_kind = json!({"full_attention": scaling, "sliding_attention": sliding});
            self.set("rope_parameters", by_kind);
        } else if !scaling.is_empty() {
            self.set("rope_scaling", scaling);
        }
        Ok(())
    }

    /// Ministral 3's settings of rotary embeddings, in one object with what its queries grow by.
    fn ministral(
        &mut self,
        mut scaling: Map<String, serde_json::Value>,
    ) -> Result<(), ConfigError> {
        let number = |key: &str| self.metadata.number(&self.key(key));
        let all_dim = number("rope.scaling.yarn_log_multiplier")?.unwrap_or(0.0);
        let beta = number(QUERY_GROWTH)?.unwrap_or(0.0);
        let value = |key: &str| self.object.get(key).cloned().unwrap_or_default();
        // As llama.cpp takes it where the file does not say.
        scaling
            .entry("original_max_position_embeddings")
            .or_insert(value("max_position_embeddings"));
        scaling.entry("rope_type").or_insert("default".into());
        scaling.insert("rope_theta".to_owned(), value("rope_theta"));
        scaling.insert("mscale".to_owned(), 1.0.into());
        scaling.insert("mscale_all_dim".to_owned(), all_dim.into());
        scaling.insert("llama_4_scaling_beta".to_owned(), beta.into());
        self.object.remove("rope_theta");
        self.set("rope_parameters", scaling);
        Ok(())
    }

    /// What gated delta nets say otherwise, and blocks that predict tokens after the next.
    fn delta(&mut self) -> Result<(), ConfigError> {
        let further = self.metadata.size(&self.key(FURTHER))?.unwrap_or(0);
        let whole = |key: &str| self.object.get(key).and_then(serde_json::Value::as_u64);
        let blocks = whole("num_hidden_layers").filter(|_| further > 0);
        let (width, heads) = (whole(DELTA_WIDTH), whole("linear_num_value_heads"));
        if let Some(blocks) = blocks {
            self.set("num_hidden_layers", blocks.saturating_sub(further));
        }
        if heads.is_some() {
            let key = self.key("attention.recurrent_layers");
            match self.metadata.get(&key) {
                // Every block but one in `full_attention_interval`.
                None => {}
                Some(list) => self.layer_types(key, list, "linear_attention")?,
            }
        }
        // Of positions of pictures; the three of a text's token are the same.
        self.metadata.get(&self.key("rope.dimension_sections"));
        self.object.remove(DELTA_WIDTH);
        match (width, heads) {
            (Some(width), Some(heads)) if heads > 0 && width.is_multiple_of(heads) => {
                self.set("linear_value_head_dim", width / heads);
                Ok(())
            }
            (None, _) => Ok(()),
            (Some(width), heads) => {
                let heads = heads.unwrap_or(0);
                let problem =
                    format!("must be a multiple of ssm.time_step_rank ({heads}), found {width}");
                Err(self.metadata.error(&self.key("ssm.inner_size"), problem))
            }
        }
    }

    fn has(&self, tensor: &str) -> bool {
        self.metadata.file.shape(tensor).is_some()
    }

    /// What tensors show by being there.
    fn present(&mut self) {
        self.set("tie_word_embeddings", !self.has("output.weight"));
        if self.architecture.biases != Biases::Known {
            self.set("attention_bias", self.has("blk.0.attn_q.bias"));
        }
        if self.architecture.biases == Biases::Everywhere {
            self.set("mlp_bias", self.has("blk.0.ffn_gate.bias"));
        }
        if self.architecture.name == GLM4_MOE {
            self.set("use_qk_norm", self.has("blk.0.attn_q_norm.weight"));
        }
    }

    /// Blocks without a router are dense.
    fn experts(&mut self) -> Result<(), ConfigError> {
        let one_expert = "blk.0.ffn_gate.0.weight";
        if self.has(one_expert) {
            let problem = "is a tensor of one expert, as llama.cpp wrote them until April 2024; \
                           only those of all experts are read: fetch a newer file, or convert \
                           the model again";
            return Err(self.metadata.error(one_expert, problem));
        }
        let whole = |key: &str| self.object.get(key).and_then(serde_json::Value::as_u64);
        let Some(num_layers) =
            whole("num_hidden_layers").filter(|_| whole("num_experts").is_some())
        else {
            return Ok(());
        };
        // More blocks than that are refused.
        let layers =
            (0..num_layers.min(MAX_BLOCKS)).map(|i| (i, format!("blk.{i}.ffn_gate_inp.weight")));
        let dense = layers.filter(|(_, router)| !self.has(router)).map(|(i, _)| i);
        let dense: Vec<u64> = dense.collect();
        self.set("mlp_only_layers", dense);
        Ok(())
    }

    /// How routers score.
    fn routers(&mut self) -> Result<(), ConfigError> {
        let key = self.key("expert_weights_norm");
        match self.metadata.get(&key) {
            // llama.cpp asks the file only of these, and others' families know it.
            None if self.architecture.name == GLM4_MOE => self.set("norm_topk_prob", false),
            None => {}
            Some(Value::Bool(normed)) => {
                self.names.insert("norm_topk_prob".to_owned(), key);
                self.set("norm_topk_prob", normed);
            }
            Some(other) => return Err(self.metadata.unexpected(&key, "a boolean", other)),
        }
        // llama.cpp's numbers: a softmax over all experts, a sigmoid, a softmax over the chosen.
        let scoring = match self.architecture.name {
            GLM4_MOE => 2,
            GPT_OSS => 3,
            _ => 1,
        };
        self.expect("expert_gating_func", Value::Integer(scoring))
    }

    fn tokens(&mut self) -> Result<(), ConfigError> {
        for (from, to) in [("bos", "bos_token_id"), ("padding", "pad_token_id")] {
            if let Some(id) = self.metadata.token_id(&format!("tokenizer.ggml.{from}_token_id"))? {
                self.set(to, id);
            }
        }
        let ends = end_ids(&self.metadata)?;
        if !ends.is_empty() {
            self.set("eos_token_id", ends);
        }
        Ok(())
    }

    /// Which blocks have a window.
    fn windows(&mut self) -> Result<(), ConfigError> {
        const WINDOW: &str = "sliding_window";
        if self.object.get(WINDOW).is_some_and(|window| *window == 0) {
            // Of Phi's models that have none.
            self.set(WINDOW, serde_json::Value::Null);
        }
        let has_window = self.object.get(WINDOW).is_some_and(|window| !window.is_null());
        if self.architecture.name == "olmo2" && has_window {
            self.set("model_type", OLMO3);
            self.set("architectures", json!(["Olmo3ForCausalLM"]));
        }
        let key = self.key("attention.sliding_window_pattern");
        match self.metadata.get(&key) {
            None => {}
            Some(Value::Integer(_)) => {
                self.number("attention.sliding_window_pattern", "sliding_window_pattern")?;
            }
            Some(list) => self.layer_types(key, list, "sliding_attention")?,
        }
        Ok(())
    }

    /// Kinds of blocks: a boolean for each, those included that predict tokens after the next.
    fn layer_types(
        &mut self,
        key: String,
        list: Value<'_>,
        of_true: &str,
    ) -> Result<(), ConfigError> {
        let Value::Array(array) = list else {
            return Err(self.metadata.unexpected(&key, "a list", list));
        };
        if array.len() as u64 > MAX_BLOCKS {
            let problem = format!("has {} entries, more than models have blocks", array.len());
            return Err(self.metadata.error(&key, problem));
        }
        let kind = |value| match value {
            Ok(Value::Bool(true)) => Some(of_true),
            Ok(Value::Bool(false)) => Some("full_attention"),
            _ => None,
        };
        let kinds: Option<Vec<&str>> = array.iter().map(kind).collect();
        let mut kinds =
            kinds.ok_or_else(|| self.metadata.unexpected(&key, "a list of booleans", list))?;
        let further = self.metadata.size(&self.key(FURTHER))?.unwrap_or(0) as usize;
        kinds.truncate(kinds.len().saturating_sub(further));
        self.names.insert("layer_types".to_owned(), key);
        self.set("layer_types", kinds);
        Ok(())
    }

    /// What files of Gemma 2 and 3 do not say, as llama.cpp knows it.
    fn gemma(&mut self) {
        let layers_of_27b = match self.architecture.name {
            "gemma2" => 46,
            "gemma3" => 62,
            _ => return,
        };
        let whole = |key: &str| self.object.get(key).and_then(serde_json::Value::as_u64);
        // The models of 27B scale scores by the width of the residual stream per head: a whole
        // number, or transformers refuses it.
        let scale = match (whole("num_hidden_layers"), whole("num_attention_heads")) {
            (Some(layers), Some(heads)) if layers == layers_of_27b && heads > 0 => {
                whole("hidden_size").map(|hidden| hidden / heads)
            }
            _ => whole("head_dim"),
        };
        if let Some(scale) = scale {
            self.set("query_pre_attn_scalar", scale);
        }
    }

    /// Refuses another value than the only one that is supported.
    fn expect(&self, key: &str, only: Value<'_>) -> Result<(), ConfigError> {
        let key = self.key(key);
        match self.metadata.get(&key) {
            Some(other) if other != only => {
                let only = match only {
                    Value::Integer(n) => n.to_string(),
                    other => format!("{other:?}"),
                };
                Err(self.metadata.unexpected(&key, &format!("{only} to be supported"), other))
            }
            _ => Ok(()),
        }
    }
}

/// More than any model has.
const MAX_BLOCKS: u64 = 1 << 16;

/// Tokens that end a text, a turn or a message.
pub(super) fn end_ids(metadata: &Metadata<'_>) -> Result<Vec<u32>, ConfigError> {
    let mut ids = Vec::new();
    for name in ["eos", "eot", "eom"] {
        if let Some(id) = metadata.token_id(&format!("tokenizer.ggml.{name}_token_id"))?
            && !ids.contains(&id)
        {
            ids.push(id);
        }
    }
    Ok(ids)
}
