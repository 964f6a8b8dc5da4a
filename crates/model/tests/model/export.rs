//! Export in Hugging Face layout: what is reloaded computes what the live model computed.

use crate::fixture::{Golden, copy_of, load, logits, max_error, pack, range};
use hone_model::{Model, Trained, export_hf, logits_error};
use hone_tensor::{Compute, DType, Device, ParamId};
use serde_json::Value;
use std::fs;
use std::path::Path;

const TYPES: [(DType, &str, f32); 3] =
    [(DType::F32, "float32", 1e-5), (DType::F16, "float16", 1e-2), (DType::Bf16, "bfloat16", 4e-2)];

fn logits_of(model: &Model, golden: &Golden) -> Vec<f32> {
    let batch = pack(&model.decoder.config, &golden.samples(), 0);
    logits(model, &Device::cpu(2), Compute::F32, &batch)
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// Adapters merged in f32; the tolerances (of the logits' range) are those of the element types.
#[test]
fn merged_logits_are_those_of_the_adapter() {
    let device = Device::cpu(2);
    for golden in Golden::all() {
        let model = golden.adapted(&device);
        let expected = logits_of(&model, &golden);
        for (dtype, name, tolerance) in TYPES {
            let out = tempfile::tempdir().unwrap();
            export_hf(&model, &device, &golden.dir, dtype, out.path()).unwrap();
            let reloaded = load(out.path(), &device, None, Trained::Nothing);
            assert_eq!(reloaded.file_dtype, dtype);
            let found = logits_of(&reloaded, &golden);
            let error = max_error(&found, &expected) / range(&expected);
            assert!(error <= tolerance, "{} {name}: {error:e}", golden.dir.display());
            check_config(&golden.dir.join("config.json"), &out.path().join("config.json"), name);
        }
    }
}

/// The same keys in the same order and spelling, but for the element type.
fn check_config(before: &Path, after: &Path, dtype: &str) {
    let (mut before, after) = (json(before), json(after));
    let key = if before.get("dtype").is_some() { "dtype" } else { "torch_dtype" };
    before[key] = dtype.into();
    assert_eq!(before.to_string(), after.to_string());
}

/// Without an adapter and in its own type a model comes back bit for bit, trained or not.
#[test]
fn unchanged_weights_come_back_bit_for_bit() {
    let device = Device::cpu(2);
    for golden in Golden::all() {
        for trained in [Trained::Nothing, Trained::All] {
            let model = load(&golden.dir, &device, None, trained);
            let out = tempfile::tempdir().unwrap();
            export_hf(&model, &device, &golden.dir, model.file_dtype, out.path()).unwrap();
            let again = load(out.path(), &device, None, Trained::All);
            let original = load(&golden.dir, &device, None, Trained::All);
            for ((_, name, a), (_, other, b)) in original.params.iter().zip(again.params.iter()) {
                assert_eq!((name, a.bytes()), (other, b.bytes()));
            }
        }
    }
}

/// A comparison with NaN is neither more nor less than a tolerance: it must not pass for agreement.
#[test]
fn logits_that_are_no_numbers_agree_with_nothing() {
    let (device, golden) = (Device::cpu(1), Golden::load("tied_gqa"));
    let model = load(&golden.dir, &device, None, Trained::All);
    let mut damaged = load(&golden.dir, &device, None, Trained::All);
    let error = |a: &Model, b: &Model| logits_error((&device, Compute::F32), a, b, &[1, 2, 3]);
    assert_eq!(error(&model, &damaged), 0.0);
    damaged.params.value_mut(ParamId(0)).f32_mut().fill(f32::NAN);
    assert_eq!(error(&model, &damaged), f64::INFINITY);
    assert_eq!(error(&damaged, &model), f64::INFINITY);
}

#[test]
fn tokenizer_files_go_along() {
    let (device, base) = (Device::cpu(1), copy_of("tied_gqa"));
    let companions =
        ["tokenizer.json", "tokenizer_config.json", "generation_config.json", "LICENSE"];
    for name in companions {
        fs::write(base.path().join(name), "{}").unwrap();
    }
    fs::write(base.path().join("training_args.bin"), "not for others").unwrap();
    let (model, out) = (Golden::load("tied_gqa").base(&device), tempfile::tempdir().unwrap());
    export_hf(&model, &device, base.path(), DType::F32, out.path()).unwrap();
    let mut found: Vec<String> = fs::read_dir(out.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    found.sort();
    let mut expected = [&companions[..], &["config.json", "model.safetensors"]].concat();
    expected.sort();
    assert_eq!(found, expected);
}

#[test]
fn what_cannot_be_written_is_named() {
    let (device, golden) = (Device::cpu(1), Golden::load("tied_gqa"));
    let (model, out) = (golden.base(&device), tempfile::tempdir().unwrap());
    let absent = out.path().join("absent");
    let error = export_hf(&model, &device, &golden.dir, DType::F32, &absent).unwrap_err();
    let path = absent.join("config.json");
    let expected = format!("{}: No such file or directory (os error 2)", path.display());
    assert_eq!(error.to_string(), expected);
}
