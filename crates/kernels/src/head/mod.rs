//! Log-probabilities of target tokens from tiles of logits.
//!
//! The vocabulary is walked tile by tile with an online softmax, so that logits exist only for one
//! tile at a time.

mod cpu;
pub mod cuda;
mod gradient;
#[cfg(any(test, feature = "reference"))]
pub mod reference;

pub use cpu::{Inputs, Outputs, backward, forward, workspace_len};
pub use gradient::{MOST_ROWS, backward_weight, weight_workspace_len};

/// Bytes of scratch memory that a thread needs.
pub fn scratch_bytes(hidden_size: usize) -> usize {
    cpu::scratch_bytes(hidden_size).max(gradient::scratch_bytes(hidden_size))
}

use crate::element::{View, ViewMut};
use crate::processor::Processor;

impl Processor {
    /// Log-probabilities of targets and, where asked for, their gradients. `workspace` is f32: as
    /// long as [`workspace_len`] says for the CPU, [`cuda::workspace_len`] for a GPU.
    ///
    /// # Panics
    /// If a slice is too short.
    pub fn log_probs(&self, inputs: Inputs<'_>, workspace: ViewMut<'_>, outputs: Outputs<'_>) {
        match self {
            Self::Cpu(cpu) => forward(cpu, inputs, workspace.f32(), outputs),
            Self::Cuda(gpu) => cuda::forward(gpu, inputs, workspace.cuda().f32(), outputs),
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

    /// `d_w [v, h] += d_logitsᵀ x` f32, from the `lse` of the forward pass. `workspace` is f32: as
    /// long as [`weight_workspace_len`] says for the CPU, [`cuda::weight_workspace_len`] for a GPU.
    pub fn log_probs_backward_weight(
        &self,
        inputs: Inputs<'_>,
        (lse, d_log_probs): (View<'_>, View<'_>),
        workspace: ViewMut<'_>,
        d_w: ViewMut<'_>,
    ) {
        match self {
            Self::Cpu(cpu) => {
                let saved = (lse.f32(), d_log_probs.f32());
                backward_weight(cpu, inputs, saved, workspace.f32(), d_w.f32());
            }
            Self::Cuda(gpu) => {
                let saved = (lse.cuda().f32(), d_log_probs.cuda().f32());
                cuda::backward_weight(gpu, inputs, saved, workspace.cuda().f32(), d_w.cuda().f32());
            }
        }
    }
}

#[cfg(test)]
mod tests;
