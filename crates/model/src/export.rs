//! Exports a model in Hugging Face layout, with adapters merged.

mod quantised;

pub use quantised::{LinearLayer, Quantised, StoredTensor, linear_layers};

use crate::companions::COMPANIONS;
use crate::config::{DecoderConfig, ExpertLayout};
use crate::decoder::Part;
use crate::embed::module_folders;
use crate::fidelity::{Comparison, Fidelity, MAX_LOST, are_finite};
use crate::gguf::{GgufExportError, is_gguf, texts_of_gguf};
use crate::load::{Layout, LoadError, Model, layout};
use crate::raw_config::ConfigError;
use crate::weights::{Fused, Role, WeightSpec};
use hone_tensor::safetensors::{FileError, Lazy, load_as, pack_as, write};
use hone_tensor::{Category, DType, Device, DeviceError, Place, Storage, Tensor, merge};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A folder of templates in addition to the default one.
const MORE_TEMPLATES: &str = "additional_chat_templates";

const CONFIG: &str = "config.json";
const GENERATION: &str = "generation_config.json";

/// Why a model cannot be exported.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The weights file.
    #[error(transparent)]
    File(#[from] FileError),
    /// Another file.
    #[error("{}: {source}", path.display())]
    Io {
        /// File.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The device failed while weights were merged or compared.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// Other parts of the base, which are copied.
    #[error(transparent)]
    Others(#[from] Box<LoadError>),
    /// The base's configuration, which is copied.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The model, or its tokenizer, cannot be written as a GGUF file.
    #[error(transparent)]
    Gguf(#[from] GgufExportError),
    /// A weight of the model is not finite.
    #[error(
        "tensor `{tensor}` contains a value that is not finite (NaN or infinite), so the model \
         cannot compute anything; nothing was written. Fetch the weights again, or go back to an \
         earlier checkpoint"
    )]
    NotFinite {
        /// Its name.
        tensor: String,
    },
    /// A weight is finite in memory but overflows in the requested type.
    #[error(
        "tensor `{tensor}` contains a value that {dtype} cannot represent (it would be infinite); \
         nothing was written. Write the model as bf16 or f32"
    )]
    Overflow {
        /// Its name.
        tensor: String,
        /// The requested type.
        dtype: &'static str,
    },
    /// Logits are not finite although all weights are.
    #[error(
        "the model computes logits that are not finite although all its weights are; nothing was \
         written. Some weights must be far too large"
    )]
    LogitsNotFinite,
    /// Rounding undid too much of the training.
    #[error(
        "in {dtype}, only {:.0} % of what training changed is left; at least {:.0} % must be \
         (divergence {:.1e} nats per token; the most likely token is the same for {:.0} %). \
         Nothing was written. {}",
        100.0 * fidelity.kept(),
        100.0 * (1.0 - MAX_LOST),
        fidelity.kl,
        100.0 * fidelity.top1_agreement,
        if *has_adapter {
            "Write the model as f32 (--dtype f32), or do not merge: the adapter's directory is in \
             PEFT's layout, and other programs load it beside its base"
        } else {
            "Write the model as f32 (--dtype f32)"
        }
    )]
    EffectLost {
        /// Type it was written in.
        dtype: &'static str,
        /// The comparison.
        fidelity: Fidelity,
        /// Whether there is an adapter that could be used unmerged instead.
        has_adapter: bool,
    },
    /// The exported model computes different logits.
    #[error(
        "the exported model computes different logits from the model in memory (off by \
         {error:.1e} of their range); please report this as a bug in Hone"
    )]
    Differs {
        /// Largest difference, relative to the range of the logits.
        error: f64,
    },
}

/// What to export.
#[derive(Clone, Copy, Debug)]
pub struct ExportOptions<'a> {
    /// Directory or GGUF file of the base, which provides configuration and tokenizer.
    pub base: &'a Path,
    /// Element type of the weights.
    pub dtype: DType,
    /// Token that the model was trained to end its turns with; added to the tokens that end a
    /// generation.
    pub end_of_turn: Option<u32>,
    /// Matrices that are written otherwise than as floats.
    pub quantised: Option<&'a Quantised<'a>>,
}

/// Writes `model` into `out`, which must exist: weights with adapters merged (`W + scale · B A`,
/// computed in f32), and configuration and tokenizer from the base's directory.
///
/// # Errors
/// When a file cannot be read or written.
pub fn export_hf(
    model: &Model,
    device: &Device,
    options: ExportOptions<'_>,
    out: &Path,
) -> Result<(), ExportError> {
    let ExportOptions { base, dtype, end_of_turn, quantised } = options;
    match is_gguf(base) {
        true => write_texts(base, out)?,
        false => copy_files(base, out)?,
    }
    write_config(model, base, (dtype, quantised), &out.join(CONFIG))?;
    if let Some(end_of_turn) = end_of_turn {
        end_turns_with(model, end_of_turn, &out.join(GENERATION))?;
    }
    write(&out.join("model.safetensors"), tensors(model, device, options)?)?;
    Ok(device.settle()?)
}

/// A weight that is part of a tensor, and where it lies there.
type PlacedRole = (Place, Role);

/// What the exported weight file holds, under the names that the base's files have: the model's
/// weights and, of files with further parts, those as they are.
fn tensors<'a>(
    model: &'a Model,
    device: &'a Device,
    ExportOptions { base, dtype, quantised, .. }: ExportOptions<'a>,
) -> Result<Vec<(String, Lazy<'a>)>, ExportError> {
    let config = &model.decoder.config;
    let Layout { names, mut fused, packed, others } = layout_of(config, base)?;
    let mut tensors = Vec::new();
    let mut experts: BTreeMap<String, (Vec<usize>, Vec<PlacedRole>)> = BTreeMap::new();
    for WeightSpec { role, name, shape } in config.weights() {
        if let Some(Fused { name, shape, place, .. }) = together(config, role, &name, &mut fused) {
            experts.entry(name).or_insert((shape, Vec::new())).1.push((place, role));
            continue;
        }
        let stored = names.get(&name).cloned().unwrap_or(name);
        if let Some(parts) = quantised.and_then(|all| all.matrices.get(&role)) {
            tensors.extend(parts.iter().map(|part| part.in_place_of(&stored)));
            continue;
        }
        let make = Box::new(move || written(model, device, role, dtype));
        tensors.push((stored, Lazy::Deferred { dtype, shape, make }));
    }
    for (name, (shape, parts)) in experts {
        let part = move |&(place, role): &PlacedRole| (place, written(model, device, role, dtype));
        let of_all = shape.clone();
        let make = Box::new(move || Tensor::assembled(dtype, &of_all, parts.iter().map(part)));
        tensors.push((name, Lazy::Deferred { dtype, shape, make }));
    }
    if has_more(config) {
        tensors.extend(packed.into_iter().map(|(name, tensor)| {
            let shape = tensor.shape().to_vec();
            let make = Box::new(move || converted(device, &tensor, dtype));
            (name, Lazy::Deferred { dtype, shape, make })
        }));
        tensors.extend(others);
    }
    Ok(tensors)
}

/// Whether files of the model have further parts.
fn has_more(config: &DecoderConfig) -> bool {
    let has_heads = config.encoder.is_some() || !config.heads.is_empty();
    config.is_part || config.has_mtp || has_heads
}

/// How the base's files hold weights, as far as that is not as their names say.
fn layout_of(config: &DecoderConfig, base: &Path) -> Result<Layout, ExportError> {
    let has_experts = config.layers.iter().any(|layer| layer.mlp.experts.is_some());
    match (has_more(config) || has_experts) && !is_gguf(base) {
        true => Ok(layout(base, config).map_err(Box::new)?),
        false => Ok(Layout::default()),
    }
}

/// The tensor of all experts that a weight is written in, if it is: some families have them
/// together whatever the base's files have.
fn together(
    config: &DecoderConfig,
    role: Role,
    name: &str,
    of_files: &mut BTreeMap<String, Fused>,
) -> Option<Fused> {
    let always = |fused: &Fused| fused.layout == ExpertLayout::Columns;
    of_files.remove(name).or_else(|| config.fused(role).filter(always))
}

/// Copies what comes along with weights in a directory.
fn copy_files(dir: &Path, out: &Path) -> Result<(), ExportError> {
    for name in COMPANIONS {
        let from = dir.join(name);
        if from.is_file() {
            copy(&from, &out.join(name))?;
        }
    }
    let modules = module_folders(dir)?;
    let folders = modules.iter().map(String::as_str).chain([MORE_TEMPLATES]);
    folders.into_iter().try_for_each(|name| copy_folder(&dir.join(name), &out.join(name)))
}

/// Writes what a GGUF file says besides its weights.
fn write_texts(path: &Path, out: &Path) -> Result<(), ExportError> {
    for (name, text) in texts_of_gguf(path)? {
        let path = out.join(name);
        std::fs::write(&path, text).map_err(|source| ExportError::Io { path, source })?;
    }
    Ok(())
}

/// A weight as it is written: in `dtype`, with its adapter merged.
///
/// # Errors
/// If there is no memory for it.
///
/// # Panics
/// If the model has no such weight.
pub fn written(
    model: &Model,
    device: &Device,
    role: Role,
    dtype: DType,
) -> Result<Tensor, DeviceError> {
    let params = &model.params;
    match model.decoder.part(role).expect("the configuration has it") {
        Part::Plain(weight) => converted(device, params.resolve(weight), dtype),
        Part::Matrix(projection) => converted(device, &merge(device, params, projection), dtype),
    }
}

/// Bytes of a table's rows in f32 that are packed at a time.
const PIECE: usize = 32 << 20;

/// The tensor of an embedding or a head whose rows can be packed in pieces.
pub(crate) fn table(model: &Model, role: Role) -> Option<&Tensor> {
    let is_table = matches!(role, Role::EmbedTokens | Role::LmHead);
    let table = model.weight(role).filter(|_| is_table)?;
    (table.is_on_host() && table.storage().to_ggml().is_some()).then_some(table)
}

/// The rows of a table in `storage`, some at a time.
pub(crate) fn pieces<'a>(
    table: &'a Tensor,
    (storage, importance): (Storage, &'a [f32]),
) -> impl Iterator<Item = Result<Tensor, DeviceError>> + 'a {
    let [num_rows, cols] = [table.shape()[0], table.shape()[1]];
    let step = (PIECE / (4 * cols)).max(1);
    (0..num_rows).step_by(step).map(move |first| {
        let rows = table.rows(first..num_rows.min(first + step))?.expect("rows of a table");
        if rows.storage() == storage {
            return Ok(rows);
        }
        let floats = load_as(Device::host(), Category::Workspace, &rows, DType::F32)?;
        match storage == DType::F32 {
            true => Ok(floats),
            false => pack_as(&floats, storage, importance),
        }
    })
}

/// In `dtype`; if that is another one, the pages of a mapped file are let go of.
fn converted(device: &Device, tensor: &Tensor, dtype: DType) -> Result<Tensor, DeviceError> {
    if tensor.storage() == dtype {
        return Ok(tensor.clone());
    }
    if dtype == DType::F32 && tensor.is_on_host() {
        return load_as(Device::host(), Category::Workspace, tensor, dtype);
    }
    let mut out = device.alloc(Category::Workspace, dtype, tensor.shape());
    out.copy_from_f32(&tensor.try_to_vec_f32()?);
    tensor.release_file();
    Ok(out)
}

/// Writes the base's `config.json` with the new element type, and with `tie_word_embeddings`
/// corrected if the weight files contradict it.
fn write_config(
    model: &Model,
    base: &Path,
    (dtype, quantised): (DType, Option<&Quantised<'_>>),
    to: &Path,
) -> Result<(), ExportError> {
    // That of a GGUF file was written already.
    let from = if is_gguf(base) { to.to_owned() } else { base.join(CONFIG) };
    let mut config = read_json(&from)?;
    let name = torch_name(dtype);
    // Both may be present: transformers 5 reads `dtype`, other tools `torch_dtype`.
    let keys = ["dtype", "torch_dtype"].into_iter().filter(|key| config.get(key).is_some());
    let mut keys: Vec<&str> = keys.collect();
    if keys.is_empty() {
        keys.push("torch_dtype");
    }
    for key in keys {
        config[key] = name.into();
    }
    // What is written is not quantised as the base may be.
    for object in ["", "/text_config"] {
        if let Some(Value::Object(object)) = config.pointer_mut(object) {
            object.remove("quantization_config");
        }
    }
    if let Some(quantised) = quantised {
        config["quantization_config"] = quantised.config.clone();
    }
    let DecoderConfig { tie_word_embeddings: is_tied, lacks_lm_head, .. } = model.decoder.config;
    if !lacks_lm_head && DecoderConfig::load(base)?.tie_word_embeddings != is_tied {
        config["tie_word_embeddings"] = is_tied.into();
    }
    write_json(to, &config)
}

/// PyTorch's name of an element type.
pub fn torch_name(dtype: DType) -> &'static str {
    match dtype {
        DType::F32 => "float32",
        DType::Bf16 => "bfloat16",
        DType::F16 => "float16",
    }
}

/// Adds a token to the tokens that end a generation.
fn end_turns_with(model: &Model, token: u32, path: &Path) -> Result<(), ExportError> {
    let mut ids = model.decoder.config.eos_token_ids.clone();
    if ids.contains(&token) {
        return Ok(());
    }
    ids.push(token);
    let mut config = if path.is_file() { read_json(path)? } else { Value::Object(Map::new()) };
    config["eos_token_id"] = ids.into();
    write_json(path, &config)
}

/// The name of the first weight that has a value that is not finite, with its adapter merged.
///
/// # Errors
/// If the device failed, or there is no memory.
pub fn not_finite(model: &Model, device: &Device) -> Result<Option<String>, DeviceError> {
    for WeightSpec { role, name, .. } in model.decoder.config.weights() {
        if !is_finite(model, device, role, DType::F32)? {
            return device.settle().map(|()| Some(name));
        }
    }
    device.settle().map(|()| None)
}

/// Whether all values of a weight, with its adapter merged, are finite once in `dtype`. The pages
/// of a mapped file are let go of.
fn is_finite(
    model: &Model,
    device: &Device,
    role: Role,
    dtype: DType,
) -> Result<bool, DeviceError> {
    let is_finite = match table(model, role) {
        Some(table) => {
            let mut pieces = pieces(table, (dtype.into(), &[]));
            pieces.try_fold(true, |all, rows| Ok(all && are_finite(&rows?.try_to_vec_f32()?)))?
        }
        None => are_finite(&written(model, device, role, dtype)?.try_to_vec_f32()?),
    };
    if let Some(weight) = model.weight(role) {
        weight.release_file();
    }
    Ok(is_finite)
}

/// The error for the first weight that is not finite, either in memory or once written.
fn name_not_finite(
    model: &Model,
    device: &Device,
    dtype: DType,
) -> Result<ExportError, DeviceError> {
    for WeightSpec { role, name: tensor, .. } in model.decoder.config.weights() {
        if !is_finite(model, device, role, DType::F32)? {
            return device.settle().map(|()| ExportError::NotFinite { tensor });
        }
        if dtype != DType::F32 && !is_finite(model, device, role, dtype)? {
            let dtype = dtype.name();
            return device.settle().map(|()| ExportError::Overflow { tensor, dtype });
        }
    }
    device.settle().map(|()| ExportError::LogitsNotFinite)
}

/// Compares a model with its export in `dtype` on `rows` of tokens; called before the export is
/// moved into place.
///
/// # Errors
/// If a value is not finite, more than [`MAX_LOST`] of the effect of training is gone, or the
/// logits differ.
pub fn check_written(
    models: Comparison<'_>,
    dtype: DType,
    rows: &[Vec<u32>],
) -> Result<Fidelity, ExportError> {
    let Some(fidelity) = Fidelity::measure(models, rows)? else {
        return Err(name_not_finite(models.intended, models.device, dtype)?);
    };
    if fidelity.is_acceptable(dtype) {
        return Ok(fidelity);
    }
    let has_adapter = models.intended.decoder.projections().any(|(_, p)| !p.adapters.is_empty());
    Err(match fidelity.lost {
        Some(lost) if lost > MAX_LOST && dtype != DType::F32 => {
            ExportError::EffectLost { dtype: dtype.name(), fidelity, has_adapter }
        }
        _ => ExportError::Differs { error: fidelity.max_error },
    })
}

/// Copies the files of a folder, if there is one.
fn copy_folder(from: &Path, to: &Path) -> Result<(), ExportError> {
    if !from.is_dir() {
        return Ok(());
    }
    let io = |path: &Path| {
        let path = path.to_owned();
        move |source| ExportError::Io { path, source }
    };
    std::fs::create_dir_all(to).map_err(io(to))?;
    for entry in std::fs::read_dir(from).map_err(io(from))? {
        let path = entry.map_err(io(from))?.path();
        if let Some(name) = path.file_name().filter(|_| path.is_file()) {
            copy(&path, &to.join(name))?;
        }
    }
    Ok(())
}

fn read_json(path: &Path) -> Result<Value, ExportError> {
    let io = |source| ExportError::Io { path: path.to_owned(), source };
    let text = std::fs::read_to_string(path).map_err(io)?;
    serde_json::from_str(&text).map_err(|error| io(std::io::Error::other(error)))
}

fn write_json(path: &Path, value: &Value) -> Result<(), ExportError> {
    let text = serde_json::to_string_pretty(value).expect("a JSON value can be written");
    std::fs::write(path, text).map_err(|source| ExportError::Io { path: path.to_owned(), source })
}

fn copy(from: &Path, to: &Path) -> Result<(), ExportError> {
    // Not `fs::copy`, which would also copy read-only permissions.
    let bytes =
        std::fs::read(from).map_err(|e| ExportError::Io { path: from.into(), source: e })?;
    std::fs::write(to, bytes).map_err(|e| ExportError::Io { path: to.into(), source: e })
}
