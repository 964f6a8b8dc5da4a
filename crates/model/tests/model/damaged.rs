//! Configurations of every family, damaged key by key: each is read, or refused by a message that
//! names the file and the key.

use crate::fixture::{cases, goldens_dir};
use crate::published;
use hone_model::{DecoderConfig, families};
use hone_tensor::testing;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// Values of `model_type` of files that hold other models too, with that of their text model.
const WITH_OTHERS: [(&str, &str); 5] = [
    ("gemma3", "gemma3_text"),
    ("gemma4", "gemma4_text"),
    ("mistral3", "ministral3"),
    ("qwen3_5", "qwen3_5_text"),
    ("qwen3_5_moe", "qwen3_5_moe_text"),
];

fn model_type(config: &Value) -> &str {
    config["model_type"].as_str().unwrap()
}

/// The goldens' configurations, one published of each family (of some in the quick tier), one of
/// each kind that holds other models too, and quantised ones.
fn configurations() -> Vec<Value> {
    let golden = |case: String| -> Value {
        let text = fs::read(goldens_dir().join(case).join("config.json")).unwrap();
        serde_json::from_slice(&text).unwrap()
    };
    let goldens: Vec<Value> = cases().into_iter().map(golden).collect();
    let of = |name: &str| goldens.iter().find(|config| model_type(config) == name).unwrap();
    let with_others = WITH_OTHERS.map(|(outer, text)| {
        json!({
            "model_type": outer, "text_config": of(text), "vision_config": {"depth": 2},
            "tie_word_embeddings": true, "eos_token_id": [1, 2], "image_token_id": 3
        })
    });
    let quantised = [
        json!({"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]}),
        json!({
            "quant_method": "bitsandbytes", "load_in_4bit": true, "load_in_8bit": false,
            "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": true
        }),
    ];
    let quantised = quantised.map(|how| {
        let mut config = of("qwen3").clone();
        config["quantization_config"] = how;
        config
    });
    let families = published::families().into_iter();
    let published = families.enumerate().filter(|(i, _)| testing::is_sampled(*i, 4));
    let published = published.map(|(_, family)| shrunk(family.models[0].config.clone()));
    let found: Vec<Value> = published.chain(with_others).chain(quantised).collect();
    [goldens, found].concat()
}

/// With four blocks, so that counting those of a mixture does not take long.
fn shrunk(mut config: Value) -> Value {
    let counts = if config["n_layers"].is_null() { "num_hidden_layers" } else { "n_layers" };
    config[counts] = json!(4);
    if config["num_kv_shared_layers"].as_u64() > Some(2) {
        config["num_kv_shared_layers"] = json!(2);
        let kinds = ["sliding_attention", "full_attention"];
        config["layer_types"] = json!([kinds, kinds].concat());
    }
    for key in ["layer_types", "no_rope_layers"] {
        if let Some(list) = config[key].as_array_mut() {
            list.truncate(4);
        }
    }
    config.as_object_mut().unwrap().retain(|_, value| !value.is_null());
    config
}

/// What a damaged file may have in place of a value; `None`: it lacks the key.
fn damaged(value: &Value) -> Vec<Option<Value>> {
    let others = [
        Value::Null,
        json!("text"),
        json!(true),
        json!(-1),
        json!(0),
        json!(2_147_483_647),
        json!(1e300),
        json!([]),
        json!({}),
    ];
    let mut changes: Vec<Option<Value>> = others.into_iter().map(Some).chain([None]).collect();
    if let Some((last, rest)) = value.as_array().and_then(|list| list.split_last()) {
        let changed = |element: Value| json!([rest, &[element]].concat());
        changes.push(Some(json!(rest)));
        changes.push(Some(json!([rest, &[last.clone(), last.clone()]].concat())));
        changes.extend([json!("text"), json!(-1), Value::Null].map(|x| Some(changed(x))));
    }
    changes
}

/// All keys, those of objects inside too.
fn paths(object: &Value) -> Vec<Vec<String>> {
    let mut all = Vec::new();
    for (key, value) in object.as_object().into_iter().flatten() {
        all.push(vec![key.clone()]);
        all.extend(paths(value).into_iter().map(|inner| [vec![key.clone()], inner].concat()));
    }
    all
}

/// What is said of a configuration after a change of what is at a path; `None`: it is read.
fn refusal(dir: &Path, config: &Value, path: &[String], to: Option<&Value>) -> Option<String> {
    let (key, outer) = path.split_last().unwrap();
    let mut config = config.clone();
    let object = outer.iter().fold(&mut config, |object, key| &mut object[key]);
    match to {
        Some(value) => object[key] = value.clone(),
        None => drop(object.as_object_mut().unwrap().remove(key)),
    }
    let file = dir.join("config.json");
    fs::write(&file, config.to_string()).unwrap();
    let loaded = DecoderConfig::load(dir);
    // File systems write what is overwritten to disk at once, but not what is removed.
    fs::remove_file(&file).unwrap();
    match loaded {
        Ok(config) => {
            // What is read can be counted.
            assert!(config.num_parameters() > 0, "{path:?} = {to:?}");
            None
        }
        Err(error) => {
            let text = error.to_string();
            let said = text.strip_prefix(&format!("{}: ", file.display()));
            Some(said.unwrap_or_else(|| panic!("no file in: {text}")).to_owned())
        }
    }
}

/// Whether a message names a key: in backquotes, alone or in a path, with its value after it, or as
/// a whole word that is none of English.
fn names(said: &str, key: &str) -> bool {
    let mut quoted = said.split('`').skip(1).step_by(2);
    let mut words = said.split(|c: char| !c.is_alphanumeric() && c != '_');
    quoted.any(|path| path.split('.').any(|part| part == key))
        || said.contains(&format!(" {key} ("))
        || (key.contains('_') && words.any(|word| word == key))
}

#[test]
fn each_damaged_key_is_read_or_named() {
    let dir = tempfile::tempdir().unwrap();
    let configurations = configurations();
    let found: BTreeSet<&str> = configurations.iter().map(model_type).collect();
    let supported: BTreeSet<&str> = families::supported().collect();
    assert_eq!(found, supported, "every family has a configuration here");
    let (mut num_read, mut num_refused) = (0, BTreeSet::new());
    let mut unnamed = Vec::new();
    for config in &configurations {
        for path in paths(config) {
            let value = path.iter().fold(config, |object, key| &object[key]);
            for to in damaged(value) {
                let Some(said) = refusal(dir.path(), config, &path, to.as_ref()) else {
                    num_read += 1;
                    continue;
                };
                num_refused.insert((model_type(config), path.clone()));
                if !names(&said, path.last().unwrap()) {
                    unnamed.push(format!("{} {path:?} = {to:?}: {said}", model_type(config)));
                }
            }
        }
    }
    assert!(unnamed.is_empty(), "{} of:\n{}", unnamed.len(), unnamed.join("\n"));
    let num_refused = num_refused.len();
    println!("{num_read} read, {num_refused} keys refused");
    assert!(num_read > 2000 && num_refused > 500, "{num_read} read, {num_refused} keys refused");
}
