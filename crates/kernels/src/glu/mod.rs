//! Gated activation (Shazeer, "GLU Variants Improve Transformer", 2020): `y = act(gate) · up`,
//! with `gate` and `up` adjacent in one row of `2 i`.

mod cpu;
pub(crate) mod cuda;
#[cfg(any(test, feature = "reference"))]
pub mod reference;

pub use cpu::{backward, forward};

use crate::activation::Activation;
use crate::processor::Processor;
use crate::view::{View, ViewMut};

impl Processor {
    /// `gate_up [t, 2 i]` → `y [t, i]`, of one element type.
    pub fn glu(&self, activation: Activation, gate_up: View<'_>, i: usize, y: ViewMut<'_>) {
        match self {
            Self::Cpu(cpu) => forward(cpu, activation, gate_up, i, y),
            Self::Cuda(gpu) => cuda::forward(gpu, activation, gate_up.cuda(), i, y.cuda()),
        }
    }

    /// `d_gate_up [t, 2 i]`, overwritten, for `d_y [t, i]`; all of one element type.
    pub fn glu_backward(
        &self,
        activation: Activation,
        gate_up: View<'_>,
        i: usize,
        d_y: View<'_>,
        d_gate_up: ViewMut<'_>,
    ) {
        match self {
            Self::Cpu(cpu) => backward(cpu, activation, gate_up, i, d_y, d_gate_up),
            Self::Cuda(gpu) => {
                cuda::backward(gpu, activation, gate_up.cuda(), i, d_y.cuda(), d_gate_up.cuda());
            }
        }
    }
}

#[cfg(test)]
mod tests;
