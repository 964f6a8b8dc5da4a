//! Matrices that safetensors files have in several tensors: FP8 and its scales, four bits as
//! bitsandbytes saves them, experts in MXFP4. They are laid together without loss.

use super::files::{LoadError, Taken, WeightFiles};
use crate::config::DecoderConfig;
use crate::weights::{ExpertPart, Fused, Linear, Role, WeightSpec};
use hone_tensor::safetensors::{Dtype, Nf4Parts, Parts, RawTensor, SafeTensorsFile, joined};
use hone_tensor::{Device, Tensor};
use serde::Deserialize;
use std::borrow::Cow;

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
struct Matrix<'a> {
    files: &'a WeightFiles,
    /// The file of its weights.
    file: &'a SafeTensorsFile,
    /// The name of that tensor.
    name: &'a str,
    weight: RawTensor<'a>,
    shape: [usize; 2],
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
        let (state, scales) = (self.state_of(stored), format!("{stored}_scale_inv"));
        if state.is_none() && self.raw(&scales).is_none() {
            return Ok(None);
        }
        let state = state.and_then(|state| self.raw(state));
        let state = state.and_then(|(_, state)| serde_json::from_slice(state.bytes).ok());
        let shape = match state {
            Some(QuantState { shape, .. }) => shape,
            None => self.raw(stored).map_or(Vec::new(), |(_, tensor)| tensor.shape.to_vec()),
        };
        self.joined(stored, &shape, Device::host(), &mut Taken::default())
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
        is_scale("_scale_inv", "")
            || is_scale(".activation_scale", ".weight")
            || of_four_bits().is_some()
    }

    /// The matrix of an expert in the tensors of all experts, as gpt-oss has them; `None` if there
    /// are none such.
    ///
    /// # Errors
    /// If they do not fit together.
    pub(super) fn expert_in_mxfp4<'a>(
        &'a self,
        spec: &WeightSpec,
        config: &DecoderConfig,
        device: &Device,
        taken: &mut Taken,
    ) -> Result<Option<Tensor>, LoadError> {
        let Role::Matrix(_, Linear::Expert(expert, part)) = spec.role else { return Ok(None) };
        let Some(fused) = config.fused(spec.role) else { return Ok(None) };
        let [Some(blocks_name), scales] = self.mxfp4_names(&fused) else { return Ok(None) };
        let Some((file, weight)) = self.raw(blocks_name) else { return Ok(None) };
        let (rows, cols) = (spec.shape[0], spec.shape[1]);
        let matrix = Matrix { files: self, file, name: blocks_name, weight, shape: [rows, cols] };
        let scales = match scales {
            Some(scales) => matrix.part(scales, taken)?,
            None => matrix.part(&format!("{}_scales", fused.name), taken)?,
        };
        let num_experts = fused.shape[0];
        let rows_of_all = fused.shape.iter().product::<usize>() / (num_experts * cols);
        let of_all = [num_experts, rows_of_all, cols.div_ceil(32)];
        for (tensor, expected) in [(weight, [&of_all[..], &[16]].concat()), (scales, of_all.into())]
        {
            if tensor.dtype != Dtype::U8 || tensor.shape != expected {
                return Err(matrix.other_shape(tensor.shape, expected));
            }
        }
        // Rows of gate and up alternate.
        let (first, step) = match part {
            ExpertPart::Gate => (0, 2),
            ExpertPart::Up => (1, 2),
            ExpertPart::Down => (0, 1),
        };
        let rows_of = |tensor: RawTensor<'a>| {
            let len = tensor.bytes.len() / (of_all[0] * of_all[1]);
            let of_expert = &tensor.bytes[expert * of_all[1] * len..][..of_all[1] * len];
            match step == 1 || device.is_dry() {
                true => Cow::Borrowed(&of_expert[..rows * len]),
                false => {
                    let rows = of_expert.chunks(len).skip(first).step_by(step);
                    rows.flatten().copied().collect()
                }
            }
        };
        let (blocks, scales) = (rows_of(weight), rows_of(scales));
        let tensor = matrix.join(&Parts::Mxfp4 { blocks: &blocks, scales: &scales }, device)?;
        taken.note(blocks_name, &tensor);
        Ok(Some(tensor))
    }

    /// Names in the files of the blocks and scales of what gpt-oss has for all experts.
    pub(super) fn mxfp4_names(&self, fused: &Fused) -> [Option<&str>; 2] {
        ["blocks", "scales"].map(|part| self.stored_name(&format!("{}_{part}", fused.name)))
    }
}

impl<'a> Matrix<'a> {
    fn error(&self, problem: impl Into<String>) -> LoadError {
        let (path, name) = (self.file.path().to_owned(), self.name.to_owned());
        LoadError::Parts { path, name, problem: problem.into() }
    }

    fn other_shape(&self, found: &[usize], expected: Vec<usize>) -> LoadError {
        let (path, name) = (self.file.path().to_owned(), self.name.to_owned());
        LoadError::Shape { path, name, found: found.to_vec(), expected }
    }

    fn join(&self, parts: &Parts<'_>, device: &Device) -> Result<Tensor, LoadError> {
        let storage = parts.storage(self.shape);
        let storage = storage.map_err(|error| self.error(format!("{error}. {AGAIN}")))?;
        let tensor = joined(device, parts, storage, self.shape)?;
        if !device.is_dry() {
            self.file.release(self.name);
        }
        Ok(tensor)
    }

    /// Another tensor of the matrix.
    fn part(&self, name: &str, taken: &mut Taken) -> Result<RawTensor<'a>, LoadError> {
        let Some((_, part)) = self.files.raw(name) else {
            let problem = format!("`{name}`, which belongs to it, is missing. {AGAIN}");
            return Err(self.error(problem));
        };
        taken.note_part(name);
        Ok(part)
    }

    fn floats(&self, name: &str, taken: &mut Taken) -> Result<Vec<f32>, LoadError> {
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
        let scales = self.floats(&format!("{}_scale_inv", self.name), taken)?;
        if let Some(module) = self.name.strip_suffix(".weight") {
            taken.note_part(&format!("{module}.activation_scale"));
        }
        self.join(&Parts::Fp8 { values: self.weight.bytes, scales: &scales }, device)
    }

    /// Four bits with double quantisation, in the tensors of bitsandbytes' `QuantState.as_dict`.
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
        let (Some(nested_blocksize), Some(nested_offset)) = (nested_blocksize, nested_offset)
        else {
            return Err(self.error(
                "its scales are not quantised themselves, and only double quantisation is read. \
                 Quantise the model again with bnb_4bit_use_double_quant = True",
            ));
        };
        if (blocksize, nested_blocksize) != (64, 256) {
            return Err(self.error(format!(
                "{blocksize} weights share a scale and {nested_blocksize} scales another, and \
                 only 64 and 256, bitsandbytes' own, are read. Quantise the model again with these"
            )));
        }
        if shape != self.shape {
            return Err(self.other_shape(&shape, self.shape.into()));
        }
        let mut floats = |part: &str| self.floats(&format!("{}.{part}", self.name), taken);
        let (quant_map, nested_absmax) = (floats("quant_map")?, floats("nested_absmax")?);
        let nested_quant_map = floats("nested_quant_map")?;
        let absmax = self.part(&format!("{}.absmax", self.name), taken)?;
        let parts = Nf4Parts {
            weight: self.weight.bytes,
            absmax: absmax.bytes,
            quant_map: &quant_map,
            nested_absmax: &nested_absmax,
            nested_quant_map: &nested_quant_map,
            nested_offset,
        };
        self.join(&Parts::Nf4(parts), device)
    }
}
