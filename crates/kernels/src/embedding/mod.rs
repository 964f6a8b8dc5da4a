//! Embedding lookup: scaled rows of a table by index, and the gradient of the table.

mod cpu;
pub(crate) mod cuda;
#[cfg(any(test, feature = "reference"))]
pub mod reference;

pub use cpu::{backward, forward};

use crate::processor::Processor;
use crate::view::{View, ViewMut};

impl Processor {
    /// `scale` times rows of `table [v, h]`, `ids [t]` → `y [t, h]` f32.
    ///
    /// # Panics
    /// If an id is not below `v`.
    pub fn embedding(&self, table: View<'_>, ids: &[u32], scale: f32, y: ViewMut<'_>) {
        match self {
            Self::Cpu(cpu) => forward(cpu, table, ids, scale, y.f32()),
            Self::Cuda(gpu) => cuda::forward(gpu, table.cuda(), ids, scale, y.cuda().f32()),
        }
    }

    /// `d_table [v, h] += scale ·` the rows of `d_y [t, h]`, in the order of the tokens; both f32.
    pub fn embedding_backward(&self, ids: &[u32], scale: f32, d_y: View<'_>, d_table: ViewMut<'_>) {
        match self {
            Self::Cpu(cpu) => backward(cpu, ids, scale, d_y.f32(), d_table.f32()),
            Self::Cuda(gpu) => {
                cuda::backward(gpu, ids, scale, d_y.cuda().f32(), d_table.cuda().f32());
            }
        }
    }
}
