//! CPU kernels, a row a task.

use super::KeyedRows;
use crate::cpu::Cpu;
use crate::element::Element;
use crate::view::{View, ViewMut};

/// `x [t, width]` → `y [t, valued_width]`.
pub(super) fn forward(cpu: &Cpu, rows: KeyedRows, x: View<'_>, y: ViewMut<'_>) {
    match (x, y) {
        (View::F32(x), ViewMut::F32(y)) => forward_typed(cpu, rows, x, y),
        (View::Bf16(x), ViewMut::Bf16(y)) => forward_typed(cpu, rows, x, y),
        _ => panic!("x and y have the same element type"),
    }
}

fn forward_typed<T: Element>(cpu: &Cpu, rows: KeyedRows, x: &[T], y: &mut [T]) {
    let width = rows.width();
    cpu.rows(y, rows.valued_width(), 2 * rows.valued_width(), |t, y| {
        let x = &x[t * width..][..width];
        let (same, values) = y.split_at_mut(width);
        same.copy_from_slice(x);
        values.copy_from_slice(&x[rows.queries..]);
    });
}

/// `d_x [t, width]` for `d_y [t, valued_width]`.
pub(super) fn backward(cpu: &Cpu, rows: KeyedRows, d_y: View<'_>, d_x: ViewMut<'_>) {
    match (d_y, d_x) {
        (View::F32(d_y), ViewMut::F32(d_x)) => backward_typed(cpu, rows, d_y, d_x),
        (View::Bf16(d_y), ViewMut::Bf16(d_x)) => backward_typed(cpu, rows, d_y, d_x),
        _ => panic!("d_y and d_x have the same element type"),
    }
}

fn backward_typed<T: Element>(cpu: &Cpu, rows: KeyedRows, d_y: &[T], d_x: &mut [T]) {
    let valued = rows.valued_width();
    cpu.rows(d_x, rows.width(), 2 * valued, |t, d_x| {
        let (same, values) = d_y[t * valued..][..valued].split_at(rows.width());
        d_x.copy_from_slice(same);
        for (d_x, d) in d_x[rows.queries..].iter_mut().zip(values) {
            *d_x = T::from_f32(d_x.to_f32() + d.to_f32());
        }
    });
}
