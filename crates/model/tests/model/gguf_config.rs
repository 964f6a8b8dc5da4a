//! Keys of GGUF files' metadata whose meaning changed over time, or depends on others.

use crate::fixture::{Golden, copy_of, set_key};
use crate::gguf::{loaded, logits_of, write};
use crate::gguf_files::from_directory;
use hone_model::{DecoderConfig, RopeScaling};
use hone_tensor::gguf::testing::Meta;
use serde_json::Value;

/// The configuration that a file with some keys, or without those that are `None`, is read as.
fn config_with(case: &str, changes: &[(&str, Option<Meta>)]) -> Result<DecoderConfig, String> {
    let mut writer = from_directory(copy_of(case).path());
    for (key, value) in changes {
        writer.keys.retain(|(other, _)| other != key);
        if let Some(value) = value {
            writer.set(key, value.clone());
        }
    }
    let (_folder, path) = write(&writer);
    let path_in_message = format!("{}: ", path.display());
    let config = DecoderConfig::load(&path);
    config.map_err(|error| error.to_string().replace(&path_in_message, ""))
}

/// Files of Qwen3.5 until 2026 say in what intervals blocks attend to all tokens, newer ones of
/// each block whether it is recurrent, and the list counts.
#[test]
fn recurrent_blocks() {
    let (list, interval) = ("qwen35.attention.recurrent_layers", "qwen35.full_attention_interval");
    let recurrent = |changes: &[(&str, Option<Meta>)]| {
        let config = config_with("qwen3_5", changes)?;
        Ok::<_, String>(config.layers.iter().map(|layer| layer.delta.is_some()).collect::<Vec<_>>())
    };
    let by_interval = |n| [(list, None), (interval, Some(Meta::U32(n)))];
    assert_eq!(recurrent(&by_interval(2)), Ok(vec![true, false, true]));
    assert_eq!(recurrent(&by_interval(3)), Ok(vec![true, true, false]));
    let listed = |kinds| [(list, Some(kinds))];
    assert_eq!(
        recurrent(&listed(Meta::Bools(vec![false, true, true]))),
        Ok(vec![false, true, true])
    );
    for (kinds, says) in [
        (Meta::Bools(vec![true; 2]), "has 2 entries, but num_hidden_layers is 3: take the file"),
        (Meta::I32s(vec![1; 3]), "must be a list of booleans, found an array"),
        (Meta::Bool(true), "must be a list, found true"),
        (Meta::Bools(vec![true; 65_537]), "has 65537 entries, more than models have blocks"),
    ] {
        let found = recurrent(&listed(kinds)).unwrap_err();
        assert!(found.starts_with(&format!("`{list}` {says}")), "{found:?} is not {says:?}");
    }
}

/// A factor without a type divides frequencies, as llama.cpp has it.
#[test]
fn factors_alone_are_linear() {
    let scaling = |factor: f32| {
        let changes = [
            ("llama.rope.scaling.type", None),
            ("llama.rope.scaling.yarn_attn_factor", None),
            ("llama.rope.scaling.factor", Some(Meta::F32(factor))),
        ];
        config_with("yarn", &changes).unwrap().ropes[0].scaling.clone()
    };
    assert_eq!(scaling(4.0), RopeScaling::Linear { factor: 4.0 });
    assert_eq!([scaling(1.0), scaling(0.0)], [RopeScaling::Default, RopeScaling::Default]);
}

/// The multiplier of YaRN's cosines and sines, as converters wrote it over time.
#[test]
fn yarn_multipliers() {
    let multiplier = |case: &str, changes: &[(&str, f32)]| {
        let name = if case == "olmo3" { "olmo2" } else { "llama" };
        let key = |key: &str| format!("{name}.rope.scaling.{key}");
        let keys: Vec<_> = changes.iter().map(|(of, value)| (key(of), *value)).collect();
        let own = key("yarn_attn_factor");
        let mut changes = vec![(own.as_str(), None)];
        changes.extend(keys.iter().map(|(key, value)| (key.as_str(), Some(Meta::F32(*value)))));
        match config_with(case, &changes)?.ropes[0].scaling {
            RopeScaling::Yarn { attention_factor, .. } => Ok::<f64, String>(attention_factor),
            ref other => panic!("{other:?}"),
        }
    };
    let implied = 0.1 * 4f64.ln() + 1.0;
    for case in ["olmo3", "yarn"] {
        assert_eq!(multiplier(case, &[]), Ok(implied), "{case}");
        assert_eq!(multiplier(case, &[("attn_factor", 1.0)]), Ok(implied), "{case}");
        assert_eq!(multiplier(case, &[("yarn_attn_factor", 1.3)]), Ok(1.3), "{case}");
        let with_ramp = [("yarn_attn_factor", 1.3), ("yarn_ext_factor", 1.0)];
        assert_eq!(multiplier(case, &with_ramp), Ok(1.3), "{case}");
        let name = if case == "olmo3" { "olmo2" } else { "llama" };
        for (keys, says) in [
            (&[("yarn_ext_factor", 0.5)][..], "yarn_ext_factor` is 0.5, and only 1 is supported"),
            (
                &[("yarn_attn_factor", 1.3), ("attn_factor", 1.1)],
                "attn_factor` contradicts `yarn_attn_factor`: give the model's directory in",
            ),
        ] {
            let found = multiplier(case, keys).unwrap_err();
            let says = format!("`{name}.rope.scaling.{says}");
            assert!(found.starts_with(&says), "{found:?} is not {says:?}");
        }
    }
    // As llama.cpp reads it, but in OLMo 3's files it is the configuration's.
    let product = multiplier("yarn", &[("attn_factor", 1.1)]).unwrap();
    assert!((product - 1.1 * implied).abs() < 1e-6, "{product}");
    assert_eq!(multiplier("olmo3", &[("attn_factor", implied as f32)]), Ok(implied));
    let found = multiplier("olmo3", &[("attn_factor", 1.1)]).unwrap_err();
    let says = "`olmo2.rope.scaling.attn_factor` is 1.1, which older files mean as it is and \
                llama.cpp takes times 1.138";
    assert!(found.starts_with(says), "{found}");
}

/// OLMo 3 as newer transformers write it, with a base for each kind of block.
#[test]
fn bases_by_kind_of_block() {
    let of_windows = |base: f32| {
        let config = config_with("olmo3", &[("olmo2.rope.freq_base_swa", Some(Meta::F32(base)))]);
        let ropes = config.unwrap().ropes;
        assert!(matches!(ropes[0].scaling, RopeScaling::Yarn { attention_factor: 1.2, .. }));
        assert_eq!(ropes[1].scaling, RopeScaling::Default);
        [ropes[0].rope_theta, ropes[1].rope_theta]
    };
    assert_eq!(of_windows(500_000.0), [500_000.0; 2]);
    assert_eq!(of_windows(10_000.0), [500_000.0, 10_000.0]);
    let found = config_with("olmo2", &[("olmo2.rope.freq_base_swa", Some(Meta::F32(1e4)))]);
    let says = "`olmo2.rope.freq_base_swa` is set, but Hone does not know this key";
    assert!(found.unwrap_err().starts_with(says));
}

/// Mistral Small from 3.1 on, whose files have Ministral 3's architecture.
#[test]
fn mistral_small() {
    let dir = copy_of("mistral");
    set_key(&dir.path().join("config.json"), "sliding_window", Value::Null);
    let mut writer = from_directory(dir.path());
    for (key, value) in &mut writer.keys {
        *key = key.replace("llama.", "mistral3.");
        if key == "general.architecture" {
            *value = "mistral3".into();
        }
    }
    let (_folder, path) = write(&writer);
    let logits =
        [dir.path(), path.as_path()].map(|path| logits_of(&loaded(path), &Golden::load("mistral")));
    assert!(logits[0] == logits[1]);
}
