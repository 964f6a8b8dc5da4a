//! Inverse frequencies and attention scaling of every RoPE setting, against transformers.

use crate::fixture::goldens_dir;
use hone_model::{DecoderConfig, RopeConfig, RopeScaling};
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

/// Which of `rope_scaling` and `rope_parameters` wins if both are present, as in transformers.
#[test]
fn both_objects_of_rope() {
    let read = |scaling: Value, parameters: Value| {
        let dir = tempfile::tempdir().unwrap();
        let config = json!({
            "model_type": "llama", "vocab_size": 8, "hidden_size": 64, "intermediate_size": 8,
            "num_hidden_layers": 1, "num_attention_heads": 1, "rope_theta": 500.0,
            "rope_scaling": scaling, "rope_parameters": parameters,
        });
        std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
        let rope =
            |config: DecoderConfig| (config.ropes[0].rope_theta, config.ropes[0].scaling.clone());
        DecoderConfig::load(dir.path()).map(rope).map_err(|error| error.to_string())
    };
    let linear = |factor: f64| json!({"type": "linear", "factor": factor});
    let four = RopeScaling::Linear { factor: 4.0 };
    let default = json!({"rope_type": "default", "rope_theta": 500.0});
    assert_eq!(read(linear(4.0), default.clone()), Ok((500.0, four.clone())));
    assert_eq!(read(linear(4.0), Value::Null), Ok((500.0, four.clone())));
    assert_eq!(read(json!({}), linear(4.0)), Ok((500.0, four.clone())));
    assert_eq!(read(linear(4.0), linear(4.0)), Ok((500.0, four)));
    assert_eq!(read(json!({"type": "default"}), linear(4.0)), Ok((500.0, RopeScaling::Default)));
    let differ = read(linear(4.0), linear(2.0)).unwrap_err();
    assert!(differ.contains("`rope_scaling` contradicts `rope_parameters`"), "{differ}");
    let base = json!({"rope_type": "default", "rope_theta": 7.0});
    let lost = read(linear(4.0), base).unwrap_err();
    assert!(lost.contains("`rope_parameters.rope_theta` is ignored"), "{lost}");
    // Scales of zero count as absent.
    let yarn = |more: Value| {
        let mut yarn = json!({"rope_type": "yarn", "factor": 4.0});
        yarn.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        read(yarn, Value::Null).unwrap()
    };
    assert_eq!(yarn(json!({"mscale": 1.0, "mscale_all_dim": 0})), yarn(json!({})));
}
