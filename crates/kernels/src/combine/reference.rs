//! The definition.

/// `Σ_j weights[t, j] · x[slots[t, j]]`: `x [t · k, h]` → `[t, h]`.
pub fn forward(x: &[f64], h: usize, k: usize, slots: &[u32], weights: &[f64]) -> Vec<f64> {
    let mut y = vec![0.0; slots.len() / k * h];
    for (i, (&slot, weight)) in slots.iter().zip(weights).enumerate() {
        for c in 0..h {
            y[i / k * h + c] += weight * x[slot as usize * h + c];
        }
    }
    y
}

/// `d_x [t · k, h]` and `d_weights [t, k]` for `d_y [t, h]`.
pub fn backward(
    x: &[f64],
    (h, k): (usize, usize),
    slots: &[u32],
    weights: &[f64],
    d_y: &[f64],
) -> (Vec<f64>, Vec<f64>) {
    let (mut d_x, mut d_weights) = (vec![0.0; x.len()], vec![0.0; weights.len()]);
    for (i, (&slot, weight)) in slots.iter().zip(weights).enumerate() {
        for c in 0..h {
            let (at, d_y) = (slot as usize * h + c, d_y[i / k * h + c]);
            d_x[at] = weight * d_y;
            d_weights[i] += x[at] * d_y;
        }
    }
    (d_x, d_weights)
}
