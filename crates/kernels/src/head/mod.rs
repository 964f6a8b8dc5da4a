//! Log-probabilities of target tokens from tiles of logits.
//!
//! The vocabulary is walked tile by tile with an online softmax, so that logits exist only for one
//! tile at a time. The products that make a tile are the caller's (see [`crate::gemm`]); here is
//! what happens to a tile.

mod cpu;
pub mod reference;

pub use cpu::{absorb_tile, finish, tile_gradient};

/// Columns of the vocabulary per tile.
pub const TILE: usize = 2048;

#[cfg(test)]
mod tests;
