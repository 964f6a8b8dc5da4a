//! Adapters in the layout of PEFT: `adapter_config.json` and `adapter_model.safetensors`.

use super::lora::{Matrix, add};
use super::{AdapterError, LoraConfig, TargetModules};
use crate::load::{Model, find_pickled};
use crate::raw_config::{ConfigError, RawConfig};
use hone_tensor::safetensors::{SafeTensorsFile, held_as, write};
use hone_tensor::{Category, DType, Device, Tensor};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";

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

/// The files of the adapter in `dir`.
pub fn files(dir: &Path) -> [PathBuf; 2] {
    [CONFIG, WEIGHTS].map(|name| dir.join(name))
}

/// Attaches the adapter in `dir` to `model`. The targets of the settings returned are the modules
/// found in the file of tensors.
///
/// # Errors
/// If it is not a LoRA adapter of a kind that is read, or was made for another model.
pub fn load(dir: &Path, model: &mut Model, device: &Device) -> Result<LoraConfig, AdapterError> {
    for file in [CONFIG, WEIGHTS] {
        if !dir.join(file).is_file() {
            let inner = dir.join("adapter");
            if inner.join(file).is_file() {
                return Err(AdapterError::Inside { dir: dir.to_owned(), inner });
            }
            let (dir, pickled) = (dir.to_owned(), find_pickled(dir));
            return Err(AdapterError::NoAdapter { dir, file, pickled });
        }
    }
    let mut lora = read_config(&RawConfig::read(&dir.join(CONFIG))?)?;
    let file = SafeTensorsFile::open(&dir.join(WEIGHTS))?;
    let targets = adapted_modules(&file, model)?;
    let mut next = 0;
    add(model, &targets, &lora, |_, which, shape| {
        let key = which.key(&targets[next]);
        next += usize::from(which == Matrix::B);
        let tensor = matrix(&file, &key, which, shape)?;
        Ok(held_as(device, Category::Parameters, &tensor, DType::F32))
    })?;
    lora.target_modules = TargetModules::Patterns(targets);
    Ok(lora)
}

/// The modules of the model that the file has tensors for. There must be no other tensors.
fn adapted_modules(file: &SafeTensorsFile, model: &Model) -> Result<Vec<String>, AdapterError> {
    let mut stray: BTreeSet<String> = file.names().into_iter().collect();
    let modules = model.decoder.projections().map(|(name, _)| name);
    let found: Vec<String> = modules
        .filter(|module| {
            stray.remove(&Matrix::A.key(module)) | stray.remove(&Matrix::B.key(module))
        })
        .collect();
    match stray.first() {
        Some(stray) => Err(mismatch(
            file,
            format!(
                "tensor `{stray}` is not part of a LoRA adapter on a linear layer of this model. \
                 The adapter was made for another model"
            ),
        )),
        None if found.is_empty() => Err(mismatch(file, "it holds no adapter".to_owned())),
        None => Ok(found),
    }
}

/// One matrix of an adapter, which must have `shape`.
fn matrix(
    file: &SafeTensorsFile,
    key: &str,
    which: Matrix,
    shape: &[usize],
) -> Result<Tensor, AdapterError> {
    let Some(tensor) = file.tensor(key) else {
        let problem = format!(
            "tensor `{key}` is missing, and its counterpart is there: the file is incomplete, \
             save the adapter again"
        );
        return Err(mismatch(file, problem));
    };
    let found = tensor.shape();
    if found == shape {
        return Ok(tensor);
    }
    let rank_at = usize::from(which == Matrix::B);
    let other_rank = found.len() == 2 && found[1 - rank_at] == shape[1 - rank_at];
    let cause = if other_rank {
        format!("`r` in {CONFIG} is {}: the two files belong to different adapters", shape[rank_at])
    } else {
        "The adapter was made for another model".to_owned()
    };
    let problem = format!("tensor `{key}` has shape {found:?} where {shape:?} is needed. {cause}");
    Err(mismatch(file, problem))
}

fn mismatch(file: &SafeTensorsFile, problem: String) -> AdapterError {
    AdapterError::Mismatch { path: file.path().to_owned(), problem }
}

fn read_config(raw: &RawConfig) -> Result<LoraConfig, ConfigError> {
    let kind = raw.text("peft_type")?.unwrap_or("missing");
    if kind != "LORA" {
        return Err(raw.error("peft_type", format!("is {kind}; only LORA adapters are read")));
    }
    refuse_unread(raw)?;
    let dropout = match raw.get("lora_dropout") {
        None => 0.0,
        Some(value) => value
            .as_f64()
            .filter(|p| (0.0..1.0).contains(p))
            .ok_or_else(|| raw.unexpected("lora_dropout", "a number from 0 to below 1", value))?,
    };
    Ok(LoraConfig {
        rank: raw.size("r")?,
        alpha: raw.number("lora_alpha")?,
        dropout: dropout as f32,
        target_modules: TargetModules::AllLinear,
        use_rslora: raw.flag("use_rslora", false)?,
    })
}

/// Settings that change what an adapter computes, in ways we do not. Where it sits is told by the
/// names of its tensors.
const UNREAD: [&str; 12] = [
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
    "target_parameters",
    "alora_invocation_tokens",
];

/// Ways to initialise an adapter that leave the base weights as they are.
const PLAIN_INITS: [&str; 3] = ["gaussian", "orthogonal", "eva"];

fn refuse_unread(raw: &RawConfig) -> Result<(), ConfigError> {
    let values = UNREAD.iter().filter_map(|&key| Some((key, raw.get(key)?)));
    let mut refused: Vec<_> = values.filter(|(_, value)| !is_neutral(value)).collect();
    refused.extend(raw.get("bias").filter(|&bias| bias != "none").map(|bias| ("bias", bias)));
    let init = raw.get("init_lora_weights");
    let changes_base = init.filter(|v| v.as_str().is_some_and(|v| !PLAIN_INITS.contains(&v)));
    refused.extend(changes_base.map(|init| ("init_lora_weights", init)));
    let Some((key, value)) = refused.first() else { return Ok(()) };
    let mend = "merge such an adapter into its base with PEFT (`merge_and_unload`)";
    Err(raw.error(key, format!("is {value}, which is not supported yet: {mend}")))
}

fn is_neutral(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    }
}
