//! Unusable model directories: the full text of each error message.

use crate::fixture::{copy_of, rewrite, set_key};
use hone_model::families::supported;
use hone_model::{LoadOptions, load};
use hone_tensor::{Category, Device};
use safetensors::Dtype;
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

const CASE: &str = "tied_gqa";
pub const BOTH: &str = "Either the weights or the configuration belong to another model";

/// The error of loading `dir`, with `DIR` for its path; checked to be equal on a dry device.
fn message(dir: &Path) -> String {
    let says = |device| match load(dir, &device, LoadOptions::INFERENCE) {
        Ok(_) => "it loads".to_owned(),
        Err(error) => error.to_string().replace(&dir.display().to_string(), "DIR"),
    };
    let found = says(Device::cpu(1));
    assert_eq!(found, says(Device::dry()));
    found
}

/// Checks what is said of a golden's model after a change.
pub fn check(case: &str, change: impl FnOnce(&Path), expected: &str) {
    let dir = copy_of(case);
    change(dir.path());
    assert_eq!(message(dir.path()), expected);
}

/// Checks the error about a key of `config.json` that is set to `value`.
fn check_key(key: &str, value: Value, problem: &str) {
    let (outer, inner) = key.split_once('.').unwrap_or((key, ""));
    let value = if inner.is_empty() { value } else { nested(outer, inner, value) };
    let change = |dir: &Path| set_key(&dir.join("config.json"), outer, value);
    check(CASE, change, &format!("DIR/config.json: `{key}` {problem}"));
}

/// A complete RoPE scaling object, except for one key.
fn nested(outer: &str, key: &str, value: Value) -> Value {
    let mut table = json!({
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    });
    if outer == "rope_parameters" {
        table["rope_theta"] = json!(500.0);
    }
    table[key] = value;
    table
}

#[test]
fn unusable_config_files() {
    let write =
        |text: &'static str| move |dir: &Path| fs::write(dir.join("config.json"), text).unwrap();
    let cases: [(&str, &str); 4] = [
        (
            "{\"model_type\": \"llama\",\n \"vocab_size\" 53}",
            "not valid JSON: expected `:` at line 2 column 15",
        ),
        ("", "not valid JSON: EOF while parsing a value at line 1 column 0"),
        ("[1]", "expected a JSON object, found a list"),
        ("{}", "`model_type` is missing; expected a family such as \"llama\""),
    ];
    for (text, expected) in cases {
        check(CASE, write(text), &format!("DIR/config.json: {expected}"));
    }
    check(
        CASE,
        |dir| fs::remove_file(dir.join("config.json")).unwrap(),
        "DIR/config.json: No such file or directory (os error 2). A model directory in Hugging \
         Face layout contains a config.json",
    );
    check(
        CASE,
        |dir| fs::write(dir.join("config.json"), "[".repeat(100_000)).unwrap(),
        "DIR/config.json: not valid JSON: recursion limit exceeded at line 1 column 128",
    );
    check(
        CASE,
        |dir| fs::write(dir.join("config.json"), " ".repeat(5 << 20)).unwrap(),
        "DIR/config.json: 5242880 bytes are too many: the limit is 4194304",
    );
    check(
        CASE,
        |dir| {
            fs::write(dir.join("generation_config.json"), "{\"eos_token_id\": \"</s>\"}").unwrap()
        },
        "DIR/generation_config.json: `eos_token_id` must be a token id or a list of them, found \
         \"</s>\"",
    );
}

const MISSING: &str = "is missing and has no default: take the file from the source of the weights";
/// The end of messages about values that others of the file rule out, or that no model has.
pub const SOURCE: &str = "take the file from the source of the weights";

#[test]
fn numbers_out_of_range() {
    for key in ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"] {
        check_key(key, Value::Null, MISSING);
    }
    let huge = ["1e30", "2147483648", "18446744073709551616"];
    for wrong in ["0", "-4", "24.5", "24.0", "\"24\"", "[24]", "true"].into_iter().chain(huge) {
        let value: Value = serde_json::from_str(wrong).unwrap();
        let problem = format!("must be a whole number from 1 to 2147483647, found {value}");
        for key in ["hidden_size", "num_key_value_heads", "head_dim", "max_position_embeddings"] {
            check_key(key, value.clone(), &problem);
        }
    }
    for wrong in [json!(0), json!(-1e-5), json!("1e-5"), json!([])] {
        let problem = format!("must be a positive number, found {wrong}");
        let rope = ["rope_theta", "rope_scaling.factor", "rope_parameters.rope_theta"];
        for key in rope.into_iter().chain(["rms_norm_eps"]) {
            check_key(key, wrong.clone(), &problem);
        }
    }
}

#[test]
fn unusable_settings() {
    let unknown = |value: &str| {
        format!(
            "is {value}, but Hone does not know this key, which may change what the model \
             computes: remove it if transformers does not read it for this family"
        )
    };
    let cases = [
        ("model_type", json!(1), "must be a string, found 1"),
        (
            "hidden_act",
            json!("gelu"),
            "is `gelu`, which is not supported; only `silu` is: use a checkpoint \
             that was trained with it",
        ),
        ("num_hidden_layers", json!(4097), &format!("must be at most 4096, found 4097: {SOURCE}")),
        ("tie_word_embeddings", json!("true"), "must be true or false, found \"true\""),
        ("attention_bias", json!(1), "must be true or false, found 1"),
        ("eos_token_id", json!(-1), "must be a token id or a list of them, found -1"),
        ("eos_token_id", json!([2, "x"]), "must be a token id or a list of them, found [2,\"x\"]"),
        (
            "attention_dropout",
            json!(0.1),
            "is 0.1, which is not supported; only 0 is: set it to 0, which changes training alone",
        ),
        (
            "partial_rotary_factor",
            json!(0.5),
            "is 0.5, which is not supported; only 1 is: use a checkpoint that was trained with it",
        ),
        ("residual_multiplier", json!(0.22), &unknown("0.22")),
        ("use_cross_attention", json!(true), &unknown("true")),
        ("rope_scaling.mrope_section", json!([4, 4]), &unknown("[4,4]")),
    ];
    for (key, value, problem) in cases {
        check_key(key, value, problem);
    }
    check(
        CASE,
        |dir| set_key(&dir.join("config.json"), "model_type", json!("mamba")),
        &format!(
            "DIR/config.json: model_type `mamba` is not supported yet; supported: {}",
            supported().collect::<Vec<_>>().join(", ")
        ),
    );
}

#[test]
fn heads_that_do_not_divide() {
    let undivided =
        format!("must divide hidden_size (24) where head_dim is not given, found 10: {SOURCE}");
    check_key("num_attention_heads", json!(10), &undivided);
    let undivided = format!("must divide num_attention_heads (4), found 3: {SOURCE}");
    check_key("num_key_value_heads", json!(3), &undivided);
    // Eight heads leave three dimensions each: `head_dim` is named though it is not in the file.
    for (key, value, head_dim) in [("num_attention_heads", 8, 3), ("head_dim", 5, 5)] {
        check(
            CASE,
            |dir| set_key(&dir.join("config.json"), key, json!(value)),
            &format!(
                "DIR/config.json: `head_dim` must be even for rotary embeddings, found {head_dim} \
                 (it defaults to hidden_size / num_attention_heads): {SOURCE}"
            ),
        );
    }
}

/// Lists with one entry for each block, or for each frequency of a head.
#[test]
fn lists_of_another_length() {
    for (case, key, value, problem) in [
        (
            "qwen3",
            "layer_types",
            json!(["full_attention"]),
            "has 1 entry, but num_hidden_layers is 2",
        ),
        ("qwen3", "layer_types", json!("full"), "must be a list, found \"full\""),
        (
            "smollm3",
            "no_rope_layers",
            json!([1, 1, 1, 0, 1]),
            "has 5 entries, but num_hidden_layers is 4",
        ),
        (
            "smollm3",
            "no_rope_layers",
            json!([1, 2, 1, 0]),
            "must hold 1, or 0 for a block without positions; found 2",
        ),
        (
            "phi3",
            "rope_scaling",
            json!({"type": "longrope", "short_factor": [1.0, 1.0], "long_factor": [1.0, 1.0]}),
            "must have 3 numbers, half of the 6 dimensions of a head that are rotated (by \
             partial_rotary_factor), found 2",
        ),
    ] {
        let full = if key == "rope_scaling" { "rope_scaling.short_factor" } else { key };
        let change = |dir: &Path| set_key(&dir.join("config.json"), key, value);
        check(case, change, &format!("DIR/config.json: `{full}` {problem}: {SOURCE}"));
    }
}

/// Keys that are unset or known to have no effect.
#[test]
fn neutral_settings() {
    for (key, value) in [
        ("residual_multiplier", Value::Null),
        ("use_cross_attention", json!(false)),
        ("pruned_heads", json!({})),
        ("_name_or_path", json!("a/b")),
        ("transformers_version", json!("4.40.0")),
        ("id2label", json!({"0": "LABEL_0"})),
    ] {
        check(CASE, |dir| set_key(&dir.join("config.json"), key, value), "it loads");
    }
}

#[test]
fn git_lfs_pointers() {
    const POINTER: &str = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n";
    let put = |file: &'static str| move |dir: &Path| fs::write(dir.join(file), POINTER).unwrap();
    let weights = "a git-lfs pointer, not the weights: fetch them with `git lfs pull`, or \
                   download the file again";
    check(CASE, put("model.safetensors"), &format!("DIR/model.safetensors: {weights}"));
    check(SHARDED, put(SHARDS[1]), &format!("DIR/{}: {weights}", SHARDS[1]));
    let other = "a git-lfs pointer, not the file: fetch it with `git lfs pull`";
    check(CASE, put("config.json"), &format!("DIR/config.json: {other}"));
    check(SHARDED, put(INDEX), &format!("DIR/{INDEX}: {other}"));
}

#[test]
fn unusable_rope() {
    let kinds = "supported: default, linear, dynamic, llama3, yarn, longrope";
    let cases: [(&str, Value, &str); 9] = [
        (
            "rope_theta",
            json!(1),
            &format!("must be greater than 1 (often 10000), found 1: {SOURCE}"),
        ),
        ("rope_scaling", json!("linear"), "must be an object, found \"linear\""),
        (
            "rope_scaling.rope_type",
            json!("proportional"),
            &format!(
                "is `proportional`, which is not supported; {kinds}. Use a checkpoint with one of \
                 these"
            ),
        ),
        ("rope_scaling.rope_type", json!(3), "must be a string, found 3"),
        ("rope_scaling.factor", json!(0.5), &format!("must be at least 1, found 0.5: {SOURCE}")),
        ("rope_scaling.factor", Value::Null, MISSING),
        ("rope_parameters.low_freq_factor", Value::Null, MISSING),
        (
            "rope_scaling.high_freq_factor",
            json!(1),
            &format!("must be greater than low_freq_factor (1), found 1: {SOURCE}"),
        ),
        (
            "rope_scaling.original_max_position_embeddings",
            json!(0.5),
            "must be a whole number from 1 to 2147483647, found 0.5",
        ),
    ];
    for (key, value, problem) in cases {
        check_key(key, value, problem);
    }
}

/// Checks the error about a tensor that contradicts a value in `config.json`.
fn check_fit(case: &str, key: &str, value: Value, problem: &str) {
    let change = |dir: &Path| set_key(&dir.join("config.json"), key, value);
    check(case, change, &format!("DIR/model.safetensors: tensor {problem}. {BOTH}"));
}

#[test]
fn configurations_that_do_not_fit_the_weights() {
    let shape = |name: &str, found: &str, expected: &str| {
        format!("`{name}` has shape {found}, but the configuration requires {expected}")
    };
    let embedding = shape("model.embed_tokens.weight", "[53, 24]", "[2147483647, 24]");
    check_fit(CASE, "vocab_size", json!(2147483647), &embedding);
    let keys = shape("model.layers.0.self_attn.k_proj.weight", "[12, 24]", "[24, 24]");
    check_fit(CASE, "num_key_value_heads", json!(4), &keys);
    let missing = |name: &str| format!("`{name}` is missing, but the configuration requires it");
    let third = missing("model.layers.2.self_attn.q_proj.weight");
    check_fit(CASE, "num_hidden_layers", json!(4096), &third);
    let untie = |dir: &Path| set_key(&dir.join("config.json"), "tie_word_embeddings", json!(false));
    let head = format!(
        "DIR/model.safetensors: tensor {}. If the head is the embedding, set tie_word_embeddings \
         to true in config.json; if not, fetch the whole model",
        missing("lm_head.weight")
    );
    check(CASE, untie, &head);
    let surplus = "not part of the model that the configuration describes";
    let layer = format!("`model.layers.1.input_layernorm.weight` and 8 more are {surplus}");
    check_fit(CASE, "num_hidden_layers", json!(1), &layer);
    let biases = format!("`model.layers.0.mlp.down_proj.bias` and 5 more are {surplus}");
    check_fit("untied_bias_linear", "mlp_bias", json!(false), &biases);
}

#[test]
fn surplus_tensors() {
    let add = |name: &'static str| {
        move |dir: &Path| {
            rewrite(&dir.join("model.safetensors"), |tensors| {
                let norm = tensors["model.norm.weight"].clone();
                tensors.insert(name.to_owned(), norm);
            });
        }
    };
    let name = "model.layers.0.self_attn.q_norm.weight";
    let surplus = "is not part of the model that the configuration describes";
    let expected = format!("DIR/model.safetensors: tensor `{name}` {surplus}. {BOTH}");
    check(CASE, add(name), &expected);
}

/// Damages a weight file.
type Damage = fn(&mut Vec<u8>);

fn check_damage(damage: Damage, expected: &str) {
    let change = |dir: &Path| {
        let path = dir.join("model.safetensors");
        let mut bytes = fs::read(&path).unwrap();
        damage(&mut bytes);
        fs::write(path, bytes).unwrap();
    };
    check(CASE, change, &format!("DIR/model.safetensors: {expected}"));
}

#[test]
fn damaged_weight_files() {
    let cases: [(Damage, &str); 8] = [
        (Vec::clear, "it has 0 bytes, at least 8 are needed"),
        (|bytes| bytes.truncate(5), "it has 5 bytes, at least 8 are needed"),
        (|bytes| bytes.truncate(20), "its header claims 2000 bytes, but only 12 bytes follow"),
        (
            |bytes| bytes.truncate(bytes.len() - 1),
            "tensor `model.norm.weight` ends at byte 25728 of the data, which has only 25727 bytes",
        ),
        (|bytes| bytes.push(0), "incomplete metadata, file not fully covered"),
        (
            |bytes| bytes[..8].fill(0xff),
            "its header claims 18446744073709551615 bytes, at most 100000000 are allowed",
        ),
        (|bytes| bytes[8] = b'x', "header: expected value at line 1 column 1"),
        (overlap, "the offset of tensor `b` is not where the tensor before it ends"),
    ];
    let fix = "It may have been cut short while it was copied: fetch it again";
    for (damage, reason) in cases {
        check_damage(damage, &format!("not a whole safetensors file ({reason}). {fix}"));
    }
}

/// Refused because of their content, whatever the name.
#[test]
fn pickled_weights_under_another_name() {
    let cases: [Damage; 2] = [
        |bytes| bytes.splice(0..0, *b"PK\x03\x04").for_each(drop),
        |bytes| *bytes = b"\x80\x02}q\x00.".to_vec(),
    ];
    for damage in cases {
        check_damage(
            damage,
            "this is a pickled checkpoint, not safetensors. Reading a pickle runs code from the \
             file, so Hone never does; convert it with the tool that made it \
             (`save_pretrained(…, safe_serialization=True)`)",
        );
    }
}

/// Tensors `a` and `b` share four bytes.
fn overlap(bytes: &mut Vec<u8>) {
    let tensor =
        |start: u64| json!({"dtype": "F32", "shape": [2], "data_offsets": [start, start + 8]});
    let header = json!({"a": tensor(0), "b": tensor(4)}).to_string();
    *bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend([0; 12]);
}

#[test]
fn element_types_without_meaning() {
    for (dtype, name, size) in [(Dtype::I64, "I64", 8), (Dtype::I8, "I8", 1)] {
        let change = |dir: &Path| {
            rewrite(&dir.join("model.safetensors"), |tensors| {
                let norm = tensors.get_mut("model.norm.weight").unwrap();
                *norm = (dtype, vec![24], vec![0; 24 * size]);
            });
        };
        let expected = format!(
            "DIR/model.safetensors: tensor `model.norm.weight` holds {name}; f64, f32, f16 and \
             bf16 are read. A quantised model must be exported in one of these first"
        );
        check(CASE, change, &expected);
    }
}

#[test]
fn weights_that_are_not_there() {
    let neither = "DIR: neither model.safetensors nor model.safetensors.index.json was found.";
    // A plan needs no more than their sizes, which the configuration has.
    let dir = copy_of(CASE);
    let planned = || {
        let device = Device::dry();
        let model = load(dir.path(), &device, LoadOptions::INFERENCE).unwrap();
        (model.file_dtype, device.persistent_bytes(Category::Weights))
    };
    let with_weights = planned();
    fs::remove_file(dir.path().join("model.safetensors")).unwrap();
    assert_eq!(planned(), with_weights);
    let found = load(dir.path(), &Device::cpu(1), LoadOptions::INFERENCE).err().unwrap();
    let found = found.to_string().replace(&dir.path().display().to_string(), "DIR");
    assert_eq!(found, format!("{neither} Fetch the weights as well"));
    for name in ["pytorch_model.bin", "model.pt", "consolidated.00.pth", "last.ckpt"] {
        let rename =
            |dir: &Path| fs::rename(dir.join("model.safetensors"), dir.join(name)).unwrap();
        let expected = format!(
            "{neither} {name} is pickled, which Hone never reads because a pickle can run code: \
             convert the model to safetensors (`save_pretrained` of transformers does)"
        );
        check(CASE, rename, &expected);
    }
}

const SHARDED: &str = "dynamic";
const INDEX: &str = "model.safetensors.index.json";
const SHARDS: [&str; 2] = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];

#[test]
fn unusable_indices() {
    let check_map = |value: Value, problem: &str| {
        let change = |dir: &Path| set_key(&dir.join(INDEX), "weight_map", value);
        check(SHARDED, change, &format!("DIR/{INDEX}: `weight_map` {problem}"));
    };
    for wrong in ["../model.safetensors", "/etc/passwd", "a/../../b.safetensors", "..", ""] {
        let problem = format!("maps `x` to \"{wrong}\": expected a file in the model's directory");
        check_map(json!({"x": wrong}), &problem);
    }
    check_map(json!({"x": 3}), "maps `x` to 3: expected a file in the model's directory");
    for wrong in [Value::Null, json!([])] {
        check_map(wrong, "must be an object that maps tensors to files");
    }
    check(
        SHARDED,
        |dir| fs::write(dir.join(INDEX), "{").unwrap(),
        &format!("DIR/{INDEX}: not valid JSON: EOF while parsing an object at line 1 column 1"),
    );
}

#[test]
fn shards_that_do_not_make_a_model() {
    let absent = format!("shard `{}` is missing: fetch it as well", SHARDS[1]);
    check(
        SHARDED,
        |dir| fs::remove_file(dir.join(SHARDS[1])).unwrap(),
        &format!("DIR/{INDEX}: {absent}"),
    );
    check(
        SHARDED,
        |dir| {
            fs::copy(dir.join(SHARDS[0]), dir.join(SHARDS[1])).unwrap();
        },
        &format!(
            "DIR/{}: tensor `model.embed_tokens.weight` is also in DIR/{}. Fetch the model again \
             into an empty directory, without files of other versions",
            SHARDS[1], SHARDS[0]
        ),
    );
}
