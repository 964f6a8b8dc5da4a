//! Shared by the tests: golden cases, packing of their sequences, one forward and backward pass.

use crate::random_weights::write_checkpoint;
use hone_model::{
    Batch, Decoder, DecoderConfig, ExportError, ExportOptions, LoadOptions, Model, Recompute,
    Trained, adapter, export_hf,
};
use hone_tensor::cuda::Gpu;
use hone_tensor::{
    AdapterRows, Category, Compute, DType, Device, Gradients, StepKey, Storage, Tape, Tensor,
};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// Names of the golden cases.
pub fn cases() -> Vec<String> {
    let entries = std::fs::read_dir(goldens_dir()).unwrap().map(Result::unwrap);
    let folders = entries.filter(|entry| entry.path().is_dir());
    let mut names: Vec<String> =
        folders.map(|entry| entry.file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Target of positions at which nothing is predicted.
const IGNORE: u32 = u32::MAX;

/// The CPU, and a GPU or its emulation.
pub fn devices() -> Vec<Device> {
    [Device::cpu(2)].into_iter().chain(Gpu::for_tests().map(Device::cuda)).collect()
}

pub fn goldens_dir() -> PathBuf {
    // The checkout that the tests run in, not necessarily the one they were built in.
    let package = std::env::var_os("CARGO_MANIFEST_DIR");
    let built_in = || PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    package.map_or_else(built_in, PathBuf::from).join("tests/goldens")
}

/// The folder of shared test files next to the checkout; `None`, with a message, if absent.
pub fn shared() -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared");
    if path.is_dir() {
        return Some(path);
    }
    hone_tensor::testing::skip("../shared is absent");
    None
}

/// A model, an adapter, and PyTorch's results for them.
pub struct Golden {
    /// The model, and in `adapter` the adapter; the folder's name is the case's.
    pub dir: PathBuf,
    /// `golden.json`.
    pub facts: Value,
    bytes: Vec<u8>,
    /// What `dir` lies in.
    _scratch: TempDir,
}

/// One sequence; `mask` is 1 where the token is predicted from those before it.
pub struct Sample {
    pub ids: Vec<u32>,
    pub mask: Vec<u8>,
}

impl Golden {
    pub fn load(case: &str) -> Self {
        Self::read(&goldens_dir().join(case))
    }

    /// From a folder that `scripts/goldens.py` or `live_families.py` wrote.
    pub fn read(folder: &Path) -> Self {
        let facts = std::fs::read(folder.join("golden.json")).unwrap();
        let bytes = std::fs::read(folder.join("golden.safetensors")).unwrap();
        let scratch = tempfile::tempdir().unwrap();
        let dir = scratch.path().join(folder.file_name().unwrap());
        write_checkpoint(folder, &dir);
        write_checkpoint(&folder.join("adapter"), &dir.join("adapter"));
        let facts = serde_json::from_slice(&facts).unwrap();
        Self { dir, facts, bytes, _scratch: scratch }
    }

    pub fn all() -> impl Iterator<Item = Self> {
        cases().into_iter().map(|case| Self::load(&case))
    }

    pub fn has(&self, tensor: &str) -> bool {
        SafeTensors::deserialize(&self.bytes).unwrap().tensor(tensor).is_ok()
    }

    pub fn f32s(&self, tensor: &str) -> Vec<f32> {
        let bytes = self.bytes_of(tensor);
        bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
    }

    /// The tensors `name_0`, `name_1`, … of all sequences.
    pub fn of_sequences(&self, name: &str) -> Vec<Vec<f32>> {
        (0..self.num_sequences()).map(|i| self.f32s(&format!("{name}_{i}"))).collect()
    }

    pub fn samples(&self) -> Vec<Sample> {
        let id = |b: &[u8]| i64::from_le_bytes(b.try_into().unwrap()) as u32;
        let sample = |i| Sample {
            ids: self.bytes_of(&format!("ids_{i}")).chunks_exact(8).map(id).collect(),
            mask: self.bytes_of(&format!("mask_{i}")),
        };
        (0..self.num_sequences()).map(sample).collect()
    }

    pub fn number(&self, key: &str) -> f64 {
        self.facts[key].as_f64().unwrap_or_else(|| panic!("{key} is in golden.json"))
    }

    /// The model in f32, frozen, without an adapter.
    pub fn base(&self, device: &Device) -> Model {
        load(&self.dir, device, Some(DType::F32.into()), Trained::Nothing)
    }

    /// The model with PEFT's adapter.
    pub fn adapted(&self, device: &Device) -> Model {
        let mut model = self.base(device);
        adapter::load(&self.dir.join("adapter"), &mut model, device, &mut |_| ()).unwrap();
        model
    }

    fn num_sequences(&self) -> usize {
        self.number("num_sequences") as usize
    }

    fn bytes_of(&self, tensor: &str) -> Vec<u8> {
        SafeTensors::deserialize(&self.bytes).unwrap().tensor(tensor).unwrap().data().to_vec()
    }
}

pub fn load(
    dir: &Path,
    device: &Device,
    base_precision: Option<Storage>,
    trained: Trained,
) -> Model {
    let options = LoadOptions { base_precision, trained, ..LoadOptions::INFERENCE };
    hone_model::load(dir, device, options).unwrap()
}

/// Writes a model as `hone export` does.
pub fn export(
    model: &Model,
    device: &Device,
    base_dir: &Path,
    dtype: DType,
    out: &Path,
) -> Result<(), ExportError> {
    let options = ExportOptions { base: base_dir, dtype, end_of_turn: None, quantised: None };
    export_hf(model, device, options, out)
}

/// The samples packed one after another, followed by `padding` tokens.
pub fn pack<'a>(
    config: &DecoderConfig,
    samples: impl IntoIterator<Item = &'a Sample>,
    padding: usize,
) -> Batch {
    let (mut tokens, mut positions, mut targets, mut bounds) = (vec![], vec![], vec![], vec![0]);
    for Sample { ids, mask } in samples {
        tokens.extend(ids);
        positions.extend(0..ids.len() as u32);
        let next = ids.iter().zip(mask).skip(1);
        targets.extend(next.map(|(&id, &is_target)| if is_target == 1 { id } else { IGNORE }));
        targets.push(IGNORE);
        bounds.push(tokens.len() as u32);
    }
    let len = tokens.len() + padding;
    tokens.resize(len, 0);
    positions.resize(len, 0);
    targets.resize(len, IGNORE);
    Batch::new(config, &tokens, &positions, &bounds, &targets, IGNORE)
}

/// Results of one forward and backward pass.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// Log-probabilities of the batch's targets.
    pub log_probs: Vec<f32>,
    /// Gradients of `-sum(log_probs) / denominator`, in the order of the parameters.
    pub gradients: Vec<Vec<f32>>,
}

impl Outcome {
    pub fn loss_sum(&self) -> f64 {
        -self.log_probs.iter().map(|&p| f64::from(p)).sum::<f64>()
    }
}

pub fn forward_backward(
    model: &Model,
    device: &Device,
    (compute, recompute): (Compute, Recompute),
    batch: &Batch,
    denominator: f64,
    dropout: Option<StepKey>,
) -> Outcome {
    let rows = [AdapterRows::all(dropout)];
    forward_backward_of(model, device, (compute, recompute), batch, denominator, &rows)
}

/// The same with adapters of some rows.
pub fn forward_backward_of(
    model: &Model,
    device: &Device,
    (compute, recompute): (Compute, Recompute),
    batch: &Batch,
    denominator: f64,
    adapter_rows: &[AdapterRows],
) -> Outcome {
    let Model { decoder, params, .. } = model;
    let mut tape = Tape::training(device, params, compute, None);
    tape.set_adapter_rows(adapter_rows);
    let log_probs = decoder.log_probs(&mut tape, batch, recompute);
    let of_rows = log_probs.value().to_vec_f32()[..batch.rows.len()].to_vec();
    let mut derivative = vec![0.0; batch.tokens.len()];
    derivative[..batch.rows.len()].fill((-1.0 / denominator) as f32);
    let mut gradients = Gradients::zeros(device, params).unwrap();
    let d_root = Tensor::from_f32(&derivative, &[batch.tokens.len()]);
    let d_root = device.upload(Category::Activations, &d_root).unwrap();
    tape.backward(log_probs, d_root, &mut gradients);
    let gradients = gradients.iter().map(Tensor::to_vec_f32).collect();
    Outcome { log_probs: of_rows, gradients }
}

/// Logits `[t * vocab_size]` of a batch.
pub fn logits(model: &Model, device: &Device, compute: Compute, batch: &Batch) -> Vec<f32> {
    let mut tape = Tape::inference(device, &model.params, compute);
    Decoder::logits(&model.decoder, &mut tape, batch).to_vec_f32()
}

pub fn max_error(found: &[f32], exact: &[f32]) -> f32 {
    assert_eq!(found.len(), exact.len());
    // `f32::max` would ignore a NaN.
    let larger = |max: f32, error: f32| if error <= max { max } else { error };
    found.iter().zip(exact).map(|(a, b)| (a - b).abs()).fold(0.0, larger)
}

/// Largest minus smallest.
pub fn range(values: &[f32]) -> f32 {
    let (low, high) = values.iter().fold((f32::MAX, f32::MIN), |(l, h), &x| (l.min(x), h.max(x)));
    high - low
}

/// `|found - exact| / |exact|` in L2; zero where both are, as of an expert without rows.
pub fn relative_error(found: &[f32], exact: &[f32]) -> f64 {
    assert_eq!(found.len(), exact.len());
    let square = |x: f64| x * x;
    let pairs = found.iter().zip(exact);
    let error: f64 = pairs.map(|(&a, &b)| square(f64::from(a) - f64::from(b))).sum();
    let norm: f64 = exact.iter().map(|&b| square(f64::from(b))).sum();
    if error == 0.0 { 0.0 } else { (error / norm).sqrt() }
}

/// The model of a golden case, to be modified.
pub fn copy_of(case: &str) -> TempDir {
    let copy = tempfile::tempdir().unwrap();
    write_checkpoint(&goldens_dir().join(case), copy.path());
    copy
}

pub fn copy_files(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            std::fs::write(to.join(path.file_name().unwrap()), std::fs::read(&path).unwrap())
                .unwrap();
        }
    }
}

/// Sets a top-level key of a JSON file.
pub fn set_key(file: &Path, key: &str, value: Value) {
    let mut json: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    json[key] = value;
    std::fs::write(file, json.to_string()).unwrap();
}

/// A tensor of a safetensors file: element type, shape, bytes.
pub type Entry = (Dtype, Vec<usize>, Vec<u8>);

/// Rewrites a safetensors file after `change` has modified its tensors.
pub fn rewrite(file: &Path, change: impl FnOnce(&mut BTreeMap<String, Entry>)) {
    let bytes = std::fs::read(file).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let entry = |t: TensorView<'_>| (t.dtype(), t.shape().to_vec(), t.data().to_vec());
    let mut tensors: BTreeMap<String, Entry> =
        tensors.tensors().into_iter().map(|(name, tensor)| (name, entry(tensor))).collect();
    change(&mut tensors);
    write_tensors(file, &tensors);
}

/// Writes a safetensors file.
pub fn write_tensors(file: &Path, tensors: &BTreeMap<String, Entry>) {
    let views = tensors.iter().map(|(name, (dtype, shape, data))| {
        (name.clone(), TensorView::new(*dtype, shape.clone(), data).unwrap())
    });
    std::fs::write(file, safetensors::serialize(views, None).unwrap()).unwrap();
}
