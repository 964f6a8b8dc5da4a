//! Roundings of models of other families than Llama: heads of their own, biases, experts, norms
//! around blocks, linear attention.

#[path = "../../../model/tests/model/random_weights.rs"]
mod random_weights;

use crate::calibration::{room, windows};
use crate::rounding::storages;
use hone_compress::{Columns, Meter, Schedule, fed_back, packed, tune};
use hone_model::{GgufForm, LoadOptions, Model, ModelTexts, Pass};
use hone_tensor::{Compute, Device};
use random_weights::write_checkpoint;
use serde_json::Value;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// Golden models of `hone-model`, and which of their sizes become which, so that rows are of whole
/// blocks.
const CASES: [(&str, &[[u64; 2]]); 6] = [
    ("qwen2", &[[24, 96], [12, 48], [11, 64]]),
    ("mixtral", &[[24, 96], [12, 48], [11, 64]]),
    ("olmoe", &[[24, 96], [12, 48], [11, 64]]),
    ("gemma3", &[[12, 64]]),
    ("gpt_oss", &[[24, 96], [11, 64], [22, 128]]),
    ("qwen3_5", &[[24, 96], [11, 64], [56, 128], [6, 24]]),
];

/// Widths in a `config.json`.
const WIDTHS: [&str; 3] = ["hidden_size", "intermediate_size", "linear_value_head_dim"];

fn read(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// The case with other sizes.
fn wide(case: &str, sizes: &[[u64; 2]]) -> TempDir {
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

#[test]
fn feedback_and_learning_lose_less_in_all_families() {
    let device = Device::cpu(2);
    for (case, sizes) in CASES {
        let dir = wide(case, sizes);
        let model = hone_model::load(dir.path(), &device, LoadOptions::INFERENCE).unwrap();
        let texts =
            ModelTexts { config: read(&dir.path().join("config.json")), ..ModelTexts::default() };
        let form = GgufForm::of(&model, &texts).unwrap();
        let pass = Pass { device: &device, model: &model, compute: Compute::F32 };
        let (seen, other) = (windows(pass, 24, 0), windows(pass, 8, 500));
        let meter = Meter::new(pass, &other).unwrap();
        let kl = |model: &Model| meter.measure(model).unwrap().kl;
        let storages = storages(&form, ["q4_0", "iq4_nl"]);
        let of = (&storages[..], &Columns::default());
        let nearest = packed(pass, &form, of, &|_, _| None).unwrap();
        let text = (&seen[..], room());
        let fed = fed_back(pass, &form, &nearest, text, &|_, _| None, &mut |_| ()).unwrap();
        let schedule = Schedule { steps: 12, tokens_per_step: 320 };
        let tuned = tune(pass, &form, &fed, (&seen, schedule), None, &mut |_| ()).unwrap();
        let found = [&nearest, &fed, &tuned].map(kl);
        assert!(found[1] < 0.9 * found[0] && found[2] < 0.9 * found[0], "{case}: {found:?}");
    }
}
