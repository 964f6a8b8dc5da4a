//! Rotary position embedding (Su et al., 2021), in the half-rotation layout of Hugging Face:
//! dimension `i` of a head turns together with dimension `i + d / 2`.
//!
//! Queries, keys and values stand side by side in one row (`q heads`, `kv heads` keys, `kv heads`
//! values); only queries and keys turn. The backward pass is the rotation by the opposite angle.

mod cpu;
pub(crate) mod cuda;
#[cfg(any(test, feature = "reference"))]
pub mod reference;

pub use cpu::rotate;

use crate::element::{View, ViewMut};
use crate::processor::{Processor, Target};

/// Whether angles are read where the caller has them, in the memory of the host.
pub fn reads_host_angles(target: Target) -> bool {
    target == Target::Cpu
}

impl Processor {
    /// Turns, in place, the first `heads` heads of `d` dimensions in each row of `width` elements
    /// by the angles whose `cos` and `sin` are `[t, d / 2]` f32.
    pub fn rotate(
        &self,
        x: ViewMut<'_>,
        width: usize,
        heads_d: (usize, usize),
        (cos, sin): (View<'_>, View<'_>),
        direction: Direction,
    ) {
        match self {
            Self::Cpu(cpu) => {
                rotate(cpu, x, width, heads_d, (cos.f32(), sin.f32()), direction);
            }
            Self::Cuda(gpu) => {
                let angles = (cos.cuda().f32(), sin.cuda().f32());
                cuda::rotate(gpu, x.cuda(), width, heads_d, angles, direction);
            }
        }
    }
}

/// Which way to turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// By the angle: the forward pass.
    Forward,
    /// By the opposite angle: the backward pass.
    Backward,
}
