//! Configurations of encoders, as their makers publish them and otherwise.

use crate::published::config_of;
use hone_model::DecoderConfig;
use serde_json::{Value, json};

const MODERN_BERT: &str = "answerdotai/ModernBERT-base";

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

fn read(config: &Value) -> DecoderConfig {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    DecoderConfig::load(dir.path()).unwrap_or_else(|error| panic!("{error}"))
}

/// Newer files of ModernBERT say which blocks have windows, and their bases, otherwise.
#[test]
fn newer_and_older_files_say_the_same() {
    let mut older = config_of(MODERN_BERT);
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
    let config = config_of(MODERN_BERT);
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
        ("is_decoder", json!(true), "is true: only encoders are supported"),
        (
            "position_embedding_type",
            json!("relative_key"),
            "is `relative_key`, which is not supported; only `absolute` is: use a \
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

/// Keys that a family calls otherwise are named as its files have them, and unknown ones too.
#[test]
fn keys_of_distilbert_are_named_as_it_has_them() {
    let whole = config_of("distilbert/distilbert-base-uncased");
    for (key, value, said) in [
        ("dim", json!("wide"), "`dim` must be a whole number"),
        ("n_heads", json!(7), "`n_heads` must divide"),
        ("n_layers", Value::Null, "`n_layers` is missing"),
        ("hidden_dim", json!(-1), "`hidden_dim` must be"),
        ("activation", json!("relu"), "`activation` is `relu`"),
        ("hidden_act", json!("gelu"), "`hidden_act` is \"gelu\", but Hone does not know"),
        (
            "hidden_size",
            json!(512),
            "`dim` is 768, but `hidden_size`, which means the same, is 512",
        ),
        ("of_tomorrow", json!(1), "`of_tomorrow` is 1, but Hone does not know"),
    ] {
        let mut config = whole.clone();
        config[key] = value;
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
        let error = DecoderConfig::load(dir.path()).unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
    }
}
