//! The definition.

/// `x [t, n]`, `z [t, n]`, `w [h]` → `y [t, n]`.
pub fn forward(x: &[f64], z: &[f64], w: &[f64], eps: f64) -> Vec<f64> {
    let heads = x.chunks(w.len()).zip(z.chunks(w.len()));
    let normed = |(x, z): (&[f64], &[f64])| -> Vec<f64> {
        let rstd = rstd(x, eps);
        (0..w.len()).map(|i| w[i] * x[i] * rstd * z[i] * sigmoid(z[i])).collect()
    };
    heads.flat_map(normed).collect()
}

/// Gradients of `x`, `z` and `w` for `d_y`.
pub fn backward(x: &[f64], z: &[f64], w: &[f64], eps: f64, d_y: &[f64]) -> [Vec<f64>; 3] {
    let h = w.len();
    let (mut d_x, mut d_z, mut d_w) = (vec![0.0; x.len()], vec![0.0; x.len()], vec![0.0; h]);
    for start in (0..x.len()).step_by(h) {
        let (x, z, d_y) = (&x[start..][..h], &z[start..][..h], &d_y[start..][..h]);
        let rstd = rstd(x, eps);
        let d_normed: Vec<f64> = (0..h).map(|i| d_y[i] * w[i] * z[i] * sigmoid(z[i])).collect();
        let along_x = (0..h).map(|i| d_normed[i] * x[i]).sum::<f64>() * rstd.powi(3) / h as f64;
        for i in 0..h {
            let s = sigmoid(z[i]);
            d_x[start + i] = d_normed[i] * rstd - x[i] * along_x;
            d_z[start + i] = d_y[i] * w[i] * x[i] * rstd * s * (1.0 + z[i] * (1.0 - s));
            d_w[i] += d_y[i] * x[i] * rstd * z[i] * s;
        }
    }
    [d_x, d_z, d_w]
}

fn rstd(x: &[f64], eps: f64) -> f64 {
    1.0 / (x.iter().map(|v| v * v).sum::<f64>() / x.len() as f64 + eps).sqrt()
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}
