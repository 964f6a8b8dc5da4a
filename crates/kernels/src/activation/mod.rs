//! Activations of an MLP without a gate: `y = act(x)`. Those of gated ones ([`crate::glu`]) are the
//! same functions.

mod cpu;
pub(crate) mod cuda;
#[cfg(any(test, feature = "reference"))]
pub mod reference;

pub(crate) use cpu::{ClampedSilu, Curve, Gelu, GeluTanh, Silu, with_curve};

use crate::processor::Processor;
use crate::view::{View, ViewMut};

/// An activation. All are `x · share(x)` with a share between 0 and 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// SiLU, also called swish: `sigmoid(x)`.
    Silu,
    /// GELU: the normal distribution function, `(1 + erf(x / √2)) / 2`.
    Gelu,
    /// GELU in its tanh form, `(1 + tanh u) / 2` with `u = √(2/π) (x + 0.044715 x³)`.
    GeluTanh,
    /// That of gpt-oss's experts: `sigmoid(1.702 x)` of an `x` of at most 7. In a gated product the
    /// other factor is clamped to ±7 and then one greater.
    ClampedSilu,
}

impl Activation {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Silu, Self::Gelu, Self::GeluTanh, Self::ClampedSilu];
}

impl Processor {
    /// `y = act(x)`, elementwise, of one element type.
    pub fn activate(&self, activation: Activation, x: View<'_>, y: ViewMut<'_>) {
        match self {
            Self::Cpu(cpu) => cpu::forward(cpu, activation, x, y),
            Self::Cuda(gpu) => cuda::forward(gpu, activation, x.cuda(), y.cuda()),
        }
    }

    /// `d_x = d_y · act'(x)`, elementwise, overwritten; all of one element type.
    pub fn activate_backward(
        &self,
        activation: Activation,
        x: View<'_>,
        d_y: View<'_>,
        d_x: ViewMut<'_>,
    ) {
        match self {
            Self::Cpu(cpu) => cpu::backward(cpu, activation, x, d_y, d_x),
            Self::Cuda(gpu) => cuda::backward(gpu, activation, x.cuda(), d_y.cuda(), d_x.cuda()),
        }
    }
}
