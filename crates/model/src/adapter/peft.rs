//! Adapters in the layout of PEFT: `adapter_config.json` and `adapter_model.safetensors`.

use super::fused::Unfused;
use super::lora::{Matrix, add};
use super::names::{AdapterFile, in_memory};
use super::parameters::split;
use super::patterns::{Patterns, to_json};
use super::{AdapterError, LoraConfig, TargetModules};
use crate::config::DecoderConfig;
use crate::gguf::is_gguf;
use crate::load::{LoadError, Model, find_pickled, is_lfs_pointer};
use crate::raw_config::{ConfigError, RawConfig};
use hone_tensor::safetensors::{load_as, write};
use hone_tensor::{AdapterId, Category, DType, Device, Lora, Tensor};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::{Path, PathBuf};

const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";

/// Writes the adapter `id` of `model` into `dir`, which must exist.
///
/// # Errors
/// When a file cannot be written, or the device that holds the adapter failed, now or before.
pub fn save(
    dir: &Path,
    model: &Model,
    device: &Device,
    id: AdapterId,
    config: &LoraConfig,
    base_model: &str,
) -> Result<(), AdapterError> {
    let projections = model.decoder.projections();
    let parts: Vec<(String, &Lora)> =
        projections.filter_map(|(name, p)| Some((name, p.adapter(id)?))).collect();
    let (parts, parameters) = split(model, parts);
    let decoder = &model.decoder.config;
    let name = |module: &str| in_memory(decoder, module);
    let targets = target_modules(decoder, &config.target_modules, &parts);
    let sizes = parts.iter().map(|(module, lora)| (name(module), (lora.rank, lora.scale)));
    let of_parameters = parameters.iter().map(|p| (p.name.clone(), p.size()));
    let patterns = to_json(config, sizes.chain(of_parameters));
    let mut json = config_json(config, &targets, patterns, base_model);
    if decoder.encoder.is_some() || decoder.class_prefix.is_empty() {
        // PEFT would wrap the model in one that generates.
        json["task_type"] = Value::Null;
    }
    if !parameters.is_empty() {
        // PEFT refuses to read such an adapter otherwise, and it matters to training alone.
        json["lora_dropout"] = 0.0.into();
        json["target_parameters"] = parameters.iter().map(|p| p.name.as_str()).collect();
    }
    let text = serde_json::to_string_pretty(&json).expect("a JSON value can be written");
    let path = dir.join(CONFIG);
    std::fs::write(&path, text).map_err(|source| AdapterError::Io { path, source })?;
    let tensors = parts.iter().flat_map(|(module, lora)| {
        let module = name(module);
        let tensor =
            |matrix: Matrix, param| (matrix.key(&module), model.params.value(param).into());
        [tensor(Matrix::A, lora.a), tensor(Matrix::B, lora.b)]
    });
    let fused = parameters.iter().flat_map(|parameter| parameter.tensors(&model.params));
    write(&dir.join(WEIGHTS), tensors.chain(fused))?;
    // Of a device that failed, zeros were written.
    Ok(device.settle()?)
}

/// Names of the adapted modules for PEFT: short ones where these match the same layers.
fn target_modules(
    config: &DecoderConfig,
    targets: &TargetModules,
    adapted: &[(String, &Lora)],
) -> BTreeSet<String> {
    let all_linear = *targets == TargetModules::AllLinear;
    let has_experts = config.layers.iter().any(|layer| layer.mlp.experts.is_some());
    // Other parts have layers of the same short names, such as a vision tower or an encoder's head,
    // and by those of an MLP PEFT takes experts to be meant.
    let has_others = config.class_prefix.contains("language_model") || config.encoder.is_some();
    let is_short =
        |module: &str| all_linear && !has_others && !(has_experts && module.contains(".mlp."));
    let name = |(module, _): &(String, &Lora)| match module.rsplit_once('.') {
        Some((_, short)) if is_short(module) => short.to_owned(),
        _ => in_memory(config, module),
    };
    adapted.iter().map(name).collect()
}

/// The configuration as PEFT writes it.
fn config_json(
    config: &LoraConfig,
    target_modules: &BTreeSet<String>,
    (rank_pattern, alpha_pattern): (BTreeMap<String, usize>, BTreeMap<String, f64>),
    base_model: &str,
) -> Value {
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
        "rank_pattern": rank_pattern,
        "alpha_pattern": alpha_pattern,
    })
}

/// The files of the adapter in `dir`, or the GGUF file that it is.
pub fn files(dir: &Path) -> Vec<PathBuf> {
    match is_gguf(dir) {
        true => vec![dir.to_owned()],
        false => [CONFIG, WEIGHTS].map(|name| dir.join(name)).into(),
    }
}

/// Why `file` is not in `dir`.
fn missing(dir: &Path, file: &'static str) -> AdapterError {
    let inner = dir.join("adapter");
    let has = |name: &str| dir.join(name).exists();
    let here = dir.to_owned();
    if !dir.exists() {
        AdapterError::NotThere(here)
    } else if inner.join(file).is_file() {
        AdapterError::Inside { dir: here, inner }
    } else if has("run.toml") && has("manifest.json") {
        AdapterError::Unfinished(here)
    } else if has("manifest.json") {
        AdapterError::Checkpoint(here)
    } else {
        AdapterError::NoAdapter { dir: here, file, pickled: find_pickled(dir) }
    }
}

/// Attaches the adapter in `dir`, or in a GGUF file, to `model`. The returned targets are the
/// modules that have tensors in the file; `note` is called if the configuration names further
/// layers.
///
/// # Errors
/// If it is not a supported LoRA adapter, or was trained for another model.
pub fn load(
    dir: &Path,
    model: &mut Model,
    device: &Device,
    note: &mut dyn FnMut(String),
) -> Result<LoraConfig, AdapterError> {
    if is_gguf(dir) {
        return super::gguf::load(dir, model, device);
    }
    for file in [CONFIG, WEIGHTS] {
        if !dir.join(file).is_file() {
            return Err(missing(dir, file));
        }
    }
    let raw = RawConfig::read(&dir.join(CONFIG))?;
    let (mut lora, patterns) = read_config(&raw)?;
    let path = dir.join(WEIGHTS);
    if is_lfs_pointer(&path) {
        return Err(LoadError::LfsPointer { path }.into());
    }
    let file = AdapterFile::open(&path, &model.decoder.config)?;
    let mut stray = file.names();
    let unfused = Unfused::take(&file, model, &mut stray)?;
    let targets = adapted_modules(&file, model, &unfused, stray)?;
    let missing = missing_targets(&raw, &file, model, &targets);
    if let Some(first) = missing.first() {
        let more = match missing.len() {
            1 => String::new(),
            n => format!(" and {} more", n - 1),
        };
        note(format!(
            "{}: no tensors for `{first}`{more}, although {CONFIG} lists it in `target_modules`; \
             such layers stay without an adapter",
            path.display()
        ));
    }
    let mut next = 0;
    let config = model.decoder.config.clone();
    let names = |module: &str| file.names_of(&config, module);
    let size = |module: &str| match unfused.size(module) {
        None => patterns.of(&lora, &names(module)),
        // The scale is that of the parameter, whose rank may be twice the module's.
        Some(fused) => {
            let scale = patterns.scale(&lora, &names(&fused.parameter), fused.parameter_rank);
            (fused.rank, scale)
        }
    };
    add(model, &targets, &lora, size, |_, which, shape| {
        let key = which.key(&targets[next]);
        next += usize::from(which == Matrix::B);
        let tensor = match unfused.get(&key) {
            Some(tensor) => tensor.clone(),
            None => matrix(&file, &key, which, shape)?,
        };
        Ok(load_as(device, Category::Parameters, &tensor, DType::F32)?)
    })?;
    device.settle()?;
    lora.target_modules = TargetModules::Patterns(targets);
    Ok(lora)
}

/// The modules of the model that have tensors in the file, which must contain no other tensors.
fn adapted_modules(
    file: &AdapterFile,
    model: &Model,
    unfused: &Unfused,
    mut stray: BTreeSet<String>,
) -> Result<Vec<String>, AdapterError> {
    let modules = model.decoder.projections().map(|(name, _)| name);
    let found: Vec<String> = modules
        .filter(|module| {
            let own = stray.remove(&Matrix::A.key(module)) | stray.remove(&Matrix::B.key(module));
            own || unfused.size(module).is_some()
        })
        .collect();
    match stray.first() {
        Some(stray) => Err(mismatch(file, why_stray(stray, model))),
        None if found.is_empty() => Err(mismatch(file, "it contains no adapter".to_owned())),
        None => Ok(found),
    }
}

/// Why a tensor does not belong to an adapter of a linear layer.
fn why_stray(name: &str, model: &Model) -> String {
    let without_name = name.replace(".default.", ".");
    let is_expected = |name: &str| {
        let keys = |module: String| [Matrix::A.key(&module), Matrix::B.key(&module)];
        model.decoder.config.module_names().flat_map(keys).any(|key| key == name)
    };
    if without_name != name && is_expected(&without_name) {
        return format!(
            "tensor `{name}` contains the name of the adapter (`default`), as in a state dict: \
             save the adapter with `save_pretrained` of PEFT, which strips it"
        );
    }
    let is_table = ["lm_head", "embed_tokens"].iter().any(|table| name.contains(table));
    if is_table || name.contains("modules_to_save") {
        return format!(
            "tensor `{name}`: the adapter contains trained weights of a head, an embedding or \
             another whole module, which is not supported yet: {MERGE}"
        );
    }
    format!(
        "tensor `{name}` is not part of a LoRA adapter on a linear layer of this model. The \
         adapter was trained for another model"
    )
}

/// Layers of the model that the configuration names but that are not among `found`.
fn missing_targets(
    raw: &RawConfig,
    file: &AdapterFile,
    model: &Model,
    found: &[String],
) -> Vec<String> {
    let Some(targets) = raw.get("target_modules").and_then(Value::as_array) else {
        // A pattern, or all linear layers: the tensors say which layers match.
        return Vec::new();
    };
    let all_layers = ["layers_to_transform", "exclude_modules"];
    if all_layers.iter().any(|key| raw.get(key).is_some()) {
        return Vec::new();
    }
    let config = &model.decoder.config;
    let is_named = |module: &str| {
        let mut targets = targets.iter().filter_map(Value::as_str);
        let names = file.names_of(config, module);
        // Nothing is allocated for a target: there are hundreds, and tens of thousands of modules.
        let is_end = |name: &String, target| {
            let before = name.strip_suffix(target);
            before.is_some_and(|before| before.is_empty() || before.ends_with('.'))
        };
        targets.any(|target| names.iter().any(|name| is_end(name, target)))
    };
    // With experts there are tens of thousands.
    let found: HashSet<&String> = found.iter().collect();
    let modules = config.module_names();
    modules.filter(|module| is_named(module) && !found.contains(module)).collect()
}

/// One matrix of an adapter, which must have `shape`.
fn matrix(
    file: &AdapterFile,
    key: &str,
    which: Matrix,
    shape: &[usize],
) -> Result<Tensor, AdapterError> {
    let Some(tensor) = file.tensor(key)? else {
        let problem = format!(
            "tensor `{key}` is missing, although its counterpart is present: the file is \
             incomplete, save the adapter again"
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
        "The adapter was trained for another model".to_owned()
    };
    let problem = format!("tensor `{key}` has shape {found:?}, expected {shape:?}. {cause}");
    Err(mismatch(file, problem))
}

fn mismatch(file: &AdapterFile, problem: String) -> AdapterError {
    AdapterError::Mismatch { path: file.path().to_owned(), problem }
}

fn read_config(raw: &RawConfig) -> Result<(LoraConfig, Patterns), ConfigError> {
    let kind = raw.text("peft_type")?.unwrap_or("missing");
    if kind != "LORA" {
        return Err(raw.error("peft_type", format!("is {kind}; only LORA adapters are supported")));
    }
    let dropout = match raw.get("lora_dropout") {
        None => 0.0,
        Some(value) => value
            .as_f64()
            .filter(|p| (0.0..1.0).contains(p))
            .ok_or_else(|| raw.unexpected("lora_dropout", "a number from 0 to below 1", value))?,
    };
    let config = LoraConfig {
        rank: raw.size("r")?,
        alpha: raw.number("lora_alpha")?,
        dropout: dropout as f32,
        target_modules: TargetModules::AllLinear,
        use_rslora: raw.flag("use_rslora", false)?,
        share_experts: false,
    };
    raw.get("target_modules");
    // Which parameters they are, the names of tensors say.
    raw.get("target_parameters");
    let patterns = Patterns::read(raw)?;
    refuse_unread(raw)?;
    Ok((config, patterns))
}

/// Settings that do not affect what a trained adapter computes; its layers follow from the names of
/// its tensors. Any other key that is set is refused: every other PEFT release adds one.
const NEUTRAL: [&str; 16] = [
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config",
    "eva_config",
    "exclude_modules",
    "inference_mode",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_ga_config",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "task_type",
];

/// Initialisations of an adapter that leave the base weights unchanged.
const PLAIN_INITS: [&str; 3] = ["gaussian", "orthogonal", "eva"];

/// The fix for an unsupported adapter.
const MERGE: &str = "merge such an adapter into its base with PEFT (`merge_and_unload`)";

fn refuse_unread(raw: &RawConfig) -> Result<(), ConfigError> {
    let bias = raw.get("bias").filter(|&bias| bias != "none").map(|bias| ("bias", bias));
    let init = raw.get("init_lora_weights");
    let init = init.filter(|init| init.as_str().is_some_and(|init| !PLAIN_INITS.contains(&init)));
    let init = init.map(|init| ("init_lora_weights", init));
    match bias.or(init).or_else(|| raw.first_unread(&NEUTRAL)) {
        None => Ok(()),
        Some((key, value)) => {
            Err(raw.error(key, format!("is {value}, which is not supported yet: {MERGE}")))
        }
    }
}
