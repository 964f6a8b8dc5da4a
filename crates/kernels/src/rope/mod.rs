//! Rotary position embedding (Su et al., 2021), in the half-rotation layout of Hugging Face:
//! dimension `i` of a head turns together with dimension `i + d / 2`.
//!
//! Queries, keys and values stand side by side in one row (`q heads`, `kv heads` keys, `kv heads`
//! values); only queries and keys turn. The backward pass is the rotation by the opposite angle.

mod cpu;
pub mod reference;

pub use cpu::rotate;

/// Which way to turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// By the angle: the forward pass.
    Forward,
    /// By the opposite angle: the backward pass.
    Backward,
}
