//! Unusable adapters: the full text of each error message.

use crate::fixture::{Entry, Golden, copy_files, rewrite, set_key};
use hone_model::adapter::{self, LoraConfig, TargetModules};
use hone_tensor::Device;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

const CASE: &str = "tied_gqa";
const OTHER_MODEL: &str = "The adapter was trained for another model";
const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";

/// The error of loading the adapter of `from` after `change`; `DIR` replaces its path.
fn check(from: &str, change: impl FnOnce(&Path), expected: &str) {
    let dir = tempfile::tempdir().unwrap();
    copy_files(&Golden::load(from).dir.join("adapter"), dir.path());
    change(dir.path());
    let device = Device::cpu(1);
    let mut model = Golden::load(CASE).base(&device);
    let found = match adapter::load(dir.path(), &mut model, &device, &mut |_| ()) {
        Ok(_) => "it loads".to_owned(),
        Err(error) => error.to_string().replace(&dir.path().display().to_string(), "DIR"),
    };
    assert_eq!(found, expected);
}

#[test]
fn files_that_are_not_there() {
    let layout = "An adapter in PEFT layout is a directory with adapter_config.json and \
                  adapter_model.safetensors";
    for file in [CONFIG, WEIGHTS] {
        let remove = |dir: &Path| fs::remove_file(dir.join(file)).unwrap();
        check(CASE, remove, &format!("DIR: {file} is missing. {layout}"));
    }
    let rename = |dir: &Path| {
        fs::rename(dir.join(WEIGHTS), dir.join("adapter_model.bin")).unwrap();
    };
    let pickled = "adapter_model.bin is pickled, which Hone never reads because a pickle can run \
                   code: convert it to safetensors (`save_pretrained` of PEFT does)";
    check(CASE, rename, &format!("DIR: {WEIGHTS} is missing. {layout}; {pickled}"));
    let cut = |dir: &Path| fs::write(dir.join(WEIGHTS), [0; 4]).unwrap();
    let fix = "It may have been cut short while it was copied: fetch it again";
    let damaged = "not a whole safetensors file (it has 4 bytes, at least 8 are needed)";
    check(CASE, cut, &format!("DIR/{WEIGHTS}: {damaged}. {fix}"));
}

#[test]
fn unusable_configurations() {
    let write = |dir: &Path| fs::write(dir.join(CONFIG), "{\"r\": 4,}").unwrap();
    let trailing = "not valid JSON: trailing comma at line 1 column 9";
    check(CASE, write, &format!("DIR/{CONFIG}: {trailing}"));
    let fix = "merge such an adapter into its base with PEFT (`merge_and_unload`)";
    let unread = |value: &str| format!("is {value}, which is not supported yet: {fix}");
    let missing = "is missing and has no default: take the file from the source of the weights";
    let cases: [(&str, Value, &str); 21] = [
        ("peft_type", json!("IA3"), "is IA3; only LORA adapters are supported"),
        ("peft_type", Value::Null, "is missing; only LORA adapters are supported"),
        ("use_dora", json!(true), &unread("true")),
        ("use_qalora", json!(true), &unread("true")),
        ("use_next_years_method", json!(true), &unread("true")),
        ("kasa_config", json!({"rank": 2}), &unread("{\"rank\":2}")),
        ("bias", json!("all"), &unread("\"all\"")),
        ("modules_to_save", json!(["lm_head"]), &unread("[\"lm_head\"]")),
        ("rank_pattern", json!([8]), "must be an object, found [8]"),
        (
            "rank_pattern",
            json!({"q_proj": 0}),
            "maps `q_proj` to 0, expected a whole number of at least 1",
        ),
        ("alpha_pattern", json!({"q": "8"}), "maps `q` to \"8\", expected a positive number"),
        (
            "alpha_pattern",
            json!({"(q|v)_proj": 8}),
            "has `(q|v)_proj`, an expression that is not supported: write names of layers, their \
             endings, or `.*` for any text",
        ),
        ("init_lora_weights", json!("pissa"), &unread("\"pissa\"")),
        ("init_lora_weights", json!("pissa_niter_16"), &unread("\"pissa_niter_16\"")),
        ("r", json!(0), "must be a whole number from 1 to 2147483647, found 0"),
        ("r", json!("8"), "must be a whole number from 1 to 2147483647, found \"8\""),
        ("r", Value::Null, missing),
        ("lora_alpha", json!(-1), "must be a positive number, found -1"),
        ("lora_dropout", json!(1), "must be a number from 0 to below 1, found 1"),
        ("lora_dropout", json!("0.1"), "must be a number from 0 to below 1, found \"0.1\""),
        ("use_rslora", json!(1), "must be true or false, found 1"),
    ];
    for (key, value, problem) in cases {
        let set = |dir: &Path| set_key(&dir.join(CONFIG), key, value);
        check(CASE, set, &format!("DIR/{CONFIG}: `{key}` {problem}"));
    }
    for (key, value) in [("init_lora_weights", "gaussian"), ("target_modules", "q_proj|k_proj")] {
        check(CASE, |dir| set_key(&dir.join(CONFIG), key, json!(value)), "it loads");
    }
}

const A: &str = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight";
const B: &str = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight";

#[test]
fn tensors_that_do_not_fit() {
    let tensors = |change: fn(&mut BTreeMap<String, Entry>)| {
        move |dir: &Path| rewrite(&dir.join(WEIGHTS), change)
    };
    let says = |problem: &str| format!("DIR/{WEIGHTS}: {problem}");
    let wider = format!("tensor `{A}` has shape [4, 33], expected [4, 24]. {OTHER_MODEL}");
    check("headdim_llama3", |_| (), &says(&wider));
    let rank = format!(
        "tensor `{A}` has shape [4, 24], expected [8, 24]. `r` in {CONFIG} is 8: the two \
         files belong to different adapters"
    );
    check(CASE, |dir| set_key(&dir.join(CONFIG), "r", json!(8)), &says(&rank));
    for (absent, change) in [
        (A, tensors(|all| drop(all.remove(A).unwrap()))),
        (B, tensors(|all| drop(all.remove(B).unwrap()))),
    ] {
        let incomplete = format!(
            "tensor `{absent}` is missing, although its counterpart is present: the file is \
             incomplete, save the adapter again"
        );
        check(CASE, change, &says(&incomplete));
    }
    let stray = |name: &str| {
        says(&format!(
            "tensor `{name}` is not part of a LoRA adapter on a linear layer of this model. \
             {OTHER_MODEL}"
        ))
    };
    const DEEPER: &str = "base_model.model.model.layers.2.mlp.up_proj.lora_A.weight";
    let add = tensors(|all| drop(all.insert(DEEPER.to_owned(), all[A].clone())));
    check(CASE, add, &stray(DEEPER));
    const MAGNITUDE: &str = "base_model.model.model.layers.0.mlp.up_proj.lora_magnitude_vector";
    let add = tensors(|all| drop(all.insert(MAGNITUDE.to_owned(), all[A].clone())));
    check(CASE, add, &stray(MAGNITUDE));
    check(CASE, tensors(BTreeMap::clear), &says("it contains no adapter"));
    let merge = "merge such an adapter into its base with PEFT (`merge_and_unload`)";
    for table in ["base_model.model.lm_head.weight", "base_model.model.model.embed_tokens.weight"] {
        let add = |dir: &Path| {
            rewrite(&dir.join(WEIGHTS), |all| drop(all.insert(table.to_owned(), all[A].clone())));
        };
        let whole = format!(
            "tensor `{table}`: the adapter contains trained weights of a head, an embedding or \
             another whole module, which is not supported yet: {merge}"
        );
        check(CASE, add, &says(&whole));
    }
    let rename = tensors(|all| {
        let named = |name: String| name.replace(".weight", ".default.weight");
        *all = std::mem::take(all).into_iter().map(|(name, t)| (named(name), t)).collect();
    });
    let first = "base_model.model.model.layers.0.mlp.down_proj.lora_A.default.weight";
    let own_name = format!(
        "tensor `{first}` contains the name of the adapter (`default`), as in a state dict: save \
         the adapter with `save_pretrained` of PEFT, which strips it"
    );
    check(CASE, rename, &says(&own_name));
    let pointer = |dir: &Path| {
        let text = "version https://git-lfs.github.com/spec/v1\n";
        fs::write(dir.join(WEIGHTS), text).unwrap();
    };
    let fetch = "a git-lfs pointer, not the weights: fetch them with `git lfs pull`, or \
                 download the file again";
    check(CASE, pointer, &says(fetch));
}

/// An adapter whose configuration names layers without tensors loads, with a note.
#[test]
fn targets_without_tensors() {
    let dir = tempfile::tempdir().unwrap();
    copy_files(&Golden::load(CASE).dir.join("adapter"), dir.path());
    rewrite(&dir.path().join(WEIGHTS), |all| all.retain(|name, _| !name.contains("up_proj")));
    let notes_with = |targets: Value| {
        set_key(&dir.path().join(CONFIG), "target_modules", targets);
        let (device, mut notes) = (Device::cpu(1), Vec::new());
        let mut model = Golden::load(CASE).base(&device);
        adapter::load(dir.path(), &mut model, &device, &mut |note| notes.push(note)).unwrap();
        notes
    };
    let notes = notes_with(json!(["q_proj", "up_proj"]));
    assert_eq!(notes.len(), 1, "{notes:?}");
    assert!(
        notes[0].contains("no tensors for `model.layers.0.mlp.up_proj` and 1 more"),
        "{notes:?}"
    );
    assert!(notes_with(json!(["q_proj", "down_proj"])).is_empty());
    assert!(notes_with(json!("all-linear")).is_empty());
}

#[test]
fn nothing_is_shared_where_no_expert_is_adapted() {
    let device = Device::cpu(1);
    let attach = |case: &str, target: &str| {
        let config = LoraConfig {
            rank: 2,
            alpha: 4.0,
            dropout: 0.0,
            target_modules: TargetModules::Patterns(vec![target.to_owned()]),
            use_rslora: false,
            share_experts: true,
        };
        let mut model = Golden::load(case).base(&device);
        let result = adapter::attach(&mut model, &device, &config, 1);
        result.map_or_else(|error| error.to_string(), |()| model.params.len().to_string())
    };
    for case in ["qwen3_moe", "tied_gqa"] {
        let message = attach(case, "q_proj");
        assert!(message.starts_with("adapter.share_experts: no expert of this model"), "{message}");
    }
    // Of two blocks with experts, three projections of two matrices.
    assert_eq!(attach("qwen3_moe", "experts"), "12");
    // The experts that have an adapter share it.
    assert_eq!(attach("qwen3_moe", "*.experts.1.up_proj"), "4");
}

#[test]
fn targets_that_match_no_layer() {
    let attach = |targets: &[&str]| {
        let device = Device::cpu(1);
        let targets = targets.iter().map(|&target| target.to_owned()).collect();
        let config = LoraConfig {
            rank: 2,
            alpha: 4.0,
            dropout: 0.0,
            target_modules: TargetModules::Patterns(targets),
            use_rslora: false,
            share_experts: false,
        };
        let mut model = Golden::load(CASE).base(&device);
        let result = adapter::attach(&mut model, &device, &config, 1);
        assert_eq!(result.is_err(), model.params.is_empty());
        result.map_or_else(|error| error.to_string(), |()| model.params.len().to_string())
    };
    for wrong in ["q_prj", "lm_head", "layers.2.*", ""] {
        let expected = format!(
            "adapter.target_modules: `{wrong}` matches no linear layer of this model. Its linear \
             layers are q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj (in 2 \
             blocks); a target is one of these names, a longer one \
             (`layers.0.self_attn.q_proj`), a pattern with `*` over the full name \
             (`*.layers.0.*`), or \"all-linear\""
        );
        assert_eq!(attach(&["q_proj", wrong]), expected);
    }
    assert_eq!(
        attach(&[]),
        "adapter.target_modules is empty: name the layers to adapt, such as [\"q_proj\", \
         \"v_proj\"], or write \"all-linear\""
    );
    // Two matrices each; a layer matched by two targets gets one adapter.
    assert_eq!(attach(&["q_proj", "*.q_proj", "layers.1.mlp.up_proj"]), "6");
}

/// Routers are adapted only if they are named; of three blocks, the second has no experts.
#[test]
fn targets_by_what_layers_do() {
    let device = Device::cpu(1);
    let golden = Golden::load("qwen3_moe");
    let adapted = |target_modules| {
        let mut model = golden.base(&device);
        let (rank, alpha, dropout, use_rslora) = (2, 4.0, 0.0, false);
        let share_experts = false;
        let config = LoraConfig { rank, alpha, dropout, target_modules, use_rslora, share_experts };
        adapter::attach(&mut model, &device, &config, 1).map(|()| model.params.len() / 2)
    };
    let patterns = |of: &str| adapted(TargetModules::Patterns(vec![of.to_owned()]));
    assert_eq!(adapted(TargetModules::AllLinear).unwrap(), 3 * 4 + 3 + 2 * 6 * 3);
    assert_eq!(patterns("experts").unwrap(), 2 * 6 * 3);
    assert_eq!(patterns("router").unwrap(), 2);
    assert_eq!(patterns("gate_proj").unwrap(), 2 * 6 + 1);
    assert_eq!(patterns("experts.5.down_proj").unwrap(), 2);
    let message = patterns("expert").unwrap_err().to_string();
    let named =
        "up_proj, down_proj, `experts` by what they do, `router` by what they do (in 3 blocks)";
    assert!(message.contains(named), "{message}");
}
