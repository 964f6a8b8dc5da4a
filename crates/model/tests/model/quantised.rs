//! Quantised matrices in safetensors files, each in several tensors: FP8, integers as
//! compressed-tensors packs them, bitsandbytes' NF4, MXFP4.

use crate::fixture::{
    Entry, Outcome, Sample, cases, export, forward_backward, goldens_dir, load, logits, pack,
    rewrite, write_tensors,
};
use crate::support::text;
use hone_model::adapter::{LoraConfig, TargetModules, attach};
use hone_model::{
    Batch, DecoderConfig, ExpertPart, Linear, Model, Recompute, Role, Trained, WeightSpec,
};
use hone_tensor::safetensors::load_as;
use hone_tensor::{Category, Compute, DType, Device, Philox, Storage, Tensor};
use safetensors::Dtype;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use tempfile::TempDir;

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    Nf4,
    /// Without double quantisation.
    Nf4Plain,
    /// With one scale.
    Fp8,
    Fp8Blocks,
    /// Experts in one tensor.
    Fp8Experts,
    /// Four bits, in groups of 32 where rows have such, and else with a scale for each row.
    Ints,
    /// With a scale for each row, as compressed-tensors has it.
    Fp8Rows,
    Mxfp4,
}

impl Kind {
    const ALL: [Self; 8] = [
        Self::Nf4,
        Self::Nf4Plain,
        Self::Fp8,
        Self::Fp8Blocks,
        Self::Fp8Experts,
        Self::Ints,
        Self::Fp8Rows,
        Self::Mxfp4,
    ];

    fn storage(self, shape: &[usize]) -> &'static str {
        match self {
            Self::Nf4 => "nf4",
            Self::Nf4Plain => "nf4_f32",
            Self::Fp8Blocks | Self::Fp8Experts if shape.iter().any(|&size| size > 128) => {
                "fp8_block"
            }
            // One block has one scale.
            Self::Fp8 | Self::Fp8Blocks | Self::Fp8Experts => "fp8",
            Self::Ints if shape[1].is_multiple_of(32) => "q4_0",
            Self::Ints => "int8",
            Self::Fp8Rows => "fp8_rows",
            Self::Mxfp4 => "mxfp4",
        }
    }

    fn quantises(self, role: Role) -> bool {
        match (self, role) {
            // To bitsandbytes it is a matrix like any other, of one row.
            (Self::Nf4Plain, Role::Matrix(_, Linear::SharedGate)) => true,
            (_, Role::Matrix(_, Linear::Router | Linear::SharedGate)) => false,
            (Self::Mxfp4, Role::Matrix(_, linear)) => matches!(linear, Linear::Expert(..)),
            (_, Role::Matrix(..)) => true,
            _ => false,
        }
    }

    pub fn quantization_config(self) -> Value {
        match self {
            Self::Nf4 | Self::Nf4Plain => json!({
                "quant_method": "bitsandbytes", "_load_in_4bit": true, "_load_in_8bit": false,
                "load_in_4bit": true, "load_in_8bit": false, "bnb_4bit_quant_type": "nf4",
                "bnb_4bit_use_double_quant": self == Self::Nf4, "bnb_4bit_quant_storage": "uint8",
                "llm_int8_skip_modules": ["lm_head"],
            }),
            Self::Fp8 => json!({
                "quant_method": "fp8", "activation_scheme": "static", "weight_block_size": null,
                "dequantize": false, "modules_to_not_convert": ["lm_head"],
            }),
            Self::Fp8Blocks | Self::Fp8Experts => json!({
                "quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3",
                "weight_block_size": [128, 128],
            }),
            Self::Ints => json!({
                "quant_method": "compressed-tensors", "format": "pack-quantized",
                "ignore": ["lm_head"], "config_groups": {"group_0": {
                    "targets": ["Linear"], "weights": {"num_bits": 4, "group_size": 32},
                }},
            }),
            Self::Fp8Rows => json!({
                "quant_method": "compressed-tensors", "format": "float-quantized",
                "ignore": ["lm_head"], "config_groups": {"group_0": {
                    "targets": ["Linear"],
                    "weights": {"num_bits": 8, "type": "float", "strategy": "channel"},
                    "input_activations": {"num_bits": 8, "type": "float", "dynamic": true},
                }},
            }),
            Self::Mxfp4 => json!({"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}),
        }
    }
}

fn config(kind: Kind) -> Value {
    let mut config = json!({
        "model_type": "llama", "vocab_size": 40, "hidden_size": 32, "intermediate_size": 160,
        "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 64, "tie_word_embeddings": true,
    });
    if kind == Kind::Fp8Experts {
        config["model_type"] = json!("qwen3_moe");
        for (key, value) in [
            ("head_dim", 8),
            ("num_experts", 3),
            ("num_experts_per_tok", 2),
            ("moe_intermediate_size", 256),
        ] {
            config[key] = json!(value);
        }
    }
    if kind == Kind::Mxfp4 {
        config["model_type"] = json!("gpt_oss");
        for (key, value) in [
            ("head_dim", 8),
            ("num_local_experts", 3),
            ("num_experts_per_tok", 2),
            ("intermediate_size", 64),
        ] {
            config[key] = json!(value);
        }
    }
    config
}

/// The value of a byte in FP8 (e4m3).
fn e4m3(byte: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(byte >> 3 & 15), f32::from(byte & 7) / 8.0);
    let magnitude = match exponent {
        0 => mantissa * 2f32.powi(-6),
        _ => (1.0 + mantissa) * 2f32.powi(exponent - 7),
    };
    if byte < 128 { magnitude } else { -magnitude }
}

fn le(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}

/// Tensors by name.
pub type Tensors = BTreeMap<String, Entry>;

/// A matrix as `kind` has it in tensors, and its values.
fn quantised(
    kind: Kind,
    name: &str,
    [rows, cols]: [usize; 2],
    random: &Philox,
) -> (Tensors, Vec<f32>) {
    let len = rows * cols;
    let values: Vec<f32> = (0..len as u64).map(|i| 0.4 * random.uniform(i) - 0.2).collect();
    let byte = |i: usize| (256.0 * random.uniform(i as u64)) as u8;
    let mut tensors = Tensors::new();
    let mut add = |part: &str, dtype, shape: &[usize], bytes| {
        tensors.insert(format!("{name}{part}"), (dtype, shape.to_vec(), bytes));
    };
    match kind {
        Kind::Nf4Plain => {
            let weight: Vec<u8> = (0..len.div_ceil(2)).map(byte).collect();
            let absmax: Vec<f32> = (0..len.div_ceil(64)).map(|i| 0.1 + 0.01 * i as f32).collect();
            let level = |i: usize| LEVELS[usize::from(weight[i / 2] >> (4 * (1 - i % 2)) & 15)];
            let values = (0..len).map(|i| level(i) * absmax[i / 64]).collect();
            let state = json!({
                "quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [rows, cols],
            });
            let state = state.to_string().into_bytes();
            add(".absmax", Dtype::F32, &[absmax.len()], le(&absmax));
            add(".quant_map", Dtype::F32, &[16], le(&LEVELS));
            add(".quant_state.bitsandbytes__nf4", Dtype::U8, &[state.len()], state);
            add("", Dtype::U8, &[weight.len(), 1], weight);
            (tensors, values)
        }
        Kind::Nf4 => {
            let nf4 = Storage::from_name("nf4").unwrap();
            let matrix = Tensor::from_f32(&values, &[rows, cols]);
            let packed = load_as(&Device::cpu(1), Category::Weights, &matrix, nf4).unwrap();
            let (blocks, bytes) = (len.div_ceil(64), packed.bytes());
            let (levels, rest) = bytes.split_at(1024);
            let (mean, rest) = rest.split_at(4);
            let (scales, rest) = rest.split_at(4 * blocks.div_ceil(256));
            let (absmax, weight) = rest.split_at(blocks);
            let state = json!({
                "quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [rows, cols],
                "nested_blocksize": 256, "nested_dtype": "float32",
                "nested_offset": f32::from_le_bytes(mean.try_into().unwrap()),
            });
            let state = state.to_string().into_bytes();
            add("", Dtype::U8, &[weight.len(), 1], weight.to_vec());
            add(".absmax", Dtype::U8, &[blocks], absmax.to_vec());
            add(".quant_map", Dtype::F32, &[16], le(&LEVELS));
            add(".nested_absmax", Dtype::F32, &[scales.len() / 4], scales.to_vec());
            add(".nested_quant_map", Dtype::F32, &[256], levels.to_vec());
            add(".quant_state.bitsandbytes__nf4", Dtype::U8, &[state.len()], state);
            (tensors, values)
        }
        Kind::Fp8 | Kind::Fp8Blocks | Kind::Fp8Experts | Kind::Fp8Rows => {
            in_fp8(kind, name, [rows, cols], random)
        }
        Kind::Ints => in_ints(name, [rows, cols], random),
        Kind::Mxfp4 => {
            let blocks: Vec<u8> = (0..len / 2).map(byte).collect();
            let scales: Vec<u8> = (0..len / 32).map(|i| 122 + byte(i) % 4).collect();
            let levels = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
            let value = |i: usize| {
                let half = blocks[i / 2] >> (4 * (i % 2)) & 15;
                let level: f32 = levels[usize::from(half & 7)];
                let scale = 2f32.powi(i32::from(scales[i / 32]) - 127);
                if half < 8 { level * scale } else { -level * scale }
            };
            let values = (0..len).map(value).collect();
            add("_blocks", Dtype::U8, &[rows, cols / 32, 16], blocks);
            add("_scales", Dtype::U8, &[rows, cols / 32], scales);
            (tensors, values)
        }
    }
}

/// [`quantised`] of integers.
fn in_ints(name: &str, [rows, cols]: [usize; 2], random: &Philox) -> (Tensors, Vec<f32>) {
    let len = rows * cols;
    let byte = |i: usize| (256.0 * random.uniform(i as u64)) as u8;
    let mut tensors = Tensors::new();
    let mut add = |part: &str, dtype, shape: &[usize], bytes| {
        tensors.insert(format!("{name}{part}"), (dtype, shape.to_vec(), bytes));
    };
    let group = if cols.is_multiple_of(32) { 32 } else { cols };
    let codes: Vec<u8> = (0..len).map(|i| byte(i) & 15).collect();
    // Exact in bf16 and f16.
    let scale = |i: usize| (1 + i % 100) as f32 / 512.0;
    let value = |i: usize| (f32::from(codes[i]) - 8.0) * scale(i / group);
    let values = (0..len).map(value).collect();
    let words = codes.chunks(cols).flat_map(|row| {
        let bytes = row.chunks(2).map(|pair| pair[0] | pair.get(1).unwrap_or(&0) << 4);
        bytes.chain([0; 3]).take(4 * cols.div_ceil(8))
    });
    add("_packed", Dtype::I32, &[rows, cols.div_ceil(8)], words.collect());
    let halves =
        (0..len / group).flat_map(|i| (scale(i).to_bits() >> 16).to_le_bytes()[..2].to_vec());
    add("_scale", Dtype::BF16, &[rows, cols / group], halves.collect());
    let sizes = [rows, cols].map(|size| (size as i64).to_le_bytes()).concat();
    add("_shape", Dtype::I64, &[2], sizes);
    (tensors, values)
}

/// [`quantised`] of the kinds of FP8.
fn in_fp8(
    kind: Kind,
    name: &str,
    [rows, cols]: [usize; 2],
    random: &Philox,
) -> (Tensors, Vec<f32>) {
    let len = rows * cols;
    let byte = |i: usize| (256.0 * random.uniform(i as u64)) as u8;
    let bytes: Vec<u8> = (0..len).map(|i| byte(i) & 0xbf).collect();
    let scale_shape = match kind {
        Kind::Fp8 => vec![],
        Kind::Fp8Rows => vec![rows, 1],
        _ => vec![rows.div_ceil(128), cols.div_ceil(128)],
    };
    // Exact in bf16.
    let scale = |i: usize| 0.125 + i as f32 / 64.0;
    let count = scale_shape.iter().product::<usize>();
    let halves = (0..count).flat_map(|i| (scale(i).to_bits() >> 16).to_le_bytes()[..2].to_vec());
    let of = |i: usize| match kind {
        Kind::Fp8 => scale(0),
        Kind::Fp8Rows => scale(i / cols),
        _ => scale(i / cols / 128 * cols.div_ceil(128) + i % cols / 128),
    };
    let values = bytes.iter().enumerate().map(|(i, &byte)| e4m3(byte) * of(i)).collect();
    let end = if kind == Kind::Fp8Rows { "_scale" } else { "_scale_inv" };
    let mut tensors = Tensors::from([
        (format!("{name}{end}"), (Dtype::BF16, scale_shape, halves.collect())),
        (name.to_owned(), (Dtype::F8_E4M3, vec![rows, cols], bytes)),
    ]);
    let activation = name.replace(".weight", ".activation_scale");
    if kind == Kind::Fp8 {
        tensors.insert(activation, (Dtype::BF16, vec![], vec![0, 0]));
    }
    (tensors, values)
}

/// bitsandbytes' levels.
const LEVELS: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

fn write(dir: &Path, config: &Value, tensors: &Tensors) {
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    write_tensors(&dir.join("model.safetensors"), tensors);
}

/// A model as floats, and the same with quantised matrices.
pub fn model_in_both(kind: Kind) -> [TempDir; 2] {
    in_both(kind, config(kind))
}

/// The same of a configuration.
fn in_both(kind: Kind, mut config: Value) -> [TempDir; 2] {
    let [floats, packed] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    write(floats.path(), &config, &Tensors::new());
    let specs: Vec<WeightSpec> = DecoderConfig::load(floats.path()).unwrap().weights().collect();
    let (mut as_floats, mut as_packed) = (Tensors::new(), Tensors::new());
    for (i, WeightSpec { role, name, shape }) in specs.iter().enumerate() {
        let random = Philox::new(3, i as u64);
        let (mut tensors, mut values) = match (kind.quantises(*role), &shape[..]) {
            (true, &[rows, cols]) if kind != Kind::Mxfp4 => {
                quantised(kind, name, [rows, cols], &random)
            }
            _ => {
                let len = shape.iter().product::<usize>() as u64;
                (Tensors::new(), (0..len).map(|i| 0.4 * random.uniform(i) - 0.2).collect())
            }
        };
        if let (Kind::Mxfp4, Role::Matrix(_, Linear::Expert(expert, part))) = (kind, *role) {
            (tensors, values) = of_expert(expert, part);
        }
        if let (Kind::Fp8Experts, Role::Matrix(_, Linear::Expert(expert, part))) = (kind, *role) {
            (tensors, values) = of_expert_in_fp8(expert, part);
        }
        if let (Kind::Mxfp4, Role::Bias(_, Linear::Expert(expert, part))) = (kind, *role) {
            (tensors, values) = bias_of_expert(expert, part);
        }
        let entry = (Dtype::F32, shape.clone(), le(&values));
        if tensors.is_empty() {
            tensors.insert(name.clone(), entry.clone());
        }
        as_floats.insert(name.clone(), entry);
        as_packed.append(&mut tensors);
    }
    write(floats.path(), &config, &as_floats);
    config["quantization_config"] = kind.quantization_config();
    write(packed.path(), &config, &as_packed);
    [floats, packed]
}

/// The tensors of all experts, in which rows of gate and up alternate, and the values of one
/// expert's matrix.
fn of_expert(expert: usize, part: ExpertPart) -> (Tensors, Vec<f32>) {
    let (name, [rows, cols], first, step) = in_all(part);
    let (mut tensors, values) =
        quantised(Kind::Mxfp4, &name, [3 * rows, cols], &Philox::new(4, 32));
    for (_, shape, _) in tensors.values_mut() {
        shape.splice(..1, [3, rows]);
    }
    let of_expert = values.chunks(cols).skip(expert * rows).take(rows).skip(first).step_by(step);
    (tensors, of_expert.flatten().copied().collect())
}

/// The tensors of all experts, gate above up, and the values of one expert's matrix.
fn of_expert_in_fp8(expert: usize, part: ExpertPart) -> (Tensors, Vec<f32>) {
    let (name, [rows, cols], first, len) = match part {
        ExpertPart::Gate => ("gate_up_proj", [512, 32], 0, 256),
        ExpertPart::Up => ("gate_up_proj", [512, 32], 256, 256),
        ExpertPart::Down => ("down_proj", [32, 256], 0, 32),
    };
    let name = format!("model.layers.0.mlp.experts.{name}");
    let (mut of_all, mut values) = (Tensors::new(), Vec::new());
    for i in 0..3 {
        let (tensors, of_one) =
            quantised(Kind::Fp8Experts, &name, [rows, cols], &Philox::new(8, 32 + i));
        for (name, (dtype, shape, mut bytes)) in tensors {
            // Scales of experts differ.
            let halves = bytes.as_chunks_mut::<2>().0.iter_mut();
            if dtype == Dtype::BF16 {
                halves.for_each(|half| *half = doubled(*half, i));
            }
            let all = of_all.entry(name).or_insert((dtype, [&[3], &shape[..]].concat(), vec![]));
            all.2.append(&mut bytes);
        }
        values.push(of_one.into_iter().map(|x| x * 2f32.powi(i as i32)).collect::<Vec<_>>());
    }
    (of_all, values[expert][first * cols..][..len * cols].to_vec())
}

/// A number in bf16 times two, so many times.
fn doubled(half: [u8; 2], times: u64) -> [u8; 2] {
    (u16::from_le_bytes(half) + 128 * times as u16).to_le_bytes()
}

/// The biases of all experts, likewise, and those of one expert's matrix.
fn bias_of_expert(expert: usize, part: ExpertPart) -> (Tensors, Vec<f32>) {
    let (name, [rows, _], first, step) = in_all(part);
    let random = Philox::new(6, 32);
    let values: Vec<f32> = (0..3 * rows as u64).map(|i| 0.4 * random.uniform(i) - 0.2).collect();
    let entry = (Dtype::F32, vec![3, rows], le(&values));
    let of_expert = values.into_iter().skip(expert * rows).take(rows).skip(first).step_by(step);
    (Tensors::from([(format!("{name}_bias"), entry)]), of_expert.collect())
}

/// The tensor of all experts that has a part: its name, an expert's shape in it, and the part's
/// first row and the distance to the next.
fn in_all(part: ExpertPart) -> (String, [usize; 2], usize, usize) {
    let (h, i) = (32, 64);
    let (name, shape, first, step) = match part {
        ExpertPart::Gate => ("gate_up_proj", [2 * i, h], 0, 2),
        ExpertPart::Up => ("gate_up_proj", [2 * i, h], 1, 2),
        ExpertPart::Down => ("down_proj", [h, i], 0, 1),
    };
    (format!("model.layers.0.mlp.experts.{name}"), shape, first, step)
}

const IDS: [u32; 6] = [1, 39, 7, 7, 20, 3];

/// Log-probabilities and gradients in f32.
fn outcome(model: &Model, device: &Device) -> Outcome {
    let sample = Sample { ids: IDS.to_vec(), mask: vec![1; IDS.len()] };
    let batch = pack(&model.decoder.config, &[sample], 0);
    forward_backward(model, device, (Compute::F32, Recompute::None), &batch, 1.0, None)
}

/// Those of an adapter, and logits and a text in f32.
fn computed(model: &mut Model) -> (Outcome, (Vec<f32>, Vec<u32>)) {
    let device = Device::cpu(2);
    let target_modules = TargetModules::AllLinear;
    let lora = LoraConfig {
        rank: 2,
        alpha: 4.0,
        dropout: 0.0,
        target_modules,
        use_rslora: false,
        share_experts: false,
    };
    attach(model, &device, &lora, 5).unwrap();
    let batch = Batch::from_sequence(&model.decoder.config, &IDS);
    let logits = logits(model, &device, Compute::F32, &batch);
    (outcome(model, &device), (logits, text(model, &device, &IDS[..3])))
}

#[test]
fn quantised_matrices_compute_what_their_values_do() {
    for kind in Kind::ALL {
        check_computes_its_values(kind, model_in_both(kind), "");
    }
}

/// With matrices of experts each in tensors of its own.
#[test]
fn models_of_every_family_may_be_quantised() {
    for case in cases() {
        let config = std::fs::read(goldens_dir().join(&case).join("config.json")).unwrap();
        let config: Value = serde_json::from_slice(&config).unwrap();
        for kind in [Kind::Nf4, Kind::Fp8Blocks, Kind::Ints] {
            check_computes_its_values(kind, in_both(kind, config.clone()), &case);
        }
        if config.to_string().contains("shared_expert_intermediate_size") {
            let both = in_both(Kind::Nf4Plain, config);
            check_computes_its_values(Kind::Nf4Plain, both, &case);
        }
    }
}

/// Quantised matrices stay as they are, compute what their values do, and are exported as floats;
/// trained themselves, they start from their values.
fn check_computes_its_values(kind: Kind, [floats, packed]: [TempDir; 2], case: &str) {
    let device = Device::cpu(2);
    // Packing floats gives the very bytes that bitsandbytes' tensors have.
    let expected = Some(Storage::from_name("nf4").unwrap()).filter(|_| kind == Kind::Nf4);
    let mut expected = load(floats.path(), &device, expected, Trained::Nothing);
    let counting = Device::cpu(2);
    let mut found = load(packed.path(), &counting, None, Trained::Nothing);
    for (spec, (name, projection)) in linears(&found).zip(found.decoder.projections()) {
        let storage = found.params.resolve(&projection.weight).storage().name();
        let expected = if kind.quantises(spec.role) { kind.storage(&spec.shape) } else { "f32" };
        assert_eq!(storage, expected, "{case} {name}");
    }
    let dry = Device::dry();
    let _planned = load(packed.path(), &dry, None, Trained::Nothing);
    let bytes = [&counting, &dry].map(|d| d.persistent_bytes(Category::Weights));
    assert_eq!(bytes[0], bytes[1], "{case} {kind:?}");
    let expected = computed(&mut expected);
    assert!(computed(&mut found) == expected, "{case} {kind:?}");
    let dir = tempfile::tempdir().unwrap();
    export(&found, &device, packed.path(), DType::F32, dir.path()).unwrap();
    let written = std::fs::read_to_string(dir.path().join("config.json")).unwrap();
    assert!(!written.contains("quantization_config"), "{written}");
    let mut merged = load(dir.path(), &device, None, Trained::Nothing);
    assert!(computed(&mut merged).1 == expected.1, "{case} {kind:?}");
    let trained = |dir: &Path| outcome(&load(dir, &device, None, Trained::All), &device);
    assert!(trained(packed.path()) == trained(dir.path()), "{case} {kind:?}");
}

/// Of files with several parts the others' matrices are exported as floats too, without what
/// belongs to them.
#[test]
fn other_parts_are_exported_as_floats() {
    for kind in [Kind::Fp8, Kind::Fp8Rows, Kind::Ints, Kind::Nf4, Kind::Nf4Plain] {
        let [_, dir] = model_in_both(kind);
        let device = Device::cpu(2);
        let (random, vision) = (Philox::new(9, 9), "vision_tower.a_proj.weight");
        let of_experts = "vision_tower.experts.down_proj";
        let (matrix, values) = quantised(kind, vision, [48, 24], &random);
        rewrite(&dir.path().join("model.safetensors"), |tensors| {
            let of_text = std::mem::take(tensors).into_iter();
            tensors.extend(of_text.map(|(name, entry)| (format!("language_model.{name}"), entry)));
            tensors.extend(matrix);
            // Of all experts in one tensor, the second's scale twice the first's.
            let (scales, bytes) = (vec![0x80, 0x3f, 0x00, 0x40], vec![0x38; 2 * 128 * 24]);
            let scales_name = format!("{of_experts}_scale_inv");
            tensors.insert(scales_name, (Dtype::BF16, vec![2, 1, 1], scales));
            tensors.insert(of_experts.into(), (Dtype::F8_E4M3, vec![2, 128, 24], bytes));
        });
        let mut text = config(kind);
        text["model_type"] = json!("mistral");
        text["sliding_window"] = Value::Null;
        let config = json!({
            "model_type": "mistral3", "tie_word_embeddings": true, "text_config": text,
            "quantization_config": kind.quantization_config(),
        });
        std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
        let mut model = load(dir.path(), &device, None, Trained::Nothing);
        let merged = tempfile::tempdir().unwrap();
        export(&model, &device, dir.path(), DType::F32, merged.path()).unwrap();
        rewrite(&merged.path().join("model.safetensors"), |tensors| {
            let (dtype, shape, bytes) = &tensors[vision];
            assert_eq!((*dtype, &shape[..], bytes.len()), (Dtype::F32, &[48, 24][..], 4 * 48 * 24));
            assert!(kind == Kind::Nf4 || *bytes == le(&values));
            let (dtype, shape, bytes) = &tensors[of_experts];
            assert_eq!((*dtype, &shape[..]), (Dtype::F32, &[2, 128, 24][..]));
            assert!(*bytes == le(&[[1.0; 128 * 24], [2.0; 128 * 24]].concat()));
            assert!(
                tensors.keys().all(|name| !name.contains("_scale") && !name.contains("absmax"))
            );
        });
        let mut found = load(merged.path(), &device, None, Trained::Nothing);
        assert!(computed(&mut found).1 == computed(&mut model).1, "{kind:?}");
    }
}

/// Descriptions of the model's projections, in their order.
fn linears(model: &Model) -> impl Iterator<Item = WeightSpec> {
    model.decoder.config.weights().filter(|spec| matches!(spec.role, Role::Matrix(..)))
}
