//! Adapters of fused experts, as PEFT writes them for `target_parameters`: one pair of matrices for
//! a parameter `[experts, n, k]`, `A [experts · r, k]` with the experts slowest and
//! `B [n, r · experts]` with the experts fastest. Taken apart into one pair for each expert.
//!
//! Gate and up projection are one parameter, so they share `A`; each expert's are two adapters with
//! equal `A` here. Their rows follow each other or, in some families, alternate. Where PEFT made
//! one of twice the rank from an adapter of modules, whose `B` has two blocks, those two come back.

use super::AdapterError;
use super::lora::Matrix;
use super::names::AdapterFile;
use crate::config::{ExpertLayout, LayerConfig};
use crate::load::Model;
use crate::weights::{ExpertPart, Linear};
use hone_tensor::{DeviceError, Tensor};
use std::collections::{BTreeMap, BTreeSet};

/// Matrices of experts by the names that they would have for modules.
#[derive(Default)]
pub(super) struct Unfused {
    tensors: BTreeMap<String, Tensor>,
    /// By module.
    sizes: BTreeMap<String, FusedSize>,
}

/// The size of an expert's adapter that was fused.
#[derive(Clone)]
pub(super) struct FusedSize {
    pub(super) rank: usize,
    /// Name of the parameter of all experts.
    pub(super) parameter: String,
    /// The rank of each expert's part of its adapter.
    pub(super) parameter_rank: usize,
}

/// A pair of matrices of one parameter of all experts.
struct Pair {
    a: Vec<f32>,
    b: Vec<f32>,
    num_experts: usize,
    /// Rank of each expert's part.
    rank: usize,
    /// `[n, k]`.
    shape: [usize; 2],
    /// How many projections share the rows.
    num_parts: usize,
    layout: ExpertLayout,
}

impl Unfused {
    /// Takes apart what the file has of fused experts, and removes it from the `stray` names.
    ///
    /// # Errors
    /// If shapes are not those of this model's experts, or there is no memory.
    pub(super) fn take(
        file: &AdapterFile,
        model: &Model,
        stray: &mut BTreeSet<String>,
    ) -> Result<Self, AdapterError> {
        let mut this = Self::default();
        let config = &model.decoder.config;
        for (layer, LayerConfig { mlp, .. }) in config.layers.iter().enumerate() {
            let Some(mixture) = &mlp.experts else { continue };
            for end in ["", ".base_layer"] {
                let outer = format!("model.layers.{layer}.{}{end}", mixture.names.experts);
                let keys = [Matrix::A, Matrix::B].map(|which| which.key(&outer));
                if keys.iter().all(|key| stray.contains(key)) {
                    stray.retain(|name| !keys.contains(name));
                    let sizes = [mlp.intermediate_size, config.hidden_size];
                    this.add(file, model, (layer, sizes), &keys)?;
                }
            }
        }
        Ok(this)
    }

    /// The size of an expert's adapter, if the file has it fused.
    pub(super) fn size(&self, module: &str) -> Option<&FusedSize> {
        self.sizes.get(module)
    }

    /// A matrix of an expert, if the file has it fused.
    pub(super) fn get(&self, key: &str) -> Option<&Tensor> {
        self.tensors.get(key)
    }

    /// Splits one pair between the experts of a block, whose sizes are `[i, h]`.
    fn add(
        &mut self,
        file: &AdapterFile,
        model: &Model,
        (layer, [i, h]): (usize, [usize; 2]),
        [a, b]: &[String; 2],
    ) -> Result<(), AdapterError> {
        let modules: Vec<(String, Linear)> = model.decoder.config.experts_of(layer).collect();
        let down = [h, i];
        let num_experts = modules.len() / ExpertPart::ALL.len();
        let tensor = |key: &String| file.tensor(key).map(|t| t.expect("the file has this name"));
        let (a_tensor, b_tensor) = (tensor(a)?, tensor(b)?);
        let fits = |shape: [usize; 2]| match (a_tensor.shape(), b_tensor.shape()) {
            (&[rows, k], &[n, cols]) => {
                rows > 0
                    && rows.is_multiple_of(num_experts)
                    && (n, k, cols) == (shape[0], shape[1], rows)
            }
            _ => false,
        };
        let parts: &[ExpertPart] = if fits([2 * i, h]) {
            &[ExpertPart::Gate, ExpertPart::Up]
        } else if fits(down) {
            &[ExpertPart::Down]
        } else {
            let problem = format!(
                "tensors `{a}` and `{b}` have shapes {:?} and {:?}, which are not those of an \
                 adapter of {num_experts} experts with [{}, {h}] or {down:?} weights each: A has \
                 rank · experts rows, B as many columns. The adapter was trained for another model",
                a_tensor.shape(),
                b_tensor.shape(),
                2 * i
            );
            return Err(AdapterError::Mismatch { path: file.path().to_owned(), problem });
        };
        let (rank, shape) =
            (a_tensor.shape()[0] / num_experts, [b_tensor.shape()[0], a_tensor.shape()[1]]);
        let (a, b) = (a_tensor.try_to_vec_f32()?, b_tensor.try_to_vec_f32()?);
        let mixture = model.decoder.config.layers[layer].mlp.experts.as_ref();
        let names = mixture.expect("a block with experts").names;
        let layout = names.layout;
        let pair = Pair { a, b, num_experts, rank, shape, num_parts: parts.len(), layout };
        let has_blocks = parts.len() == 2 && pair.has_blocks();
        let fused = if parts.len() == 2 { "gate_up_proj" } else { "down_proj" };
        let parameter = format!("model.layers.{layer}.{}.{fused}", names.experts);
        for (name, linear) in modules {
            let Linear::Expert(expert, part) = linear else { continue };
            if let Some(index) = parts.iter().position(|own| *own == part) {
                let (a, b) = pair.of_expert(expert, index, has_blocks)?;
                let (rank, parameter) = (a.shape()[0], parameter.clone());
                let size = FusedSize { rank, parameter, parameter_rank: pair.rank };
                self.sizes.insert(name.clone(), size);
                self.tensors.insert(Matrix::A.key(&name), a);
                self.tensors.insert(Matrix::B.key(&name), b);
            }
        }
        Ok(())
    }
}

impl Pair {
    /// `B` of an expert at a row and a rank.
    fn b(&self, expert: usize, row: usize, rank: usize) -> f32 {
        self.b[(row * self.rank + rank) * self.num_experts + expert]
    }

    /// The rows of one of the parts.
    fn rows_of(&self, part: usize) -> impl Iterator<Item = usize> + Clone {
        let (n, parts) = (self.shape[0], self.num_parts);
        let (range, step) = match self.layout {
            ExpertLayout::Rows => (part * n / parts..(part + 1) * n / parts, 1),
            ExpertLayout::Columns => (part..n, parts),
        };
        range.step_by(step)
    }

    /// Whether the rows of the first part read the first half of the ranks alone, and those of the
    /// second the second.
    fn has_blocks(&self) -> bool {
        let (rank, of_part) = (self.rank, |part| self.rows_of(part).map(move |row| (part, row)));
        let rows = of_part(0).chain(of_part(1));
        let crossed = rows.flat_map(|(part, row)| (0..rank).map(move |of| (part, row, of)));
        let is_crossed = |part: usize, of: usize| (part == 0) != (of < rank / 2);
        let mut crossed = crossed.filter(|&(part, _, of)| is_crossed(part, of));
        // Of an adapter that was never trained nothing can be told.
        rank.is_multiple_of(2)
            && self.b.iter().any(|&b| b != 0.0)
            && crossed.all(|(_, row, of)| (0..self.num_experts).all(|e| self.b(e, row, of) == 0.0))
    }

    /// Both matrices of one of an expert's parts.
    fn of_expert(
        &self,
        expert: usize,
        index: usize,
        has_blocks: bool,
    ) -> Result<(Tensor, Tensor), DeviceError> {
        let (k, count) = (self.shape[1], self.num_parts);
        let ranks = match has_blocks {
            true => index * self.rank / count..(index + 1) * self.rank / count,
            false => 0..self.rank,
        };
        let rows = self.rows_of(index);
        let first = expert * self.rank;
        let a = &self.a[(first + ranks.start) * k..(first + ranks.end) * k];
        let row = |row: usize| ranks.clone().map(move |of| self.b(expert, row, of));
        let b: Vec<f32> = rows.clone().flat_map(row).collect();
        let (rank, n) = (ranks.len(), rows.count());
        Ok((Tensor::from_f32(a, &[rank, k]), Tensor::from_f32(&b, &[n, rank])))
    }
}
