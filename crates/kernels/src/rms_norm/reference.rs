//! The definition.

use super::{RmsNorm, Rows};

/// `x`, `w [h]` → `y`, which equals `x` outside of `rows`.
pub fn forward(norm: RmsNorm, rows: Rows, x: &[f64], w: &[f64]) -> Vec<f64> {
    let mut y = x.to_vec();
    for row in starts(rows, x.len(), w.len()) {
        let rstd = rstd(norm, &x[row..row + w.len()]);
        for (i, w) in w.iter().enumerate() {
            y[row + i] = x[row + i] * rstd * factor(norm, *w);
        }
    }
    y
}

/// Gradients `(d_x, d_w [h])` for `d_y`; `d_x` equals `d_y` outside of `rows`.
pub fn backward(
    norm: RmsNorm,
    rows: Rows,
    x: &[f64],
    w: &[f64],
    d_y: &[f64],
) -> (Vec<f64>, Vec<f64>) {
    let h = w.len();
    let (mut d_x, mut d_w) = (d_y.to_vec(), vec![0.0; h]);
    for row in starts(rows, x.len(), h) {
        let (x, d_y, d_x) = (&x[row..row + h], &d_y[row..row + h], &mut d_x[row..row + h]);
        let rstd = rstd(norm, x);
        let dot: f64 = (0..h).map(|i| d_y[i] * factor(norm, w[i]) * x[i]).sum();
        for i in 0..h {
            let along_x = x[i] * rstd * rstd * dot / h as f64;
            d_x[i] = rstd * (d_y[i] * factor(norm, w[i]) - along_x);
            d_w[i] += d_y[i] * x[i] * rstd;
        }
    }
    (d_x, d_w)
}

/// First element of each row.
fn starts(rows: Rows, len: usize, h: usize) -> impl Iterator<Item = usize> {
    let starts_in_row = move |row| (0..rows.count).map(move |i| row + rows.offset + i * h);
    (0..len).step_by(rows.stride).flat_map(starts_in_row)
}

fn factor(norm: RmsNorm, w: f64) -> f64 {
    if norm.plus_one { 1.0 + w } else { w }
}

fn rstd(norm: RmsNorm, x: &[f64]) -> f64 {
    1.0 / (x.iter().map(|v| v * v).sum::<f64>() / x.len() as f64 + f64::from(norm.eps)).sqrt()
}
