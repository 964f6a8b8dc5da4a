//! A model as the package compressed-tensors wrote it (`scripts/goldens_packed.py`), each matrix in
//! another form, and what is not read of such files.

use crate::bad_quantised::load_error;
use crate::fixture::{Entry, goldens_dir, load, rewrite, set_key, write_tensors};
use hone_model::{Role, Trained, WeightSpec};
use hone_tensor::{Category, Device};
use safetensors::Dtype;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use tempfile::TempDir;

/// The storage that each projection is held in, of both blocks.
const HELD: [(&str, [&str; 2]); 7] = [
    ("self_attn.q_proj", ["q4_0", "fp8_rows"]),
    ("self_attn.k_proj", ["q4_0", "fp8"]),
    ("self_attn.v_proj", ["int8", "fp8"]),
    // Groups of 16 have no blocks.
    ("self_attn.o_proj", ["int8", "f32"]),
    ("mlp.gate_proj", ["int8", "q4_0"]),
    // In the second block a scale is too small for an f16.
    ("mlp.up_proj", ["int8", "int8"]),
    ("mlp.down_proj", ["q4_0", "q8_0"]),
];

/// The model's directory, and what its matrices stand for by name.
fn golden() -> (TempDir, BTreeMap<String, Entry>) {
    let (dir, file) = (tempfile::tempdir().unwrap(), "model.safetensors");
    std::fs::copy(goldens_dir().join("packed.json"), dir.path().join("config.json")).unwrap();
    std::fs::copy(goldens_dir().join("packed.safetensors"), dir.path().join(file)).unwrap();
    let mut values = BTreeMap::new();
    rewrite(&dir.path().join(file), |tensors| {
        let (of_values, rest) =
            std::mem::take(tensors).into_iter().partition(|(name, _)| name.starts_with("values."));
        (values, *tensors) = (of_values, rest);
    });
    (dir, values)
}

/// Every matrix has the values that the package finds, to the bit, and takes what was planned.
#[test]
fn values_are_those_of_compressed_tensors() {
    let (dir, values) = golden();
    let device = Device::cpu(2);
    let model = load(dir.path(), &device, None, Trained::Nothing);
    let mut checked = 0;
    for WeightSpec { role, name, .. } in model.decoder.config.weights() {
        let Role::Matrix(layer, _) = role else { continue };
        let tensor = model.weight(role).unwrap();
        let module = name.split_once("layers.").unwrap().1[2..].trim_end_matches(".weight");
        let held = HELD.iter().find(|(known, _)| *known == module).unwrap().1[layer];
        assert_eq!(tensor.storage().name(), held, "{name}");
        let (_, _, bytes) = &values[&format!("values.{name}")];
        let expected: Vec<f32> =
            bytes.chunks_exact(4).map(|x| f32::from_le_bytes(x.try_into().unwrap())).collect();
        assert!(tensor.to_vec_f32() == expected, "{name}");
        checked += 1;
    }
    assert_eq!(checked, 2 * HELD.len());
    let (dry, counting) = (Device::dry(), Device::dry());
    let _planned = load(dir.path(), &dry, None, Trained::Nothing);
    let held = |spec: WeightSpec| {
        let tensor = model.weight(spec.role)?;
        counting.persistent(Category::Weights, tensor.storage(), tensor.shape()).ok()
    };
    let _held: Vec<_> = model.decoder.config.weights().filter_map(held).collect();
    let bytes = [&dry, &counting].map(|device| device.persistent_bytes(Category::Weights));
    assert_eq!(bytes[0], bytes[1]);
}

/// The error of loading the model after `change`.
fn message(change: impl FnOnce(&Path)) -> String {
    let (dir, _) = golden();
    change(dir.path());
    load_error(dir.path())
}

/// What the configuration says that is not read, by the key that says it.
#[test]
fn other_forms_are_refused_by_name() {
    let quantization: Value =
        serde_json::from_slice(&std::fs::read(goldens_dir().join("packed.json")).unwrap()).unwrap();
    let quantization = &quantization["quantization_config"];
    let first = "/config_groups/group_0";
    let weights = "config_groups.group_0.weights";
    for (at, value, says) in [
        (
            format!("{first}/weights/symmetric"),
            json!(false),
            format!("{weights}.symmetric` is false"),
        ),
        (
            format!("{first}/weights/actorder"),
            json!("group"),
            format!("{weights}.actorder` is \"group\""),
        ),
        (
            format!("{first}/input_activations"),
            json!({"num_bits": 8}),
            "config_groups.group_0.input_activations` is {\"num_bits\":8}".to_owned(),
        ),
        (
            format!("{first}/format"),
            json!("nvfp4-pack-quantized"),
            "config_groups.group_0.format` is `nvfp4-pack-quantized`".to_owned(),
        ),
        (
            format!("{first}/weights/type"),
            json!("float"),
            "config_groups.group_0.weights` is 4 bits of type float with a scale for each group"
                .to_owned(),
        ),
        (
            "/config_groups/group_9/weights/block_structure".to_owned(),
            json!([64, 64]),
            "config_groups.group_9.weights` is 8 bits of type float with a scale for each block"
                .to_owned(),
        ),
        (
            "/kv_cache_scheme".to_owned(),
            json!({"num_bits": 8}),
            "kv_cache_scheme` is {\"num_bits\":8}".to_owned(),
        ),
        (
            "/transform_config".to_owned(),
            json!({"config_groups": {"u": {}}}),
            "transform_config` is {".to_owned(),
        ),
        ("/config_groups".to_owned(), json!({}), "config_groups` is empty".to_owned()),
    ] {
        let mut given = quantization.clone();
        let (parent, key) = at.rsplit_once('/').unwrap();
        given.pointer_mut(parent).unwrap()[key] = value;
        let found = message(|dir| set_key(&dir.join("config.json"), "quantization_config", given));
        let expected = format!("DIR/config.json: `quantization_config.{says}");
        assert!(found.starts_with(&expected), "{found}\n{expected}");
        assert!(found.ends_with("Use the unquantised model, or one of these"), "{found}");
    }
    // In whatever order columns were rounded, they lie in their own.
    let mut given = quantization.clone();
    given.pointer_mut(&format!("{first}/weights")).unwrap()["actorder"] = json!("static");
    let found = message(|dir| set_key(&dir.join("config.json"), "quantization_config", given));
    assert_eq!(found, "it loads");
}

const Q: &str = "model.layers.0.self_attn.q_proj.weight";

#[test]
fn incomplete_matrices_are_refused_by_name() {
    let again = "Fetch the whole model, or save it again with `save_pretrained`";
    let both = "Either the weights or the configuration belong to another model";
    let integers = |numbers: [i64; 2]| numbers.map(i64::to_le_bytes).concat();
    let reshaped = |dtype, shape: &[usize]| {
        let size = if dtype == Dtype::I32 { 4 } else { 2 };
        (dtype, shape.to_vec(), vec![0; size * shape.iter().product::<usize>()])
    };
    for (part, entry, says) in [
        ("_scale", None, format!(": `{Q}_scale`, which belongs to it, is missing. {again}")),
        ("_shape", None, format!(": `{Q}_shape`, which belongs to it, is missing. {again}")),
        (
            "_shape",
            Some((Dtype::I64, vec![2], integers([32, 48]))),
            format!(" has shape [32, 48], but the configuration requires [32, 32]. {both}"),
        ),
        (
            "_scale",
            Some(reshaped(Dtype::BF16, &[32, 3])),
            format!(
                ": `weight_scale` has 96 elements, and 32 belong to 32 rows of 32 weights. {again}"
            ),
        ),
        (
            "_packed",
            Some(reshaped(Dtype::I32, &[32, 7])),
            format!(
                ": I32 of shape [32, 7] are not 32 rows of 32 weights of [4, 3, 8, 2, 5] bits, as \
                 `num_bits` in config.json says. {again}"
            ),
        ),
    ] {
        let found = message(|dir| {
            rewrite(&dir.join("model.safetensors"), |tensors| {
                let name = format!("{Q}{part}");
                tensors.remove(&name).unwrap();
                tensors.extend(entry.map(|entry| (name, entry)));
            });
        });
        assert_eq!(found, format!("DIR/model.safetensors: tensor `{Q}_packed`{says}"));
    }
    // A file of another model has no such tensors at all.
    let found = message(|dir| write_tensors(&dir.join("model.safetensors"), &BTreeMap::new()));
    assert!(found.contains("`model.embed_tokens.weight` is missing"), "{found}");
}
