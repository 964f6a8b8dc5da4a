//! Quantised matrices in safetensors files that are incomplete, or that are not read.

use crate::fixture::{rewrite, set_key};
use crate::quantised::{Kind, Tensors, model_in_both};
use hone_model::LoadOptions;
use hone_tensor::Device;
use serde_json::{Value, json};
use std::path::Path;

/// The error of loading a model after `change`.
fn message(kind: Kind, change: impl FnOnce(&Path)) -> String {
    let [_, dir] = model_in_both(kind);
    change(dir.path());
    load_error(dir.path())
}

/// The error of loading a directory, with `DIR` for its path; the same on a dry device.
pub fn load_error(dir: &Path) -> String {
    let says = |device| match hone_model::load(dir, &device, LoadOptions::INFERENCE) {
        Ok(_) => "it loads".to_owned(),
        Err(error) => error.to_string().replace(&dir.display().to_string(), "DIR"),
    };
    let found = says(Device::cpu(1));
    assert_eq!(found, says(Device::dry()));
    found
}

const Q: &str = "model.layers.0.self_attn.q_proj.weight";
const STATE: &str = ".quant_state.bitsandbytes__nf4";
const AGAIN: &str = "Fetch the whole model, or save it again with `save_pretrained`";
const BOTH: &str = "Either the weights or the configuration belong to another model";

/// What is done to the tensors of a matrix.
enum Change {
    Remove(&'static str),
    /// Zeros of another shape.
    Reshape(&'static str, &'static [usize]),
    /// Another value in what bitsandbytes saves as JSON.
    State(&'static str, Value),
    /// The type that bitsandbytes says it is.
    Type(&'static str),
}

impl Change {
    fn make(self, matrix: &str, tensors: &mut Tensors) {
        let mut entry = |part: &str| tensors.remove(&format!("{matrix}{part}")).unwrap();
        match self {
            Self::Remove(part) => drop(entry(part)),
            Self::Reshape(part, shape) => {
                let (dtype, old, bytes) = entry(part);
                let size = bytes.len() / old.iter().product::<usize>();
                let zeros = vec![0; size * shape.iter().product::<usize>()];
                tensors.insert(format!("{matrix}{part}"), (dtype, shape.to_vec(), zeros));
            }
            Self::State(key, value) => {
                let (dtype, _, bytes) = entry(STATE);
                let mut json: Value = serde_json::from_slice(&bytes).unwrap();
                json[key] = value;
                let bytes = json.to_string().into_bytes();
                tensors.insert(format!("{matrix}{STATE}"), (dtype, vec![bytes.len()], bytes));
            }
            Self::Type(name) => {
                let state = entry(STATE);
                tensors.insert(format!("{matrix}.quant_state.bitsandbytes__{name}"), state);
            }
        }
    }
}

/// Checks what is said of the tensor `name`, one of `matrix`, after a change of the matrix.
fn check(kind: Kind, [matrix, name]: [&str; 2], change: Change, says: &str) {
    let found = message(kind, |dir| {
        rewrite(&dir.join("model.safetensors"), |tensors| change.make(matrix, tensors));
    });
    assert_eq!(found, format!("DIR/model.safetensors: tensor `{name}`{says}"));
}

#[test]
fn incomplete_nf4() {
    let missing = |part: &str| format!(": `{Q}{part}`, which belongs to it, is missing. {AGAIN}");
    for (change, says) in [
        (
            Change::Remove(STATE),
            format!(
                ": it holds bytes, and `{Q}{STATE}`, which says how they were quantised, is \
                 missing. {AGAIN}"
            ),
        ),
        (Change::Remove(".absmax"), missing(".absmax")),
        (Change::Remove(".nested_quant_map"), missing(".nested_quant_map")),
        (
            Change::Type("fp4"),
            ": it is quantised as fp4, and only nf4 is read. Quantise the model again with \
             bnb_4bit_quant_type = \"nf4\""
                .to_owned(),
        ),
        (
            Change::State("nested_offset", Value::Null),
            format!(
                ": `{Q}{STATE}` has only one of `nested_blocksize` and `nested_offset`. {AGAIN}"
            ),
        ),
        (
            Change::State("nested_blocksize", json!(128)),
            ": 128 scales share another, and only 256, bitsandbytes' own, are read. Quantise the \
             model again with these"
                .to_owned(),
        ),
        (
            Change::State("blocksize", json!(128)),
            ": 128 weights share a scale, and only 64, bitsandbytes' own, are read. Quantise the \
             model again with these"
                .to_owned(),
        ),
        (
            Change::State("shape", json!([16, 64])),
            format!(" has shape [16, 64], but the configuration requires [32, 32]. {BOTH}"),
        ),
        (
            Change::State("blocksize", json!(-1)),
            format!(
                ": `{Q}{STATE}` is not what bitsandbytes saves: invalid value: integer `-1`, \
                 expected usize at line 1 column 34. {AGAIN}"
            ),
        ),
        (
            Change::Reshape(".absmax", &[15]),
            format!(": `absmax` has 15 elements, and 16 belong to 32 rows of 32 weights. {AGAIN}"),
        ),
        (
            Change::Reshape(".quant_map", &[16]),
            format!(": `quant_map` does not have the sixteen levels of nf4. {AGAIN}"),
        ),
    ] {
        check(Kind::Nf4, [Q, Q], change, &says);
    }
    let says =
        format!(": `absmax` has 15 elements, and 16 belong to 32 rows of 32 weights. {AGAIN}");
    check(Kind::Nf4Plain, [Q, Q], Change::Reshape(".absmax", &[15]), &says);
}

#[test]
fn incomplete_fp8_and_mxfp4() {
    let shape = |found, expected| {
        format!(" has shape {found}, but the configuration requires {expected}. {BOTH}")
    };
    let missing = |part: &str| format!(": `{part}`, which belongs to it, is missing. {AGAIN}");
    let scales = ": `weight_scale_inv` has 2 elements, and 1 belong to 32 rows of 32 weights.";
    for (kind, change, says) in [
        (Kind::Fp8, Change::Remove("_scale_inv"), missing(&format!("{Q}_scale_inv"))),
        (Kind::Fp8Blocks, Change::Reshape("_scale_inv", &[2, 1]), format!("{scales} {AGAIN}")),
        (Kind::Fp8, Change::Reshape("", &[32, 16]), shape("[32, 16]", "[32, 32]")),
    ] {
        check(kind, [Q, Q], change, &says);
    }
    let of_all = "model.layers.0.mlp.experts.down_proj";
    let scales = format!("{of_all}_scale_inv");
    let few = Change::Reshape("_scale_inv", &[3, 2, 2]);
    for (name, change, says) in [
        (&scales[..], few, shape("[3, 2, 2]", "[3, 1, 2]")),
        (of_all, Change::Remove("_scale_inv"), missing(&scales)),
        (of_all, Change::Reshape("", &[3, 32, 128]), shape("[3, 32, 128]", "[3, 32, 256]")),
    ] {
        check(Kind::Fp8Experts, [of_all, name], change, &says);
    }
    let blocks = format!("{of_all}_blocks");
    let few = Change::Reshape("_scales", &[3, 32, 1]);
    for (change, says) in [
        (few, shape("[3, 32, 1]", "[3, 32, 2]")),
        (Change::Remove("_scales"), missing(&format!("{of_all}_scales"))),
    ] {
        check(Kind::Mxfp4, [of_all, &blocks], change, &says);
    }
}

/// Gate and up, one above the other, whose border is inside a block of FP8.
#[test]
fn uneven_gate_and_up() {
    let name = "model.layers.0.mlp.experts.gate_up_proj";
    let uneven = |problem: &str| {
        format!(
            ": gate and up have 192 rows each, which is no multiple of 128, {problem}. Use a model \
             that has each expert in tensors of its own, or one that is not quantised"
        )
    };
    for (num_rows, end, says) in [
        (3, "", uneven("so that a scale belongs to both")),
        (4, "", uneven("and scales of their own, as transformers never has them")),
        (
            5,
            "_scale_inv",
            format!(" has shape [3, 5, 1], but the configuration requires [3, 3, 1]. {BOTH}"),
        ),
    ] {
        let scales: &[usize] = &[3, num_rows, 1];
        let found = message(Kind::Fp8Experts, |dir| {
            set_key(&dir.join("config.json"), "moe_intermediate_size", json!(192));
            rewrite(&dir.join("model.safetensors"), |tensors| {
                for (part, shape) in [("", &[3, 384, 32][..]), ("_scale_inv", scales)] {
                    let (dtype, old, bytes) = tensors.remove(&format!("{name}{part}")).unwrap();
                    let size = bytes.len() / old.iter().product::<usize>();
                    let zeros = vec![0; size * shape.iter().product::<usize>()];
                    tensors.insert(format!("{name}{part}"), (dtype, shape.to_vec(), zeros));
                }
            });
        });
        assert_eq!(found, format!("DIR/model.safetensors: tensor `{name}{end}`{says}"));
    }
}

/// Other quantisations are refused by name, before the weights are looked at.
#[test]
fn other_quantisations() {
    let read = "fp8 (with a scale for each 128 × 128 weights, each row or the matrix), \
                compressed-tensors' pack-quantized weights without zero points, bitsandbytes' nf4 \
                and mxfp4 are read. Use the unquantised model, or one of these";
    for (key, value, problem) in [
        ("quant_method", json!("gptq"), "is `gptq`, which is not supported"),
        ("quant_method", json!("awq"), "is `awq`, which is not supported"),
        ("quant_method", Value::Null, "is missing"),
        ("load_in_8bit", json!(true), "is true, which is not supported"),
        ("bnb_4bit_quant_type", json!("fp4"), "is \"fp4\", which is not supported"),
        // transformers' default.
        ("bnb_4bit_quant_type", Value::Null, "is missing, which means fp4, and is not supported"),
    ] {
        let mut given = Kind::Nf4.quantization_config();
        given[key] = value;
        let change = |dir: &Path| set_key(&dir.join("config.json"), "quantization_config", given);
        let expected = format!("DIR/config.json: `quantization_config.{key}` {problem}: {read}");
        assert_eq!(message(Kind::Nf4, change), expected);
    }
    let mut given = Kind::Fp8Blocks.quantization_config();
    given["weight_block_size"] = json!([64, 64]);
    let change = |dir: &Path| set_key(&dir.join("config.json"), "quantization_config", given);
    assert!(message(Kind::Fp8Blocks, change).contains("is [64,64], which is not supported"));
}
