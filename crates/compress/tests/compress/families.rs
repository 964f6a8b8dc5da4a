//! Roundings of models of other families than Llama: heads of their own, biases, experts, norms
//! around blocks, linear attention.

#[path = "../../../model/tests/model/random_weights.rs"]
mod random_weights;

use crate::calibration::{room, windows};
use crate::rounding::storages;
use hone_compress::{Columns, Meter, ReadBack, Schedule, fed_back, packed, read_back, tune};
use hone_model::{GgufForm, LoadOptions, Model, ModelTexts, Pass};
use hone_tensor::{Compute, DType, Device, Storage, Tensor};
use random_weights::write_checkpoint;
use serde_json::Value;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

type Case = (&'static str, &'static [[u64; 2]], &'static [&'static str]);

/// Golden models of `hone-model`, which of their sizes become which, so that rows are of whole
/// blocks, and what GGUF files cannot say of them.
const CASES: [Case; 6] = [
    ("qwen2", &[[24, 96], [12, 48], [11, 64]], &["use_sliding_window", "sliding_window"]),
    ("mixtral", &[[24, 96], [12, 48], [11, 64]], &["sliding_window"]),
    ("olmoe", &[[24, 96], [12, 48], [11, 64]], &[]),
    ("gemma3", &[[12, 64]], &["query_pre_attn_scalar"]),
    ("gpt_oss", &[[24, 96], [11, 64], [22, 128]], &["layer_types"]),
    ("qwen3_5", &[[24, 96], [11, 64], [56, 128], [6, 24]], &[]),
];

/// Widths in a `config.json`.
const WIDTHS: [&str; 3] = ["hidden_size", "intermediate_size", "linear_value_head_dim"];

fn read(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// The case with other sizes, and without some keys.
fn wide((case, sizes, unsaid): Case) -> TempDir {
    let goldens = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../model/tests/goldens");
    let (from, dir) = (goldens.join(case), tempfile::tempdir().unwrap());
    let sizes: HashMap<u64, u64> = sizes.iter().map(|[from, to]| (*from, *to)).collect();
    let change = |size: &mut Value| {
        if let Some(to) = size.as_u64().and_then(|size| sizes.get(&size)) {
            *size = (*to).into();
        }
    };
    let mut config = read(&from.join("config.json"));
    WIDTHS.iter().for_each(|key| config.get_mut(key).into_iter().for_each(change));
    config.as_object_mut().unwrap().retain(|key, _| !unsaid.contains(&key.as_str()));
    let mut weights = read(&from.join("weights.json"));
    let files = weights["files"].as_object_mut().unwrap().values_mut();
    for tensor in files.flat_map(|file| file.as_object_mut().unwrap().values_mut()) {
        let shape = tensor[0].as_array_mut().unwrap();
        shape.iter_mut().for_each(change);
        if shape.len() > 1 {
            // Sums of more products, and predictions that are not certain.
            tensor[2] = (0.5 * tensor[2].as_f64().unwrap()).into();
        }
    }
    let source = dir.path().join("source");
    std::fs::create_dir(&source).unwrap();
    for (name, value) in [("config.json", &config), ("weights.json", &weights)] {
        std::fs::write(source.join(name), value.to_string()).unwrap();
    }
    write_checkpoint(&source, dir.path());
    dir
}

/// A file of each model is read back with the weights that were meant, and one of which a matrix is
/// another is not.
fn check_files(form: &GgufForm<'_>, models: [&Model; 2], storages: &[Storage], dir: &Path) {
    let (device, columns, path) = (&Device::cpu(2), Columns::default(), dir.join("m.gguf"));
    for model in models {
        let written = form.with_model(model);
        written.write(device, (storages, &|_, _| &[]), &path).unwrap();
        let read = hone_model::load(&path, device, LoadOptions::INFERENCE).unwrap();
        let back = |found: &Model| {
            let forms = [form, &written, &form.with_model(found)];
            read_back(device, forms, (storages, &columns)).unwrap()
        };
        let ReadBack { differs, worst } = back(&read);
        assert_eq!(differs, None);
        assert!(worst.is_some_and(|(_, error)| (1e-4..0.1).contains(&error)));
        let role = form.tensors()[0].roles()[0];
        let matrix = form.matrix(device, role, (DType::F32.into(), &[])).unwrap();
        let rows = matrix.f32().chunks(matrix.shape()[1]);
        let reversed: Vec<f32> = rows.rev().flatten().copied().collect();
        let other = read.with_weights([(role, Tensor::from_f32(&reversed, matrix.shape()))]);
        assert_eq!(back(&other).differs.as_deref(), Some(&*form.tensors()[0].name));
    }
}

#[test]
fn feedback_and_learning_lose_less_in_all_families() {
    let device = Device::cpu(2);
    for case in CASES {
        let (case, dir) = (case.0, wide(case));
        let model = hone_model::load(dir.path(), &device, LoadOptions::INFERENCE).unwrap();
        let texts =
            ModelTexts { config: read(&dir.path().join("config.json")), ..ModelTexts::default() };
        let form = GgufForm::of(&model, &texts).unwrap();
        let pass = Pass { device: &device, model: &model, compute: Compute::F32 };
        let (seen, other) = (windows(pass, 12, 0), windows(pass, 6, 500));
        let meter = Meter::new(pass, &other).unwrap();
        let kl = |model: &Model| meter.measure(model).unwrap().kl;
        let storages = storages(&form, ["q4_0", "iq4_nl"]);
        let of = (&storages[..], &Columns::default());
        let nearest = packed(pass, &form, of, &|_, _| None).unwrap();
        let text = (&seen[..], room());
        let fed = fed_back(pass, &form, &nearest, text, &|_, _| None, &mut |_| ()).unwrap();
        let schedule = Schedule { steps: 8, tokens_per_step: 160 };
        let tuned = tune(pass, &form, &fed, (&seen, schedule), None, &mut |_| ()).unwrap();
        check_files(&form, [&model, &tuned], &storages, dir.path());
        let found = [&nearest, &fed, &tuned].map(kl);
        assert!(found[1] < 0.9 * found[0] && found[2] < 0.9 * found[0], "{case}: {found:?}");
    }
}
