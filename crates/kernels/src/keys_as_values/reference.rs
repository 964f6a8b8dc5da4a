//! The definition.

use super::KeyedRows;

/// `x [t, width]` → `[t, valued_width]`.
pub fn forward(rows: KeyedRows, x: &[f64]) -> Vec<f64> {
    x.chunks(rows.width()).flat_map(|row| [row, &row[rows.queries..]].concat()).collect()
}

/// `d_x [t, width]` for `d_y [t, valued_width]`.
pub fn backward(rows: KeyedRows, d_y: &[f64]) -> Vec<f64> {
    let of_row = |row: &[f64]| -> Vec<f64> {
        let (d_x, of_values) = row.split_at(rows.width());
        let of_values = vec![0.0; rows.queries].into_iter().chain(of_values.iter().copied());
        d_x.iter().zip(of_values).map(|(a, b)| a + b).collect()
    };
    d_y.chunks(rows.valued_width()).flat_map(of_row).collect()
}
