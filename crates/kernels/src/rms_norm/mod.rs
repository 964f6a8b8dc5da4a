//! Root-mean-square normalisation (Zhang & Sennrich, 2019): `y = x · rstd · w`,
//! `rstd = 1 / sqrt(mean(x²) + eps)`, of whole rows or of heads inside packed rows.

mod cpu;
pub(crate) mod cuda;
#[cfg(any(test, feature = "reference"))]
pub mod reference;

pub use cpu::{backward, backward_weight, forward};

use crate::processor::Processor;
use crate::view::{View, ViewMut};

/// Settings of a normalisation, apart from the weight.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RmsNorm {
    /// Added to the mean square.
    pub eps: f32,
    /// Whether a row is multiplied by `1 + w` instead of `w`, as Gemma does.
    pub plus_one: bool,
}

impl RmsNorm {
    /// Added to each weight; adding negative zero changes no number.
    fn offset(self) -> f32 {
        if self.plus_one { 1.0 } else { -0.0 }
    }
}

/// Position of the normalised rows in a matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rows {
    /// Length of a row of the matrix.
    pub stride: usize,
    /// Offset of the first normalised element in it.
    pub offset: usize,
    /// Number of consecutive parts (such as heads) that are normalised separately.
    pub count: usize,
}

impl Rows {
    /// Whole rows of a matrix with `width` columns.
    pub fn whole(width: usize) -> Self {
        Self { stride: width, offset: 0, count: 1 }
    }
}

/// Inputs of the forward pass.
#[derive(Clone, Copy)]
pub struct Inputs<'a> {
    /// Input.
    pub x: View<'a>,
    /// `[h]` f32.
    pub weight: View<'a>,
    /// f32, added to the output.
    pub residual: Option<View<'a>>,
    /// Position of the rows in the input and the output.
    pub rows: Rows,
}

/// Values that the backward pass needs from the forward pass.
#[derive(Clone, Copy)]
pub struct Saved<'a> {
    /// Input.
    pub x: View<'a>,
    /// `[h]` f32.
    pub weight: View<'a>,
    /// `[t, rows.count]` f32.
    pub rstd: View<'a>,
    /// Position of the rows in the input, the output and their gradients.
    pub rows: Rows,
}

impl Processor {
    /// `y` and `rstd [t, rows.count]` f32. Elements of `y` outside of the rows are left unchanged.
    pub fn rms_norm(&self, norm: RmsNorm, inputs: Inputs<'_>, y: ViewMut<'_>, rstd: ViewMut<'_>) {
        match self {
            Self::Cpu(cpu) => forward(cpu, norm, inputs, y, rstd.f32()),
            Self::Cuda(gpu) => cuda::forward(gpu, norm, inputs, y.cuda(), rstd.cuda().f32()),
        }
    }

    /// `d_x`, of the type of `x`, for `d_y`; accumulated if `adds`, otherwise overwritten. Elements
    /// outside of the rows are left unchanged.
    pub fn rms_norm_backward(
        &self,
        norm: RmsNorm,
        saved: Saved<'_>,
        d_y: View<'_>,
        adds: bool,
        d_x: ViewMut<'_>,
    ) {
        match self {
            Self::Cpu(cpu) => backward(cpu, norm, saved, d_y, adds, d_x),
            Self::Cuda(gpu) => cuda::backward(gpu, norm, saved, d_y.cuda(), adds, d_x.cuda()),
        }
    }

    /// `d_w [h] += Σ d_y · x · rstd` over all rows, f32.
    pub fn rms_norm_backward_weight(&self, saved: Saved<'_>, d_y: View<'_>, d_w: ViewMut<'_>) {
        match self {
            Self::Cpu(cpu) => backward_weight(cpu, saved, d_y, d_w.f32()),
            Self::Cuda(gpu) => cuda::backward_weight(gpu, saved, d_y.cuda(), d_w.cuda().f32()),
        }
    }
}
