//! Adapters of fused experts, as PEFT writes them.

use crate::fixture::{
    Entry, Golden, goldens_dir, logits, max_error, pack, range, rewrite, set_key,
};
use crate::random_weights::write_checkpoint;
use hone_model::Model;
use hone_model::adapter::{self, LoraConfig, TargetModules};
use hone_tensor::{AdapterId, Compute, Device, Philox, Projection};
use safetensors::Dtype;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use tempfile::TempDir;

const CASE: &str = "qwen3_moe";
const NUM_EXPERTS: usize = 6;

/// PEFT's adapter, to be modified.
fn adapter_of(case: &str, name: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    write_checkpoint(&goldens_dir().join(case).join(name), dir.path());
    dir
}

fn loaded(golden: &Golden, dir: &Path) -> Result<(Model, LoraConfig), String> {
    let device = Device::cpu(2);
    let mut model = golden.base(&device);
    let config = adapter::load(dir, &mut model, &device, &mut |_| ());
    config.map(|config| (model, config)).map_err(|error| error.to_string())
}

fn params(model: &Model) -> Vec<(String, Vec<f32>)> {
    model.params.iter().map(|(_, name, value)| (name.to_owned(), value.f32().to_vec())).collect()
}

#[test]
fn logits_with_an_adapter_of_parameters() {
    // Which blocks have queries, and which of those experts.
    for (case, queries, experts) in [
        (CASE, &[0, 1, 2][..], &[0, 2][..]),
        ("mixtral", &[0, 1], &[0, 1]),
        ("qwen3_5_moe", &[1], &[0, 1]),
        ("gpt_oss", &[0, 1], &[0, 1]),
    ] {
        let (golden, dir) = (Golden::load(case), adapter_of(case, "adapter_fused"));
        let (model, config) = loaded(&golden, dir.path()).unwrap();
        let batch = pack(&model.decoder.config, &golden.samples(), 0);
        let found = logits(&model, &Device::cpu(2), Compute::F32, &batch);
        let expected = golden.of_sequences("logits_fused").concat();
        let error = max_error(&found, &expected) / range(&expected);
        assert!(error <= 1e-4, "{case}: {error:e}");
        let (device, again) = (Device::cpu(1), tempfile::tempdir().unwrap());
        let id = AdapterId::default();
        adapter::save(again.path(), &model, &device, id, &config, "base").unwrap();
        let written = std::fs::read(again.path().join("adapter_config.json")).unwrap();
        let written: Value = serde_json::from_slice(&written).unwrap();
        let names = |layers: &[usize], module: &str| -> Vec<String> {
            layers.iter().map(|i| format!("model.layers.{i}.{module}")).collect()
        };
        assert_eq!(written["target_modules"], json!(names(queries, "self_attn.q_proj")));
        // PEFT's names are those in memory, as of Mixtral, whose experts are elsewhere on disk.
        let parameters: BTreeSet<String> = ["gate_up_proj", "down_proj"]
            .iter()
            .flat_map(|name| names(experts, &format!("mlp.experts.{name}")))
            .collect();
        let found = written["target_parameters"].as_array().unwrap().iter();
        assert_eq!(
            found.map(|name| name.as_str().unwrap().to_owned()).collect::<BTreeSet<_>>(),
            parameters
        );
        let (reloaded, _) = loaded(&golden, again.path()).unwrap();
        assert_eq!(params(&reloaded), params(&model));
    }
}

/// Those of every family with experts come back as they were written: ranks and scales, which the
/// settings give by the names of parameters, and logits.
#[test]
fn adapters_of_all_layers_come_back() {
    let (device, everything) = (Device::cpu(2), vec!["*".to_owned()]);
    let mut with_experts = BTreeSet::new();
    for golden in Golden::all() {
        let base = golden.base(&device);
        if base.decoder.config.layers.iter().all(|layer| layer.mlp.experts.is_none()) {
            continue;
        }
        let case = golden.dir.file_name().unwrap().display().to_string();
        let targets = [TargetModules::AllLinear, TargetModules::Patterns(everything.clone())];
        for (target_modules, use_rslora) in targets.into_iter().zip([false, true]) {
            let (rank, alpha, dropout, share_experts) = (3, 5.0, 0.0, false);
            let config =
                LoraConfig { rank, alpha, dropout, target_modules, use_rslora, share_experts };
            let mut model = golden.base(&device);
            adapter::attach(&mut model, &device, &config, 1).unwrap();
            for (i, value) in model.params.values_mut().enumerate() {
                let random = Philox::new(7, i as u64);
                let values = (0..value.len() as u64).map(|at| 0.2 * random.uniform(at) - 0.1);
                value.copy_from_f32(&values.collect::<Vec<_>>());
            }
            let dir = tempfile::tempdir().unwrap();
            let id = AdapterId::default();
            adapter::save(dir.path(), &model, &device, id, &config, "base").unwrap();
            let (again, _) = loaded(&golden, dir.path()).unwrap();
            assert_eq!(sizes(&again), sizes(&model), "{case}");
            assert!(params(&again) == params(&model), "{case}");
            let batch = pack(&model.decoder.config, &golden.samples(), 0);
            let logits = |model: &Model| logits(model, &device, Compute::F32, &batch);
            assert!(logits(&again) == logits(&model), "{case}");
            assert!(logits(&model) != logits(&base), "{case}");
        }
        with_experts.insert(case);
    }
    assert!(with_experts.contains("gemma4_moe") && with_experts.contains(CASE));
}

/// Rank and scale of each module's adapter.
fn sizes(model: &Model) -> Vec<(String, usize, f32)> {
    let adapted = |(name, projection): (String, &Projection)| {
        projection.adapters.first().map(|lora| (name, lora.rank, lora.scale))
    };
    model.decoder.projections().filter_map(adapted).collect()
}

/// As PEFT saves an adapter of modules that it has loaded into fused experts.
#[test]
fn an_adapter_of_modules_that_was_fused_comes_back() {
    let (golden, dir) = (Golden::load(CASE), adapter_of(CASE, "adapter"));
    let (expected, config) = loaded(&golden, dir.path()).unwrap();
    rewrite(&dir.path().join("adapter_model.safetensors"), fuse);
    let file = dir.path().join("adapter_config.json");
    set_key(&file, "rank_pattern", json!({".*\\.gate_up_proj": 8}));
    set_key(&file, "alpha_pattern", json!({".*\\.gate_up_proj": 16.0}));
    set_key(&file, "target_modules", json!(["k_proj", "v_proj", "q_proj", "o_proj"]));
    set_key(&file, "target_parameters", json!(["down_proj", "gate_up_proj"]));
    let (found, found_config) = loaded(&golden, dir.path()).unwrap();
    assert_eq!(params(&found), params(&expected));
    assert_eq!(found_config, config);
    assert!(matches!(config.target_modules, TargetModules::Patterns(names) if names.len() == 48));
    let scales = |model: Model| -> Vec<(usize, f32)> {
        let projections = model.decoder.projections();
        projections.flat_map(|(_, p)| p.adapters.clone()).map(|l| (l.rank, l.scale)).collect()
    };
    assert_eq!(scales(found), scales(expected));
    // Experts and ranks in the other order have other shapes unless there are as many.
    let a = "base_model.model.model.layers.0.mlp.experts.lora_A.weight";
    rewrite(&dir.path().join("adapter_model.safetensors"), |tensors| {
        tensors.get_mut(a).unwrap().1 = vec![10, 24];
    });
    let message = loaded(&golden, dir.path()).err().expect("another shape");
    let shapes = "have shapes [10, 24] and [24, 24], which are not those of an adapter of 6 \
                  experts with [20, 24] or [24, 10] weights each";
    assert!(message.contains(a) && message.contains(shapes), "{message}");
}

/// Replaces the matrices of each expert by those of all.
fn fuse(tensors: &mut BTreeMap<String, Entry>) {
    for layer in [0, 2] {
        let experts = format!("base_model.model.model.layers.{layer}.mlp.experts");
        for (outer, parts) in [(".base_layer", &["gate_proj", "up_proj"][..]), ("", &["down_proj"])]
        {
            let mut take = |which: &str| {
                let name = |e, part| format!("{experts}.{e}.{part}.lora_{which}.weight");
                let of = |e| parts.iter().map(move |part| name(e, part));
                let mut take =
                    |name: String| Matrix::of(&tensors.remove(&name).expect("its tensor"));
                let of_expert = |e| of(e).map(&mut take).collect();
                (0..NUM_EXPERTS).map(of_expert).collect::<Vec<Vec<Matrix>>>()
            };
            let (a, b) = (take("A"), take("B"));
            let (n, r) = (b[0][0].rows, b[0][0].cols);
            let rows = a.iter().flatten().flat_map(|a| a.values.clone()).collect();
            let k = a[0][0].cols;
            let fused_a = Matrix { rows: NUM_EXPERTS * parts.len() * r, cols: k, values: rows };
            let mut fused_b = Matrix::zeros(parts.len() * n, parts.len() * r * NUM_EXPERTS);
            for (e, blocks) in b.iter().enumerate() {
                for (part, block) in blocks.iter().enumerate() {
                    for (i, value) in block.values.iter().enumerate() {
                        let (row, rank) = (part * n + i / r, part * r + i % r);
                        fused_b.values[row * fused_b.cols + rank * NUM_EXPERTS + e] = *value;
                    }
                }
            }
            for (which, matrix) in [("A", fused_a), ("B", fused_b)] {
                tensors.insert(format!("{experts}{outer}.lora_{which}.weight"), matrix.entry());
            }
        }
    }
}

struct Matrix {
    rows: usize,
    cols: usize,
    values: Vec<f32>,
}

impl Matrix {
    fn zeros(rows: usize, cols: usize) -> Self {
        Self { rows, cols, values: vec![0.0; rows * cols] }
    }

    fn of((_, shape, bytes): &Entry) -> Self {
        let values = bytes.as_chunks().0.iter().map(|&word| f32::from_le_bytes(word)).collect();
        Self { rows: shape[0], cols: shape[1], values }
    }

    fn entry(&self) -> Entry {
        let bytes = self.values.iter().flat_map(|x| x.to_le_bytes()).collect();
        (Dtype::F32, vec![self.rows, self.cols], bytes)
    }
}

/// Of a text model that transformers loads among other parts, modules are within one more.
#[test]
fn adapters_of_a_text_part_have_the_names_of_the_whole() {
    check_names_of_the_whole("gemma3", "gemma3", 21);
    check_names_of_the_whole("gemma4_small", "gemma4", 42);
}

fn check_names_of_the_whole(case: &str, outer_type: &str, num_modules: usize) {
    let (device, golden) = (Device::cpu(1), Golden::load(case));
    let path = golden.dir.join("config.json");
    let text: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let outer = json!({"model_type": outer_type, "text_config": text, "vision_config": {}});
    std::fs::write(&path, outer.to_string()).unwrap();
    // Written by PEFT for the text model alone.
    let file = golden.dir.join("adapter/adapter_config.json");
    set_key(&file, "alpha_pattern", json!({"layers.1.self_attn.q_proj": 3.0}));
    let (model, mut config) = loaded(&golden, &golden.dir.join("adapter")).unwrap();
    config.target_modules = TargetModules::AllLinear;
    let scales = |model: &Model| -> Vec<f32> {
        let projections = model.decoder.projections();
        projections.flat_map(|(_, p)| p.adapters.clone()).map(|lora| lora.scale).collect()
    };
    assert!(scales(&model).iter().any(|scale| *scale != scales(&model)[0]));
    let dir = tempfile::tempdir().unwrap();
    adapter::save(dir.path(), &model, &device, AdapterId::default(), &config, "base").unwrap();
    let written = std::fs::read(dir.path().join("adapter_config.json")).unwrap();
    let written: Value = serde_json::from_slice(&written).unwrap();
    // Short names would be those of a vision tower too.
    let targets = written["target_modules"].as_array().unwrap();
    let is_whole = |name: &str| name.starts_with("model.language_model.");
    assert!(
        targets.len() == num_modules && targets.iter().all(|name| is_whole(name.as_str().unwrap()))
    );
    rewrite(&dir.path().join("adapter_model.safetensors"), |tensors| {
        assert_eq!(tensors.len(), 2 * num_modules);
        assert!(tensors.keys().all(|key| is_whole(key.strip_prefix("base_model.model.").unwrap())));
    });
    let (reloaded, _) = loaded(&golden, dir.path()).unwrap();
    assert_eq!((params(&reloaded), scales(&reloaded)), (params(&model), scales(&model)));
}
