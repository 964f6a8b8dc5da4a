//! Export in Hugging Face layout: the reloaded model computes what the model in memory does.

use crate::fixture::{Golden, copy_of, export, load, logits, max_error, pack, range, set_key};
use hone_model::{
    Comparison, ExportError, ExportOptions, Fidelity, MAX_LOST, Model, Trained, check_written,
    export_hf,
};
use hone_tensor::{Compute, DType, Device};
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

/// Merged adapters; tolerances (relative to the range of the logits) depend on the element type.
#[test]
fn merged_logits_are_those_of_the_adapter() {
    let device = Device::cpu(2);
    for golden in Golden::all() {
        let model = golden.adapted(&device);
        let expected = logits_of(&model, &golden);
        for (dtype, name, tolerance) in TYPES {
            let out = tempfile::tempdir().unwrap();
            export(&model, &device, &golden.dir, dtype, out.path()).unwrap();
            let reloaded = load(out.path(), &device, None, Trained::Nothing);
            assert_eq!(reloaded.file_dtype, dtype);
            let found = logits_of(&reloaded, &golden);
            let error = max_error(&found, &expected) / range(&expected);
            assert!(error <= tolerance, "{} {name}: {error:e}", golden.dir.display());
            check_config(&golden.dir.join("config.json"), &out.path().join("config.json"), name);
        }
    }
}

/// Checks that only the element type differs; keys keep their order and spelling.
fn check_config(before: &Path, after: &Path, dtype: &str) {
    let (mut before, after) = (json(before), json(after));
    for key in ["dtype", "torch_dtype"] {
        if before.get(key).is_some() {
            before[key] = dtype.into();
        }
    }
    assert_eq!(before.to_string(), after.to_string());
}

/// Without an adapter and in its own type, a model round-trips bit for bit, trained or not.
#[test]
fn unchanged_weights_come_back_bit_for_bit() {
    let device = Device::cpu(2);
    for golden in Golden::all() {
        for trained in [Trained::Nothing, Trained::All] {
            let model = load(&golden.dir, &device, None, trained);
            let out = tempfile::tempdir().unwrap();
            export(&model, &device, &golden.dir, model.file_dtype, out.path()).unwrap();
            let again = load(out.path(), &device, None, Trained::All);
            let original = load(&golden.dir, &device, None, Trained::All);
            for ((_, name, a), (_, other, b)) in original.params.iter().zip(again.params.iter()) {
                assert_eq!((name, a.bytes()), (other, b.bytes()));
            }
        }
    }
}

/// A weight that is not finite, in memory or in the requested type, is named in the error.
#[test]
fn the_first_tensor_that_is_not_finite_is_named() {
    let (device, golden) = (Device::cpu(1), Golden::load("tied_gqa"));
    let norm = "model.layers.1.input_layernorm.weight";
    let check = |value: f32, dtype: DType| {
        let mut model = load(&golden.dir, &device, None, Trained::All);
        let id = model.params.iter().find(|(_, name, _)| *name == norm).unwrap().0;
        model.params.value_mut(id).f32_mut()[3] = value;
        let out = tempfile::tempdir().unwrap();
        export(&model, &device, &golden.dir, dtype, out.path()).unwrap();
        let written = &load(out.path(), &device, None, Trained::Nothing);
        let models = Comparison { device: &device, base: None, intended: &model, written };
        check_written(models, dtype, &[vec![1, 2, 3]]).map_err(|error| error.to_string())
    };
    assert!(check(1.0, DType::F16).is_ok());
    for value in [f32::NAN, f32::INFINITY] {
        let error = check(value, DType::F32).unwrap_err();
        assert!(
            error.contains(&format!("`{norm}` contains a value that is not finite")),
            "{error}"
        );
    }
    let error = check(1e6, DType::F16).unwrap_err();
    assert!(
        error.contains(&format!("`{norm}` contains a value that f16 cannot represent")),
        "{error}"
    );
}

/// Loss is measured relative to what the adapter changed: in bf16 a small change is gone although
/// no logit moves far, in f32 it is kept.
#[test]
fn an_adapter_that_rounding_takes_is_refused() {
    let (device, golden) = (Device::cpu(2), Golden::load("dynamic"));
    let rows: Vec<Vec<u32>> = golden.samples().into_iter().map(|sample| sample.ids).collect();
    let measure = |factor: f32, dtype: DType| -> Result<Fidelity, ExportError> {
        let mut model = golden.adapted(&device);
        for value in model.params.values_mut() {
            value.f32_mut().iter_mut().for_each(|x| *x *= factor.sqrt());
        }
        let out = tempfile::tempdir().unwrap();
        export(&model, &device, &golden.dir, dtype, out.path()).unwrap();
        let written = &load(out.path(), &device, None, Trained::Nothing);
        let base = Some(&golden.base(&device));
        check_written(Comparison { device: &device, base, intended: &model, written }, dtype, &rows)
    };
    assert!(measure(1.0, DType::Bf16).unwrap().lost.unwrap() < MAX_LOST);
    let error = measure(2e-3, DType::Bf16).unwrap_err();
    let ExportError::EffectLost { fidelity, has_adapter: true, .. } = &error else {
        panic!("{error}");
    };
    // The limit on logits alone would have accepted it.
    assert!(fidelity.max_error < 5e-2 && fidelity.lost.unwrap() > MAX_LOST, "{fidelity:?}");
    assert!(error.to_string().contains("(--dtype f32), or do not merge"), "{error}");
    let kept = measure(2e-3, DType::F32).unwrap();
    assert!(kept.lost.unwrap() < 0.01 && kept.top1_agreement == 1.0 && kept.kl < 1e-9, "{kept:?}");
    // An adapter that changes nothing has nothing to lose.
    assert_eq!(measure(0.0, DType::Bf16).unwrap().lost, None);
}

/// The limit also applies to full fine-tuning.
#[test]
fn training_that_rounding_takes_is_refused() {
    let (device, golden) = (Device::cpu(2), Golden::load("dynamic"));
    let mut model = load(&golden.dir, &device, None, Trained::All);
    for value in model.params.values_mut() {
        // A third of half a unit in the last place of bf16.
        value.f32_mut().iter_mut().for_each(|x| *x *= 1.0 + 1.0 / 1024.0);
    }
    let rows: Vec<Vec<u32>> = golden.samples().into_iter().map(|sample| sample.ids).collect();
    let out = tempfile::tempdir().unwrap();
    export(&model, &device, &golden.dir, DType::Bf16, out.path()).unwrap();
    let written = &load(out.path(), &device, None, Trained::Nothing);
    let base = Some(&golden.base(&device));
    let models = Comparison { device: &device, base, intended: &model, written };
    let error = check_written(models, DType::Bf16, &rows).unwrap_err();
    assert!(matches!(error, ExportError::EffectLost { has_adapter: false, .. }), "{error}");
    assert!(error.to_string().ends_with("(--dtype f32)"), "{error}");
}

/// Both keys of the type are set; the end-of-turn token is added to `eos_token_id` once.
#[test]
fn configurations_fit_what_was_trained() {
    let (device, base) = (Device::cpu(1), copy_of("tied_gqa"));
    set_key(&base.path().join("config.json"), "dtype", "float32".into());
    let model = load(base.path(), &device, None, Trained::Nothing);
    for (given, expected) in [(None, None), (Some("{\"top_k\": 3}"), Some(3))] {
        let generation = base.path().join("generation_config.json");
        if let Some(given) = given {
            fs::write(&generation, given).unwrap();
        }
        let out = tempfile::tempdir().unwrap();
        let options = |end_of_turn| ExportOptions {
            base: base.path(),
            dtype: DType::Bf16,
            end_of_turn: Some(end_of_turn),
            quantised: None,
        };
        export_hf(&model, &device, options(7), out.path()).unwrap();
        let config = json(&out.path().join("config.json"));
        assert_eq!(
            (&config["dtype"], &config["torch_dtype"]),
            (&"bfloat16".into(), &"bfloat16".into())
        );
        let written = json(&out.path().join("generation_config.json"));
        assert_eq!(written["eos_token_id"], serde_json::json!([2, 7]));
        assert_eq!(written["top_k"].as_u64(), expected);
        // A token that already ends generations is not added again.
        let out = tempfile::tempdir().unwrap();
        export_hf(&model, &device, options(2), out.path()).unwrap();
        let written = out.path().join("generation_config.json");
        assert_eq!(fs::read_to_string(written).ok().as_deref(), given);
    }
}

/// Each with its own bytes, lines that end in a carriage return, and no end of the last.
#[test]
fn files_besides_the_weights_go_along_byte_for_byte() {
    let (device, base) = (Device::cpu(1), copy_of("tied_gqa"));
    let companions = [
        "LICENSE",
        "LICENSE.txt",
        "NOTICE",
        "USE_POLICY.md",
        "additional_chat_templates/tool_use.jinja",
        "chat_template.jinja",
        "generation_config.json",
        "merges.txt",
        "modules.json",
        "sentence_bert_config.json",
        "tekken.json",
        "tokenizer.json",
        "tokenizer.model",
        "tokenizer_config.json",
        "vocab.txt",
        "1_Pooling/config.json",
    ];
    for name in ["additional_chat_templates", "1_Pooling", "2_Other"] {
        fs::create_dir(base.path().join(name)).unwrap();
    }
    let modules = "[{\"type\": \"a.Transformer\", \"path\": \"\"},\r\n {\"type\": \"Pooling\", \
                   \"path\": \"1_Pooling\"}]";
    let content = |name: &str| match name {
        "modules.json" => modules.as_bytes().to_vec(),
        name if name.ends_with(".json") => format!("{{\r\n  \"of\": \"{name}\"}}").into_bytes(),
        name => [name.as_bytes(), b"\r\n\xff\0 \r\nend".as_slice()].concat(),
    };
    for name in companions {
        fs::write(base.path().join(name), content(name)).unwrap();
    }
    fs::write(base.path().join("training_args.bin"), "not for others").unwrap();
    let (model, out) = (Golden::load("tied_gqa").base(&device), tempfile::tempdir().unwrap());
    export(&model, &device, base.path(), DType::F32, out.path()).unwrap();
    for name in companions {
        assert_eq!(fs::read(out.path().join(name)).unwrap(), content(name), "{name}");
    }
    let mut found: Vec<String> = fs::read_dir(out.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    found.sort();
    let mut expected: Vec<&str> = [&companions[..], &["config.json", "model.safetensors"]]
        .concat()
        .into_iter()
        .map(|name| name.split('/').next().unwrap())
        .collect();
    expected.sort();
    assert_eq!(found, expected);
}

#[test]
fn what_cannot_be_written_is_named() {
    let (device, golden) = (Device::cpu(1), Golden::load("tied_gqa"));
    let (model, out) = (golden.base(&device), tempfile::tempdir().unwrap());
    let absent = out.path().join("absent");
    let error = export(&model, &device, &golden.dir, DType::F32, &absent).unwrap_err();
    let path = absent.join("config.json");
    let expected = format!("{}: No such file or directory (os error 2)", path.display());
    assert_eq!(error.to_string(), expected);
}
