//! int8 weights and int8 matmuls: their error relative to f32.

use crate::fixture::{
    Golden, export, forward_backward, load, logits, max_error, pack, range, relative_error,
};
use hone_model::{Model, Recompute, Trained, adapter};
use hone_tensor::{Compute, DType, Device, Storage};

/// The model of a case, as int8 or as in the file, with its adapter.
fn adapted(golden: &Golden, device: &Device, precision: Option<Storage>) -> Model {
    let mut model = load(&golden.dir, device, precision, Trained::Nothing);
    adapter::load(&golden.dir.join("adapter"), &mut model, device, &mut |_| ()).unwrap();
    model
}

/// Products in eight bits know no families: some cases that do not magnify errors.
const CASES: [&str; 6] =
    ["tied_gqa", "untied_bias_linear", "headdim_llama3", "qwen3", "qwen3_moe", "gemma3"];

/// The goldens are far more sensitive than trained models: weights are random, rows short. Measured
/// were up to 3.4 % of the range of the logits, and 6.0 and 9.2 % of gradients.
#[test]
fn logits_and_gradients_are_near_those_of_f32() {
    let device = Device::cpu(2);
    for golden in CASES.map(Golden::load) {
        let [exact, model] = [None, Some(Storage::INT8)].map(|p| adapted(&golden, &device, p));
        let batch = pack(&exact.decoder.config, &golden.samples(), 0);
        let of = |model: &Model, compute| {
            let how = (compute, Recompute::None);
            let pass = forward_backward(model, &device, how, &batch, 1.0, None);
            (logits(model, &device, compute, &batch), pass.gradients)
        };
        let (exact, case) = (of(&exact, Compute::F32), golden.dir.display());
        let allowed = [(Compute::Bf16, (0.05, 0.08)), (Compute::Int8, (0.05, 0.12))];
        for (compute, allowed) in allowed {
            let (logits, gradients) = of(&model, compute);
            let off = max_error(&logits, &exact.0) / range(&exact.0);
            assert!(off < allowed.0, "{case}, {compute:?}: logits {off}");
            let pairs = gradients.iter().zip(&exact.1);
            let errors: Vec<f64> = pairs.map(|(a, b)| relative_error(a, b)).collect();
            let mean = errors.iter().sum::<f64>() / errors.len() as f64;
            assert!(mean < allowed.1, "{case}, {compute:?}: gradients {mean} in the mean");
        }
    }
}

#[test]
fn recomputing_gives_the_same_bits() {
    let (golden, device) = (Golden::load("tied_gqa"), Device::cpu(2));
    let model = adapted(&golden, &device, Some(Storage::INT8));
    let batch = pack(&model.decoder.config, &golden.samples(), 0);
    let run = |device: &Device, recompute| {
        forward_backward(&model, device, (Compute::Int8, recompute), &batch, 1.0, None)
    };
    assert_eq!(run(&device, Recompute::None), run(&Device::cpu(1), Recompute::Block));
}

/// An export contains the dequantised values.
#[test]
fn exports_floats() {
    let (golden, device) = (Golden::load("tied_gqa"), Device::cpu(2));
    let model = load(&golden.dir, &device, Some(Storage::INT8), Trained::Nothing);
    let dir = tempfile::tempdir().unwrap();
    export(&model, &device, &golden.dir, DType::F32, dir.path()).unwrap();
    let written = load(dir.path(), &device, None, Trained::Nothing);
    assert_eq!(written.file_dtype, DType::F32);
    let batch = pack(&model.decoder.config, &golden.samples(), 0);
    let of = |model: &Model| logits(model, &device, Compute::F32, &batch);
    assert_eq!(of(&model), of(&written));
}
