//! Log-probabilities of target tokens from tiles of logits.
//!
//! The vocabulary is walked tile by tile with an online softmax, so that logits exist only for one
//! tile at a time.

mod cpu;
pub mod reference;

pub use cpu::{Inputs, Outputs, backward, forward, scratch_bytes, tile_gradient, workspace_len};

/// Columns of the vocabulary per tile of a trained head's gradient.
pub const TILE: usize = 2048;

#[cfg(test)]
mod tests;
