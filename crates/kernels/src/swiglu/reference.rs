//! The definition.

/// `gate_up [t, 2 i]` → `y [t, i]`.
pub fn forward(gate_up: &[f64], i: usize) -> Vec<f64> {
    gate_up
        .chunks(2 * i)
        .flat_map(|row| (0..i).map(|c| row[c] * sigmoid(row[c]) * row[i + c]).collect::<Vec<_>>())
        .collect()
}

/// `d_gate_up [t, 2 i]` for `d_y [t, i]`.
pub fn backward(gate_up: &[f64], i: usize, d_y: &[f64]) -> Vec<f64> {
    let mut d = vec![0.0; gate_up.len()];
    for (t, row) in gate_up.chunks(2 * i).enumerate() {
        for c in 0..i {
            let (gate, up, d_y) = (row[c], row[i + c], d_y[t * i + c]);
            let s = sigmoid(gate);
            d[t * 2 * i + c] = d_y * up * s * (1.0 + gate * (1.0 - s));
            d[t * 2 * i + i + c] = d_y * gate * s;
        }
    }
    d
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}
