//! Configurations as their makers publish them: each is read, and has the number of parameters that
//! the Hub counts in its weights.

use crate::{published_encoders, published_mixtures};
use hone_model::DecoderConfig;
use serde_json::{Value, json};

/// Name, parameters that the Hub shows, and `config.json` without keys that no model reads.
type Published = (&'static str, usize, Value);

/// Kinds of so many layers, of which every `full_every`-th sees everything.
fn kinds(count: usize, full_every: usize) -> Vec<&'static str> {
    let kind = |i: usize| match (i + 1).is_multiple_of(full_every) {
        true => "full_attention",
        false => "sliding_attention",
    };
    (0..count).map(kind).collect()
}

fn from_llama_to_qwen3_moe() -> Vec<Published> {
    vec![
        (
            "meta-llama/Llama-3.2-1B",
            1_235_814_400,
            json!({
                "model_type": "llama", "vocab_size": 128256, "hidden_size": 2048,
                "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
                "num_key_value_heads": 8, "head_dim": 64, "hidden_act": "silu",
                "max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
                "rope_scaling": {
                    "factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
                    "original_max_position_embeddings": 8192, "rope_type": "llama3"
                },
                "attention_bias": false, "attention_dropout": 0.0, "mlp_bias": false,
                "pretraining_tp": 1, "tie_word_embeddings": true, "bos_token_id": 128000,
                "eos_token_id": 128001, "torch_dtype": "bfloat16", "use_cache": true
            }),
        ),
        (
            "Qwen/Qwen2.5-0.5B-Instruct",
            494_032_768,
            json!({
                "model_type": "qwen2", "vocab_size": 151936, "hidden_size": 896,
                "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
                "num_key_value_heads": 2, "hidden_act": "silu", "max_position_embeddings": 32768,
                "max_window_layers": 21, "sliding_window": 32768, "use_sliding_window": false,
                "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "attention_dropout": 0.0,
                "tie_word_embeddings": true, "bos_token_id": 151643, "eos_token_id": 151645
            }),
        ),
        (
            "Qwen/Qwen3-0.6B",
            596_049_920,
            json!({
                "model_type": "qwen3", "vocab_size": 151936, "hidden_size": 1024,
                "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16,
                "num_key_value_heads": 8, "head_dim": 128, "hidden_act": "silu",
                "max_position_embeddings": 40960, "max_window_layers": 28, "sliding_window": null,
                "use_sliding_window": false, "rms_norm_eps": 1e-6, "rope_theta": 1000000,
                "rope_scaling": null, "attention_bias": false, "attention_dropout": 0.0,
                "tie_word_embeddings": true, "bos_token_id": 151643, "eos_token_id": 151645
            }),
        ),
        (
            "Qwen/Qwen3-30B-A3B",
            30_532_122_624,
            json!({
                "model_type": "qwen3_moe", "vocab_size": 151936, "hidden_size": 2048,
                "intermediate_size": 6144, "moe_intermediate_size": 768, "num_hidden_layers": 48,
                "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 128,
                "num_experts": 128, "num_experts_per_tok": 8, "norm_topk_prob": true,
                "decoder_sparse_step": 1, "mlp_only_layers": [], "output_router_logits": false,
                "router_aux_loss_coef": 0.001, "hidden_act": "silu",
                "max_position_embeddings": 40960, "max_window_layers": 48, "sliding_window": null,
                "use_sliding_window": false, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0,
                "rope_scaling": null, "attention_bias": false, "attention_dropout": 0.0,
                "tie_word_embeddings": false, "bos_token_id": 151643, "eos_token_id": 151645
            }),
        ),
    ]
}

fn from_gemma2_to_phi3() -> Vec<Published> {
    vec![
        (
            "google/gemma-2-2b",
            2_614_341_888,
            json!({
                "model_type": "gemma2", "vocab_size": 256000, "hidden_size": 2304,
                "intermediate_size": 9216, "num_hidden_layers": 26, "num_attention_heads": 8,
                "num_key_value_heads": 4, "head_dim": 256, "hidden_act": "gelu_pytorch_tanh",
                "hidden_activation": "gelu_pytorch_tanh", "attn_logit_softcapping": 50.0,
                "final_logit_softcapping": 30.0, "query_pre_attn_scalar": 256,
                "max_position_embeddings": 8192, "sliding_window": 4096, "rms_norm_eps": 1e-6,
                "rope_theta": 10000.0, "attention_bias": false, "attention_dropout": 0.0,
                "cache_implementation": "hybrid", "bos_token_id": 2, "eos_token_id": 1,
                "pad_token_id": 0
            }),
        ),
        (
            "mistralai/Mistral-7B-Instruct-v0.3",
            7_248_023_552,
            json!({
                "model_type": "mistral", "vocab_size": 32768, "hidden_size": 4096,
                "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
                "num_key_value_heads": 8, "hidden_act": "silu", "max_position_embeddings": 32768,
                "sliding_window": null, "rms_norm_eps": 1e-5, "rope_theta": 1000000.0,
                "attention_dropout": 0.0, "tie_word_embeddings": false, "bos_token_id": 1,
                "eos_token_id": 2
            }),
        ),
        (
            "microsoft/Phi-4-mini-instruct",
            3_836_021_760,
            json!({
                "model_type": "phi3", "vocab_size": 200064, "hidden_size": 3072,
                "intermediate_size": 8192, "num_hidden_layers": 32, "num_attention_heads": 24,
                "num_key_value_heads": 8, "hidden_act": "silu", "max_position_embeddings": 131072,
                "original_max_position_embeddings": 4096, "partial_rotary_factor": 0.75,
                "rope_theta": 10000.0, "rope_scaling": {
                    "type": "longrope", "short_factor": vec![1.0; 48], "long_factor": vec![1.5; 48]
                },
                "sliding_window": 262144, "rms_norm_eps": 1e-5, "attention_bias": false,
                "attention_dropout": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0,
                "full_attn_mod": 1, "interpolate_factor": 1, "lm_head_bias": false,
                "mlp_bias": false, "tie_word_embeddings": true, "bos_token_id": 199999,
                "eos_token_id": 199999, "auto_map": {"AutoConfig": "configuration_phi3.Phi3Config"}
            }),
        ),
    ]
}

fn from_smollm3_to_granite() -> Vec<Published> {
    vec![
        (
            "HuggingFaceTB/SmolLM3-3B",
            3_075_098_624,
            json!({
                "model_type": "smollm3", "vocab_size": 128256, "hidden_size": 2048,
                "intermediate_size": 11008, "num_hidden_layers": 36, "num_attention_heads": 16,
                "num_key_value_heads": 4, "hidden_act": "silu", "max_position_embeddings": 65536,
                "max_window_layers": 28, "sliding_window": null, "use_sliding_window": false,
                "layer_types": vec!["full_attention"; 36], "no_rope_layer_interval": 4,
                "no_rope_layers": ([[1, 1, 1, 0]; 9].concat()), "rope_interleaved": false,
                "rope_scaling": null, "rope_theta": 5000000.0, "rms_norm_eps": 1e-6,
                "attention_bias": false, "attention_dropout": 0.0, "mlp_bias": false,
                "is_llama_config": true, "pretraining_tp": 2, "eos_token_id": 128012
            }),
        ),
        (
            "allenai/OLMo-2-0425-1B",
            1_484_916_736,
            json!({
                "model_type": "olmo2", "vocab_size": 100352, "hidden_size": 2048,
                "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 16,
                "num_key_value_heads": 16, "hidden_act": "silu", "max_position_embeddings": 4096,
                "rms_norm_eps": 1e-6, "rope_theta": 500000, "rope_scaling": null,
                "attention_bias": false, "attention_dropout": 0.0, "tie_word_embeddings": false,
                "eos_token_id": 100257, "pad_token_id": 100277
            }),
        ),
        (
            "allenai/Olmo-3-1025-7B",
            7_298_011_136,
            json!({
                "model_type": "olmo3", "vocab_size": 100278, "hidden_size": 4096,
                "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
                "num_key_value_heads": 32, "hidden_act": "silu", "max_position_embeddings": 65536,
                "layer_types": kinds(32, 4), "sliding_window": 4096, "rms_norm_eps": 1e-6,
                "rope_theta": 500000, "rope_scaling": {
                    "attention_factor": 1.2079441541679836, "beta_fast": 32, "beta_slow": 1,
                    "factor": 8.0, "original_max_position_embeddings": 8192, "rope_type": "yarn"
                },
                "attention_bias": false, "attention_dropout": 0.0, "tie_word_embeddings": false,
                "eos_token_id": 100257, "pad_token_id": 100277
            }),
        ),
        (
            "ibm-granite/granite-3.3-2b-instruct",
            2_533_539_840,
            json!({
                "model_type": "granite", "vocab_size": 49159, "hidden_size": 2048,
                "intermediate_size": 8192, "num_hidden_layers": 40, "num_attention_heads": 32,
                "num_key_value_heads": 8, "hidden_act": "silu", "max_position_embeddings": 131072,
                "attention_multiplier": 0.015625, "embedding_multiplier": 12.0,
                "logits_scaling": 8.0, "residual_multiplier": 0.22, "rms_norm_eps": 1e-5,
                "rope_theta": 10000000.0, "rope_scaling": null, "attention_bias": false,
                "attention_dropout": 0.0, "mlp_bias": false, "tie_word_embeddings": true,
                "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0
            }),
        ),
    ]
}

fn gemma4() -> Vec<Published> {
    vec![(
        // The text part, with a number for each block.
        "google/gemma-4-31B",
        30_697_345_340,
        json!({
            "model_type": "gemma4_text", "vocab_size": 262144, "hidden_size": 5376,
            "intermediate_size": 21504, "num_hidden_layers": 60, "num_attention_heads": 32,
            "num_key_value_heads": 16, "head_dim": 256, "global_head_dim": 512,
            "num_global_key_value_heads": 4, "attention_k_eq_v": true,
            "hidden_activation": "gelu_pytorch_tanh", "hidden_size_per_layer_input": 0,
            "vocab_size_per_layer_input": 262144, "num_kv_shared_layers": 0,
            "enable_moe_block": false, "use_double_wide_mlp": false, "num_experts": null,
            "top_k_experts": null, "moe_intermediate_size": null, "layer_types": kinds(60, 6),
            "max_position_embeddings": 262144, "sliding_window": 1024, "rms_norm_eps": 1e-6,
            "final_logit_softcapping": 30.0, "use_bidirectional_attention": "vision",
            "rope_parameters": {
                "full_attention": {
                    "partial_rotary_factor": 0.25, "rope_theta": 1000000.0,
                    "rope_type": "proportional"
                },
                "sliding_attention": {"rope_theta": 10000.0, "rope_type": "default"}
            },
            "attention_bias": false, "attention_dropout": 0.0, "tie_word_embeddings": true,
            "bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0
        }),
    )]
}

fn glm4_and_ministral3() -> Vec<Published> {
    let ministral = (
        // The text part.
        "mistralai/Ministral-3-8B-Base-2512",
        8_489_553_920,
        json!({
            "model_type": "ministral3", "vocab_size": 131072, "hidden_size": 4096,
            "intermediate_size": 14336, "num_hidden_layers": 34, "num_attention_heads": 32,
            "num_key_value_heads": 8, "head_dim": 128, "hidden_act": "silu",
            "max_position_embeddings": 262144, "sliding_window": null, "rms_norm_eps": 1e-5,
            "rope_parameters": {
                "beta_fast": 32.0, "beta_slow": 1.0, "factor": 16.0, "llama_4_scaling_beta": 0.1,
                "mscale": 1.0, "mscale_all_dim": 1.0, "original_max_position_embeddings": 16384,
                "rope_theta": 1000000.0, "rope_type": "yarn", "type": "yarn"
            },
            "attention_dropout": 0.0, "tie_word_embeddings": false, "use_cache": true
        }),
    );
    let glm4 = (
        "THUDM/GLM-4-9B-0414",
        9_400_279_040,
        json!({
            "model_type": "glm4", "vocab_size": 151552, "hidden_size": 4096,
            "intermediate_size": 13696, "num_hidden_layers": 40, "num_attention_heads": 32,
            "num_key_value_heads": 2, "head_dim": 128, "hidden_act": "silu",
            "max_position_embeddings": 32768, "partial_rotary_factor": 0.5,
            "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "attention_bias": true,
            "attention_dropout": 0.0, "tie_word_embeddings": false,
            "eos_token_id": [151329, 151336, 151338], "pad_token_id": 151329
        }),
    );
    vec![ministral, glm4]
}

fn published() -> Vec<Published> {
    let mixtures =
        published_mixtures::published().map(|(name, size, _, config)| (name, size, config));
    let encoders = published_encoders::published().into_iter();
    let encoders = encoders.map(|(name, size, .., config)| (name, size, config));
    [
        from_llama_to_qwen3_moe(),
        from_gemma2_to_phi3(),
        from_smollm3_to_granite(),
        glm4_and_ministral3(),
        gemma4(),
    ]
    .into_iter()
    .flatten()
    .chain(mixtures)
    .chain(encoders)
    .collect()
}

#[test]
fn published_configurations_are_read() {
    for (name, expected, config) in published() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
        let config = DecoderConfig::load(dir.path()).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(config.num_parameters(), expected, "{name}");
    }
}

/// What a damaged file may have in place of a value.
fn damaged() -> [Value; 7] {
    [Value::Null, json!("text"), json!(-1), json!(0), json!(2_147_483_647), json!(1e300), json!([])]
}

/// A configuration of each family with one key removed or changed is read or refused, and what is
/// read can be counted.
#[test]
fn no_key_of_a_configuration_makes_it_panic() {
    let dir = tempfile::tempdir().unwrap();
    let (mut num_read, mut num_refused) = (0, 0);
    for (name, _, mut config) in published() {
        if config["num_experts_per_tok"].is_u64() {
            // Counting those of many blocks takes long.
            config["num_hidden_layers"] = json!(2);
        }
        let keys: Vec<String> = config.as_object().unwrap().keys().cloned().collect();
        for key in keys.iter().filter(|key| *key != "model_type") {
            let changes = damaged().map(Some).into_iter().chain([None]);
            for change in changes {
                let mut config = config.clone();
                match &change {
                    Some(value) => config[key] = value.clone(),
                    None => drop(config.as_object_mut().unwrap().remove(key)),
                }
                std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
                match DecoderConfig::load(dir.path()) {
                    Ok(config) => {
                        num_read += 1;
                        let counted = config.num_parameters();
                        assert!(counted > 0, "{name}: {key} = {change:?}");
                    }
                    Err(error) => {
                        num_refused += 1;
                        let text = error.to_string();
                        assert!(text.contains('`'), "{name}: {key} = {change:?}: {text}");
                    }
                }
            }
        }
    }
    assert!(num_read > 500 && num_refused > 500, "{num_read} read, {num_refused} refused");
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
}
