//! The definition.

use super::Activation;

/// `gate_up [t, 2 i]` → `y [t, i]`.
pub fn forward(activation: Activation, gate_up: &[f64], i: usize) -> Vec<f64> {
    let gated = |row: &[f64]| -> Vec<f64> {
        (0..i).map(|c| value(activation, row[c]) * row[i + c]).collect()
    };
    gate_up.chunks(2 * i).flat_map(gated).collect()
}

/// `d_gate_up [t, 2 i]` for `d_y [t, i]`.
pub fn backward(activation: Activation, gate_up: &[f64], i: usize, d_y: &[f64]) -> Vec<f64> {
    let mut d = vec![0.0; gate_up.len()];
    for (t, row) in gate_up.chunks(2 * i).enumerate() {
        for c in 0..i {
            let (gate, up, d_y) = (row[c], row[i + c], d_y[t * i + c]);
            d[t * 2 * i + c] = d_y * up * slope(activation, gate);
            d[t * 2 * i + i + c] = d_y * value(activation, gate);
        }
    }
    d
}

fn value(activation: Activation, x: f64) -> f64 {
    match activation {
        Activation::Silu => x * sigmoid(x),
        Activation::GeluTanh => 0.5 * x * (1.0 + gelu_argument(x).tanh()),
    }
}

fn slope(activation: Activation, x: f64) -> f64 {
    match activation {
        Activation::Silu => sigmoid(x) * (1.0 + x * (1.0 - sigmoid(x))),
        Activation::GeluTanh => {
            let tanh = gelu_argument(x).tanh();
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (1.0 + 3.0 * 0.044_715 * x * x);
            // Where tanh saturates, `inner` may be infinite and its factor zero.
            let d_tanh = 1.0 - tanh * tanh;
            0.5 * (1.0 + tanh) + if d_tanh == 0.0 { 0.0 } else { 0.5 * x * d_tanh * inner }
        }
    }
}

fn gelu_argument(x: f64) -> f64 {
    (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x)
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}
