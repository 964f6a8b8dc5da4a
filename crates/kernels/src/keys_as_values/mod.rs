//! Attention whose values are its keys, as in Gemma 4: rows of queries and keys become rows of
//! queries, keys and values.

mod cpu;
pub(crate) mod cuda;
#[cfg(any(test, feature = "reference"))]
pub mod reference;

use crate::processor::Processor;
use crate::view::{View, ViewMut};

/// Rows of queries and keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyedRows {
    /// Elements of queries.
    pub queries: usize,
    /// Elements of keys, and of values.
    pub keys: usize,
}

impl KeyedRows {
    /// Elements of a row without values.
    pub fn width(self) -> usize {
        self.queries + self.keys
    }

    /// Elements of a row with values.
    pub fn valued_width(self) -> usize {
        self.queries + 2 * self.keys
    }
}

impl Processor {
    /// `x [t, width]` → `y [t, valued_width]`.
    pub fn keys_as_values(&self, rows: KeyedRows, x: View<'_>, y: ViewMut<'_>) {
        match self {
            Self::Cpu(cpu) => cpu::forward(cpu, rows, x, y),
            Self::Cuda(gpu) => cuda::forward(gpu, rows, x.cuda(), y.cuda()),
        }
    }

    /// `d_x [t, width]` for `d_y [t, valued_width]`: gradients of keys and values are added.
    pub fn keys_as_values_backward(&self, rows: KeyedRows, d_y: View<'_>, d_x: ViewMut<'_>) {
        match self {
            Self::Cpu(cpu) => cpu::backward(cpu, rows, d_y, d_x),
            Self::Cuda(gpu) => cuda::backward(gpu, rows, d_y.cuda(), d_x.cuda()),
        }
    }
}
