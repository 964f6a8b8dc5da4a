//! Root-mean-square normalisation of heads with a gate, as linear attention has before its output
//! projection: `y = w · x · rstd · silu(z)`.

mod cpu;
pub(crate) mod cuda;
#[cfg(any(test, feature = "reference"))]
pub mod reference;

use crate::processor::{Processor, Target};
use crate::vector::Columns;
use crate::view::{View, ViewMut};

/// What is normalised.
#[derive(Clone, Copy)]
pub struct Inputs<'a> {
    /// `[t, n]`, `n` a multiple of `h`: each `h` elements are normalised by themselves.
    pub x: View<'a>,
    /// The gates, `n` columns of a matrix of the type of `x`.
    pub z: Columns<'a>,
    /// `[h]` f32.
    pub weight: View<'a>,
    /// Added to the mean square.
    pub eps: f32,
}

impl Inputs<'_> {
    /// Length of the rows of `x`, of which there is one for each of `z`.
    fn n(&self) -> usize {
        let rows = self.z.x.len() / self.z.width;
        let n = self.x.len() / rows.max(1);
        assert!(self.x.len() == rows * n && n.is_multiple_of(self.weight.len()));
        assert!(self.z.col + n <= self.z.width);
        n
    }
}

/// Gradients; what is `None` is not computed.
pub struct Gradients<'a> {
    /// `[t, n]` of the type of `x`, overwritten.
    pub d_x: ViewMut<'a>,
    /// Laid out as the matrix of `z`, whose columns are added to.
    pub d_z: Option<ViewMut<'a>>,
    /// `[h]` f32, added to.
    pub d_weight: Option<ViewMut<'a>>,
}

/// Bytes of a GPU's scratch memory that the backward pass takes for all heads of all tokens.
pub fn scratch_bytes(target: Target, num_heads: usize) -> usize {
    match target {
        Target::Cpu => 0,
        Target::Cuda => cuda::scratch_bytes(num_heads),
    }
}

impl Processor {
    /// `y [t, n]`, of the type of `x`.
    pub fn gated_rms_norm(&self, inputs: Inputs<'_>, y: ViewMut<'_>) {
        match self {
            Self::Cpu(cpu) => cpu::forward(cpu, inputs, y),
            Self::Cuda(gpu) => cuda::forward(gpu, inputs, y.cuda()),
        }
    }

    /// The gradients for `d_y [t, n]`, of the type of `x`.
    pub fn gated_rms_norm_backward(
        &self,
        inputs: Inputs<'_>,
        d_y: View<'_>,
        gradients: Gradients<'_>,
    ) {
        match self {
            Self::Cpu(cpu) => cpu::backward(cpu, inputs, d_y, gradients),
            Self::Cuda(gpu) => cuda::backward(gpu, inputs, d_y.cuda(), gradients),
        }
    }
}
