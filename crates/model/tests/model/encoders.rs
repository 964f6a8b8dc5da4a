//! Encoders' files: with and without heads, older names, what stays as it is.

use crate::fixture::{Entry, copy_of, export, load, logits, max_error, rewrite, set_key};
use hone_model::heads::HeadKind;
use hone_model::{Batch, LoadOptions, Model, Recompute, Trained};
use hone_tensor::{Compute, DType, Device, Tape};
use safetensors::{Dtype, SafeTensors};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::Path;

const TOKENS: [u32; 5] = [3, 9, 1, 30, 7];

fn hidden(model: &Model, device: &Device) -> Vec<f32> {
    let batch = Batch::from_sequence(&model.decoder.config, &TOKENS);
    let mut tape = Tape::inference(device, &model.params, Compute::F32);
    model.decoder.hidden(&mut tape, &batch, Recompute::None).value().to_vec_f32()
}

/// Files of a bare encoder, with the names of years ago and a pooler: the same hidden states, and
/// logits that are products with the embedding. An export keeps names and pooler.
#[test]
fn bare_encoders_with_older_names() {
    let (device, dir) = (Device::cpu(1), copy_of("bert"));
    let whole = load(dir.path(), &device, None, Trained::Nothing);
    let expected = hidden(&whole, &device);
    let file = dir.path().join("model.safetensors");
    let pooler: Vec<u8> = (0..24 * 24).flat_map(|i| (i as f32).to_le_bytes()).collect();
    rewrite(&file, |tensors| {
        let older = |name: &str| {
            let bare = name.strip_prefix("bert.")?;
            let bare = bare.replace("LayerNorm.weight", "LayerNorm.gamma");
            Some(bare.replace("LayerNorm.bias", "LayerNorm.beta"))
        };
        let renamed = std::mem::take(tensors).into_iter();
        *tensors = renamed.filter_map(|(name, entry)| Some((older(&name)?, entry))).collect();
        let entry = (Dtype::F32, vec![24, 24], pooler.clone());
        tensors.insert("pooler.dense.weight".to_owned(), entry);
        let ids: Vec<u8> = (0..20i64).flat_map(i64::to_le_bytes).collect();
        tensors.insert("embeddings.position_ids".to_owned(), (Dtype::I64, vec![1, 20], ids));
    });
    let bare = load(dir.path(), &device, None, Trained::Nothing);
    assert_eq!(hidden(&bare, &device), expected);
    assert!(bare.decoder.config.encoder.as_ref().unwrap().head.is_none());
    let batch = Batch::from_sequence(&bare.decoder.config, &TOKENS);
    let of_embedding = logits(&bare, &device, Compute::F32, &batch);
    assert!(of_embedding != logits(&whole, &device, Compute::F32, &batch));

    let out = tempfile::tempdir().unwrap();
    export(&bare, &device, dir.path(), DType::F32, out.path()).unwrap();
    let read = |path| std::fs::read(path).unwrap();
    let (before, after) = (read(file), read(out.path().join("model.safetensors")));
    let bytes_of = |file: &[u8]| -> BTreeMap<String, Vec<u8>> {
        let tensors = SafeTensors::deserialize(file).unwrap();
        let entry = |(name, tensor): (String, safetensors::tensor::TensorView<'_>)| {
            (name, tensor.data().to_vec())
        };
        tensors.tensors().into_iter().map(entry).collect()
    };
    let (mut before, after) = (bytes_of(&before), bytes_of(&after));
    before.remove("embeddings.position_ids");
    assert!(before == after, "{:?}", after.keys());
    let again = load(out.path(), &device, None, Trained::Nothing);
    assert_eq!(hidden(&again, &device), expected);
}

/// The bias of logits may be under its second name only, or under both.
#[test]
fn both_names_of_a_logit_bias() {
    let device = Device::cpu(1);
    let of = |dir: &tempfile::TempDir| {
        let model = load(dir.path(), &device, None, Trained::Nothing);
        let batch = Batch::from_sequence(&model.decoder.config, &TOKENS);
        logits(&model, &device, Compute::F32, &batch)
    };
    for (case, name, second) in [
        ("bert", "cls.predictions.bias", "cls.predictions.decoder.bias"),
        ("roberta", "lm_head.bias", "lm_head.decoder.bias"),
    ] {
        let dir = copy_of(case);
        let (expected, file) = (of(&dir), dir.path().join("model.safetensors"));
        rewrite(&file, |tensors| {
            tensors.insert(second.to_owned(), tensors[name].clone());
        });
        assert_eq!(max_error(&of(&dir), &expected), 0.0, "{case}, both");
        rewrite(&file, |tensors| {
            tensors.remove(name);
        });
        assert_eq!(max_error(&of(&dir), &expected), 0.0, "{case}, the second");
    }
}

/// Golden case, class, what files of it lack, the head's kind, and its modules, each with rows and,
/// of matrices, columns.
type Headed = (
    &'static str,
    &'static str,
    &'static [&'static str],
    HeadKind,
    &'static [(&'static str, usize, Option<usize>, bool)],
);

/// Heads of transformers' classes, as `save_pretrained` writes them, with three labels.
const HEADED: [Headed; 9] = [
    (
        "bert",
        "BertForSequenceClassification",
        &["cls."],
        HeadKind::Classifier,
        &[("classifier", 3, Some(24), true)],
    ),
    (
        "bert",
        "BertForQuestionAnswering",
        &["cls."],
        HeadKind::Answers,
        &[("qa_outputs", 2, Some(24), true)],
    ),
    (
        "bert",
        "BertForPreTraining",
        &[],
        HeadKind::NextSentence,
        &[("cls.seq_relationship", 2, Some(24), true)],
    ),
    (
        "bert",
        "BertModel",
        &["cls."],
        HeadKind::Pooler,
        &[("bert.pooler.dense", 24, Some(24), true)],
    ),
    (
        "roberta",
        "RobertaForSequenceClassification",
        &["lm_head."],
        HeadKind::Classifier,
        &[("classifier.dense", 24, Some(24), true), ("classifier.out_proj", 3, Some(24), true)],
    ),
    (
        "roberta",
        "RobertaForTokenClassification",
        &["lm_head."],
        HeadKind::Classifier,
        &[("classifier", 3, Some(24), true)],
    ),
    (
        "modernbert",
        "ModernBertForSequenceClassification",
        &["decoder."],
        HeadKind::Classifier,
        &[
            ("head.dense", 24, Some(24), false),
            ("head.norm", 24, None, false),
            ("classifier", 3, Some(24), true),
        ],
    ),
    (
        "distilbert",
        "DistilBertForSequenceClassification",
        &["vocab_"],
        HeadKind::Classifier,
        &[("pre_classifier", 24, Some(24), true), ("classifier", 3, Some(24), true)],
    ),
    (
        "untied_bias_linear",
        "LlamaForSequenceClassification",
        &["lm_head."],
        HeadKind::Classifier,
        &[("score", 3, None, false)],
    ),
];

fn tensors_of(dir: &Path) -> BTreeMap<String, Entry> {
    let mut found = BTreeMap::new();
    rewrite(&dir.join("model.safetensors"), |tensors| found.clone_from(tensors));
    found
}

/// Heads for other tasks have a place, whatever the family; they are written back byte for byte,
/// and what reads hidden states alone works as ever.
#[test]
fn heads_for_other_tasks() {
    let device = Device::cpu(1);
    for (case, class, lacking, kind, modules) in HEADED {
        let dir = copy_of(case);
        let before = load(dir.path(), &device, None, Trained::Nothing);
        let (expected, h) = (hidden(&before, &device), before.decoder.config.hidden_size);
        set_key(&dir.path().join("config.json"), "architectures", json!([class]));
        let labels = json!({"0": "bad", "1": "fair", "2": "good"});
        set_key(&dir.path().join("config.json"), "id2label", labels);
        let mut added = BTreeMap::new();
        for &(module, rows, cols, has_bias) in modules {
            let is_norm = module.ends_with("norm");
            let matrix = if is_norm { vec![rows] } else { vec![rows, cols.unwrap_or(h)] };
            let bias = has_bias.then_some(("bias", vec![rows]));
            for (end, shape) in [("weight", matrix)].into_iter().chain(bias) {
                let len = shape.iter().product::<usize>() as u16;
                let bytes = (0..len).flat_map(|i| half(i).to_le_bytes()).collect();
                added.insert(format!("{module}.{end}"), (Dtype::F16, shape, bytes));
            }
        }
        rewrite(&dir.path().join("model.safetensors"), |tensors| {
            tensors.retain(|name, _| !lacking.iter().any(|lacking| name.starts_with(lacking)));
            tensors.extend(added.clone());
        });
        let model = load(dir.path(), &device, None, Trained::Nothing);
        let [head] = &model.decoder.config.heads[..] else { panic!("{class}: one head") };
        let found: Vec<&str> = head.modules().collect();
        let names: Vec<&str> = modules.iter().map(|(name, ..)| *name).collect();
        assert_eq!((head.kind, found), (kind, names), "{class}");
        let classes = [HeadKind::Classifier].contains(&kind).then_some(3);
        assert!(classes.is_none() || head.num_labels() == classes, "{class}");
        assert_eq!(hidden(&model, &device), expected, "{class}");
        let is_decoder = model.decoder.config.encoder.is_none();
        assert_eq!(model.decoder.config.lacks_lm_head, is_decoder, "{class}");
        // Trained or not, of the same type or another.
        let all = load(dir.path(), &device, None, Trained::All);
        for (model, dtype) in [(&model, DType::F32), (&all, DType::F32), (&model, DType::Bf16)] {
            let out = tempfile::tempdir().unwrap();
            export(model, &device, dir.path(), dtype, out.path()).unwrap();
            let (kept, before) = (tensors_of(out.path()), tensors_of(dir.path()));
            assert!(added.iter().all(|(name, entry)| kept.get(name) == Some(entry)), "{class}");
            assert!(kept.keys().eq(before.keys()), "{class}: {:?}", kept.keys());
        }
        let (name, entry) = added.iter().next_back().unwrap();
        let (dtype, mut shape, mut bytes) = entry.clone();
        shape[0] += 1;
        bytes.resize(2 * shape.iter().product::<usize>(), 0);
        let named = name.clone();
        rewrite(&dir.path().join("model.safetensors"), |tensors| {
            tensors.insert(named, (dtype, shape, bytes));
        });
        // Without labels in the configuration, weight and bias contradict each other.
        let module = name.strip_suffix("weight").unwrap();
        let Err(error) = hone_model::load(dir.path(), &device, LoadOptions::INFERENCE) else {
            panic!("{class}: it loads");
        };
        let says = format!("tensor `{module}");
        assert!(error.to_string().contains(&says), "{error}");
        assert!(error.to_string().contains("has shape"), "{error}");
    }
}

/// A number of 16 bits that is finite as f16.
fn half(i: u16) -> u16 {
    0x3000 | i & 0x0fff
}
