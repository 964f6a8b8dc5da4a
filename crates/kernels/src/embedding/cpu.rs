//! Gather, parallel over rows; scatter, parallel over columns so that no two threads write one
//! element.

use crate::cpu::{Cpu, Split};
use crate::view::View;

/// `scale` times rows of `table [v, h]`, `ids [t]` → `y [t, h]`.
///
/// # Panics
/// If an id is not below `v`.
pub fn forward(cpu: &Cpu, table: View<'_>, ids: &[u32], scale: f32, y: &mut [f32]) {
    if ids.is_empty() {
        return;
    }
    let h = y.len() / ids.len();
    cpu.rows(y, h, h, |t, y| {
        table.read(ids[t] as usize * h, y);
        y.iter_mut().for_each(|y| *y *= scale);
    });
}

/// `d_table [v, h] += scale ·` the rows of `d_y [t, h]`, in the order of the tokens.
pub fn backward(cpu: &Cpu, ids: &[u32], scale: f32, d_y: &[f32], d_table: &mut [f32]) {
    if ids.is_empty() {
        return;
    }
    let h = d_y.len() / ids.len();
    let v = d_table.len() / h;
    let width = h.div_ceil(cpu.threads()).next_multiple_of(16).min(h);
    let split = Split::new(d_table);
    cpu.pool.run(h.div_ceil(width), &|task| {
        let (start, end) = (task * width, ((task + 1) * width).min(h));
        for (t, &id) in ids.iter().enumerate() {
            assert!((id as usize) < v);
            // SAFETY: column ranges of different tasks do not overlap.
            let row = unsafe { split.slice(id as usize * h + start, end - start) };
            for (row, d_y) in row.iter_mut().zip(&d_y[t * h + start..t * h + end]) {
                *row += scale * d_y;
            }
        }
    });
}
