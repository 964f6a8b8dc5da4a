//! Encoders' files: with and without heads, older names, what stays as it is.

use crate::fixture::{copy_of, export, load, logits, max_error, rewrite};
use hone_model::{Batch, Model, Recompute, Trained};
use hone_tensor::{Compute, DType, Device, Tape};
use safetensors::{Dtype, SafeTensors};
use std::collections::BTreeMap;

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
