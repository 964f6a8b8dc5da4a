//! `hone compress`: smaller files of a real small model.

use super::{Scene, assert_fields, json, succeeds};
use crate::sandbox::ended;
use crate::sandbox::tiny_model::write_model;
use std::path::{Path, PathBuf};

/// A Llama of 260,000 parameters whose rows have 64 weights, and 172 in one matrix of each block.
pub fn stories() -> Option<PathBuf> {
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
    let says = ["nats per token, above --max-kl 0.000001", "Most is lost of `blk.", "larger type"];
    compress(&model, &tight).says(2, &says);
    assert!(!scene.path("a.gguf").exists() && !scene.path("a.gguf.work").exists());
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

/// Stories like those that the model was trained on, as a file of the scene.
pub fn write_text(scene: &Scene, chars: usize) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../../shared/data/text/tinystories_1000.json");
    let text: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let lines = text.as_array().unwrap().iter().map(|story| {
        let story = story.as_str().unwrap_or_else(|| story["text"].as_str().unwrap());
        serde_json::json!({ "text": story }).to_string() + "\n"
    });
    let mut all = String::new();
    for line in lines {
        if all.len() < chars {
            all.push_str(&line);
        }
    }
    scene.write("text.jsonl", &all);
}

/// With text, errors count by importance and less is lost at the same bytes; what was computed can
/// be saved and given again.
#[test]
fn text_makes_smaller_files_better() {
    let Some(model) = stories() else { return };
    let (scene, model) = (Scene::new(), model.to_string_lossy().into_owned());
    write_text(&scene, 60_000);
    let text = ["--calibration", "text.jsonl", "--calibration-tokens", "8192", "--effort"];
    let (default, text) = ([&text[..], &["default"]].concat(), [&text[..], &["plain"]].concat());
    let compress = |out: &str, more: &[&str]| {
        json(&mut scene.hone(&[&["compress", &model, "--out", out, "--json"], more].concat()))
    };
    let number = |found: &serde_json::Value, key: &str| found[key].as_f64().unwrap();
    let small = ["--type", "q4_0", "--fallback", "llama.cpp"];
    let saved = ["--save-imatrix", "importance.gguf"];
    let known = compress("known.gguf", &[&small[..], &text, &saved].concat());
    assert_fields(&known, &["num_tokens", "is_held_out"]);
    assert_eq!(known["is_held_out"], true);
    let again = compress("again.gguf", &[&small[..], &["--imatrix", "importance.gguf"]].concat());
    assert_eq!(again["is_held_out"], false);
    // Cards say which text was measured on.
    let card = |name: &str| std::fs::read_to_string(scene.path(name)).unwrap();
    let held_out = format!("| text | {} held-out tokens |", known["num_tokens"]);
    assert!(card("known.md").contains(&held_out), "{}", card("known.md"));
    assert!(card("again.md").contains("| text | four short texts |"), "{}", card("again.md"));
    let [first, second] = ["known.gguf", "again.gguf"].map(|at| std::fs::read(scene.path(at)));
    assert_eq!(first.unwrap(), second.unwrap());
    // Columns that count alike lose more.
    let alike = [&small[..], &text, &["--without", "importance"]].concat();
    let alike = compress("alike.gguf", &alike);
    assert_eq!(alike["bytes"], known["bytes"]);
    // So do roundings.
    let fed = compress("fed.gguf", &[&small[..], &default, &["--without", "learning"]].concat());
    let learned = compress("learned.gguf", &[&small[..], &default].concat());
    assert_eq!([&fed["bytes"], &learned["bytes"]], [&known["bytes"]; 2]);
    // What takes long was estimated.
    let estimate = &learned["estimate"];
    let stages = estimate["stages"].as_array().unwrap();
    let names: Vec<&str> = stages.iter().map(|stage| stage["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["importance", "feedback", "roundings", "comparison"]);
    assert!(stages.iter().all(|stage| number(stage, "seconds") > 0.0), "{estimate}");
    let sum: f64 = stages.iter().map(|stage| number(stage, "seconds")).sum();
    assert!((number(estimate, "seconds") - sum).abs() < 1e-6 * sum, "{estimate}");
    assert!(number(&learned, "seconds") > 0.0 && learned.get("memory_bytes").is_some());
    assert!(number(estimate, "memory_bytes") > 1e6, "{estimate}");
    assert!(known["estimate"].is_null() && known["stages"].as_array().unwrap().len() == 3);
    let kls = [&alike, &known, &fed, &learned].map(|found| number(found, "kl"));
    assert!(kls.is_sorted_by(|a, b| a > b), "{kls:?}");
    // Chosen types reach the same size with less loss.
    let size = format!("{}B", number(&known, "bytes"));
    let chosen = compress("chosen.gguf", &[&["--target-size", &size][..], &text].concat());
    assert!(number(&chosen, "bytes") <= number(&known, "bytes"));
    assert!(number(&chosen, "kl") < number(&known, "kl"), "{chosen} {known}");
    let tensors = chosen["tensors"].as_array().unwrap();
    let shares = tensors.iter().map(|tensor| tensor["kl_share"].as_f64().unwrap());
    assert!((shares.sum::<f64>() - 1.0).abs() < 1e-6);
    let bits = compress("bits.gguf", &[&["--target-bpw", "9.5"][..], &text].concat());
    assert!((9.0..=9.5).contains(&number(&bits, "bits_per_weight")), "{bits}");
    let kl = compress("kl.gguf", &[&["--max-kl", "0.05"][..], &text].concat());
    assert!(number(&kl, "kl") <= 0.05 && number(&kl, "kl") > 0.01, "{kl}");
    // Roundings that lose less allow smaller types.
    let fed = [&["--max-kl", "0.05"][..], &default, &["--without", "learning"]].concat();
    let fed = compress("kl-fed.gguf", &fed);
    assert!(number(&fed, "kl") <= 0.05 && number(&fed, "bytes") < number(&kl, "bytes"), "{fed}");
    let tell = ["generate", "kl.gguf", "--prompt", "Once upon a time", "--max-new-tokens", "8"];
    assert!(!succeeds(&mut scene.hone(&tell)).stdout.trim().is_empty());
}

#[test]
fn what_is_no_calibration_is_said() {
    let Some(model) = stories() else { return };
    let (scene, model) = (Scene::new(), model.to_string_lossy().into_owned());
    write_text(&scene, 30_000);
    scene.write("short.jsonl", "{\"text\": \"Once upon a time.\"}\n");
    scene.write("empty.jsonl", "");
    scene.write("other.gguf", "GGUF");
    scene.write("no.dat", "nothing");
    let compress = |more: &[&str]| {
        ended(&mut scene.hone(&[&["compress", &model, "--out", "a.gguf"][..], more].concat()))
    };
    let short = ["--calibration", "short.jsonl", "--type", "f16"];
    compress(&short).says(2, &["--calibration short.jsonl: has ", "fewer than a window of 512"]);
    let empty = ["--calibration", "empty.jsonl", "--type", "f16"];
    compress(&empty).says(2, &["empty.jsonl"]);
    let missing = ["--calibration", "missing.jsonl", "--type", "f16"];
    compress(&missing).says(2, &["missing.jsonl", "--calibration"]);
    compress(&["--target-bpw", "5"]).says(2, &["--calibration"]);
    compress(&["--effort", "best"]).says(2, &["--effort best", "give some with --calibration"]);
    compress(&["--effort", "plain", "--without", "learning"])
        .says(2, &["--without learning: --effort plain does not use it"]);
    let unsaved = ["--without", "importance", "--save-imatrix", "i.gguf"];
    compress(&[&["--calibration", "text.jsonl", "--type", "f16"], &unsaved[..]].concat())
        .says(2, &["--save-imatrix: with --without importance there is none", "omit one"]);
    let story = std::fs::read_to_string(scene.path("text.jsonl")).unwrap();
    let story = story.lines().max_by_key(|line| line.len()).unwrap();
    scene.write("same.jsonl", &format!("{story}\n").repeat(40));
    compress(&["--calibration", "same.jsonl", "--type", "f16"])
        .says(2, &["--calibration same.jsonl: rows repeat", "give each row once"]);
    let on_gpu = ["--device", "cuda", "--calibration", "text.jsonl", "--type", "f16"];
    compress(&on_gpu).says(2, &["--device cuda: errors are fed back", "--device cpu"]);
    compress(&["--without", "learning"]).says(2, &["--without: takes text", "--calibration"]);
    let fallback = ["--max-kl", "0.1", "--fallback", "llama.cpp", "--calibration", "text.jsonl"];
    compress(&fallback).says(2, &["--fallback llama.cpp: with --max-kl", "omit it"]);
    let both = ["--target-bpw", "5", "--calibration", "text.jsonl", "--type", "q4_0"];
    compress(&both).says(2, &["--target-bpw", "--type"]);
    let text = ["--calibration", "text.jsonl"];
    compress(&[&["--target-size", "much"][..], &text].concat())
        .says(2, &["--target-size much: is no size", "80MB"]);
    compress(&[&["--target-bpw", "3"][..], &text].concat())
        .says(2, &["--target-bpw 3:", "the least possible is", "bits per weight"]);
    compress(&[&["--target-size", "10kB"][..], &text].concat())
        .says(2, &["--target-size 10kB: 10000 bytes are fewer than", "the least possible is"]);
    compress(&["--imatrix", "no.dat", "--type", "f16"])
        .says(2, &["no.dat: is no importance matrix", "llama-imatrix"]);
    compress(&["--imatrix", "other.gguf", "--type", "f16"]).says(2, &["other.gguf"]);
    let saved = ["--save-imatrix", "text.jsonl", "--type", "f16"];
    compress(&[&saved[..], &text].concat()).says(2, &["--save-imatrix text.jsonl already exists"]);
    assert!(!scene.path("a.gguf").exists() && !scene.path("a.gguf.work").exists());
}

/// What a run has made is calibrated on what it learned from, read as its run file says.
#[test]
fn the_text_of_a_run_is_found() {
    let Some(model) = stories() else { return };
    let scene = Scene::new();
    write_text(&scene, 60_000);
    let run = scene.path("runs/first");
    std::fs::create_dir_all(run.join("model")).unwrap();
    for file in std::fs::read_dir(&model).unwrap().map(Result::unwrap) {
        std::fs::copy(file.path(), run.join("model").join(file.file_name())).unwrap();
    }
    let write_run = |objective: &str, train: &str| {
        let text = format!(
            "[model]\npath = \"base\"\n[data]\ntrain = [\"{train}\"]\n{objective}\n\
             [train]\nmax_steps = 1\n[output]\ndir = \"runs/first\"\n"
        );
        std::fs::write(run.join("run.toml"), text).unwrap();
    };
    write_run("[objective]\nkind = \"pretrain\"", "text.jsonl");
    let small = ["--type", "q4_0", "--fallback", "llama.cpp", "--effort", "plain", "--json"];
    let compress = |model: &str, out: &str, more: &[&str]| {
        let ended = succeeds(
            &mut scene.hone(&[&["compress", model, "--out", out][..], &small, more].concat()),
        );
        let found: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
        (found, ended.stderr)
    };
    // A run file alone, which may be about anything.
    assert_eq!(compress("runs/first/model", "alone.gguf", &[]).0["is_held_out"], false);
    std::fs::write(run.join("manifest.json"), "{}").unwrap();
    let (found, said) = compress("runs/first/model", "found.gguf", &[]);
    assert!(said.contains("calibrated on the training data of"), "{said}");
    assert_eq!(
        (&found["calibration"][0], &found["is_held_out"]),
        (&"text.jsonl".into(), &true.into())
    );
    let model = model.to_string_lossy().into_owned();
    let named = ["--calibration", "runs/first/run.toml"];
    assert_eq!(compress(&model, "named.gguf", &named).0["kl"], found["kl"]);
    // Without it, or where it is not text, nothing is calibrated on.
    write_run("[objective]\nkind = \"pretrain\"", "gone.jsonl");
    let (found, said) = compress("runs/first/model", "gone.gguf", &[]);
    assert!(said.contains("gone.jsonl, the training data of"), "{said}");
    assert_eq!(found["is_held_out"], false);
    write_run("[objective]\nkind = \"dpo\"", "text.jsonl");
    assert_eq!(compress("runs/first/model", "dpo.gguf", &[]).0["is_held_out"], false);
    let named = [&["compress", &model, "--out", "a.gguf"][..], &small, &named].concat();
    ended(&mut scene.hone(&named)).says(2, &["run.toml: is of a training on other rows"]);
}

/// Directories for other engines: what is read back is what was written, and the more bits the
/// closer it is.
#[test]
fn directories_for_other_engines() {
    let Some(model) = stories() else { return };
    let (scene, model) = (Scene::new(), model.to_string_lossy().into_owned());
    let mut last_kl = 0.0;
    for (kind, held, method, more) in [
        ("w8a16", "int8", "compressed-tensors", &[][..]),
        ("fp8_dynamic", "fp8_rows", "compressed-tensors", &[]),
        ("nf4", "nf4", "bitsandbytes", &[]),
        ("w4a16", "q4_0", "compressed-tensors", &["--group-size", "channel"]),
    ] {
        let compress = ["compress", &model, "--type", kind, "--out", kind, "--json"];
        let found = json(&mut scene.hone(&[&compress[..], more].concat()));
        assert_fields(&found, &["out", "bytes", "bits_per_weight", "kl", "same_top", "tensors"]);
        let kl = found["kl"].as_f64().unwrap();
        assert!(kl > last_kl && kl < 0.5, "{kind}: {kl} after {last_kl}");
        last_kl = kl;
        // Five blocks of seven matrices.
        assert_eq!(found["tensors"].as_array().unwrap().len(), 35);
        let text = |name: &str| std::fs::read_to_string(scene.path(kind).join(name)).unwrap();
        let config: serde_json::Value = serde_json::from_str(&text("config.json")).unwrap();
        assert_eq!(config["quantization_config"]["quant_method"], method);
        assert!(text("README.md").contains(&format!("35 matrices as {kind}")));
        assert!(scene.path(kind).join("tokenizer.json").is_file());
        let tell = ["generate", kind, "--prompt", "Once upon a time", "--max-new-tokens", "8"];
        assert!(!succeeds(&mut scene.hone(&tell)).stdout.trim().is_empty());
        let again = ["compress", kind, "--type", "w8a16", "--out", "again"];
        let refused = format!("quantised already (weights in {held})");
        ended(&mut scene.hone(&again)).says(2, &[&refused, "--requantise"]);
    }
    succeeds(&mut scene.hone(&["export", "w4a16", "--dtype", "f32", "--out", "floats"]));
    let floats = std::fs::read_to_string(scene.path("floats").join("config.json")).unwrap();
    assert!(!floats.contains("quantization_config"), "{floats}");
    let small = ["compress", "w8a16", "--type", "nf4", "--out", "small", "--requantise"];
    succeeds(&mut scene.hone(&small));
}

/// Scales are searched for by what text shows, and what is lost is measured on text held out.
#[test]
fn text_chooses_the_scales_of_integers() {
    let Some(model) = stories() else { return };
    let (scene, model) = (Scene::new(), model.to_string_lossy().into_owned());
    write_text(&scene, 60_000);
    let text = ["--calibration", "text.jsonl", "--calibration-tokens", "8192"];
    let known = ["compress", &model, "--type", "w4a16", "--group-size", "channel", "--json"];
    let with = json(&mut scene.hone(&[&known[..], &["--out", "with"], &text].concat()));
    json(&mut scene.hone(&[&known[..], &["--out", "without"]].concat()));
    assert_eq!(with["is_held_out"], true);
    // What a page of several files needs.
    assert_eq!(with["calibration"], serde_json::json!(["text.jsonl"]));
    assert!(with["base"]["bytes"].as_u64() > with["bytes"].as_u64(), "{}", with["base"]);
    let data = ["--data", "text.jsonl", "--max-seq-len", "256", "--json"];
    let [with, without] = ["with", "without"].map(|at| {
        let against = [&["eval", at, "--against", &model][..], &data].concat();
        json(&mut scene.hone(&against))["kl"]["mean"].as_f64().unwrap()
    });
    assert!(with < without, "{with} with text, {without} without");
}

#[test]
fn what_has_no_place_in_a_directory_is_said() {
    let Some(model) = stories() else { return };
    let (scene, model) = (Scene::new(), model.to_string_lossy().into_owned());
    let compress =
        |from: &str, more: &[&str]| ended(&mut scene.hone(&[&["compress", from], more].concat()));
    let w4 = ["--type", "w4a16", "--out", "small"];
    let w4 = |more: &[&'static str]| [&w4[..], more].concat();
    compress(&model, &w4(&[])).says(
        2,
        &[
            "--type w4a16: `model.layers.0.self_attn.q_proj` has rows of 64 weights",
            "no whole groups of 128; what all matrices take: channel",
            "--group-size",
        ],
    );
    compress(&model, &w4(&["--group-size", "48"])).says(2, &["expected 32, 64, 128 or channel"]);
    compress(&model, &["--type", "w4a17", "--out", "a.gguf"])
        .says(2, &["--type w4a17: is not known", "w4a16, w8a16, fp8_dynamic, nf4"]);
    compress(&model, &["--type", "fp8_dynamic", "--group-size", "32", "--out", "small"])
        .says(2, &["--group-size: only w4a16 and w8a16 have groups"]);
    compress(&model, &["--type", "q8_0", "--group-size", "32", "--out", "a.gguf"])
        .says(2, &["--group-size: only w4a16 and w8a16 have groups"]);
    compress(&model, &["--type", "nf4", "--out", "a.gguf"])
        .says(2, &["--out a.gguf: --type nf4 is written as a directory"]);
    compress(&model, &w4(&["--imatrix", "a.gguf"])).says(2, &["--imatrix is for GGUF files"]);
    compress(&model, &w4(&["--fallback", "llama.cpp"])).says(2, &["--fallback llama.cpp is for"]);
    compress(&model, &w4(&["--effort", "plain"])).says(2, &["--effort is for GGUF files"]);
    compress(&model, &w4(&["--calibration-tokens", "5000"]))
        .says(2, &["--calibration-tokens: takes text", "--calibration FILE"]);
    let channel = ["--group-size", "channel"];
    compress(&model, &w4(&[&channel[..], &["--max-kl", "1e-6"]].concat()))
        .says(2, &["above --max-kl 0.000001", "Most is lost of `model.layers.", "--group-size 32"]);
    assert!(["small", ".small.partial", "small.work"].iter().all(|at| !scene.path(at).exists()));
    scene.write("taken", "");
    compress(&model, &["--type", "nf4", "--out", "taken"]).says(2, &["--out taken already exists"]);
    for (case, kind, says) in [
        ("bert", "nf4", "is an encoder, and what is lost is measured on predictions"),
        ("qwen3_moe", "nf4", "bitsandbytes does not quantise experts"),
        ("gpt_oss", "w8a16", "is written in one tensor with those of other experts"),
    ] {
        write_model(case, &scene.path(case));
        compress(case, &["--type", kind, "--out", "small"]).says(2, &[says]);
    }
}

/// Experts with tensors of their own, routers in floats.
#[test]
fn experts_are_quantised_each() {
    let scene = Scene::new();
    write_model("qwen3_moe", &scene.path("mixture"));
    let compress = ["compress", "mixture", "--type", "w8a16", "--out", "small", "--json"];
    let found = json(&mut scene.hone(&compress));
    let names: Vec<&str> = found["tensors"]
        .as_array()
        .unwrap()
        .iter()
        .map(|of| of["name"].as_str().unwrap())
        .collect();
    assert!(names.iter().any(|name| name.ends_with("mlp.experts.1.down_proj")), "{names:?}");
    let config = std::fs::read_to_string(scene.path("small").join("config.json")).unwrap();
    let config: serde_json::Value = serde_json::from_str(&config).unwrap();
    let ignored = config["quantization_config"]["ignore"].to_string();
    assert!(ignored.contains("mlp.gate\"") && ignored.contains("lm_head"), "{ignored}");
}
