//! New adapters, and exchange of adapter files with PEFT.

use crate::fixture::{Golden, logits, pack};
use hone_model::Model;
use hone_model::adapter::{self, AdapterError, LoraConfig, TargetModules};
use hone_tensor::{AdapterId, Compute, Device, DeviceError};
use serde_json::{Value, json};

fn params(model: &Model) -> Vec<(String, Vec<usize>, Vec<f32>)> {
    let param = |(_, name, value): (_, &str, &hone_tensor::Tensor)| {
        (name.to_owned(), value.shape().to_vec(), value.f32().to_vec())
    };
    model.params.iter().map(param).collect()
}

fn config(target_modules: TargetModules) -> LoraConfig {
    LoraConfig {
        rank: 3,
        alpha: 5.0,
        dropout: 0.25,
        target_modules,
        use_rslora: true,
        share_experts: false,
    }
}

fn patterns(targets: &[&str]) -> TargetModules {
    TargetModules::Patterns(targets.iter().map(|&target| target.to_owned()).collect())
}

fn logits_of(model: &Model, golden: &Golden) -> Vec<f32> {
    let batch = pack(&model.decoder.config, &golden.samples(), 0);
    logits(model, &Device::cpu(2), Compute::F32, &batch)
}

#[test]
fn a_new_adapter_changes_nothing() {
    let device = Device::cpu(2);
    let golden = Golden::load("headdim_llama3");
    let attached = |seed| {
        let mut model = golden.base(&device);
        adapter::attach(&mut model, &device, &config(TargetModules::AllLinear), seed).unwrap();
        model
    };
    let model = attached(1);
    assert_eq!(model.params.len(), 2 * 2 * 7);
    assert_eq!(logits_of(&model, &golden), logits_of(&golden.base(&device), &golden));
    assert_eq!(params(&model), params(&attached(1)));
    assert_ne!(params(&model), params(&attached(2)));
    for (name, shape, values) in params(&model) {
        let bound = if name.contains("lora_A") { 1.0 / (shape[1] as f32).sqrt() } else { 0.0 };
        let largest = values.iter().fold(0.0f32, |max, x| max.max(x.abs()));
        assert!(largest <= bound && largest >= 0.9 * bound, "{name}: {largest} of {bound}");
    }
    // Adapters on fewer layers start with the same values as among all.
    let mut fewer = golden.base(&device);
    adapter::attach(&mut fewer, &device, &config(patterns(&["up_proj"])), 1).unwrap();
    assert!(params(&fewer).iter().all(|param| params(&model).contains(param)));
}

#[test]
fn saved_and_loaded_is_the_same() {
    let device = Device::cpu(2);
    for golden in Golden::all() {
        let (original, dir) = (golden.adapted(&device), tempfile::tempdir().unwrap());
        let mut model = golden.base(&device);
        let read =
            adapter::load(&golden.dir.join("adapter"), &mut model, &device, &mut |_| ()).unwrap();
        adapter::save(dir.path(), &original, &device, AdapterId::default(), &read, "base").unwrap();
        let mut again = golden.base(&device);
        let read_again = adapter::load(dir.path(), &mut again, &device, &mut |_| ()).unwrap();
        assert_eq!(read, read_again);
        assert_eq!(params(&original), params(&again));
        assert_eq!(logits_of(&original, &golden), logits_of(&again, &golden));
    }
}

/// What a device that failed gives is not called an adapter.
#[test]
fn a_device_that_failed_saves_nothing() {
    let (device, dir) = (Device::cpu(1), tempfile::tempdir().unwrap());
    let golden = Golden::load("tied_gqa");
    let (model, config) = (golden.adapted(&device), config(TargetModules::AllLinear));
    let save = || adapter::save(dir.path(), &model, &device, AdapterId::default(), &config, "base");
    device.fail(DeviceError::out_of_host_memory(7));
    assert!(matches!(save(), Err(AdapterError::Device(_))));
    save().unwrap();
}

/// The settings in PEFT's own files.
#[test]
fn settings_of_peft_files() {
    let device = Device::cpu(1);
    for (case, rank, alpha, scale, num_modules) in [
        ("tied_gqa", 4, 8.0, 2.0, 14),
        ("yarn", 2, 3.0, (3.0 / 2f64.sqrt()) as f32, 14),
        ("dynamic", 4, 8.0, 2.0, 4),
    ] {
        let golden = Golden::load(case);
        let mut model = golden.base(&device);
        let lora =
            adapter::load(&golden.dir.join("adapter"), &mut model, &device, &mut |_| ()).unwrap();
        assert_eq!((lora.rank, lora.alpha, lora.dropout), (rank, alpha, 0.0));
        assert_eq!(lora.scale(), scale);
        let TargetModules::Patterns(modules) = lora.target_modules else { panic!("{case}") };
        assert_eq!((modules.len(), model.params.len()), (num_modules, 2 * num_modules));
    }
}

/// For PEFT, an encoder is no language model that generates.
#[test]
fn configuration_of_an_encoders_adapter() {
    let device = Device::cpu(1);
    let (golden, dir) = (Golden::load("roberta"), tempfile::tempdir().unwrap());
    let mut model = golden.base(&device);
    let config = config(patterns(&["query", "intermediate.dense"]));
    adapter::attach(&mut model, &device, &config, 1).unwrap();
    adapter::save(dir.path(), &model, &device, AdapterId::default(), &config, "org/name").unwrap();
    let text = std::fs::read(dir.path().join("adapter_config.json")).unwrap();
    let written: Value = serde_json::from_slice(&text).unwrap();
    assert!(written["task_type"].is_null());
    let block = |i: usize, name: &str| format!("roberta.encoder.layer.{i}.{name}");
    let expected =
        [0, 1].map(|i| [block(i, "attention.self.query"), block(i, "intermediate.dense")]);
    assert_eq!(written["target_modules"], json!(expected.concat()));
}

/// For PEFT, `target_modules` must match exactly the layers that have tensors.
#[test]
fn configuration_for_peft() {
    let device = Device::cpu(1);
    let golden = Golden::load("tied_gqa");
    let saved = |target_modules| -> Value {
        let (mut model, dir) = (golden.base(&device), tempfile::tempdir().unwrap());
        let config = config(target_modules);
        adapter::attach(&mut model, &device, &config, 1).unwrap();
        adapter::save(dir.path(), &model, &device, AdapterId::default(), &config, "org/name")
            .unwrap();
        let text = std::fs::read(dir.path().join("adapter_config.json")).unwrap();
        serde_json::from_slice(&text).unwrap()
    };
    let all = saved(TargetModules::AllLinear);
    let expected = [
        ("peft_type", json!("LORA")),
        ("task_type", json!("CAUSAL_LM")),
        ("base_model_name_or_path", json!("org/name")),
        ("r", json!(3)),
        ("lora_alpha", json!(5.0)),
        ("lora_dropout", json!(0.25)),
        ("use_rslora", json!(true)),
        ("bias", json!("none")),
        ("fan_in_fan_out", json!(false)),
        ("inference_mode", json!(true)),
    ];
    for (key, value) in expected {
        assert_eq!(all[key], value, "{key}");
    }
    let names = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"];
    assert_eq!(all["target_modules"], json!(names));
    let some = saved(patterns(&["*.layers.1.*.q_proj", "v_proj"]));
    let full = [
        "model.layers.0.self_attn.v_proj",
        "model.layers.1.self_attn.q_proj",
        "model.layers.1.self_attn.v_proj",
    ];
    assert_eq!(some["target_modules"], json!(full));
}
