//! Adapters in the layout of PEFT: `adapter_config.json` and `adapter_model.safetensors`.

use super::lora::{Matrix, add};
use super::{AdapterError, LoraConfig, TargetModules};
use crate::load::Model;
use hone_tensor::safetensors::{SafeTensorsFile, held_as, write};
use hone_tensor::{Category, DType, Device};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::Path;

const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";

/// What `adapter_config.json` says, as far as it concerns us.
#[derive(Clone, Debug, PartialEq)]
pub struct PeftConfig {
    /// The adapters. Targets are the modules found in the file of tensors.
    pub lora: LoraConfig,
}

/// Writes the adapters of `model` into `dir`, which must exist.
///
/// # Errors
/// When a file cannot be written.
pub fn save(
    dir: &Path,
    model: &Model,
    config: &LoraConfig,
    base_model: &str,
) -> Result<(), AdapterError> {
    let adapted = model.decoder.projections().filter(|(_, p)| p.lora.is_some());
    let modules: Vec<String> = adapted.map(|(name, _)| name).collect();
    let text = serde_json::to_string_pretty(&config_json(config, &modules, base_model))
        .expect("a JSON value can be written");
    let path = dir.join(CONFIG);
    std::fs::write(&path, text).map_err(|source| AdapterError::Io { path, source })?;
    let tensors = model.params.iter().filter(|(_, name, _)| name.contains(".lora_"));
    write(&dir.join(WEIGHTS), tensors.map(|(_, name, value)| (name.to_owned(), value.into())))?;
    Ok(())
}

/// The configuration as PEFT writes it. Targets are short names where these mean the same layers.
fn config_json(config: &LoraConfig, modules: &[String], base_model: &str) -> Value {
    let target_modules: BTreeSet<&str> = match config.target_modules {
        TargetModules::AllLinear => {
            modules.iter().map(|name| name.rsplit('.').next().unwrap_or(name)).collect()
        }
        TargetModules::Patterns(_) => modules.iter().map(String::as_str).collect(),
    };
    json!({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "use_rslora": config.use_rslora,
        "target_modules": target_modules,
        "bias": "none",
        "fan_in_fan_out": false,
        "inference_mode": true,
        "init_lora_weights": true,
        "modules_to_save": null,
        "rank_pattern": {},
        "alpha_pattern": {},
    })
}

/// Attaches the adapter in `dir` to `model`.
///
/// # Errors
/// If it is not a LoRA adapter of a kind that is read, or was made for another model.
pub fn load(dir: &Path, model: &mut Model, device: &Device) -> Result<PeftConfig, AdapterError> {
    let mut lora = read_config(&dir.join(CONFIG))?;
    let path = dir.join(WEIGHTS);
    let file = SafeTensorsFile::open(&path)?;
    let names = file.names();
    let all = model.decoder.projections().map(|(name, _)| name);
    let targets: Vec<String> =
        all.filter(|module| names.contains(&Matrix::A.key(module))).collect();
    let mismatch = |problem: String| AdapterError::Mismatch { path: path.clone(), problem };
    let expected: BTreeSet<String> =
        targets.iter().flat_map(|m| [Matrix::A.key(m), Matrix::B.key(m)]).collect();
    if let Some(stray) = names.iter().find(|name| !expected.contains(*name)) {
        return Err(mismatch(format!("tensor `{stray}` belongs to no linear layer of the model")));
    }
    if targets.is_empty() {
        return Err(mismatch("it holds no adapter".to_owned()));
    }
    let mut next = 0;
    add(model, &targets, &lora, |_, which, shape| {
        let key = which.key(&targets[next]);
        next += usize::from(which == Matrix::B);
        let tensor =
            file.tensor(&key).ok_or_else(|| mismatch(format!("tensor `{key}` is missing")))?;
        if tensor.shape() != shape {
            let found = tensor.shape();
            let problem = format!("tensor `{key}` has shape {found:?}; the model needs {shape:?}");
            return Err(mismatch(problem));
        }
        Ok(held_as(device, Category::Parameters, &tensor, DType::F32))
    })?;
    lora.target_modules = TargetModules::Patterns(targets);
    Ok(PeftConfig { lora })
}

fn read_config(path: &Path) -> Result<LoraConfig, AdapterError> {
    let config = |problem: String| AdapterError::Config { path: path.to_owned(), problem };
    let text = std::fs::read_to_string(path)
        .map_err(|source| AdapterError::Io { path: path.to_owned(), source })?;
    let json: Value =
        serde_json::from_str(&text).map_err(|e| config(format!("not valid JSON: {e}")))?;
    let kind = json["peft_type"].as_str().unwrap_or("missing");
    if kind != "LORA" {
        return Err(config(format!("`peft_type` is {kind}; LORA is what is read")));
    }
    for key in UNREAD {
        if !is_neutral(&json[key]) {
            let value = &json[key];
            return Err(config(format!("`{key}` is {value}, which is not supported yet")));
        }
    }
    let rank = json["r"].as_u64().filter(|&r| (1..1 << 20).contains(&r));
    let alpha = json["lora_alpha"].as_f64().filter(|a| a.is_finite() && *a > 0.0);
    let (Some(rank), Some(alpha)) = (rank, alpha) else {
        return Err(config("`r` and `lora_alpha` must be positive numbers".to_owned()));
    };
    Ok(LoraConfig {
        rank: rank as usize,
        alpha,
        dropout: json["lora_dropout"].as_f64().unwrap_or(0.0).clamp(0.0, 0.99) as f32,
        target_modules: TargetModules::AllLinear,
        use_rslora: json["use_rslora"].as_bool().unwrap_or(false),
    })
}

/// Settings that change what an adapter computes, in ways we do not.
const UNREAD: [&str; 10] = [
    "use_dora",
    "fan_in_fan_out",
    "modules_to_save",
    "rank_pattern",
    "alpha_pattern",
    "layer_replication",
    "megatron_config",
    "lora_bias",
    "use_qalora",
    "trainable_token_indices",
];

fn is_neutral(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    }
}
