//! GGUF files that Hone writes: the bytes of llama.cpp's conversion, and what is refused.

use crate::fixture::{Golden, copy_of, load, logits, max_error, pack, range};
use crate::gguf::{CASES, set_unsaid};
use crate::gguf_files::from_directory;
use hone_model::{DecoderConfig, GgufForm, LoadOptions, Model, ModelTexts, Trained};
use hone_tensor::gguf::{self, GgufFile};
use hone_tensor::{Compute, DType, Device, Storage};
use std::path::Path;

fn texts(dir: &Path) -> ModelTexts {
    let config = std::fs::read(dir.join("config.json")).unwrap();
    ModelTexts { config: serde_json::from_slice(&config).unwrap(), ..ModelTexts::default() }
}

pub fn written(model: &Model, dir: &Path, storage: Storage, path: &Path) -> Result<(), String> {
    let form = GgufForm::of(model, &texts(dir)).map_err(|error| error.to_string())?;
    let storages = vec![storage; form.tensors().len()];
    form.write(&Device::cpu(2), (&storages, &|_, _| &[]), path).map_err(|error| error.to_string())
}

fn logits_of(model: &Model, golden: &Golden) -> Vec<f32> {
    let batch = pack(&model.decoder.config, &golden.samples(), 0);
    logits(model, &Device::cpu(2), Compute::F32, &batch)
}

/// A value's elements as text; floats to six digits.
fn elements(value: Option<gguf::Value<'_>>) -> Vec<String> {
    match value {
        None => vec!["nothing".to_owned()],
        Some(gguf::Value::Array(array)) => {
            array.iter().flat_map(|element| elements(element.ok())).collect()
        }
        Some(gguf::Value::Float(x)) => vec![format!("{x:.6e}")],
        Some(other) => vec![format!("{other:?}")],
    }
}

/// Key by key and tensor by tensor what the conversion writes, and read back the same logits.
#[test]
fn files_are_those_of_the_conversion() {
    let mut refused = Vec::new();
    for (case, unsaid) in CASES {
        let (golden, dir) = (Golden::load(case), copy_of(case));
        set_unsaid(case, dir.path(), unsaid);
        let model = load(dir.path(), &Device::cpu(2), None, Trained::Nothing);
        let [ours, theirs] = ["ours.gguf", "theirs.gguf"].map(|name| dir.path().join(name));
        if let Err(error) = written(&model, dir.path(), DType::F32.into(), &ours) {
            refused.push((case, error.split(" has no form").next().unwrap().to_owned()));
            continue;
        }
        std::fs::write(&theirs, from_directory(dir.path()).bytes()).unwrap();
        let [found, expected] = [&ours, &theirs].map(|path| GgufFile::open(path).unwrap());
        let names: Vec<&str> = expected.names().collect();
        assert!(found.names().eq(names.iter().copied()), "{case}");
        for key in expected.keys() {
            let [found, expected] = [&found, &expected].map(|file| elements(file.get(key)));
            assert_eq!(found, expected, "{case} {key}");
        }
        for name in names {
            let [found, expected] = [&found, &expected].map(|file| file.tensor(name).unwrap());
            let is_same = found.shape() == expected.shape()
                || found.len() == expected.len() && found.shape().starts_with(&[1]);
            assert!(is_same, "{case} {name}: {:?}, {:?}", found.shape(), expected.shape());
            let [found, expected] = [found, expected].map(|tensor| tensor.to_vec_f32());
            let off = max_error(&found, &expected) / range(&expected).max(1.0);
            let is_close = off < 1e-6 && (name.contains("rope_") || name.contains("ssm_a"));
            assert!(off == 0.0 || is_close, "{case} {name} {off}");
        }
        let config = DecoderConfig::load(&ours).unwrap();
        assert_eq!(config.layers, model.decoder.config.layers, "{case}");
        let read = hone_model::load(&ours, &Device::cpu(2), LoadOptions::INFERENCE).unwrap();
        let [found, expected] = [&read, &model].map(|model| logits_of(model, &golden));
        let off = max_error(&found, &expected) / range(&expected);
        assert!(off == 0.0 || case.starts_with("qwen3_5") && off < 1e-6, "{case} {off}");
    }
    // What llama.cpp's loader does not know of these architectures.
    let expected = [
        ("yarn", "YaRN with bounds of its own (`beta_fast`, `beta_slow`)"),
        (
            "qwen3_moe",
            "a block without experts among blocks with them in a model of type `qwen3_moe`",
        ),
        ("olmo2", "a head that is tied to the embedding in a model of type `olmo2`"),
        ("olmo3", "a head that is tied to the embedding in a model of type `olmo3`"),
    ];
    assert_eq!(refused, expected.map(|(case, what)| (case, what.to_owned())));
}

#[test]
fn what_files_cannot_say_is_refused() {
    let refused = |case: &str| {
        let dir = copy_of(case);
        let model = load(dir.path(), &Device::cpu(1), None, Trained::Nothing);
        written(&model, dir.path(), DType::F32.into(), &dir.path().join("m.gguf")).unwrap_err()
    };
    for (case, says) in [
        ("dynamic", "scaling of RoPE that grows with the sequence (`dynamic`) has no form"),
        ("mistral", "the attention of block 0 (heads, window, scale or norms) has no form"),
        ("bert", "models of type `bert` are not written as GGUF files; write this one in"),
        ("qwen3_next", "models of type `qwen3_next` are not written"),
    ] {
        let message = refused(case);
        assert!(message.starts_with(says), "{case}: {message}");
        assert!(message.ends_with("in Hugging Face layout (--format hf)"), "{case}: {message}");
    }
}
