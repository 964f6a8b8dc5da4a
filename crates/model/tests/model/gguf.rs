//! Models in GGUF files: the same as in a directory, and what is refused.

use crate::fixture::{
    Golden, Sample, copy_of, export, logits, max_error, pack, range, set_key, write_tensors,
};
use crate::gguf_files::{from_directory, letters};
use hone_model::{DecoderConfig, LoadOptions, Model, WeightSpec, load, texts_of_gguf};
use hone_tensor::gguf::testing::{Entry, Meta, Writer};
use hone_tensor::{
    Category, Compute, DType, Device, Philox, Storage, Tensor, WeightFormat, testing,
};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

pub fn write(writer: &Writer) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    std::fs::write(&path, writer.bytes()).unwrap();
    (folder, path)
}

pub fn loaded(path: &Path) -> Model {
    load(path, &Device::cpu(2), LoadOptions::INFERENCE).unwrap()
}

pub fn logits_of(model: &Model, golden: &Golden) -> Vec<f32> {
    let batch = pack(&model.decoder.config, &golden.samples(), 0);
    logits(model, &Device::cpu(2), Compute::F32, &batch)
}

/// Cases of the goldens, with keys of their configuration that GGUF cannot say.
pub const CASES: [(&str, &[(&str, Value)]); 25] = [
    ("tied_gqa", &[]),
    ("untied_bias_linear", &[]),
    ("headdim_llama3", &[]),
    ("yarn", &[]),
    ("granite", &[]),
    ("ministral3", &[]),
    ("mistral", &[("sliding_window", Value::Null)]),
    ("mixtral", &[("sliding_window", Value::Null)]),
    (
        "smollm3",
        &[
            ("no_rope_layers", Value::Null),
            ("no_rope_layer_interval", Value::Null),
            ("use_sliding_window", Value::Bool(false)),
            ("sliding_window", Value::Null),
        ],
    ),
    ("qwen2", &[("use_sliding_window", Value::Bool(false)), ("sliding_window", Value::Null)]),
    ("qwen3", &[("use_sliding_window", Value::Bool(false)), ("sliding_window", Value::Null)]),
    ("qwen3_moe", &[]),
    ("qwen2_moe", &[("use_sliding_window", Value::Bool(false)), ("sliding_window", Value::Null)]),
    ("phi3", &[]),
    ("phi3", &[("sliding_window", Value::Null), ("rope_scaling", Value::Null)]),
    ("olmo2", &[]),
    ("olmo3", &[]),
    ("olmoe", &[]),
    ("glm4", &[]),
    ("glm4_moe", &[]),
    ("gpt_oss", &[("layer_types", Value::Null)]),
    ("qwen3_5", &[]),
    ("qwen3_5_moe", &[]),
    ("gemma2", &[]),
    ("gemma3", &[("query_pre_attn_scalar", Value::Null)]),
];

/// Gives a model the values of keys that GGUF cannot say.
pub fn set_unsaid(case: &str, dir: &Path, unsaid: &[(&str, Value)]) {
    // Nothing in a file of Gemma 2 says otherwise.
    let gemma = [("query_pre_attn_scalar", json!(32))];
    let gemma = if case == "gemma2" { &gemma[..] } else { &[] };
    for (key, value) in unsaid.iter().chain(gemma) {
        set_key(&dir.join("config.json"), key, value.clone());
    }
}

/// Configuration and weights come out as they went in: logits have the same bits.
#[test]
fn a_file_is_the_model_that_it_was_made_of() {
    for (case, unsaid) in CASES {
        let (golden, dir) = (Golden::load(case), copy_of(case));
        set_unsaid(case, dir.path(), unsaid);
        let mut writer = from_directory(dir.path());
        let expected = DecoderConfig::load(dir.path()).unwrap();
        letters(&mut writer, expected.vocab_size);
        let further = [("qwen3_5", "qwen35"), ("glm4_moe", "glm4moe")];
        if let Some((_, name)) = further.iter().find(|(further, _)| *further == case) {
            // A block that predicts tokens after the next.
            set(&mut writer, &format!("{name}.block_count"), Meta::U32(4));
            set(&mut writer, &format!("{name}.nextn_predict_layers"), Meta::U32(1));
            if case == "qwen3_5" {
                let recurrent = Meta::Bools(vec![true, false, true, false]);
                set(&mut writer, "qwen35.attention.recurrent_layers", recurrent);
            }
            add(&mut writer, "blk.3.nextn.eh_proj.weight", &[0.5]);
        }
        let (_folder, path) = write(&writer);
        let found = DecoderConfig::load(&path).unwrap();
        assert_eq!(format!("{found:?}"), format!("{expected:?}"), "{case}");
        check_kinds(dir.path(), &path);
        let (expected, found) = (loaded(dir.path()), loaded(&path));
        assert_eq!(found.file_dtype, expected.file_dtype, "{case}");
        let [found, expected] = [&found, &expected].map(|model| logits_of(model, &golden));
        // Rates at which heads forget are logarithms of what files have.
        let off = max_error(&found, &expected) / range(&expected);
        assert!(off == 0.0 || case.starts_with("qwen3_5") && off < 1e-6, "{case} {off}");
    }
}

/// Of Qwen3.5 from 4B on, where value heads are in tiles in files: blocks that two of them share
/// stay as they are, and the model is that of their values in Hugging Face's order.
#[test]
fn tiles_stay_in_their_blocks() {
    for (kind, head_dim) in [(12, 128), (14, 128), (8, 8)] {
        let Ok(Storage::Packed(format)) = Storage::from_ggml(kind) else { panic!("{kind}") };
        let dir = copy_of("qwen3_5");
        set_key(&dir.path().join("config.json"), "linear_value_head_dim", json!(head_dim));
        let (rows, cols) = (24, 4 * head_dim);
        let stored = |layer| testing::weights_of_file(format, [rows, cols], layer);
        let name_of = |layer| format!("model.layers.{layer}.linear_attn.out_proj.weight");
        // Two value heads for each of two key heads.
        let ordered = |layer| -> Vec<f32> {
            let packed = Tensor::from_bytes(&stored(layer), Storage::Packed(format), &[rows, cols]);
            let values = packed.to_vec_f32();
            let row = |row: &[f32]| [0, 2, 1, 3].map(|i| row[i * head_dim..][..head_dim].to_vec());
            values.chunks(cols).flat_map(|of| row(of).concat()).collect()
        };
        let config = DecoderConfig::load(dir.path()).unwrap();
        let entry = |(i, spec): (usize, WeightSpec)| {
            let random = Philox::new(12, i as u64);
            let len = spec.shape.iter().product::<usize>() as u64;
            let layer = [0, 2].into_iter().find(|layer| spec.name == name_of(*layer));
            let values = match layer {
                Some(layer) => ordered(layer),
                None => (0..len).map(|i| 0.4 * random.uniform(i) - 0.2).collect(),
            };
            let bytes = values.iter().flat_map(|x| x.to_le_bytes()).collect();
            (spec.name, (safetensors::Dtype::F32, spec.shape, bytes))
        };
        let tensors = config.weights().enumerate().map(entry).collect();
        write_tensors(&dir.path().join("model.safetensors"), &tensors);
        let mut writer = from_directory(dir.path());
        letters(&mut writer, config.vocab_size);
        for layer in [0, 2] {
            let name = format!("blk.{layer}.ssm_out.weight");
            let output = writer.tensors.iter_mut().find(|tensor| tensor.name == name).unwrap();
            (output.kind, output.bytes) = (kind, stored(layer));
        }
        let (_folder, path) = write(&writer);
        let (expected, found) = (loaded(dir.path()), loaded(&path));
        let storages: Vec<Storage> = found.storages();
        assert!(storages.contains(&Storage::Packed(format)), "{storages:?}");
        let [expected, logits] = [&expected, &found].map(logits_of_letters);
        let off = max_error(&logits, &expected) / range(&expected);
        assert!(off < 1e-6, "{} {off}", format.name);
        // Written as floats it is that model too.
        let merged = tempfile::tempdir().unwrap();
        export(&found, &Device::cpu(2), &path, DType::F32, merged.path()).unwrap();
        assert!(logits_of_letters(&loaded(merged.path())) == logits, "{}", format.name);
        let dry = Device::dry();
        load(&path, &dry, LoadOptions::INFERENCE).unwrap();
        let device = Device::cpu(1);
        load(&path, &device, LoadOptions::INFERENCE).unwrap();
        let bytes = [&dry, &device].map(|device| device.persistent_bytes(Category::Weights));
        assert_eq!(bytes[0], bytes[1]);
    }
}

fn logits_of_letters(model: &Model) -> Vec<f32> {
    let sample = Sample { ids: vec![1, 39, 7, 7, 20, 3], mask: vec![1; 6] };
    let batch = pack(&model.decoder.config, &[sample], 0);
    logits(model, &Device::cpu(2), Compute::F32, &batch)
}

/// What heads forget at has a logarithm.
#[test]
fn rates_without_logarithms() {
    let dir = copy_of("qwen3_5");
    for wrong in [0.0, 0.5, f32::NAN] {
        let mut writer = from_directory(dir.path());
        let rates = writer.tensors.iter_mut().find(|tensor| tensor.name == "blk.2.ssm_a").unwrap();
        rates.bytes[4..8].copy_from_slice(&wrong.to_le_bytes());
        let (_folder, path) = write(&writer);
        for device in [Device::cpu(1), Device::dry()] {
            let error = load(&path, &device, LoadOptions::INFERENCE).err().unwrap().to_string();
            let says = format!(
                "tensor `blk.2.ssm_a`: it has {wrong}, and what heads forget at is negative and \
                 finite. Fetch the file again, or another of this model"
            );
            assert!(error.ends_with(&says), "{error}");
        }
    }
}

/// Newer files have gate and up of all experts in one tensor.
#[test]
fn gate_and_up_in_one_tensor() {
    for (case, kind) in [("qwen3_moe", "weight"), ("gpt_oss", "bias")] {
        let golden = Golden::load(case);
        let mut writer = from_directory(copy_of(case).path());
        let (_folder, path) = write(&writer);
        for layer in 0..DecoderConfig::load(&path).unwrap().num_hidden_layers() {
            for kind in ["weight", kind] {
                join_gate_and_up(&mut writer, layer, kind);
            }
        }
        let of_both = |tensor: &&Entry| tensor.name.contains("gate_up_exps.bias");
        assert_eq!(writer.tensors.iter().any(|tensor| of_both(&tensor)), kind == "bias");
        let (_folder, joined) = write(&writer);
        let [expected, found] = [&path, &joined].map(|path| logits_of(&loaded(path), &golden));
        assert!(expected == found, "{case}");
    }
}

/// A block that gate and up share belongs to neither.
#[test]
fn gate_and_up_in_one_block() {
    let mut writer = from_directory(copy_of("gpt_oss").path());
    writer
        .tensors
        .retain(|t| !["blk.0.ffn_gate_exps.bias", "blk.0.ffn_up_exps.bias"].contains(&&t.name[..]));
    writer.tensor("blk.0.ffn_gate_up_exps.bias", 8, &[5, 32], vec![0; 5 * 34]);
    let (_folder, path) = write(&writer);
    let error = load(&path, &Device::cpu(1), LoadOptions::INFERENCE).err().unwrap().to_string();
    let says = "tensor `blk.0.ffn_gate_up_exps.bias`: it has shape [5, 32], in which not every \
                expert has whole blocks of its own. Fetch the file again, or another of this model";
    assert!(error.ends_with(says), "{error}");
}

/// What files leave out has the value that llama.cpp takes then, and not the family's.
#[test]
fn defaults_are_those_of_the_format() {
    let dir = copy_of("glm4_moe");
    let mut writer = from_directory(dir.path());
    let config = |writer: &Writer| -> Value {
        let (_folder, path) = write(writer);
        serde_json::from_str(&texts_of_gguf(&path).unwrap()["config.json"]).unwrap()
    };
    for (key, to, default) in [
        ("expert_weights_norm", "norm_topk_prob", json!(false)),
        ("rope.freq_base", "rope_theta", json!(10_000.0)),
    ] {
        writer.set(
            &format!("glm4moe.{key}"),
            if key == "rope.freq_base" { Meta::F32(5e5) } else { Meta::Bool(true) },
        );
        assert_ne!(config(&writer)[to], default);
        writer.keys.retain(|(other, _)| !other.ends_with(key));
        assert_eq!(config(&writer)[to], default);
    }
}

fn join_gate_and_up(writer: &mut Writer, layer: usize, kind: &str) {
    let mut taken = |part: &str| {
        let name = format!("blk.{layer}.ffn_{part}_exps.{kind}");
        let at = writer.tensors.iter().position(|tensor| tensor.name == name)?;
        Some(writer.tensors.remove(at))
    };
    // Blocks without experts, and what was joined before.
    let (Some(gate), Some(up)) = (taken("gate"), taken("up")) else { return };
    let num_experts = gate.shape[0] as usize;
    let len = gate.bytes.len() / num_experts;
    let experts = gate.bytes.chunks(len).zip(up.bytes.chunks(len));
    let bytes = experts.flat_map(|(gate, up)| [gate, up].concat()).collect();
    let mut shape: Vec<usize> = gate.shape.iter().map(|&size| size as usize).collect();
    shape[1] *= 2;
    writer.tensor(&format!("blk.{layer}.ffn_gate_up_exps.{kind}"), gate.kind, &shape, bytes);
}

/// What is a whole number in the family's `config.json` is one in that of a file, and what is not
/// is none: transformers refuses others.
fn check_kinds(dir: &Path, file: &Path) {
    let original = std::fs::read(dir.join("config.json")).unwrap();
    let original: Value = serde_json::from_slice(&original).unwrap();
    let found: Value = serde_json::from_str(&texts_of_gguf(file).unwrap()["config.json"]).unwrap();
    for (key, found) in found.as_object().unwrap() {
        let original = &original[key];
        if original.is_number() && found.is_number() {
            assert_eq!(found.is_f64(), original.is_f64(), "{key}: {found} {original}");
        }
    }
}

/// A small Llama whose matrices are blocks of one format, and whose queries and keys are in pairs.
fn packed((kind, format): (u32, &'static WeightFormat)) -> Writer {
    let h = format.block.max(64);
    let mut writer = Writer::default();
    writer.set("general.architecture", "llama");
    for (key, value) in [
        ("context_length", 64),
        ("embedding_length", h as u32),
        ("block_count", 2),
        ("feed_forward_length", 2 * h as u32),
        ("attention.head_count", 4),
        ("attention.head_count_kv", 2),
    ] {
        writer.set(&format!("llama.{key}"), Meta::U32(value));
    }
    let mut matrix = |name: &str, rows: usize, cols: usize| {
        let stream = writer.tensors.len() as u64;
        let bytes = testing::weights_of_file(format, [rows, cols], stream);
        writer.tensor(name, kind, &[rows, cols], bytes);
    };
    matrix("token_embd.weight", 40, h);
    for layer in 0..2 {
        for (name, rows, cols) in [
            ("attn_q", h, h),
            ("attn_k", h / 2, h),
            ("attn_v", h / 2, h),
            ("attn_output", h, h),
            ("ffn_gate", 2 * h, h),
            ("ffn_up", 2 * h, h),
            ("ffn_down", h, 2 * h),
        ] {
            matrix(&format!("blk.{layer}.{name}.weight"), rows, cols);
        }
    }
    for norm in ["blk.0.attn_norm", "blk.0.ffn_norm", "blk.1.attn_norm", "blk.1.ffn_norm"] {
        writer.floats(&format!("{norm}.weight"), &[h], &vec![0.1; h]);
    }
    writer.floats("output_norm.weight", &[h], &vec![0.2; h]);
    writer
}

/// Blocks stay as they are in the file and compute what their values do; memory is counted as the
/// file's bytes.
#[test]
fn blocks_stay_in_the_file() {
    let formats = (0..64).filter_map(|kind| match Storage::from_ggml(kind) {
        Ok(Storage::Packed(format)) => Some((kind, format)),
        _ => None,
    });
    for (kind, format) in formats {
        let (_folder, path) = write(&packed((kind, format)));
        let device = Device::cpu(2);
        let model = load(&path, &device, LoadOptions::INFERENCE).unwrap();
        assert_eq!(model.file_dtype, DType::Bf16);
        let (mut bytes, mut expected) = (0, 0);
        for (name, projection) in model.decoder.projections() {
            let weight = model.params.resolve(&projection.weight);
            assert_eq!(weight.storage(), Storage::Packed(format), "{name}");
            bytes += weight.num_bytes();
        }
        for tensor in packed((kind, format)).tensors {
            let is_matrix = tensor.shape.len() > 1 && tensor.name != "token_embd.weight";
            expected += if is_matrix { tensor.bytes.len() } else { 0 };
        }
        assert_eq!(bytes, expected);
        let all: usize =
            packed((kind, format)).tensors.iter().map(|tensor| tensor.bytes.len()).sum();
        assert_eq!(device.persistent_bytes(Category::Weights), all as u64);
        let options =
            LoadOptions { base_precision: Some(DType::F32.into()), ..LoadOptions::INFERENCE };
        let floats = load(&path, &device, options).unwrap();
        let sample = Sample { ids: vec![1, 39, 7, 7, 20, 3], mask: vec![1; 6] };
        let batch = pack(&model.decoder.config, &[sample], 0);
        let [found, expected] =
            [&model, &floats].map(|model| logits(model, &device, Compute::F32, &batch));
        assert!(max_error(&found, &expected) < 1e-5 * range(&expected), "{}", format.name);
    }
}

/// The error of opening a file that was changed, after its path.
fn refused(change: impl FnOnce(&mut Writer)) -> String {
    let mut writer = from_directory(copy_of("tied_gqa").path());
    change(&mut writer);
    let (_folder, path) = write(&writer);
    let says = |device| match load(&path, &device, LoadOptions::INFERENCE) {
        Ok(_) => "it loads".to_owned(),
        Err(error) => error.to_string(),
    };
    let found = says(Device::cpu(1));
    assert_eq!(found, says(Device::dry()));
    found.strip_prefix(&format!("{}: ", path.display())).unwrap_or(&found).to_owned()
}

type Change = fn(&mut Writer);

fn check(cases: &[(Change, &str)]) {
    for (change, says) in cases {
        let found = refused(change);
        assert!(found.starts_with(says), "{found:?} is not {says:?}");
    }
}

#[test]
fn unusable_metadata() {
    check(&[
        (
            |w| drop(w.keys.remove(0)),
            "`general.architecture` is missing, so nothing says how the tensors are used: fetch \
             the model again",
        ),
        (
            |w| w.keys[0].1 = "mamba".into(),
            "`general.architecture` is `mamba`, which is not supported yet; supported: llama, ",
        ),
        (
            |w| w.keys.push(("general.type".into(), "adapter".into())),
            "`general.type` is `adapter`, and this is the model's place: give the model that it",
        ),
        (
            |w| w.keys.push(("general.type".into(), "mmproj".into())),
            "`general.type` is `mmproj`, and only models are read: give the model's own file",
        ),
        (
            |w| w.keys.retain(|(key, _)| key != "llama.block_count"),
            "`llama.block_count` is missing and has no default: fetch the model again",
        ),
        (
            |w| set(w, "llama.block_count", "2".into()),
            "`llama.block_count` must be a number, found a string",
        ),
        (
            |w| set(w, "llama.block_count", Meta::U32(5000)),
            "`llama.block_count` must be at most 4096, found 5000: take the file \
             from the source of the weights",
        ),
        (
            |w| set(w, "llama.embedding_length", Meta::U32(0)),
            "`llama.embedding_length` must be a whole number from 1 to 2147483647, found 0",
        ),
        (
            |w| set(w, "llama.attention.head_count_kv", Meta::U32(3)),
            "`llama.attention.head_count_kv` must divide llama.attention.head_count (4), found 3: \
             take the file from the source of the weights",
        ),
        (
            |w| set(w, "llama.attention.head_count_kv", Meta::I32s(vec![2, 4])),
            "`llama.attention.head_count_kv` differs from block to block, which is not supported",
        ),
        (
            |w| set(w, "llama.expert_gating_func", Meta::U32(2)),
            "`llama.expert_gating_func` must be 1 to be supported, found 2",
        ),
        (
            |w| set(w, "llama.rope.dimension_count", Meta::U32(4)),
            "`llama.rope.dimension_count` is 0.6666666666666666, which is not supported; only 1",
        ),
        (
            |w| set(w, "llama.rope.scaling.type", "longrope".into()),
            "`llama.rope.scaling.type` is `longrope`, which is not supported; supported: none, ",
        ),
    ]);
}

#[test]
fn unusable_tensors() {
    check(&[
        (
            |w| add(w, "rope_freqs.weight", &[1.0, 5.0, 8.0]),
            "`rope_freqs.weight` is a tensor that scales frequencies otherwise than Llama 3 does",
        ),
        (
            |w| set(w, "llama.attention.scale", Meta::F32(0.5)),
            "`llama.attention.scale` is set, but Hone does not know this key, which may change",
        ),
        (
            |w| drop(w.tensors.remove(0)),
            "`token_embd.weight` is a tensor that every model has, and it is missing: fetch the",
        ),
        (
            |w| w.tensors.retain(|tensor| tensor.name != "blk.1.ffn_up.weight"),
            "tensor `blk.1.ffn_up.weight` is missing, but the configuration requires it. Either",
        ),
        (
            |w| set(w, "llama.feed_forward_length", Meta::U32(12)),
            "tensor `blk.0.ffn_gate.weight` has shape [11, 24], but the configuration requires [12",
        ),
        (
            |w| add(w, "blk.0.ffn_gate_inp.weight", &[0.0]),
            "tensor `blk.0.ffn_gate_inp.weight` is not part of the model that the configuration",
        ),
        (
            |w| {
                set(w, "llama.expert_count", Meta::U32(8));
                add(w, "blk.0.ffn_gate.0.weight", &[0.0]);
            },
            "`blk.0.ffn_gate.0.weight` is a tensor of one expert, as llama.cpp wrote them until \
             April 2024; only those of all experts are read: fetch a newer file, or convert the \
             model again",
        ),
    ]);
}

fn set(writer: &mut Writer, key: &str, value: Meta) {
    writer.set(key, value);
}

fn add(writer: &mut Writer, name: &str, values: &[f32]) {
    writer.floats(name, &[values.len()], values);
}
