//! Layer normalisation (Ba et al., 2016) of whole rows: `y = (x - mean) · rstd · w + b`,
//! `rstd = 1 / sqrt(variance + eps)`; the bias may be absent.

mod cpu;
pub(crate) mod cuda;
#[cfg(any(test, feature = "reference"))]
pub mod reference;

use crate::processor::Processor;
use crate::view::{View, ViewMut};

/// What is normalised.
#[derive(Clone, Copy)]
pub struct Inputs<'a> {
    /// `[t, h]`.
    pub x: View<'a>,
    /// `[h]` f32.
    pub weight: View<'a>,
    /// `[h]` f32.
    pub bias: Option<View<'a>>,
    /// Added to the variance.
    pub eps: f32,
}

/// Values that the backward pass needs from the forward pass.
#[derive(Clone, Copy)]
pub struct Saved<'a> {
    /// `[t, h]`.
    pub x: View<'a>,
    /// `[h]` f32.
    pub weight: View<'a>,
    /// Mean and `rstd` of each row, `[t, 2]` f32.
    pub statistics: View<'a>,
}

impl Processor {
    /// `y [t, h]`, f32 or of the type of `x`, and `statistics [t, 2]` f32.
    pub fn layer_norm(&self, inputs: Inputs<'_>, y: ViewMut<'_>, statistics: ViewMut<'_>) {
        match self {
            Self::Cpu(cpu) => cpu::forward(cpu, inputs, y, statistics.f32()),
            Self::Cuda(gpu) => cuda::forward(gpu, inputs, y.cuda(), statistics.cuda().f32()),
        }
    }

    /// `d_x`, of the type of `x`, for `d_y`; accumulated if `adds`, otherwise overwritten.
    pub fn layer_norm_backward(
        &self,
        saved: Saved<'_>,
        d_y: View<'_>,
        adds: bool,
        d_x: ViewMut<'_>,
    ) {
        match self {
            Self::Cpu(cpu) => cpu::backward(cpu, saved, d_y, adds, d_x),
            Self::Cuda(gpu) => cuda::backward(gpu, saved, d_y.cuda(), adds, d_x.cuda()),
        }
    }

    /// `d_w [h] += Σ d_y · (x - mean) · rstd` over all rows, f32. The bias's gradient is the sum of
    /// `d_y` ([`Processor::add_column_sums`]).
    pub fn layer_norm_backward_weight(&self, saved: Saved<'_>, d_y: View<'_>, d_w: ViewMut<'_>) {
        match self {
            Self::Cpu(cpu) => cpu::backward_weight(cpu, saved, d_y, d_w.f32()),
            Self::Cuda(gpu) => cuda::backward_weight(gpu, saved, d_y.cuda(), d_w.cuda().f32()),
        }
    }
}
