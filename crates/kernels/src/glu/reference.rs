//! The definition.

use crate::activation::Activation;
use crate::activation::reference::{factor, slope, value};

/// `gate_up [t, 2 i]` → `y [t, i]`.
pub fn forward(activation: Activation, gate_up: &[f64], i: usize) -> Vec<f64> {
    let gated = |row: &[f64]| -> Vec<f64> {
        (0..i).map(|c| value(activation, row[c]) * factor(activation, row[i + c]).0).collect()
    };
    gate_up.chunks(2 * i).flat_map(gated).collect()
}

/// `d_gate_up [t, 2 i]` for `d_y [t, i]`.
pub fn backward(activation: Activation, gate_up: &[f64], i: usize, d_y: &[f64]) -> Vec<f64> {
    let mut d = vec![0.0; gate_up.len()];
    for (t, row) in gate_up.chunks(2 * i).enumerate() {
        for c in 0..i {
            let (gate, d_y) = (row[c], d_y[t * i + c]);
            let (up, d_up) = factor(activation, row[i + c]);
            d[t * 2 * i + c] = d_y * up * slope(activation, gate);
            d[t * 2 * i + i + c] = d_y * value(activation, gate) * d_up;
        }
    }
    d
}
