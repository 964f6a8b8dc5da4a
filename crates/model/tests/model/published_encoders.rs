//! Configurations of encoders as their makers publish them. The Hub also counts the parameters of
//! heads for other tasks, which stay as they are.

use hone_model::DecoderConfig;
use serde_json::{Value, json};

/// Name, parameters of the model with its head for masked tokens, the longest text, a weight's name
/// in the files, and `config.json`.
type Published = (&'static str, usize, usize, &'static str, Value);

fn of_bert(model_type: &str, vocab: usize, positions: usize, types: usize, eps: f64) -> Value {
    json!({
        "model_type": model_type, "architectures": ["BertForMaskedLM"],
        "attention_probs_dropout_prob": 0.1, "gradient_checkpointing": false,
        "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "hidden_size": 768,
        "initializer_range": 0.02, "intermediate_size": 3072, "layer_norm_eps": eps,
        "max_position_embeddings": positions, "num_attention_heads": 12,
        "num_hidden_layers": 12, "pad_token_id": i32::from(positions == 514),
        "position_embedding_type": "absolute", "type_vocab_size": types, "use_cache": true,
        "vocab_size": vocab, "transformers_version": "4.6.0.dev0"
    })
}

pub fn published() -> Vec<Published> {
    vec![
        (
            "google-bert/bert-base-uncased",
            // With a pooler of 590,592 and the next sentence's 1,538: the Hub's 110,106,428.
            109_514_298,
            512,
            "bert.encoder.layer.11.attention.self.query.weight",
            of_bert("bert", 30_522, 512, 2, 1e-12),
        ),
        (
            "FacebookAI/roberta-base",
            124_697_433,
            512,
            "roberta.encoder.layer.11.output.LayerNorm.bias",
            of_bert("roberta", 50_265, 514, 1, 1e-5),
        ),
        (
            "FacebookAI/xlm-roberta-base",
            278_295_186,
            512,
            "lm_head.layer_norm.weight",
            of_bert("xlm-roberta", 250_002, 514, 1, 1e-5),
        ),
        (
            "sentence-transformers/all-MiniLM-L6-v2",
            // The files have no head of 179,130, but a pooler of 147,840: the Hub's 22,713,216.
            22_744_506,
            512,
            "bert.embeddings.token_type_embeddings.weight",
            json!({
                "_name_or_path": "nreimers/MiniLM-L6-H384-uncased", "model_type": "bert",
                "architectures": ["BertModel"], "attention_probs_dropout_prob": 0.1,
                "gradient_checkpointing": false, "hidden_act": "gelu",
                "hidden_dropout_prob": 0.1, "hidden_size": 384, "initializer_range": 0.02,
                "intermediate_size": 1536, "layer_norm_eps": 1e-12,
                "max_position_embeddings": 512, "num_attention_heads": 12,
                "num_hidden_layers": 6, "pad_token_id": 0,
                "position_embedding_type": "absolute", "transformers_version": "4.8.2",
                "type_vocab_size": 2, "use_cache": true, "vocab_size": 30522
            }),
        ),
        (
            "answerdotai/ModernBERT-base",
            149_655_232,
            8192,
            "model.layers.21.attn.Wqkv.weight",
            json!({
                "model_type": "modernbert", "architectures": ["ModernBertForMaskedLM"],
                "attention_bias": false, "attention_dropout": 0.0, "bos_token_id": 50281,
                "classifier_activation": "gelu", "classifier_bias": false,
                "classifier_dropout": 0.0, "classifier_pooling": "mean", "cls_token_id": 50281,
                "decoder_bias": true, "deterministic_flash_attn": false,
                "embedding_dropout": 0.0, "eos_token_id": 50282, "global_attn_every_n_layers": 3,
                "global_rope_theta": 160000.0, "gradient_checkpointing": false,
                "hidden_activation": "gelu", "hidden_size": 768,
                "initializer_cutoff_factor": 2.0, "initializer_range": 0.02,
                "intermediate_size": 1152, "layer_norm_eps": 1e-5, "local_attention": 128,
                "local_rope_theta": 10000.0, "max_position_embeddings": 8192,
                "mlp_bias": false, "mlp_dropout": 0.0, "norm_bias": false, "norm_eps": 1e-5,
                "num_attention_heads": 12, "num_hidden_layers": 22, "pad_token_id": 50283,
                "position_embedding_type": "absolute", "reference_compile": true,
                "sep_token_id": 50282, "sparse_pred_ignore_index": -100,
                "sparse_prediction": false, "torch_dtype": "float32",
                "transformers_version": "4.47.0.dev0", "vocab_size": 50368
            }),
        ),
    ]
}

fn read(config: &Value) -> DecoderConfig {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    DecoderConfig::load(dir.path()).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn published_encoders_are_read() {
    for (name, expected, longest, tensor, config) in published() {
        let config = read(&config);
        assert_eq!(config.num_parameters(), expected, "{name}");
        assert_eq!(config.longest(), Some(longest), "{name}");
        assert!(config.weights().any(|weight| weight.name == tensor), "{name}: {tensor}");
        assert_eq!(config.looks_ahead(), Some(0), "{name}");
    }
}

/// Newer files of ModernBERT say which blocks have windows, and their bases, otherwise.
#[test]
fn newer_and_older_files_say_the_same() {
    let (.., mut older) = published().pop().unwrap();
    let expected = read(&older);
    let object = older.as_object_mut().unwrap();
    for key in ["global_attn_every_n_layers", "global_rope_theta", "local_rope_theta"] {
        object.remove(key);
    }
    let kind = |i: usize| if i.is_multiple_of(3) { "full_attention" } else { "sliding_attention" };
    let rope = |theta: f64| json!({"rope_type": "default", "rope_theta": theta});
    object.insert("layer_types".to_owned(), (0..22).map(kind).collect());
    let bases = json!({"full_attention": rope(160e3), "sliding_attention": rope(10e3)});
    object.insert("rope_parameters".to_owned(), bases);
    assert!(read(&older) == expected);
}

/// Versions of transformers differ in which of the two keys takes effect.
#[test]
fn two_keys_of_a_window_have_to_agree() {
    let (.., config) = published().pop().unwrap();
    let of = |window: Value| {
        let mut config = config.clone();
        config["sliding_window"] = window;
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
        DecoderConfig::load(dir.path())
    };
    let expected = read(&config);
    for same in [Value::Null, json!(64)] {
        assert!(of(same).unwrap() == expected);
    }
    let text = of(json!(128)).unwrap_err().to_string();
    let said = "`sliding_window` is 128, but half of local_attention is 64: take the file from the \
                source of the weights";
    assert!(text.ends_with(said), "{text}");
}

/// What an encoder could have, and these have not.
#[test]
fn what_is_not_supported_is_named() {
    let of = |key: &str, value: Value| {
        let mut config = of_bert("roberta", 50, 20, 1, 1e-5);
        config[key] = value;
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
        DecoderConfig::load(dir.path()).unwrap_err().to_string()
    };
    for (key, value, said) in [
        ("is_decoder", json!(true), "only encoders are: use a checkpoint of one"),
        (
            "position_embedding_type",
            json!("relative_key"),
            "is the kind `relative_key`, which is not supported; only `absolute` is: use a \
             checkpoint that was trained with it",
        ),
        ("hidden_act", json!("relu"), "Use a checkpoint with one of these"),
        (
            "pad_token_id",
            json!(19),
            "positions begin after it and there are 20 (`max_position_embeddings`): take the file \
             from the source of the weights",
        ),
    ] {
        let text = of(key, value);
        assert!(text.contains(&format!("`{key}`")) && text.contains(said), "{text}");
    }
}
