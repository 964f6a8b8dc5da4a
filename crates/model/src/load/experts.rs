//! Experts whose matrices safetensors files have in one tensor, in MXFP4 or FP8, with a tensor of
//! scales.

use super::files::{LoadError, Taken, WeightFiles};
use super::parts::Matrix;
use crate::config::{DecoderConfig, ExpertLayout};
use crate::weights::{ExpertPart, Fused, Linear, Role, WeightSpec};
use hone_tensor::safetensors::{Dtype, Parts, RawTensor};
use hone_tensor::{Device, Place, Tensor};
use std::borrow::Cow;

/// Rows and columns that share a scale in FP8.
const BLOCK: usize = 128;

/// Which part of which expert a weight is, and the tensor of all experts that has it; `None` of
/// other weights.
fn among_all(spec: &WeightSpec, config: &DecoderConfig) -> Option<(usize, ExpertPart, Fused)> {
    let Role::Matrix(_, Linear::Expert(expert, part)) = spec.role else { return None };
    Some((expert, part, config.fused(spec.role)?))
}

impl WeightFiles {
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
        let Some((expert, part, fused)) = among_all(spec, config) else { return Ok(None) };
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

    /// The matrix of an expert in the tensors of all experts in FP8, as transformers' `FP8Experts`
    /// has them: gate and up one after another, and so their scales; `None` if there are none such.
    ///
    /// # Errors
    /// If they do not fit together.
    pub(super) fn expert_in_fp8(
        &self,
        spec: &WeightSpec,
        config: &DecoderConfig,
        device: &Device,
        taken: &mut Taken,
    ) -> Result<Option<Tensor>, LoadError> {
        let Some((expert, part, fused)) = among_all(spec, config) else { return Ok(None) };
        let Some(name) = self.stored_name(&fused.name) else { return Ok(None) };
        let Some((file, weight)) = self.raw(name) else { return Ok(None) };
        if weight.dtype != Dtype::F8_E4M3 || fused.layout != ExpertLayout::Rows {
            return Ok(None);
        }
        let (rows, cols, num_experts) = (spec.shape[0], spec.shape[1], fused.shape[0]);
        let matrix = Matrix { files: self, file, name, weight, shape: [rows, cols] };
        if weight.shape != fused.shape {
            return Err(matrix.other_shape(weight.shape, fused.shape));
        }
        let (which, num_parts) = match part {
            ExpertPart::Gate => (0, 2),
            ExpertPart::Up => (1, 2),
            ExpertPart::Down => (0, 1),
        };
        let scales_name = format!("{name}_scale_inv");
        let scales = matrix.part(&scales_name, taken)?;
        taken.note_part(&format!("{name}_activation_scale"));
        let [down, across] = [rows, cols].map(|size| size.div_ceil(BLOCK));
        let is_uneven = num_parts > 1 && !rows.is_multiple_of(BLOCK);
        let [apart, together] = [num_parts * down, (num_parts * rows).div_ceil(BLOCK)]
            .map(|rows| [num_experts, rows, across]);
        let uneven = |problem: &str| {
            matrix.error(format!(
                "gate and up have {rows} rows each, which is no multiple of {BLOCK}, {problem}. \
                 Use a model that has each expert in tensors of its own, or one that is not \
                 quantised"
            ))
        };
        // Where the part's scales begin among an expert's, and how many rows and columns they have.
        let (first, [down, across]) = match *scales.shape {
            [n] | [n, 1, 1] if n == num_experts => (0, [1, 1]),
            [n, parts, 1] if (n, parts) == (num_experts, num_parts) => (which, [1, 1]),
            _ if is_uneven && scales.shape == together => {
                return Err(uneven("so that a scale belongs to both"));
            }
            // transformers has such scales of one block each only.
            _ if is_uneven && down > 1 && scales.shape == apart => {
                return Err(uneven("and scales of their own, as transformers never has them"));
            }
            _ if scales.shape == apart => (which * down * across, [down, across]),
            _ => {
                let scales = Matrix { name: &scales_name, weight: scales, ..matrix };
                let expected = [num_experts, together[1].max(num_parts), across];
                return Err(scales.other_shape(scales.weight.shape, expected.into()));
            }
        };
        let first = expert * (scales.shape.iter().product::<usize>() / num_experts) + first;
        let place = Place { first, row_step: across, col_step: 1 };
        let scales = match self.tensor(&scales_name)? {
            Some((_, all)) => all.part_of_file(Device::host(), place, &[down, across])?,
            None => return Ok(None),
        };
        let values = &weight.bytes[fused.place.first..][..rows * cols];
        let parts = Parts::Fp8 { values, scales: &scales.try_to_vec_f32()? };
        let tensor = matrix.join(&parts, device)?;
        taken.note(name, &tensor);
        Ok(Some(tensor))
    }

    /// The matrices of all experts in FP8 in the tensor `stored`, one below the other; `None` if it
    /// has no scales.
    ///
    /// # Errors
    /// If scales would belong to two experts.
    pub(super) fn all_experts_in_fp8(&self, stored: &str) -> Result<Option<Tensor>, LoadError> {
        let Some((file, weight)) = self.raw(stored) else { return Ok(None) };
        let (Dtype::F8_E4M3, &[num_experts, rows, cols]) = (weight.dtype, weight.shape) else {
            return Ok(None);
        };
        let shape = [num_experts * rows, cols];
        let matrix = Matrix { files: self, file, name: stored, weight, shape };
        let scales_name = format!("{stored}_scale_inv");
        let scales = matrix.part(&scales_name, &mut Taken::default())?;
        let [down, across] = [rows, cols].map(|size| size.div_ceil(BLOCK));
        let repeated = match *scales.shape {
            [n] | [n, 1, 1] if n == num_experts => down * across,
            _ if scales.shape == [num_experts, down, across] => 1,
            _ => 0,
        };
        // Blocks of one expert must not reach into the next.
        if repeated == 0 || !rows.is_multiple_of(BLOCK) {
            return Err(matrix.error(format!(
                "scales of shape {:?} of {num_experts} experts with {rows} rows of {cols} weights \
                 are not read. Use a model that is not quantised",
                scales.shape
            )));
        }
        let scales = matrix.floats(&scales_name, &mut Taken::default())?;
        // One for each expert is the same for all of its blocks.
        let scales: Vec<f32> =
            scales.iter().flat_map(|&scale| std::iter::repeat_n(scale, repeated)).collect();
        let parts = Parts::Fp8 { values: weight.bytes, scales: &scales };
        Ok(Some(matrix.join(&parts, Device::host())?.with_shape(weight.shape)))
    }
}
