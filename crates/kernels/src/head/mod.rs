//! Log-probabilities of target tokens from tiles of logits.
//!
//! The vocabulary is processed tile by tile with an online softmax, so that only one tile of logits
//! exists at a time.

mod cpu;
pub(crate) mod cuda;
mod gradient;
#[cfg(any(test, feature = "reference"))]
pub mod reference;

pub use cpu::{Inputs, Outputs, backward, forward};
pub use gradient::backward_weight;

/// What happens to products of hidden states and weight before the softmax.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Logits {
    /// Their factor.
    pub scale: f32,
    /// Bound of scaled products.
    pub softcap: Option<Softcap>,
}

impl Logits {
    /// The products themselves.
    pub const PLAIN: Self = Self { scale: 1.0, softcap: None };

    /// Replaces products by logits.
    #[inline(always)]
    fn apply(self, products: &mut [f32]) {
        if self.scale != 1.0 {
            products.iter_mut().for_each(|x| *x *= self.scale);
        }
        if let Some(cap) = self.softcap {
            products.iter_mut().for_each(|x| *x = cap.bounded(*x));
        }
    }

    /// The derivative of a logit with respect to its product.
    #[inline(always)]
    fn slope(self, logit: f32) -> f32 {
        self.scale * self.softcap.map_or(1.0, |cap| cap.slope(logit))
    }
}

/// Values that the gradient of a trained head's weight needs from the forward pass.
#[derive(Clone, Copy)]
pub struct Saved<'a> {
    /// `log softmax(x Wᵀ)[target]`, `[n]` f32.
    pub log_probs: View<'a>,
    /// Logarithm of the softmax's denominator, `[n]` f32.
    pub lse: View<'a>,
}

/// Bytes of scratch memory that a thread needs.
pub fn scratch_bytes(hidden_size: usize) -> usize {
    cpu::scratch_bytes(hidden_size).max(gradient::scratch_bytes(hidden_size))
}

/// Sizes of a chunk of rows and of the head's weight.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Rows of a chunk.
    pub rows: usize,
    /// Columns of the weight.
    pub hidden_size: usize,
    /// Rows of the weight.
    pub vocab_size: usize,
    /// Type of the hidden states.
    pub dtype: DType,
}

/// Elements (f32) of workspace for log-probabilities, with or without directions.
pub fn workspace_len(target: Target, sizes: Sizes, direction: bool) -> usize {
    match target {
        Target::Cpu => cpu::workspace_len(sizes, direction),
        Target::Cuda => cuda::workspace_len(sizes, direction),
    }
}

/// Elements (f32) of workspace for the gradient of a trained head's weight.
pub fn weight_workspace_len(target: Target, sizes: Sizes) -> usize {
    match target {
        Target::Cpu => gradient::weight_workspace_len(sizes.rows, sizes.hidden_size),
        Target::Cuda => cuda::weight_workspace_len(sizes),
    }
}

/// Scratch bytes for converting a part of the weight, stored as `storage`, at a time.
pub fn panel_bytes(target: Target, storage: Storage, sizes: Sizes) -> usize {
    match target {
        Target::Cpu => 0,
        Target::Cuda => cuda::panel_bytes(storage, sizes),
    }
}

/// Maximum rows of a chunk.
pub fn max_rows(target: Target) -> usize {
    match target {
        Target::Cpu => gradient::MAX_ROWS,
        Target::Cuda => cuda::MAX_ROWS,
    }
}

/// Whether the rows with a target must be sorted.
pub fn needs_sorted_rows(target: Target) -> bool {
    target == Target::Cpu
}

/// Vocabulary rows per product when computing all logits: at most a panel if the weight is
/// converted in memory.
pub fn logit_columns(target: Target, storage: Storage, compute: DType, vocab_size: usize) -> usize {
    let converts = gemm::converts_in_memory(target) && storage != compute;
    if converts { vocab_size.min(cuda::PANEL) } else { vocab_size }
}

use crate::element::DType;
use crate::format::Storage;
use crate::gemm;
use crate::math::Softcap;
use crate::processor::{Processor, Target};
use crate::view::{View, ViewMut};

impl Processor {
    /// Log-probabilities of targets and, if requested, their gradients. `workspace` is f32:
    /// [`workspace_len`] elements.
    ///
    /// # Panics
    /// If a slice is too short.
    pub fn log_probs(&self, inputs: Inputs<'_>, workspace: ViewMut<'_>, outputs: Outputs<'_>) {
        match self {
            Self::Cpu(cpu) => forward(cpu, inputs, workspace.f32(), outputs),
            Self::Cuda(gpu) => cuda::forward(gpu, inputs, workspace.cuda().f32(), outputs),
        }
    }

    /// Replaces all products `[t, v]` f32 of hidden states and weight by logits.
    pub fn logits(&self, logits: Logits, v: usize, products: ViewMut<'_>) {
        match self {
            _ if logits == Logits::PLAIN => {}
            Self::Cpu(cpu) => cpu::logits(cpu, logits, v, products.f32()),
            Self::Cuda(gpu) => cuda::bound_logits(gpu, logits, products.cuda().f32()),
        }
    }

    /// `d_x[rows[i]] = d_log_probs[i] · direction[i]`, other rows zero; `d_log_probs` f32.
    pub fn log_probs_backward(
        &self,
        direction: View<'_>,
        rows: &[u32],
        d_log_probs: View<'_>,
        h: usize,
        d_x: ViewMut<'_>,
    ) {
        match self {
            Self::Cpu(cpu) => backward(cpu, direction, rows, d_log_probs.f32(), h, d_x),
            Self::Cuda(gpu) => {
                let (direction, d) = (direction.cuda(), d_log_probs.cuda().f32());
                cuda::backward(gpu, direction, rows, d, h, d_x.cuda());
            }
        }
    }

    /// `d_w [v, h] += d_logitsᵀ x` f32 and `d_bias [v] += Σ d_logits` f32, with `d_log_probs` f32.
    /// `workspace` is f32: [`weight_workspace_len`] elements.
    pub fn log_probs_backward_weight(
        &self,
        inputs: Inputs<'_>,
        saved: Saved<'_>,
        d_log_probs: View<'_>,
        workspace: ViewMut<'_>,
        (d_w, d_bias): (ViewMut<'_>, Option<ViewMut<'_>>),
    ) {
        match self {
            Self::Cpu(cpu) => {
                let (d, workspace) = (d_log_probs.f32(), workspace.f32());
                let gradients = (d_w.f32(), d_bias.map(ViewMut::f32));
                backward_weight(cpu, inputs, saved, d, workspace, gradients);
            }
            Self::Cuda(gpu) => {
                let (d, workspace) = (d_log_probs.cuda().f32(), workspace.cuda().f32());
                let d_bias = d_bias.map(|d_bias| d_bias.cuda().f32());
                let gradients = (d_w.cuda().f32(), d_bias);
                cuda::backward_weight(gpu, inputs, saved, d, workspace, gradients);
            }
        }
    }
}

#[cfg(test)]
mod tests;
