//! Names of modules in adapters of models that transformers has in several classes.

use crate::fixture::{Golden, rewrite, set_key};
use hone_model::Model;
use hone_model::adapter::{self, LoraConfig, TargetModules};
use hone_tensor::{AdapterId, Device};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

const WEIGHTS: &str = "adapter_model.safetensors";
const CONFIG: &str = "adapter_config.json";

fn params(model: &Model) -> Vec<(String, Vec<f32>, f32)> {
    let scales: BTreeMap<_, f32> = model
        .decoder
        .projections()
        .flat_map(|(_, projection)| projection.adapters.clone())
        .flat_map(|lora| [(lora.a, lora.scale), (lora.b, lora.scale)])
        .collect();
    let param = |(id, name, value): (_, &str, &hone_tensor::Tensor)| {
        (name.to_owned(), value.f32().to_vec(), scales[&id])
    };
    model.params.iter().map(param).collect()
}

fn loaded(golden: &Golden, adapter: &Path) -> Result<(Model, LoraConfig), String> {
    let device = Device::cpu(1);
    let mut model = golden.base(&device);
    let notes = &mut |note: String| panic!("{note}");
    let config = adapter::load(adapter, &mut model, &device, notes);
    config.map(|config| (model, config)).map_err(|error| error.to_string())
}

/// Makes `config.json` that of `class`, with another part if `outer` says of which `model_type`.
fn set_class(golden: &Golden, outer: Option<&str>, class: Option<&str>) {
    let path = golden.dir.join("config.json");
    let text: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let mut config = match outer {
        Some(outer) => {
            json!({"model_type": outer, "text_config": text, "vision_config": {},
                   "tie_word_embeddings": text["tie_word_embeddings"]})
        }
        None => text,
    };
    config["architectures"] = class.map_or(Value::Null, |class| json!([class]));
    std::fs::write(&path, config.to_string()).unwrap();
}

/// Gives every tensor and pattern of the adapter `to` in place of `from`.
fn rename(dir: &Path, from: &str, to: &str) {
    let renamed = |name: &str| name.replacen(from, to, 1);
    rewrite(&dir.join(WEIGHTS), |tensors| {
        let old = std::mem::take(tensors).into_iter();
        *tensors = old.map(|(name, entry)| (renamed(&name), entry)).collect();
    });
}

/// Golden case, what its own blocks begin with, `model_type` of the whole, class, and what its
/// blocks begin with.
type Class = (&'static str, &'static str, Option<&'static str>, Option<&'static str>, &'static str);

const CLASSES: [Class; 18] = [
    ("gemma3", "model.", None, Some("Gemma3ForCausalLM"), "model."),
    ("gemma3", "model.", None, Some("Gemma3TextModel"), ""),
    ("gemma3", "model.", Some("gemma3"), None, "model.language_model."),
    (
        "gemma3",
        "model.",
        Some("gemma3"),
        Some("Gemma3ForConditionalGeneration"),
        "model.language_model.",
    ),
    ("gemma3", "model.", Some("gemma3"), Some("Gemma3Model"), "language_model."),
    ("qwen3_5", "model.", Some("qwen3_5"), None, "model."),
    ("qwen3_5", "model.", Some("qwen3_5"), Some("Qwen3_5ForCausalLM"), "model."),
    (
        "qwen3_5",
        "model.",
        Some("qwen3_5"),
        Some("Qwen3_5ForConditionalGeneration"),
        // `AutoModelForCausalLM` takes the text alone.
        "model.",
    ),
    (
        "ministral3",
        "model.",
        Some("mistral3"),
        Some("Mistral3ForConditionalGeneration"),
        "model.language_model.",
    ),
    ("tied_gqa", "model.", None, None, "model."),
    ("tied_gqa", "model.", None, Some("LlamaModel"), ""),
    ("tied_gqa", "model.", None, Some("LlamaForSequenceClassification"), "model."),
    ("bert", "bert.", None, Some("BertForMaskedLM"), "bert."),
    ("bert", "bert.", None, Some("BertModel"), ""),
    ("bert", "bert.", None, Some("BertLMHeadModel"), "bert."),
    ("roberta", "roberta.", None, Some("RobertaModel"), ""),
    ("modernbert", "model.", None, Some("ModernBertModel"), ""),
    ("modernbert", "model.", None, Some("ModernBertForMaskedLM"), "model."),
];

/// An adapter is written under the names that its model's class has, and read under those of any.
#[test]
fn adapters_have_the_names_of_their_class() {
    for (case, own, outer, class, prefix) in CLASSES {
        let (device, golden) = (Device::cpu(1), Golden::load(case));
        let (expected, mut config) = loaded(&golden, &golden.dir.join("adapter")).unwrap();
        set_class(&golden, outer, class);
        let (model, _) = loaded(&golden, &golden.dir.join("adapter")).unwrap();
        assert_eq!(params(&model), params(&expected), "{case} {class:?}");
        config.target_modules = TargetModules::Patterns(
            model.decoder.projections().filter_map(adapted).collect::<Vec<_>>(),
        );
        let dir = tempfile::tempdir().unwrap();
        adapter::save(dir.path(), &model, &device, AdapterId::default(), &config, "base").unwrap();
        let mut names = BTreeSet::new();
        rewrite(&dir.path().join(WEIGHTS), |tensors| names.extend(tensors.keys().cloned()));
        let peft = "base_model.model.";
        let as_class = |(name, ..): (String, _, _)| {
            name.replacen(&format!("{peft}{own}"), &format!("{peft}{prefix}"), 1)
        };
        let wanted: BTreeSet<String> = params(&expected).into_iter().map(as_class).collect();
        assert_eq!(names, wanted, "{case} {class:?}");
        let text = std::fs::read(dir.path().join(CONFIG)).unwrap();
        let written: Value = serde_json::from_slice(&text).unwrap();
        for target in written["target_modules"].as_array().unwrap() {
            let key = format!("{peft}{}.lora_A.weight", target.as_str().unwrap());
            assert!(names.contains(&key), "{case} {class:?}: {key}");
        }
        assert_eq!(params(&loaded(&golden, dir.path()).unwrap().0), params(&expected));
    }
}

fn adapted((name, projection): (String, &hone_tensor::Projection)) -> Option<String> {
    (!projection.adapters.is_empty()).then_some(name)
}

/// Settings of layers follow the names that the adapter's file has, whatever class that is.
#[test]
fn adapters_of_other_classes_are_read() {
    for (case, own, module, prefixes) in [
        (
            "gemma3",
            "model.",
            "layers.1.self_attn.q_proj",
            &["", "language_model.", "language_model.model.", "model.language_model."][..],
        ),
        ("bert", "bert.", "encoder.layer.1.output.dense", &["", "0.model.", "0.auto_model."]),
    ] {
        let golden = Golden::load(case);
        let (dir, peft) = (golden.dir.join("adapter"), "base_model.model.");
        let alpha = |name: &str| set_key(&dir.join(CONFIG), "alpha_pattern", json!({name: 3.0}));
        alpha(&format!("^{own}{module}"));
        let expected = params(&loaded(&golden, &dir).unwrap().0);
        assert!(expected.iter().any(|(.., scale)| *scale != expected[0].2), "{case}");
        let mut before = own;
        for prefix in prefixes {
            rename(&dir, &format!("{peft}{before}"), &format!("{peft}{prefix}"));
            alpha(&format!("^{prefix}{module}"));
            assert_eq!(params(&loaded(&golden, &dir).unwrap().0), expected, "{case} {prefix}");
            before = prefix;
        }
    }
}

/// Of two tensors that are of one layer, neither is dropped silently.
#[test]
fn names_of_two_classes_in_one_file_are_refused() {
    let golden = Golden::load("bert");
    let dir = golden.dir.join("adapter");
    let [own, bare] = ["bert.", ""].map(|prefix| {
        format!("base_model.model.{prefix}encoder.layer.0.output.dense.lora_A.weight")
    });
    rewrite(&dir.join(WEIGHTS), |tensors| {
        tensors.insert(bare.clone(), tensors[&own].clone());
    });
    let Err(error) = loaded(&golden, &dir) else { panic!("it loads") };
    for part in [WEIGHTS, &format!("`{own}`"), &format!("`{bare}`"), "of the same layer"] {
        assert!(error.contains(part), "{error}");
    }
}
