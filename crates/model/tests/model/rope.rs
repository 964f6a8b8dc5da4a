//! Inverse frequencies and attention scaling of every RoPE setting, against transformers.

use crate::fixture::goldens_dir;
use hone_model::{DecoderConfig, RopeConfig};
use serde_json::{Value, json};

/// Relative.
const TOLERANCE: f64 = 1e-6;

#[test]
fn frequencies_and_scaling_are_those_of_transformers() {
    let text = std::fs::read_to_string(goldens_dir().join("rope.json")).unwrap();
    let settings: Vec<Value> = serde_json::from_str(&text).unwrap();
    assert_eq!(settings.len(), 12);
    for setting in settings {
        let rope = read(&setting);
        let found = rope.inverse_frequencies(setting["seq_len"].as_u64().unwrap_or(0) as usize);
        let expected = setting["inv_freq"].as_array().unwrap();
        assert_eq!(found.len(), expected.len());
        for (i, (&found, expected)) in found.iter().zip(expected).enumerate() {
            check(found, expected, &format!("{} frequency {i}", setting["name"]));
        }
        // At position 0 the cosine is 1, times the scaling.
        let scaling = rope.angles(&[0], &[0, 1]).cos[0];
        check(scaling, &setting["attention_scaling"], &format!("{} scaling", setting["name"]));
    }
}

fn check(found: f32, expected: &Value, what: &str) {
    let (found, expected) = (f64::from(found), expected.as_f64().unwrap());
    assert!((found / expected - 1.0).abs() <= TOLERANCE, "{what}: {found}, expected {expected}");
}

fn read(setting: &Value) -> RopeConfig {
    let dir = tempfile::tempdir().unwrap();
    let config = json!({
        "model_type": "llama", "vocab_size": 8, "hidden_size": 64, "intermediate_size": 8,
        "num_hidden_layers": 1, "num_attention_heads": 1, "head_dim": setting["head_dim"],
        "max_position_embeddings": setting["max_position_embeddings"],
        "rope_parameters": setting["rope_parameters"],
    });
    std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    DecoderConfig::load(dir.path()).unwrap().ropes.remove(0)
}
