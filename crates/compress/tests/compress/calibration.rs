//! What matrices read, and what their errors cost.

use hone_compress::{Imatrix, Meter, Room, Sensitivity, Window, importance};
use hone_model::{GgufForm, LoadOptions, Model, ModelTexts, Pass, divergences};
use hone_tensor::{Compute, DType, Device, Philox, Storage, Tensor};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// A Llama of 260,000 parameters whose rows have 64 weights, and 172 in one matrix of each block.
pub fn stories(device: &Device) -> Option<(Model, ModelTexts)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/models/stories260k");
    if !dir.is_dir() {
        hone_tensor::testing::skip("../shared is absent");
        return None;
    }
    let model = hone_model::load(&dir, device, LoadOptions::INFERENCE).unwrap();
    Some((model, ModelTexts::read(&dir).unwrap()))
}

/// As much memory as is wanted.
pub fn room() -> Room<'static> {
    Room { folder: Path::new("."), memory: None }
}

/// Text that the model writes itself, greedily but for what a row begins with: each row continues
/// what it finds likely.
pub fn windows(pass: Pass<'_>, count: u64, stream: u64) -> Vec<Window> {
    let config = &pass.model.decoder.config;
    let window = |i| {
        let random = Philox::new(3, stream + i);
        let mut row = vec![1];
        while row.len() < 40 {
            let window = Window { rows: vec![row.clone()] };
            let batch = window.batch(config);
            let mut tape = pass.inference_tape();
            let logits = pass.model.decoder.logits(&mut tape, &batch).to_vec_f32();
            let last = &logits[(row.len() - 1) * config.vocab_size..];
            let host = Device::host().as_cpu().unwrap();
            let uniform = [random.uniform(row.len() as u64)];
            row.extend(hone_tensor::distribution::draws(host, last, last.len(), &uniform));
        }
        Window { rows: vec![row] }
    };
    (0..count).map(window).collect()
}

fn golden() -> Value {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/imatrix.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// `scripts/golden_imatrix.py`: the mean of squares that PyTorch finds; and what is saved is read.
#[test]
fn importance_is_that_of_pytorch() {
    let device = Device::cpu(2);
    let Some((model, texts)) = stories(&device) else { return };
    let form = GgufForm::of(&model, &texts).unwrap();
    let pass = Pass { device: &device, model: &model, compute: Compute::F32 };
    let golden = golden();
    let rows: Vec<Vec<u32>> = serde_json::from_value(golden["rows"].clone()).unwrap();
    let windows = [Window { rows: rows[..2].to_vec() }, Window { rows: rows[2..].to_vec() }];
    let of = |device: &Device| {
        let pass = Pass { device, ..pass };
        importance(pass, &form, (&windows, vec!["golden".to_owned()]), &mut || ()).unwrap()
    };
    let found = of(&device);
    let expected = golden["tensors"].as_object().unwrap();
    assert_eq!(found.tensors.len(), expected.len());
    for (name, expected) in expected {
        let (sums, expected) = (&found.tensors[name], expected.as_array().unwrap());
        assert_eq!((sums.counts.len(), sums.squares.len()), (1, expected.len()), "{name}");
        assert_eq!(sums.counts[0] as usize, rows.iter().map(Vec::len).sum::<usize>());
        for (found, expected) in sums.squares.iter().zip(expected) {
            let found = f64::from(found / sums.counts[0]);
            let expected = expected.as_f64().unwrap();
            assert!(
                (found - expected).abs() <= 2e-4 * expected + 1e-9,
                "{name}: {found} {expected}"
            );
        }
    }
    assert_eq!(of(&Device::cpu(1)), found);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("imatrix.gguf");
    found.write(&path).unwrap();
    assert_eq!(Imatrix::read(&path).unwrap(), found);
    // Of another model.
    let mut other = found.clone();
    other.tensors.get_mut("blk.1.attn_q.weight").unwrap().squares.pop();
    let error = other.columns(form.tensors(), &path).unwrap_err().to_string();
    assert!(error.contains("`blk.1.attn_q.weight` has 63 sums") && error.contains("another"));
    // Numbers of which a mean is none.
    let mut tiny = found;
    tiny.tensors.get_mut("blk.1.attn_q.weight").unwrap().counts = vec![1e-39];
    let error = tiny.columns(form.tensors(), &path).unwrap_err().to_string();
    assert!(error.contains("mean squares of `blk.1.attn_q.weight` are too large"), "{error}");
}

/// What cannot be an importance matrix is not read to its end, which a device does not have.
#[test]
fn other_files_are_no_importance() {
    let dir = tempfile::tempdir().unwrap();
    let large = dir.path().join("model.safetensors");
    std::fs::File::create(&large).unwrap().set_len(1 << 40).unwrap();
    for path in [&large, Path::new("/dev/zero")] {
        let error = Imatrix::read(path).unwrap_err().to_string();
        assert!(error.contains("is no importance matrix"), "{error}");
    }
}

/// What is measured on windows is what an evaluation finds on the same tokens, however little.
#[test]
fn divergences_are_those_of_an_evaluation() {
    let device = Device::cpu(2);
    let Some((model, texts)) = stories(&device) else { return };
    let form = GgufForm::of(&model, &texts).unwrap();
    let pass = Pass { device: &device, model: &model, compute: Compute::F32 };
    let windows = windows(pass, 2, 7);
    let tensor = form.tensors().iter().find(|of| of.is_matrix()).unwrap();
    let own = form.matrix(&device, tensor.roles()[0], (DType::F32.into(), &[])).unwrap();
    let random = Philox::new(5, 0);
    for size in [1e-4, 1e-2] {
        let noise = |(i, x): (usize, &f32)| x + size * random.normal(i as u64);
        let other: Vec<f32> = own.f32().iter().enumerate().map(noise).collect();
        let other = Tensor::from_f32(&other, own.shape());
        let with = model.with_weights([(tensor.roles()[0], other)]);
        let measured = Meter::new(pass, &windows).unwrap().measure(&with).unwrap();
        let of_window = |window: &Window| {
            let batch = window.labelled(&model.decoder.config, &window.rows.concat());
            divergences([pass, Pass { model: &with, ..pass }], &batch).unwrap()
        };
        let found: Vec<_> = windows.iter().flat_map(of_window).collect();
        assert_eq!(measured.num_tokens, found.len());
        let mean = found.iter().map(|of| of.kl).sum::<f64>() / found.len() as f64;
        assert!(mean > 0.0 && (measured.kl / mean - 1.0).abs() < 1e-9, "{measured:?} {mean:e}");
        let same = found.iter().filter(|of| of.top[0] == of.top[1]).count();
        assert_eq!(measured.same_top, same as f64 / found.len() as f64);
    }
}

/// With small errors in a matrix the divergence is what gradients predict.
#[test]
fn costs_are_divergences_that_are_measured() {
    let device = Device::cpu(2);
    let Some((model, texts)) = stories(&device) else { return };
    let form = GgufForm::of(&model, &texts).unwrap();
    let pass = Pass { device: &device, model: &model, compute: Compute::F32 };
    let windows = windows(pass, 16, 0);
    let sensitivity = Sensitivity::measure(pass, &form, (&windows, room()), &mut || ()).unwrap();
    let meter = Meter::new(pass, &windows).unwrap();
    let (mut predicted, mut measured) = (Vec::new(), Vec::new());
    for (i, tensor) in form.tensors().iter().enumerate().filter(|(_, of)| of.is_matrix()) {
        let role = tensor.roles()[0];
        let own = form.matrix(&device, role, (DType::F32.into(), &[])).unwrap();
        // What 8 bits lose, several times, where rows can take them; else noise of its size.
        let other = match Storage::from_name("q8_0").unwrap().checked_num_bytes(own.shape()) {
            Ok(_) => {
                let storage = Storage::from_name("q5_0").unwrap();
                form.matrix(&device, role, (storage, &[])).unwrap().to_vec_f32()
            }
            Err(_) => {
                let random = Philox::new(5, i as u64);
                let noise = |(j, x): (usize, &f32)| x + 0.01 * random.normal(j as u64);
                own.f32().iter().enumerate().map(noise).collect()
            }
        };
        let other = Tensor::from_f32(&other, own.shape());
        predicted.push(sensitivity.cost((i, 0), [&own, &other]).unwrap());
        let with = model.with_weights([(role, other)]);
        measured.push(meter.measure(&with).unwrap().kl);
    }
    assert_eq!(predicted.len(), 36);
    let ratios: Vec<f64> = measured.iter().zip(&predicted).map(|(m, p)| m / p).collect();
    assert!(ratios.iter().all(|ratio| (0.3..3.0).contains(ratio)), "{ratios:?}");
    let sums = [&measured, &predicted].map(|of| of.iter().sum::<f64>());
    assert!((0.7..1.4).contains(&(sums[0] / sums[1])), "{sums:?}");
}
