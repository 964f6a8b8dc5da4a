//! Root-mean-square normalisation (Zhang & Sennrich, 2019): `y = x · rstd · w`,
//! `rstd = 1 / sqrt(mean(x²) + eps)`, over the last dimension.

mod cpu;
pub mod reference;

pub use cpu::{backward, backward_weight, forward};
