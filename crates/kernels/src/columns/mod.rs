//! Columns of one matrix as columns of another: keys that are values too, or another block's keys
//! and values, after a block's own queries.

mod cpu;
pub(crate) mod cuda;
#[cfg(any(test, feature = "reference"))]
pub mod reference;

use crate::processor::Processor;
use crate::view::{View, ViewMut};

/// From which columns of `x` to which of `y`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Columns of `x`, and the first that is read.
    pub from: [usize; 2],
    /// Columns of `y`, and the first that is written.
    pub to: [usize; 2],
    /// How many are read.
    pub count: usize,
}

impl Span {
    /// From `to` back to `from`.
    #[must_use]
    pub fn reversed(self) -> Self {
        Self { from: self.to, to: self.from, count: self.count }
    }

    /// Panics unless both matrices have these columns.
    fn check(self, x: usize, y: usize) {
        let Self { from, to, count } = self;
        assert!(from[1] + count <= from[0] && to[1] + count <= to[0], "no such columns: {self:?}");
        let rows = x / from[0];
        assert!(x == rows * from[0] && y == rows * to[0], "{x} and {y} elements: {self:?}");
    }
}

impl Processor {
    /// Columns of `x` into those of `y`, which has the same type and as many rows: added to what is
    /// there if `adds`, otherwise in its place. Other columns of `y` are left as they are.
    ///
    /// # Panics
    /// If a matrix does not have these columns.
    pub fn copy_columns(&self, span: Span, x: View<'_>, adds: bool, y: ViewMut<'_>) {
        span.check(x.len(), y.len());
        match self {
            Self::Cpu(cpu) => cpu::copy(cpu, span, x, adds, y),
            Self::Cuda(gpu) => cuda::copy(gpu, span, x.cuda(), adds, y.cuda()),
        }
    }
}
