//! Gates of the gated delta rule, one of each for a value head: how much of a token is written,
//! `β = σ(b)`, and the logarithm of what is kept before, `g = -exp(A_log) · softplus(a + dt_bias)`.

mod cpu;
pub(crate) mod cuda;
#[cfg(any(test, feature = "reference"))]
pub mod reference;

use crate::processor::Processor;
use crate::vector::Columns;
use crate::view::{View, ViewMut};

/// What the gates are computed from.
#[derive(Clone, Copy)]
pub struct Inputs<'a> {
    /// `2 heads` columns of a matrix with `t` rows: `b` of all heads, then `a`.
    pub b_a: Columns<'a>,
    /// Logarithms of the decay rates, `[heads]` f32.
    pub a_log: View<'a>,
    /// `[heads]` f32.
    pub dt_bias: View<'a>,
}

impl Inputs<'_> {
    fn heads(&self) -> usize {
        let heads = self.a_log.len();
        assert!(self.dt_bias.len() == heads && self.b_a.col + 2 * heads <= self.b_a.width);
        heads
    }
}

/// Gradients to add to; what is `None` is not computed.
pub struct Gradients<'a> {
    /// Laid out as the matrix of `b` and `a`, and of its type.
    pub d_b_a: Option<ViewMut<'a>>,
    /// `[heads]` f32.
    pub d_a_log: Option<ViewMut<'a>>,
    /// `[heads]` f32.
    pub d_dt_bias: Option<ViewMut<'a>>,
}

impl Processor {
    /// `gates [t, 2 heads]` f32: `β` of all heads, then `g`.
    pub fn delta_gates(&self, inputs: Inputs<'_>, gates: ViewMut<'_>) {
        match self {
            Self::Cpu(cpu) => cpu::forward(cpu, inputs, gates.f32()),
            Self::Cuda(gpu) => cuda::forward(gpu, inputs, gates.cuda().f32()),
        }
    }

    /// Adds to the gradients for `d_gates [t, 2 heads]` f32.
    pub fn delta_gates_backward(
        &self,
        inputs: Inputs<'_>,
        d_gates: View<'_>,
        gradients: Gradients<'_>,
    ) {
        match self {
            Self::Cpu(cpu) => cpu::backward(cpu, inputs, d_gates.f32(), gradients),
            Self::Cuda(gpu) => cuda::backward(gpu, inputs, d_gates.cuda().f32(), gradients),
        }
    }
}
