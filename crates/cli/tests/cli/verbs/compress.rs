//! `hone compress`: smaller files of a real small model.

use super::{Scene, assert_fields, json, succeeds};
use crate::sandbox::ended;
use std::path::{Path, PathBuf};

/// A Llama of 260,000 parameters whose rows have 64 weights, and 172 in one matrix of each block.
fn stories() -> Option<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/models/stories260k");
    if !dir.is_dir() {
        hone_tensor::testing::skip("../shared is absent");
        return None;
    }
    Some(dir)
}

/// The fewer bits, the smaller the file and the further from the model; each is read again.
#[test]
fn smaller_files_are_further_from_the_model() {
    let Some(model) = stories() else { return };
    let (scene, model) = (Scene::new(), model.to_string_lossy().into_owned());
    let (mut last_bytes, mut last_kl) = (f64::INFINITY, -1.0);
    for (mix, most) in [("f32", 1e-9), ("f16", 1e-5), ("q8_0", 1e-3), ("q5_0", 0.1), ("q4_0", 0.5)]
    {
        let out = format!("{mix}.gguf");
        let fallback = ["--fallback", "llama.cpp", "--json"];
        let compress = ["compress", &model, "--type", mix, "--out", &out];
        let found = json(&mut scene.hone(&[&compress[..], &fallback].concat()));
        assert_fields(&found, &["out", "bytes", "bits_per_weight", "kl", "same_top", "tensors"]);
        let (bytes, kl) = (found["bytes"].as_f64().unwrap(), found["kl"].as_f64().unwrap());
        assert_eq!(bytes, std::fs::metadata(scene.path(&out)).unwrap().len() as f64);
        assert!(bytes < last_bytes && kl > last_kl && kl < most, "{mix}: {bytes} bytes, {kl}");
        (last_bytes, last_kl) = (bytes, kl);
        let tensors = found["tensors"].as_array().unwrap();
        let kind = |name: &str| {
            let tensor = tensors.iter().find(|tensor| tensor["name"] == name);
            tensor.unwrap()["type"].as_str().unwrap().to_owned()
        };
        assert_eq!(kind("blk.0.attn_norm.weight"), "f32");
        assert_eq!(kind("blk.1.attn_k.weight"), mix);
        // Its rows are no whole blocks.
        let is_float = mix.starts_with('f');
        assert_eq!(kind("blk.1.ffn_down.weight"), if is_float { mix } else { "f16" });
        let tell = ["generate", &out, "--prompt", "Once upon a time", "--max-new-tokens", "8"];
        assert!(!succeeds(&mut scene.hone(&tell)).stdout.trim().is_empty());
    }
}

#[test]
fn what_is_not_compressed_is_said() {
    let Some(model) = stories() else { return };
    let (scene, model) = (Scene::new(), model.to_string_lossy().into_owned());
    let compress = |from: &str, more: &[&str]| {
        ended(&mut scene.hone(&[&["compress", from, "--out", "a.gguf"][..], more].concat()))
    };
    compress(&model, &["--type", "q8_0"]).says(
        2,
        &[
            "q8_0: 5 of 36 matrices have rows that are not whole blocks of their type",
            "blk.0.ffn_down.weight with rows of 172 in q8_0",
            "--fallback llama.cpp",
            "f32, bf16, f16",
        ],
    );
    compress(&model, &["--type", "q9"]).says(2, &["--type q9: is not known; known: f32, bf16"]);
    compress(&model, &["--max-kl", "-1"]).says(2, &["--max-kl -1: must be a number above 0"]);
    let tight = ["--type", "q4_0", "--fallback", "llama.cpp", "--max-kl", "1e-6"];
    compress(&model, &tight).says(2, &["nats per token, above --max-kl 0.000001", "larger type"]);
    assert!(!scene.path("a.gguf").exists() && !scene.path(".partial.a.gguf").exists());
    let small = ["--type", "q4_0", "--fallback", "llama.cpp"];
    assert_eq!(compress(&model, &small).status, Some(0));
    compress(&model, &small).says(2, &["--out a.gguf already exists"]);
    let again = ["compress", "a.gguf", "--type", "f16", "--out", "b.gguf"];
    ended(&mut scene.hone(&again))
        .says(2, &["quantised already (weights in q4_0)", "--requantise"]);
    succeeds(&mut scene.hone(&[&again[..], &["--requantise"]].concat()));
    let folder = ["compress", &model, "--out", "small"];
    ended(&mut scene.hone(&folder)).says(2, &["--out small: end the name of a GGUF file in .gguf"]);
}
