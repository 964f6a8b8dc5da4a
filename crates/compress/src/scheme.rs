//! How other engines than llama.cpp's hold smaller weights, in safetensors files:
//! compressed-tensors' forms by the names that llm-compressor has for them, and bitsandbytes' NF4.

use crate::ints::{Ints, Row};
use hone_model::{StoredTensor, torch_name};
use hone_tensor::safetensors::{
    Dtype, Nf4Tensors, PackedInts, Parts, joined, load_as, pack_ints, to_e4m3,
};
use hone_tensor::{Category, Cpu, DType, Device, DeviceError, Storage, Tensor};
use serde_json::{Value, json};

/// Weights that share a scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// A whole row.
    Channel,
    /// So many along a row.
    Of(usize),
}

/// How matrices are quantised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// Symmetric integers (`pack-quantized`).
    Ints {
        /// Bits of each.
        bits: u32,
        /// What shares a scale.
        group: Group,
    },
    /// FP8 (e4m3) with a scale for each row (`float-quantized`); engines round activations to FP8
    /// too, with a scale for each token.
    Fp8,
    /// bitsandbytes' NF4 with double quantisation.
    Nf4,
}

/// Why a model cannot be quantised like this.
#[derive(Debug, thiserror::Error)]
pub enum SchemeError {
    /// Rows that are not whole groups.
    #[error(
        "`{tensor}` has rows of {cols} weights, which are no whole groups of {group}; what all \
         matrices take: {possible}"
    )]
    Ragged {
        /// The first such matrix.
        tensor: String,
        /// Length of its rows.
        cols: usize,
        /// The group that was asked for.
        group: usize,
        /// Groups that all rows can be made of.
        possible: String,
    },
    /// A weight is no number.
    #[error(
        "tensor `{tensor}` contains a value that is not finite (NaN or infinite); nothing was \
         written. Fetch the weights again, or go back to an earlier checkpoint"
    )]
    NotFinite {
        /// Its name.
        tensor: String,
    },
    /// What would be written stands for other weights.
    #[error(
        "`{tensor}` is not read back as it was quantised, so nothing was written; please report \
         this as a bug in Hone"
    )]
    Differs {
        /// Its name.
        tensor: String,
    },
    /// The device failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

/// A matrix as files hold it.
#[derive(Clone, Debug)]
pub struct QuantisedMatrix {
    shape: [usize; 2],
    /// Its tensors.
    pub tensors: Vec<StoredTensor>,
    content: Content,
    /// Error of the weights relative to their size, both squared, summed by importance.
    pub error: f64,
}

/// What the first of a matrix's tensors holds, and what weights are multiplied with.
#[derive(Clone, Debug)]
enum Content {
    Ints {
        bits: u32,
        scales: Vec<f32>,
    },
    Fp8 {
        scales: Vec<f32>,
    },
    /// All of the matrix as Hone holds it.
    Packed(Tensor),
}

/// Groups that other engines have kernels for.
const GROUPS: [usize; 3] = [32, 64, 128];

impl Scheme {
    /// Names of the schemes.
    pub const NAMES: [&str; 4] = ["w4a16", "w8a16", "fp8_dynamic", "nf4"];

    /// The scheme of this name, with groups as they are usual.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "w4a16" => Some(Self::Ints { bits: 4, group: Group::Of(128) }),
            "w8a16" => Some(Self::Ints { bits: 8, group: Group::Channel }),
            "fp8_dynamic" => Some(Self::Fp8),
            "nf4" => Some(Self::Nf4),
            _ => None,
        }
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ints { bits: 4, .. } => "w4a16",
            Self::Ints { .. } => "w8a16",
            Self::Fp8 => "fp8_dynamic",
            Self::Nf4 => "nf4",
        }
    }

    /// Bits of a weight without its scale.
    pub fn bits(self) -> f64 {
        match self {
            Self::Ints { bits, .. } => f64::from(bits),
            Self::Fp8 => 8.0,
            Self::Nf4 => 4.0,
        }
    }

    /// The same with other groups; `None` of schemes without a choice of them.
    pub fn with_group(self, group: Group) -> Option<Self> {
        match self {
            Self::Ints { bits, .. } => Some(Self::Ints { bits, group }),
            Self::Fp8 | Self::Nf4 => None,
        }
    }

    /// Whether scales are searched for, so that it matters what is known of columns.
    pub fn is_searched(self) -> bool {
        matches!(self, Self::Ints { .. })
    }

    /// Whether files may hold each expert's matrices like this. transformers loads those of all
    /// experts as one tensor, which bitsandbytes does not quantise.
    pub fn takes_experts(self) -> bool {
        self != Self::Nf4
    }

    /// Refuses matrices whose rows, of these lengths, are not whole groups.
    ///
    /// # Errors
    /// [`SchemeError::Ragged`], for the first of them.
    pub fn check(self, matrices: &[(String, usize)]) -> Result<(), SchemeError> {
        let Self::Ints { group: Group::Of(group), .. } = self else { return Ok(()) };
        let is_ragged = |(_, cols): &&(String, usize)| !cols.is_multiple_of(group);
        let Some((tensor, cols)) = matrices.iter().find(is_ragged) else { return Ok(()) };
        let fits = |group: &usize| matrices.iter().all(|(_, cols)| cols.is_multiple_of(*group));
        let possible = GROUPS.into_iter().filter(fits).map(|group| group.to_string());
        let possible: Vec<String> = possible.chain(["channel".to_owned()]).collect();
        let (tensor, possible) = (tensor.clone(), possible.join(", "));
        Err(SchemeError::Ragged { tensor, cols: *cols, group, possible })
    }

    /// What `config.json` says as `quantization_config`, of a model whose other weights are in
    /// `dtype`. `ignored` are modules of linear layers that are not quantised; those of whole parts
    /// of the files have no dots in their names if `has_parts`.
    pub fn quantization_config(self, dtype: DType, ignored: &[String], has_parts: bool) -> Value {
        let weights = |num_bits: u32, kind: &str, group: Group| {
            let (strategy, group_size) = match group {
                Group::Channel => ("channel", Value::Null),
                Group::Of(size) => ("group", size.into()),
            };
            json!({
                "num_bits": num_bits, "type": kind, "symmetric": true, "strategy": strategy,
                "group_size": group_size, "dynamic": false, "actorder": null,
                "observer": "minmax", "observer_kwargs": {},
            })
        };
        let (format, weights, activations) = match self {
            Self::Ints { bits, group } => {
                ("pack-quantized", weights(bits, "int", group), Value::Null)
            }
            Self::Fp8 => {
                let activations = json!({
                    "num_bits": 8, "type": "float", "symmetric": true, "strategy": "token",
                    "group_size": null, "dynamic": true, "observer": null, "observer_kwargs": {},
                });
                ("float-quantized", weights(8, "float", Group::Channel), activations)
            }
            Self::Nf4 => {
                return json!({
                    "quant_method": "bitsandbytes", "_load_in_4bit": true, "_load_in_8bit": false,
                    "load_in_4bit": true, "load_in_8bit": false, "bnb_4bit_quant_type": "nf4",
                    "bnb_4bit_use_double_quant": true, "bnb_4bit_quant_storage": "uint8",
                    "bnb_4bit_compute_dtype": torch_name(dtype), "llm_int8_skip_modules": ignored,
                    "llm_int8_threshold": 6.0, "llm_int8_has_fp16_weight": false,
                    "llm_int8_enable_fp32_cpu_offload": false,
                });
            }
        };
        let pattern = |module: &String| match has_parts {
            true if !module.contains('.') || module.ends_with("lm_head") => {
                format!("re:.*{module}.*")
            }
            _ => module.clone(),
        };
        json!({
            "quant_method": "compressed-tensors",
            "format": format,
            "quantization_status": "compressed",
            "config_groups": {"group_0": {
                "targets": ["Linear"], "weights": weights, "input_activations": activations,
                "output_activations": null, "format": format,
            }},
            "ignore": ignored.iter().map(pattern).collect::<Vec<_>>(),
            "kv_cache_scheme": null,
            "global_compression_ratio": null,
        })
    }

    /// A matrix in f32 in the host's memory, called `name`, as files whose floats are in `dtype`
    /// hold it. Columns count by `importance`, or alike if it is empty.
    ///
    /// # Errors
    /// If a weight is not finite, there is no memory, or what is written would be read otherwise.
    pub fn quantised(
        self,
        cpu: &Cpu,
        (name, matrix): (&str, &Tensor),
        importance: &[f32],
        dtype: DType,
    ) -> Result<QuantisedMatrix, SchemeError> {
        let x = matrix.f32();
        if !x.iter().all(|x| x.is_finite()) {
            return Err(SchemeError::NotFinite { tensor: name.to_owned() });
        }
        let shape = [matrix.shape()[0], matrix.shape()[1]];
        let (mut found, values) = match self {
            Self::Ints { bits, group } => {
                let (found, values) = in_ints(cpu, x, (shape, importance), (bits, group), dtype)?;
                (found, Some(values))
            }
            Self::Fp8 => (in_fp8(x, shape, dtype)?, None),
            Self::Nf4 => (in_nf4(matrix, shape, dtype)?, None),
        };
        let held = found.held()?.try_to_vec_f32()?;
        if values.is_some_and(|values| values != held) {
            return Err(SchemeError::Differs { tensor: name.to_owned() });
        }
        found.error = relative_error(x, &held, importance);
        Ok(found)
    }
}

impl QuantisedMatrix {
    /// The matrix as Hone holds it once it is read.
    ///
    /// # Errors
    /// If there is no memory for it.
    pub fn held(&self) -> Result<Tensor, DeviceError> {
        let bytes = &self.tensors[0].bytes[..];
        let parts = match &self.content {
            Content::Ints { bits, scales } => {
                Parts::Ints(PackedInts { words: bytes, bits: *bits, scales })
            }
            Content::Fp8 { scales } if scales.len() == 1 => Parts::Fp8 { values: bytes, scales },
            Content::Fp8 { scales } => Parts::Fp8Rows { values: bytes, scales },
            Content::Packed(tensor) => return Ok(tensor.clone()),
        };
        let storage = parts.storage(self.shape).expect("parts that were made together");
        joined(Device::host(), &parts, storage, self.shape)
    }

    /// Bytes of all its tensors.
    pub fn num_bytes(&self) -> usize {
        self.tensors.iter().map(|tensor| tensor.bytes.len()).sum()
    }
}

/// A matrix in integers, and what its weights are then.
fn in_ints(
    cpu: &Cpu,
    x: &[f32],
    (shape, importance): ([usize; 2], &[f32]),
    (bits, group): (u32, Group),
    dtype: DType,
) -> Result<(QuantisedMatrix, Vec<f32>), DeviceError> {
    let [rows, cols] = shape;
    let group_len = match group {
        Group::Channel => cols,
        Group::Of(size) => size,
    };
    // Blocks of GGUF's types, in which Hone holds groups and four bits, have scales in f16.
    let is_half = bits == 4 || group != Group::Channel;
    let rounded = |scale: f32| match is_half {
        true => rounded_to_both(scale, dtype),
        false => dtype.rounded(scale),
    };
    let ints = Ints { bits, group: group_len, rounded: &rounded };
    let found = ints.rows(cpu, x, cols, importance);
    let value = |row: &Row| -> Vec<f32> {
        let groups = row.levels.chunks(group_len).zip(&row.scales);
        groups
            .flat_map(|(levels, scale)| levels.iter().map(move |x| f32::from(*x) * scale))
            .collect()
    };
    let values = found.iter().flat_map(value).collect();
    let levels: Vec<i8> = found.iter().flat_map(|row| row.levels.iter().copied()).collect();
    let scales: Vec<f32> = found.iter().flat_map(|row| row.scales.iter().copied()).collect();
    let words = pack_ints(&levels, cols, bits);
    let weight_shape = [rows, cols].map(|size| size as i64).into_iter().flat_map(i64::to_le_bytes);
    let tensors = vec![
        stored("weight_packed", Dtype::I32, &[rows, words.len() / rows / 4], words),
        floats("weight_scale", dtype, &[rows, scales.len() / rows], &scales)?,
        stored("weight_shape", Dtype::I64, &[2], weight_shape.collect()),
    ];
    let content = Content::Ints { bits, scales };
    Ok((QuantisedMatrix { shape, tensors, content, error: 0.0 }, values))
}

/// A matrix in FP8.
fn in_fp8(x: &[f32], shape: [usize; 2], dtype: DType) -> Result<QuantisedMatrix, DeviceError> {
    const LARGEST: f32 = 448.0;
    let [rows, cols] = shape;
    let (mut bytes, mut scales) = (Vec::new(), Vec::new());
    for row in x.chunks_exact(cols) {
        let largest = row.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
        let scale = dtype.rounded(largest / LARGEST);
        // Of a row of zeros it means nothing.
        let scale = if scale < f32::MIN_POSITIVE { 1.0 } else { scale };
        let inverse = 1.0 / scale;
        bytes.extend(row.iter().map(|x| to_e4m3(x * inverse)));
        scales.push(scale);
    }
    let tensors = vec![
        stored("weight", Dtype::F8_E4M3, &shape, bytes),
        floats("weight_scale", dtype, &[rows, 1], &scales)?,
    ];
    Ok(QuantisedMatrix { shape, tensors, content: Content::Fp8 { scales }, error: 0.0 })
}

/// A matrix in NF4, in the tensors of bitsandbytes' `QuantState.as_dict`.
fn in_nf4(
    matrix: &Tensor,
    shape: [usize; 2],
    dtype: DType,
) -> Result<QuantisedMatrix, DeviceError> {
    let nf4 = Storage::from_name("nf4").expect("the name of a storage");
    let packed = load_as(Device::host(), Category::Workspace, matrix, nf4)?;
    let parts = Nf4Tensors::of(packed.bytes(), shape[0] * shape[1]);
    let state = json!({
        "quant_type": "nf4", "blocksize": 64, "dtype": torch_name(dtype), "shape": shape,
        "nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": parts.nested_offset,
    });
    let state = state.to_string().into_bytes();
    let of_levels = |name, x: &[f32]| floats(name, DType::F32, &[x.len()], x);
    let tensors = vec![
        stored("weight", Dtype::U8, &[parts.weight.len(), 1], parts.weight.to_vec()),
        stored("weight.absmax", Dtype::U8, &[parts.absmax.len()], parts.absmax.to_vec()),
        of_levels("weight.quant_map", &Nf4Tensors::QUANT_MAP)?,
        of_levels("weight.nested_absmax", &parts.nested_absmax)?,
        of_levels("weight.nested_quant_map", &parts.nested_quant_map)?,
        stored("weight.quant_state.bitsandbytes__nf4", Dtype::U8, &[state.len()], state),
    ];
    Ok(QuantisedMatrix { shape, tensors, content: Content::Packed(packed), error: 0.0 })
}

/// The nearest number of the type that is an f16 too. Below f16's normal numbers, the multiples of
/// its least one are numbers of bf16 as far as these are coarser, and the largest of both is
/// bf16's.
fn rounded_to_both(x: f32, dtype: DType) -> f32 {
    const LARGEST: f32 = 65_280.0;
    DType::F16.rounded(dtype.rounded(x.clamp(-LARGEST, LARGEST)))
}

fn stored(name: &'static str, dtype: Dtype, shape: &[usize], bytes: Vec<u8>) -> StoredTensor {
    StoredTensor { name, dtype, shape: shape.to_vec(), bytes }
}

/// Numbers that are of the type.
fn floats(
    name: &'static str,
    dtype: DType,
    shape: &[usize],
    x: &[f32],
) -> Result<StoredTensor, DeviceError> {
    let mut tensor = Tensor::try_zeros(dtype, &[x.len()])?;
    tensor.copy_from_f32(x);
    let file_type = match dtype {
        DType::F32 => Dtype::F32,
        DType::Bf16 => Dtype::BF16,
        DType::F16 => Dtype::F16,
    };
    Ok(stored(name, file_type, shape, tensor.bytes().to_vec()))
}

/// `Σ importance (x − held)² / Σ importance x²`
fn relative_error(x: &[f32], held: &[f32], importance: &[f32]) -> f64 {
    let (mut error, mut size) = (0.0, 0.0);
    for (i, (x, held)) in x.iter().zip(held).enumerate() {
        let weight = match importance.len() {
            0 => 1.0,
            cols => f64::from(importance[i % cols]),
        };
        let (x, held) = (f64::from(*x), f64::from(*held));
        error += weight * (x - held) * (x - held);
        size += weight * x * x;
    }
    if size > 0.0 { error / size } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hone_tensor::Philox;

    /// Scales of any magnitude that weights have are numbers of both types, near what was wanted.
    #[test]
    fn scales_are_numbers_of_both_types() {
        let random = Philox::new(2, 0);
        for dtype in [DType::F32, DType::Bf16, DType::F16] {
            for i in 0..20_000u64 {
                let x = 2f32.powf(44.0 * random.uniform(i) - 26.0);
                let found = rounded_to_both(x, dtype);
                assert_eq!(found, DType::F16.rounded(found), "{dtype:?} {x:e}");
                assert_eq!(found, dtype.rounded(found), "{dtype:?} {x:e}");
                let off = (found - x.min(65_280.0)).abs();
                assert!(off <= x / 256.0 + 2f32.powi(-25), "{dtype:?} {x:e}: {found:e}");
            }
        }
    }

    fn matrix(rows: usize, cols: usize) -> Tensor {
        let random = Philox::new(6, 0);
        let x: Vec<f32> = (0..(rows * cols) as u64).map(|i| 0.1 * random.normal(i)).collect();
        Tensor::from_f32(&x, &[rows, cols])
    }

    /// How each scheme is held once it is read, the types and shapes of its tensors, and how much
    /// is lost.
    #[test]
    fn tensors_of_each_scheme() {
        let cpu = Cpu::new(2);
        let ints = |bits, group| Scheme::Ints { bits, group };
        for (scheme, cols, held, tensors, most) in [
            (
                ints(4, Group::Of(32)),
                96,
                "q4_0",
                "weight_packed I32 [5, 12], weight_scale BF16 [5, 3], weight_shape I64 [2]",
                0.008,
            ),
            (
                ints(4, Group::Channel),
                61,
                "int8",
                "weight_packed I32 [5, 8], weight_scale BF16 [5, 1], weight_shape I64 [2]",
                0.012,
            ),
            (
                ints(8, Group::Of(64)),
                128,
                "q8_0",
                "weight_packed I32 [5, 32], weight_scale BF16 [5, 2], weight_shape I64 [2]",
                4e-5,
            ),
            (
                ints(8, Group::Channel),
                61,
                "int8",
                "weight_packed I32 [5, 16], weight_scale BF16 [5, 1], weight_shape I64 [2]",
                4e-5,
            ),
            (Scheme::Fp8, 61, "fp8_rows", "weight F8_E4M3 [5, 61], weight_scale BF16 [5, 1]", 1e-3),
            (
                Scheme::Nf4,
                61,
                "nf4",
                "weight U8 [153, 1], weight.absmax U8 [5], weight.quant_map F32 [16], \
                 weight.nested_absmax F32 [1], weight.nested_quant_map F32 [256], \
                 weight.quant_state.bitsandbytes__nf4 U8 [152]",
                0.015,
            ),
        ] {
            let x = matrix(5, cols);
            let found = scheme.quantised(&cpu, ("a", &x), &[], DType::Bf16).unwrap();
            let kept = found.held().unwrap();
            assert_eq!(kept.storage().name(), held);
            assert!(found.error > 0.0 && found.error < most, "{scheme:?}: {}", found.error);
            let of = |t: &StoredTensor| format!("{} {:?} {:?}", t.name, t.dtype, t.shape);
            let all: Vec<String> = found.tensors.iter().map(of).collect();
            assert_eq!(all.join(", "), tensors);
            let bytes = |t: &StoredTensor| {
                let sizes = [("I32", 4), ("I64", 8), ("F32", 4), ("BF16", 2)];
                let name = format!("{:?}", t.dtype);
                let size = sizes.iter().find(|(of, _)| *of == name).map_or(1, |(_, size)| *size);
                t.bytes.len() == size * t.shape.iter().product::<usize>()
            };
            assert!(found.tensors.iter().all(bytes));
        }
    }

    /// Rows of nothing, and of what is too small for a scale, are zeros and no NaN.
    #[test]
    fn rows_of_nothing_stay_nothing() {
        let mut x = vec![0.0; 3 * 32];
        x[32..64].fill(1e-40);
        x[64..].fill(0.5);
        let x = Tensor::from_f32(&x, &[3, 32]);
        for name in Scheme::NAMES {
            let scheme = Scheme::named(name).unwrap();
            let scheme = scheme.with_group(Group::Of(32)).unwrap_or(scheme);
            for dtype in [DType::F32, DType::Bf16] {
                let found = scheme.quantised(&Cpu::new(1), ("a", &x), &[], dtype).unwrap();
                let values = found.held().unwrap().to_vec_f32();
                assert!(values[..64].iter().all(|x| x.abs() < 1e-6), "{name}: {values:?}");
                assert!(values[64..].iter().all(|x| (x - 0.5).abs() < 0.01), "{name}: {values:?}");
            }
        }
    }

    #[test]
    fn what_cannot_be_quantised_is_named() {
        let bad = Tensor::from_f32(&[1.0, f32::NAN], &[1, 2]);
        let found = Scheme::Fp8.quantised(&Cpu::new(1), ("b.weight", &bad), &[], DType::F32);
        assert!(found.unwrap_err().to_string().starts_with("tensor `b.weight` contains a value"));
        let scheme = Scheme::named("w4a16").unwrap();
        let matrices = [("a".to_owned(), 256), ("b".to_owned(), 192)];
        assert_eq!(
            scheme.check(&matrices).unwrap_err().to_string(),
            "`b` has rows of 192 weights, which are no whole groups of 128; what all matrices \
             take: 32, 64, channel"
        );
        scheme.check(&matrices[..1]).unwrap();
        for name in Scheme::NAMES {
            assert_eq!(Scheme::named(name).unwrap().name(), name);
        }
    }
}
