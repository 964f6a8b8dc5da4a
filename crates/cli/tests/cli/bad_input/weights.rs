//! Files of weights: incomplete, foreign, damaged, pickled.

use super::{Case, check, train};
use crate::sandbox::Scene;
use serde_json::{Map, Value, json};

const FILE: &str = "model/model.safetensors";
const MISSING: &str = "model.layers.1.mlp.up_proj.weight";
const OTHER: &str = "model.layers.1.mlp.gate_proj.weight";

/// Changes header and data of the model's weights.
fn rewrite(scene: &Scene, change: fn(&mut Map<String, Value>, &mut Vec<u8>)) {
    let bytes = std::fs::read(scene.path(FILE)).unwrap();
    let (length, rest) = bytes.split_first_chunk::<8>().unwrap();
    let (header, data) = rest.split_at(u64::from_le_bytes(*length) as usize);
    let mut header = serde_json::from_slice(header).unwrap();
    let mut data = data.to_vec();
    change(&mut header, &mut data);
    let header = serde_json::to_vec(&header).unwrap();
    let bytes = [&(header.len() as u64).to_le_bytes()[..], &header, &data].concat();
    std::fs::write(scene.path(FILE), bytes).unwrap();
}

fn write_weights(scene: &Scene, bytes: &[u8]) {
    std::fs::write(scene.path(FILE), bytes).unwrap();
}

#[test]
fn tensors() {
    check(&[
        train(
            "a tensor is missing",
            |s| {
                rewrite(s, |header, _| {
                    // Its bytes go to a name that is ignored, so that the file has no gap.
                    let entry = header.remove(MISSING).unwrap();
                    header.insert("model.rotary_emb.inv_freq".to_owned(), entry);
                });
            },
            &["model/model.safetensors: tensor `model.layers.1.mlp.up_proj.weight` is missing"],
        ),
        train(
            "a head that is neither stored nor tied",
            |s| {
                let config = std::fs::read_to_string(s.path("model/config.json")).unwrap();
                let mut config: Value = serde_json::from_str(&config).unwrap();
                config["tie_word_embeddings"] = false.into();
                s.write("model/config.json", &config.to_string());
            },
            &["tensor `lm_head.weight` is missing", "set tie_word_embeddings to true"],
        ),
        train(
            "a tensor too many",
            |s| {
                rewrite(s, |header, data| {
                    let (from, to) = (data.len(), data.len() + 8);
                    data.extend([0; 8]);
                    let entry = json!({"dtype": "F32", "shape": [2], "data_offsets": [from, to]});
                    header.insert("model.extra.weight".to_owned(), entry);
                });
            },
            &["tensor `model.extra.weight` is not part of the model"],
        ),
        train(
            "a wrong shape",
            |s| {
                rewrite(s, |header, _| {
                    header[MISSING]["shape"].as_array_mut().unwrap().reverse();
                });
            },
            &[MISSING, "has shape [24, 11], but the configuration requires [11, 24]"],
        ),
        train(
            "a wrong element type",
            |s| rewrite(s, |header, _| header[MISSING]["dtype"] = json!("I32")),
            &[MISSING, "holds I32; f64, f32, f16 and bf16 are read"],
        ),
    ]);
}

#[test]
fn damaged_files() {
    check(&[
        train(
            "truncated",
            |s| rewrite(s, |_, data| data.truncate(data.len() - 100)),
            &["model/model.safetensors: not a whole safetensors file", "fetch it again"],
        ),
        train(
            "overlapping tensors",
            |s| {
                rewrite(s, |header, _| {
                    header[MISSING]["data_offsets"] = header[OTHER]["data_offsets"].clone();
                });
            },
            &["model/model.safetensors: not a whole safetensors file", "offset of tensor `"],
        ),
        train("empty", |s| write_weights(s, b""), &["it has 0 bytes, at least 8 are needed"]),
        train(
            "a header longer than the file",
            |s| write_weights(s, &[255; 64]),
            &["model/model.safetensors: not a whole safetensors file", "its header claims"],
        ),
        train(
            "no weights",
            |s| std::fs::remove_file(s.path(FILE)).unwrap(),
            &["model: neither model.safetensors nor model.safetensors.index.json"],
        ),
    ]);
}

#[test]
fn pickled_files() {
    const PICKLE: &[u8] = b"\x80\x02}q\x00(X\x01\x00\x00\x00aK\x01u.";
    const NEVER: &[&str] = &["pickle", "Hone never", "save_pretrained"];
    let beside =
        |name: &'static str, spoil| Case { name, spoil, arguments: super::TRAIN, says: NEVER };
    check(&[
        train("a renamed pickle", |s| write_weights(s, PICKLE), NEVER),
        train("a renamed archive of pickles", |s| write_weights(s, b"PK\x03\x04 and so on"), NEVER),
        beside("pytorch_model.bin", |s| {
            std::fs::remove_file(s.path(FILE)).unwrap();
            std::fs::write(s.path("model/pytorch_model.bin"), PICKLE).unwrap();
        }),
    ]);
}
