//! Gated activation (Shazeer, "GLU Variants Improve Transformer", 2020): `y = silu(gate) · up`,
//! with `gate` and `up` side by side in one row of `2 i`.

mod cpu;
pub mod reference;

pub use cpu::{backward, forward};

#[cfg(test)]
mod tests;
