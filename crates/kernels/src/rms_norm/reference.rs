//! The definition.

/// `x [t, h]`, `w [h]` → `y [t, h]`.
pub fn forward(x: &[f64], w: &[f64], eps: f64) -> Vec<f64> {
    let h = w.len();
    x.chunks(h)
        .flat_map(|x| {
            let rstd = rstd(x, eps);
            x.iter().zip(w).map(move |(x, w)| x * rstd * w).collect::<Vec<_>>()
        })
        .collect()
}

/// Gradients `(d_x [t, h], d_w [h])` for `d_y [t, h]`.
pub fn backward(x: &[f64], w: &[f64], eps: f64, d_y: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let h = w.len();
    let (mut d_x, mut d_w) = (Vec::new(), vec![0.0; h]);
    for (x, d_y) in x.chunks(h).zip(d_y.chunks(h)) {
        let rstd = rstd(x, eps);
        let dot: f64 = (0..h).map(|i| d_y[i] * w[i] * x[i]).sum();
        for i in 0..h {
            d_x.push(rstd * (d_y[i] * w[i] - x[i] * rstd * rstd * dot / h as f64));
            d_w[i] += d_y[i] * x[i] * rstd;
        }
    }
    (d_x, d_w)
}

fn rstd(x: &[f64], eps: f64) -> f64 {
    1.0 / (x.iter().map(|v| v * v).sum::<f64>() / x.len() as f64 + eps).sqrt()
}
