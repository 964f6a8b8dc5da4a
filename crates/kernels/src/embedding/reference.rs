//! The definition.

/// `table [v, h]`, `ids [t]` → `[t, h]`.
pub fn forward(table: &[f64], h: usize, ids: &[u32]) -> Vec<f64> {
    ids.iter().flat_map(|&id| table[id as usize * h..(id as usize + 1) * h].to_vec()).collect()
}

/// `d_table [v, h]` for `d_y [t, h]`.
pub fn backward(v: usize, h: usize, ids: &[u32], d_y: &[f64]) -> Vec<f64> {
    let mut d_table = vec![0.0; v * h];
    for (t, &id) in ids.iter().enumerate() {
        for c in 0..h {
            d_table[id as usize * h + c] += d_y[t * h + c];
        }
    }
    d_table
}
