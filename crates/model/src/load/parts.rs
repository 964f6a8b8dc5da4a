//! Matrices that safetensors files have in several tensors: FP8 and its scales, integers as
//! compressed-tensors packs them, four bits as bitsandbytes saves them. They are joined without
//! loss.

use super::files::{LoadError, PACKED, Taken, WeightFiles, whole_name};
use hone_tensor::safetensors::{
    Dtype, Nf4Parts, Nf4Scales, PackedInts, Parts, RawTensor, SafeTensorsFile, joined,
    packed_row_bytes,
};
use hone_tensor::{Device, Tensor};
use serde::Deserialize;

const AGAIN: &str = "Fetch the whole model, or save it again with `save_pretrained`";

/// What bitsandbytes saves as JSON beside the tensors of a matrix.
#[derive(Deserialize)]
struct QuantState {
    shape: Vec<usize>,
    blocksize: usize,
    nested_blocksize: Option<usize>,
    nested_offset: Option<f32>,
}

/// A matrix in several tensors.
pub(super) struct Matrix<'a> {
    pub(super) files: &'a WeightFiles,
    /// The file of its weights.
    pub(super) file: &'a SafeTensorsFile,
    /// The name of that tensor.
    pub(super) name: &'a str,
    pub(super) weight: RawTensor<'a>,
    pub(super) shape: [usize; 2],
}

impl WeightFiles {
    /// The matrix in the tensor `stored` and others that belong to it; `None` if it is whole on its
    /// own.
    ///
    /// # Errors
    /// If one of the others is missing, or they do not fit together.
    pub(super) fn joined(
        &self,
        stored: &str,
        shape: &[usize],
        device: &Device,
        taken: &mut Taken,
    ) -> Result<Option<Tensor>, LoadError> {
        let (Some((file, weight)), &[rows, cols]) = (self.raw(stored), shape) else {
            return Ok(None);
        };
        let matrix = Matrix { files: self, file, name: stored, weight, shape: [rows, cols] };
        let tensor = match (weight.dtype, self.state_of(stored)) {
            (_, Some(state)) => matrix.nf4(state, device, taken)?,
            (Dtype::F8_E4M3, None) => matrix.fp8(device, taken)?,
            (Dtype::U8, None) => {
                return Err(matrix.error(format!(
                    "it holds bytes, and `{stored}.quant_state.bitsandbytes__nf4`, which says how \
                     they were quantised, is missing. {AGAIN}"
                )));
            }
            _ => return Ok(None),
        };
        taken.note(stored, &tensor);
        Ok(Some(tensor))
    }

    /// [`Self::joined`] with the shape that the files say; `None` also of what has no other parts,
    /// whatever it holds.
    ///
    /// # Errors
    /// As there.
    pub(super) fn joined_as_stored(&self, stored: &str) -> Result<Option<Tensor>, LoadError> {
        if stored.ends_with(PACKED) {
            let shape = self.raw(&format!("{}_shape", whole_name(stored)));
            let shape = shape.map(|(_, shape)| integers(shape)).unwrap_or_default();
            let taken = &mut Taken::default();
            return self.packed_ints(stored, &shape, Device::host(), taken).map(Some);
        }
        let (state, scales) = (self.state_of(stored), self.scales_of(stored));
        if state.is_none() && scales.is_none() {
            return Ok(None);
        }
        if let Some(tensor) = self.all_experts_in_fp8(stored)? {
            return Ok(Some(tensor));
        }
        let state = state.and_then(|state| self.raw(state));
        let state = state.and_then(|(_, state)| serde_json::from_slice(state.bytes).ok());
        let shape = match state {
            Some(QuantState { shape, .. }) => shape,
            None => self.raw(stored).map_or(Vec::new(), |(_, tensor)| tensor.shape.to_vec()),
        };
        self.joined(stored, &shape, Device::host(), &mut Taken::default())
    }

    /// The tensor in the files that has a weight's packed integers.
    pub(super) fn stored_ints(&self, name: &str) -> Option<&str> {
        self.stored_name(&format!("{name}{PACKED}"))
    }

    /// The matrix whose integers are packed in the tensor `stored`.
    ///
    /// # Errors
    /// If one of the others is missing, or they do not fit together.
    pub(super) fn packed_ints(
        &self,
        stored: &str,
        shape: &[usize],
        device: &Device,
        taken: &mut Taken,
    ) -> Result<Tensor, LoadError> {
        let (Some((file, weight)), whole) = (self.raw(stored), whole_name(stored)) else {
            unreachable!("`{stored}` is in the files");
        };
        let size = |i: usize| shape.get(i).copied().unwrap_or(0);
        let matrix = Matrix { files: self, file, name: stored, weight, shape: [size(0), size(1)] };
        let given = integers(matrix.part(&format!("{whole}_shape"), taken)?);
        if given != shape || shape.len() != 2 {
            return Err(matrix.other_shape(&given, shape.into()));
        }
        let [rows, cols] = matrix.shape;
        let is_of = |bits: &&u32| {
            weight.shape == [rows, packed_row_bytes(cols, **bits) / 4] && weight.dtype == Dtype::I32
        };
        let mut fitting = self.int_bits.iter().filter(is_of);
        let (Some(&bits), None) = (fitting.next(), fitting.next()) else {
            return Err(matrix.error(format!(
                "{:?} of shape {:?} are not {rows} rows of {cols} weights of {:?} bits, as \
                 `num_bits` in config.json says. {AGAIN}",
                weight.dtype, weight.shape, self.int_bits
            )));
        };
        let scales = matrix.floats(&format!("{whole}_scale"), taken)?;
        let ints = PackedInts { words: weight.bytes, bits, scales: &scales };
        let tensor = matrix.join(&Parts::Ints(ints), device)?;
        taken.note_part(stored);
        Ok(tensor)
    }

    /// The tensor with the scales of a matrix in FP8: as DeepSeek names it, which transformers'
    /// `fp8` does too, or as compressed-tensors does.
    fn scales_of(&self, stored: &str) -> Option<&str> {
        self.name_of(&format!("{stored}_scale_inv"))
            .or_else(|| self.name_of(&format!("{stored}_scale")))
    }

    /// What bitsandbytes saved of a tensor's quantisation.
    fn state_of(&self, stored: &str) -> Option<&str> {
        self.name_from(&format!("{stored}.quant_state."))
    }

    /// Whether a tensor is part of the matrix in another.
    pub(super) fn is_part(&self, stored: &str) -> bool {
        let is_scale = |end, tensor| {
            let name = stored.strip_suffix(end).map(|name| format!("{name}{tensor}"));
            let dtype = name.and_then(|name| Some(self.raw(&name)?.1.dtype));
            dtype == Some(Dtype::F8_E4M3)
        };
        let of_four_bits = || {
            let (name, _) = stored.rsplit_once(".weight.")?;
            self.state_of(&format!("{name}.weight"))
        };
        let is_of_ints = |end| {
            let whole = stored.strip_suffix(end);
            whole.is_some_and(|whole| self.raw(&format!("{whole}{PACKED}")).is_some())
        };
        is_scale("_scale_inv", "")
            || is_scale("_scale", "")
            || is_scale(".activation_scale", ".weight")
            || is_scale(".input_scale", ".weight")
            || is_scale("_activation_scale", "")
            || is_of_ints("_scale")
            || is_of_ints("_shape")
            || of_four_bits().is_some()
    }
}

/// The elements of a tensor of integers; none of other types, or if one is negative.
fn integers(tensor: RawTensor<'_>) -> Vec<usize> {
    let all: Option<Vec<usize>> = match tensor.dtype {
        Dtype::I64 => {
            let words = tensor.bytes.as_chunks().0.iter();
            words.map(|word| usize::try_from(i64::from_le_bytes(*word)).ok()).collect()
        }
        Dtype::I32 => {
            let words = tensor.bytes.as_chunks().0.iter();
            words.map(|word| usize::try_from(i32::from_le_bytes(*word)).ok()).collect()
        }
        _ => None,
    };
    all.unwrap_or_default()
}

impl<'a> Matrix<'a> {
    pub(super) fn error(&self, problem: impl Into<String>) -> LoadError {
        let (path, name) = (self.file.path().to_owned(), self.name.to_owned());
        LoadError::Parts { path, name, problem: problem.into() }
    }

    pub(super) fn other_shape(&self, found: &[usize], expected: Vec<usize>) -> LoadError {
        let (path, name) = (self.file.path().to_owned(), self.name.to_owned());
        LoadError::Shape { path, name, found: found.to_vec(), expected }
    }

    pub(super) fn join(&self, parts: &Parts<'_>, device: &Device) -> Result<Tensor, LoadError> {
        let storage = parts.storage(self.shape);
        let storage = storage.map_err(|error| self.error(format!("{error}. {AGAIN}")))?;
        let tensor = joined(device, parts, storage, self.shape)?;
        if !device.is_dry() {
            self.file.release(self.name);
        }
        Ok(tensor)
    }

    /// Another tensor of the matrix.
    pub(super) fn part(&self, name: &str, taken: &mut Taken) -> Result<RawTensor<'a>, LoadError> {
        let Some((_, part)) = self.files.raw(name) else {
            let problem = format!("`{name}`, which belongs to it, is missing. {AGAIN}");
            return Err(self.error(problem));
        };
        taken.note_part(name);
        Ok(part)
    }

    pub(super) fn floats(&self, name: &str, taken: &mut Taken) -> Result<Vec<f32>, LoadError> {
        self.part(name, taken)?;
        let tensor = self.files.tensor(name)?;
        let floats = tensor.map(|(_, tensor)| tensor.try_to_vec_f32()).transpose()?;
        Ok(floats.unwrap_or_default())
    }

    /// Values of eight bits, and what they are multiplied by. Activations are computed with as they
    /// are, so their scales are left.
    fn fp8(&self, device: &Device, taken: &mut Taken) -> Result<Tensor, LoadError> {
        if self.weight.shape != self.shape {
            return Err(self.other_shape(self.weight.shape, self.shape.into()));
        }
        let missing = format!("{}_scale_inv", self.name);
        let name = self.files.scales_of(self.name).unwrap_or(&missing);
        let (rows, shape) = (self.shape[0], self.part(name, taken)?.shape);
        let of_rows = rows > 1 && (shape == [rows, 1] || shape == [rows]);
        let (values, scales) = (self.weight.bytes, &self.floats(name, taken)?[..]);
        if let Some(module) = self.name.strip_suffix(".weight") {
            taken.note_part(&format!("{module}.activation_scale"));
            taken.note_part(&format!("{module}.input_scale"));
        }
        let parts = match of_rows {
            true => Parts::Fp8Rows { values, scales },
            false => Parts::Fp8 { values, scales },
        };
        self.join(&parts, device)
    }

    /// Four bits in the tensors of bitsandbytes' `QuantState.as_dict`, whose scales are quantised
    /// themselves or not.
    fn nf4(&self, state: &str, device: &Device, taken: &mut Taken) -> Result<Tensor, LoadError> {
        let kind = state.rsplit("__").next().unwrap_or_default();
        if kind != "nf4" {
            return Err(self.error(format!(
                "it is quantised as {kind}, and only nf4 is read. Quantise the model again with \
                 bnb_4bit_quant_type = \"nf4\""
            )));
        }
        let json = self.part(state, taken)?.bytes;
        let QuantState { shape, blocksize, nested_blocksize, nested_offset } =
            serde_json::from_slice(json).map_err(|error| {
                self.error(format!("`{state}` is not what bitsandbytes saves: {error}. {AGAIN}"))
            })?;
        let only = |what: &str, found: usize, read: usize| match found == read {
            true => Ok(()),
            false => Err(self.error(format!(
                "{found} {what}, and only {read}, bitsandbytes' own, are read. Quantise the model \
                 again with these"
            ))),
        };
        only("weights share a scale", blocksize, 64)?;
        if shape != self.shape {
            return Err(self.other_shape(&shape, self.shape.into()));
        }
        let mut floats = |part: &str| self.floats(&format!("{}.{part}", self.name), taken);
        let quant_map = floats("quant_map")?;
        let (weight, quant_map) = (self.weight.bytes, &quant_map[..]);
        let (nested_blocksize, nested_offset) = match (nested_blocksize, nested_offset) {
            (Some(size), Some(offset)) => (size, offset),
            (None, None) => {
                let absmax = floats("absmax")?;
                let scales = Nf4Scales::Plain { absmax: &absmax };
                return self.join(&Parts::Nf4(Nf4Parts { weight, quant_map, scales }), device);
            }
            _ => {
                return Err(self.error(format!(
                    "`{state}` has only one of `nested_blocksize` and `nested_offset`. {AGAIN}"
                )));
            }
        };
        only("scales share another", nested_blocksize, 256)?;
        let (nested_absmax, nested_quant_map) =
            (floats("nested_absmax")?, floats("nested_quant_map")?);
        let absmax = self.part(&format!("{}.absmax", self.name), taken)?;
        let scales = Nf4Scales::Double {
            absmax: absmax.bytes,
            nested_absmax: &nested_absmax,
            nested_quant_map: &nested_quant_map,
            nested_offset,
        };
        self.join(&Parts::Nf4(Nf4Parts { weight, quant_map, scales }), device)
    }
}
