//! Log-probabilities of target tokens from tiles of logits.
//!
//! The vocabulary is walked tile by tile with an online softmax, so that logits exist only for one
//! tile at a time.

mod cpu;
mod gradient;
pub mod reference;

pub use cpu::{Inputs, Outputs, backward, forward, workspace_len};
pub use gradient::{MOST_ROWS, backward_weight, weight_workspace_len};

/// Bytes of scratch memory that a thread needs.
pub fn scratch_bytes(hidden_size: usize) -> usize {
    cpu::scratch_bytes(hidden_size).max(gradient::scratch_bytes(hidden_size))
}

#[cfg(test)]
mod tests;
