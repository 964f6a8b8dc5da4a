//! The definition.

/// `x [t, h]`, `w [h]`, `b [h]` → `y [t, h]`.
pub fn forward(x: &[f64], w: &[f64], b: Option<&[f64]>, eps: f64) -> Vec<f64> {
    let row = |x: &[f64]| -> Vec<f64> {
        let (normed, _) = normalised(x, eps);
        let bias = |i: usize| b.map_or(0.0, |b| b[i]);
        (0..x.len()).map(|i| normed[i] * w[i] + bias(i)).collect()
    };
    x.chunks(w.len()).flat_map(row).collect()
}

/// Gradients `(d_x, d_w, d_b)` for `d_y [t, h]`.
pub fn backward(x: &[f64], w: &[f64], eps: f64, d_y: &[f64]) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
    let h = w.len();
    let (mut d_x, mut d_w, mut d_b) = (vec![0.0; x.len()], vec![0.0; h], vec![0.0; h]);
    for ((x, d_y), d_x) in x.chunks(h).zip(d_y.chunks(h)).zip(d_x.chunks_mut(h)) {
        let (normed, rstd) = normalised(x, eps);
        let d: Vec<f64> = d_y.iter().zip(w).map(|(d, w)| d * w).collect();
        let mean = d.iter().sum::<f64>() / h as f64;
        let along = d.iter().zip(&normed).map(|(d, x)| d * x).sum::<f64>() / h as f64;
        for i in 0..h {
            d_x[i] = rstd * (d[i] - mean - normed[i] * along);
            d_w[i] += d_y[i] * normed[i];
            d_b[i] += d_y[i];
        }
    }
    (d_x, d_w, d_b)
}

/// A row with mean 0 and variance 1, and the factor that its deviations were multiplied by.
fn normalised(x: &[f64], eps: f64) -> (Vec<f64>, f64) {
    let mean = x.iter().sum::<f64>() / x.len() as f64;
    let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / x.len() as f64;
    let rstd = 1.0 / (variance + eps).sqrt();
    (x.iter().map(|x| (x - mean) * rstd).collect(), rstd)
}
