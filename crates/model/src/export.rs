//! A model in Hugging Face layout, adapters merged.

use crate::batch::Batch;
use crate::decoder::Part;
use crate::load::Model;
use crate::weights::{Role, WeightSpec};
use hone_tensor::safetensors::{FileError, Lazy, write};
use hone_tensor::{Compute, DType, Device, Tape, Tensor, merge};
use std::path::{Path, PathBuf};

/// Files that go along with the weights where they exist.
const COMPANIONS: [&str; 10] = [
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "LICENSE",
];

/// Why a model cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The weights.
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
}

/// Writes `model` into `out`, which must exist: weights in `dtype` with adapters merged
/// (`W + scale · B A`, computed in f32), and configuration and tokenizer from `base_dir`.
///
/// # Errors
/// When a file cannot be read or written.
pub fn export_hf(
    model: &Model,
    device: &Device,
    base_dir: &Path,
    dtype: DType,
    out: &Path,
) -> Result<(), ExportError> {
    for name in COMPANIONS {
        let from = base_dir.join(name);
        if from.is_file() {
            copy(&from, &out.join(name))?;
        }
    }
    write_config(&base_dir.join("config.json"), &out.join("config.json"), dtype)?;
    let lazy = model.decoder.config.weights().map(|WeightSpec { role, name, shape }| {
        let make = Box::new(move || written(model, device, role, dtype));
        (name, Lazy::Made { dtype, shape, make })
    });
    write(&out.join("model.safetensors"), lazy)?;
    Ok(())
}

/// A weight as it is written: in `dtype`, its adapter merged.
fn written(model: &Model, device: &Device, role: Role, dtype: DType) -> Tensor {
    let params = &model.params;
    match model.decoder.part(role).expect("the configuration calls for it") {
        Part::Plain(weight) => converted(device, params.resolve(weight), dtype),
        Part::Matrix(projection) => converted(device, &merge(device, params, projection), dtype),
    }
}

fn converted(device: &Device, tensor: &Tensor, dtype: DType) -> Tensor {
    if tensor.storage() == dtype {
        return tensor.clone();
    }
    let mut out = device.alloc(hone_tensor::Category::Workspace, dtype, tensor.shape());
    out.copy_from_f32(&tensor.to_vec_f32());
    out
}

/// `config.json` with the element type that the weights now have.
fn write_config(from: &Path, to: &Path, dtype: DType) -> Result<(), ExportError> {
    let io = |path: &Path| {
        let path = path.to_owned();
        move |source| ExportError::Io { path, source }
    };
    let text = std::fs::read_to_string(from).map_err(io(from))?;
    let mut config: serde_json::Value =
        serde_json::from_str(&text).map_err(|e| io(from)(std::io::Error::other(e)))?;
    let name = match dtype {
        DType::F32 => "float32",
        DType::Bf16 => "bfloat16",
        DType::F16 => "float16",
    };
    let key = if config.get("dtype").is_some() { "dtype" } else { "torch_dtype" };
    config[key] = name.into();
    let text = serde_json::to_string_pretty(&config).expect("a JSON value can be written");
    std::fs::write(to, text).map_err(io(to))
}

fn copy(from: &Path, to: &Path) -> Result<(), ExportError> {
    // Not `fs::copy`: what is read-only at the source need not be so here.
    let bytes =
        std::fs::read(from).map_err(|e| ExportError::Io { path: from.into(), source: e })?;
    std::fs::write(to, bytes).map_err(|e| ExportError::Io { path: to.into(), source: e })
}

/// How far logits may be off, over their range, after weights were written in `dtype`.
pub fn logits_tolerance(dtype: DType) -> f64 {
    match dtype {
        DType::F32 => 1e-4,
        DType::F16 | DType::Bf16 => 5e-2,
    }
}

/// Largest difference between two models' logits on `tokens`, over the range of the first's;
/// infinite where a logit of either is not finite.
pub fn logits_error(
    (device, compute): (&Device, Compute),
    model: &Model,
    other: &Model,
    tokens: &[u32],
) -> f64 {
    let batch = Batch::of_sequence(&model.decoder.config, tokens);
    let logits = |model: &Model| {
        let mut tape = Tape::inference(device, &model.params, compute);
        model.decoder.logits(&mut tape, &batch).to_vec_f32()
    };
    let (ours, theirs) = (logits(model), logits(other));
    if !ours.iter().chain(&theirs).all(|x| x.is_finite()) {
        return f64::INFINITY;
    }
    let (min, max) = ours.iter().fold((f32::MAX, f32::MIN), |(a, b), &x| (a.min(x), b.max(x)));
    let difference = ours.iter().zip(&theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    f64::from(difference) / f64::from(max - min).max(f64::MIN_POSITIVE)
}
