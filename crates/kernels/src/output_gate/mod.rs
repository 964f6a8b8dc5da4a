//! Output gates of attention (Qiu et al., "Gated Attention for Large Language Models", 2025, as in
//! Qwen3-Next): the projection of queries has twice their width, for each head its query and then a
//! gate, and what attention gives is multiplied by `sigmoid(gate)`.

mod cpu;
pub(crate) mod cuda;
#[cfg(any(test, feature = "reference"))]
pub mod reference;

use crate::processor::Processor;
use crate::view::{View, ViewMut};

/// Rows of queries with gates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GatedRows {
    /// Query heads.
    pub num_heads: usize,
    /// Dimensions of a head, and of its gate.
    pub head_dim: usize,
    /// Elements after the queries: keys and values.
    pub rest: usize,
}

impl GatedRows {
    /// Elements of a row with gates.
    pub fn width(self) -> usize {
        2 * self.queries() + self.rest
    }

    /// Elements of a row without gates.
    pub fn ungated_width(self) -> usize {
        self.queries() + self.rest
    }

    /// Elements of queries, or of gates, in a row.
    pub fn queries(self) -> usize {
        self.num_heads * self.head_dim
    }
}

impl Processor {
    /// `x [t, width]` → `y [t, ungated_width]`: queries, keys and values without the gates.
    pub fn without_gates(&self, rows: GatedRows, x: View<'_>, y: ViewMut<'_>) {
        match self {
            Self::Cpu(cpu) => cpu::without_gates(cpu, rows, x, y),
            Self::Cuda(gpu) => cuda::without_gates(gpu, rows, x.cuda(), y.cuda()),
        }
    }

    /// Writes `d_y [t, ungated_width]` to where the elements were taken from in `d_x [t, width]`;
    /// the gates' elements are left unchanged.
    pub fn without_gates_backward(&self, rows: GatedRows, d_y: View<'_>, d_x: ViewMut<'_>) {
        match self {
            Self::Cpu(cpu) => cpu::without_gates_backward(cpu, rows, d_y, d_x),
            Self::Cuda(gpu) => cuda::without_gates_backward(gpu, rows, d_y.cuda(), d_x.cuda()),
        }
    }

    /// `y = attended · sigmoid(gate)`, `[t, queries]`, with the gates in `x [t, width]`.
    pub fn gate_output(
        &self,
        rows: GatedRows,
        (attended, x): (View<'_>, View<'_>),
        y: ViewMut<'_>,
    ) {
        match self {
            Self::Cpu(cpu) => cpu::gate(cpu, rows, attended, x, y),
            Self::Cuda(gpu) => cuda::gate(gpu, rows, attended.cuda(), x.cuda(), y.cuda()),
        }
    }

    /// `d_attended [t, queries]`, overwritten, and the gates' elements of `d_x [t, width]`, for
    /// `d_y [t, queries]`.
    pub fn gate_output_backward(
        &self,
        rows: GatedRows,
        (attended, x, d_y): (View<'_>, View<'_>, View<'_>),
        (d_attended, d_x): (ViewMut<'_>, ViewMut<'_>),
    ) {
        match self {
            Self::Cpu(cpu) => cpu::gate_backward(cpu, rows, (attended, x, d_y), d_attended, d_x),
            Self::Cuda(gpu) => {
                let of = (attended.cuda(), x.cuda(), d_y.cuda());
                cuda::gate_backward(gpu, rows, of, (d_attended.cuda(), d_x.cuda()));
            }
        }
    }
}
