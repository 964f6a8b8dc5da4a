//! Rotary position embedding (Su et al., 2021): of the first `rotary_dim` dimensions of a head,
//! dimension `i` is rotated with dimension `i + rotary_dim / 2` (the layout of most models of
//! Hugging Face), or with its neighbour (GPT-J, GLM). The other dimensions stay as they are.
//!
//! A row holds query heads, key heads and value heads; only queries and keys are rotated. The
//! backward pass is the rotation by the opposite angle.

mod cpu;
pub(crate) mod cuda;
#[cfg(any(test, feature = "reference"))]
pub mod reference;

pub use cpu::rotate;

use crate::processor::{Processor, Target};
use crate::view::{View, ViewMut};

/// Whether angles are read from host memory.
pub fn reads_host_angles(target: Target) -> bool {
    target == Target::Cpu
}

impl Processor {
    /// Rotates in place adjacent heads in each row of `width` elements.
    pub fn rotate(&self, x: ViewMut<'_>, width: usize, rotation: Rotation<'_>) {
        match self {
            Self::Cpu(cpu) => rotate(cpu, x, width, rotation),
            Self::Cuda(gpu) => cuda::rotate(gpu, x.cuda(), width, rotation),
        }
    }
}

/// A rotation of adjacent heads of rows.
#[derive(Clone, Copy)]
pub struct Rotation<'a> {
    /// The first head that is rotated.
    pub first_head: usize,
    /// Number of heads that are rotated.
    pub num_heads: usize,
    /// Dimensions of a head.
    pub head_dim: usize,
    /// Which of them are rotated.
    pub rotated: Rotated,
    /// Cosines of the angles, `[t, rotated.dim / 2]` f32.
    pub cos: View<'a>,
    /// Sines of the angles, `[t, rotated.dim / 2]` f32.
    pub sin: View<'a>,
    /// Direction.
    pub direction: Direction,
}

/// The dimensions of a head that are rotated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rotated {
    /// How many, from the first on; even.
    pub dim: usize,
    /// Whether neighbours are pairs, and not the dimensions of two halves.
    pub interleaved: bool,
}

impl Rotated {
    /// Dimensions of pair `i`.
    pub fn pair(self, i: usize) -> (usize, usize) {
        if self.interleaved { (2 * i, 2 * i + 1) } else { (i, i + self.dim / 2) }
    }
}

/// Direction of a rotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// By the angle: the forward pass.
    Forward,
    /// By the opposite angle: the backward pass.
    Backward,
}
