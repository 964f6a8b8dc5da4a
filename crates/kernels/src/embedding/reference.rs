//! The definition.

/// `scale` times rows of `table [v, h]`, `ids [t]` → `[t, h]`.
pub fn forward(table: &[f64], h: usize, ids: &[u32], scale: f64) -> Vec<f64> {
    let row = |&id: &u32| table[id as usize * h..(id as usize + 1) * h].iter();
    ids.iter().flat_map(row).map(|x| scale * x).collect()
}

/// `d_table [v, h]` for `d_y [t, h]`.
pub fn backward(v: usize, h: usize, ids: &[u32], scale: f64, d_y: &[f64]) -> Vec<f64> {
    let mut d_table = vec![0.0; v * h];
    for (t, &id) in ids.iter().enumerate() {
        for c in 0..h {
            d_table[id as usize * h + c] += scale * d_y[t * h + c];
        }
    }
    d_table
}
