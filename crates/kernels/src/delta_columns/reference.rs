//! The definition.

use super::{parts, width};
use crate::gated_delta_rule::DeltaHeads;

/// `x [t, width]`, by key head → by kind.
pub fn forward(heads: &DeltaHeads, x: &[f64]) -> Vec<f64> {
    let mut y = vec![0.0; x.len()];
    let width = width(heads);
    for (x, y) in x.chunks(width).zip(y.chunks_mut(width)) {
        for (from, to) in (0..heads.num_key_heads).flat_map(|head| parts(heads, head)) {
            y[to].copy_from_slice(&x[from]);
        }
    }
    y
}

/// `d_x` for `d_y [t, width]`.
pub fn backward(heads: &DeltaHeads, d_y: &[f64]) -> Vec<f64> {
    let mut d_x = vec![0.0; d_y.len()];
    let width = width(heads);
    for (d_x, d_y) in d_x.chunks_mut(width).zip(d_y.chunks(width)) {
        for (from, to) in (0..heads.num_key_heads).flat_map(|head| parts(heads, head)) {
            d_x[from].copy_from_slice(&d_y[to]);
        }
    }
    d_x
}
