//! The definition.

use super::GatedRows;

/// `x [t, width]` → queries, keys and values `[t, ungated_width]`.
pub fn without_gates(rows: GatedRows, x: &[f64]) -> Vec<f64> {
    let (d, queries) = (rows.head_dim, 2 * rows.queries());
    let row = |row: &[f64]| -> Vec<f64> {
        let heads = row[..queries].chunks(2 * d).flat_map(|head| &head[..d]);
        heads.chain(&row[queries..]).copied().collect()
    };
    x.chunks(rows.width()).flat_map(row).collect()
}

/// `attended [t, queries]`, gates in `x [t, width]` → `[t, queries]`.
pub fn gate(rows: GatedRows, attended: &[f64], x: &[f64]) -> Vec<f64> {
    attended.iter().enumerate().map(|(i, a)| a * sigmoid(x[gate_at(rows, i)])).collect()
}

/// `d_attended` and `d_x` for `d_y`; elements of `d_x` that are no gates are zero.
pub fn gate_backward(
    rows: GatedRows,
    attended: &[f64],
    x: &[f64],
    d_y: &[f64],
) -> (Vec<f64>, Vec<f64>) {
    let (mut d_attended, mut d_x) = (vec![0.0; attended.len()], vec![0.0; x.len()]);
    for (i, d) in d_y.iter().enumerate() {
        let at = gate_at(rows, i);
        let s = sigmoid(x[at]);
        d_attended[i] = d * s;
        d_x[at] = d * attended[i] * s * (1.0 - s);
    }
    (d_attended, d_x)
}

/// `d_x` for `d_y [t, ungated_width]`; gates are zero.
pub fn without_gates_backward(rows: GatedRows, d_y: &[f64]) -> Vec<f64> {
    let (d, queries) = (rows.head_dim, rows.queries());
    let row = |row: &[f64]| -> Vec<f64> {
        let zeros = vec![0.0; d];
        let heads = row[..queries].chunks(d).flat_map(|head| [head, &zeros].concat());
        heads.chain(row[queries..].iter().copied()).collect()
    };
    d_y.chunks(rows.ungated_width()).flat_map(row).collect()
}

/// Where the gate of element `i` of the output is.
fn gate_at(rows: GatedRows, i: usize) -> usize {
    let (row, c) = (i / rows.queries(), i % rows.queries());
    row * rows.width() + c / rows.head_dim * 2 * rows.head_dim + rows.head_dim + c % rows.head_dim
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}
