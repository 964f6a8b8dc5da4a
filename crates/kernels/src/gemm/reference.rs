//! The definition of the product.

/// `out[m, n] = Σ_k a[m, k] · b[k, n]`, all row-major.
pub fn gemm(m: usize, n: usize, k: usize, a: &[f64], b: &[f64]) -> Vec<f64> {
    let mut out = vec![0.0; m * n];
    for i in 0..m {
        for j in 0..n {
            out[i * n + j] = (0..k).map(|p| a[i * k + p] * b[p * n + j]).sum();
        }
    }
    out
}

/// The transpose of a row-major `[rows, cols]` matrix.
pub fn transpose(rows: usize, cols: usize, x: &[f64]) -> Vec<f64> {
    (0..rows * cols).map(|i| x[(i % rows) * cols + i / rows]).collect()
}
