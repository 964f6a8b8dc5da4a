//! Configurations as their makers publish them: each is read, has as many parameters as the model
//! in transformers, and the names that are in the Hub's files.

use hone_model::DecoderConfig;
use serde::Deserialize;
use serde_json::{Value, json};

/// A family. The page of families says more of it.
#[derive(Deserialize)]
pub struct Family {
    /// From the smallest to the largest.
    pub models: Vec<Published>,
}

/// A model that was published.
#[derive(Deserialize)]
pub struct Published {
    name: String,
    parameters: usize,
    /// The longest row, of some that have a bound.
    longest: Option<usize>,
    /// The name of one of its tensors.
    tensor: Option<String>,
    /// `config.json`, without keys that no model reads.
    pub config: Value,
}

/// All families.
pub fn families() -> Vec<Family> {
    #[derive(Deserialize)]
    struct File {
        families: Vec<Family>,
    }
    serde_json::from_str::<File>(include_str!("../published.json")).unwrap().families
}

/// The configuration of the model with this name.
pub fn config_of(name: &str) -> Value {
    let mut models = families().into_iter().flat_map(|family| family.models);
    models.find(|model| model.name == name).unwrap().config
}

#[test]
fn published_configurations_are_read() {
    let mut num_tensors = 0;
    for model in families().into_iter().flat_map(|family| family.models) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.json"), model.config.to_string()).unwrap();
        let config = DecoderConfig::load(dir.path()).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(config.num_parameters(), model.parameters, "{}", model.name);
        if let Some(longest) = model.longest {
            assert_eq!(config.longest(), Some(longest), "{}", model.name);
        }
        if config.encoder.is_some() {
            assert_eq!(config.looks_ahead(), Some(0), "{}", model.name);
        }
        if let Some(tensor) = model.tensor {
            // Files of the bare model have no prefix, those of several parts a longer one.
            let is_it = |name: &str| {
                let bare = name.split_once('.').map_or(name, |(_, bare)| bare);
                name == tensor || bare == tensor || format!("model.language_model.{bare}") == tensor
            };
            let is_there = config.weights().any(|weight| is_it(&weight.name));
            assert!(is_there, "{}: {tensor}", model.name);
            num_tensors += 1;
        }
    }
    assert!(num_tensors > 30, "{num_tensors}");
}

/// Keys that published files have besides those of transformers' classes.
#[test]
fn keys_of_published_files_are_known() {
    let qwen = json!({
        "model_type": "qwen3_5", "tie_word_embeddings": true, "vision_config": {},
        "text_config": {
            "model_type": "qwen3_5_text", "vocab_size": 248320, "hidden_size": 1024,
            "intermediate_size": 3584, "num_hidden_layers": 24, "num_attention_heads": 8,
            "num_key_value_heads": 2, "head_dim": 256, "attn_output_gate": true,
            "full_attention_interval": 4, "mamba_ssm_dtype": "float32",
            "linear_num_key_heads": 16, "linear_num_value_heads": 16,
            "mtp_num_hidden_layers": 1, "mtp_use_dedicated_embeddings": false,
            "rope_parameters": {
                "rope_type": "default", "rope_theta": 10000000, "partial_rotary_factor": 0.25,
                "mrope_interleaved": true, "mrope_section": [11, 11, 10]
            }
        }
    });
    let mixture = json!({
        "model_type": "qwen3_moe", "vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_local_experts": 6, "num_experts_per_tok": 2,
        "use_sliding_window": true, "sliding_window": null
    });
    // Devstral 2: queries do not grow.
    let devstral = json!({
        "model_type": "ministral3", "vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 24,
        "rope_parameters": {
            "type": "yarn", "rope_type": "yarn", "rope_theta": 1000000.0, "factor": 64.0,
            "beta_fast": 4.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 0.0,
            "original_max_position_embeddings": 4096, "llama_4_scaling_beta": 0.0
        }
    });
    let dir = tempfile::tempdir().unwrap();
    let read = |config: &Value| {
        std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
        DecoderConfig::load(dir.path()).unwrap_or_else(|error| panic!("{error}"))
    };
    let config = read(&qwen);
    assert!(config.is_part && config.has_mtp && config.tie_word_embeddings);
    assert_eq!((config.deltas().count(), config.heads().count()), (18, 6));
    let config = read(&mixture);
    assert!(config.heads().all(|heads| heads.window.is_none()));
    let experts = config.layers[0].mlp.experts.as_ref().unwrap();
    assert_eq!(experts.router.num_experts, 6);
    assert_eq!(read(&devstral).ropes[0].query_scale, None);
}
