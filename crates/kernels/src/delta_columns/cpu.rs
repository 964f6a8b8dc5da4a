//! CPU kernels: copies of adjacent columns, a row a task.

use super::{parts, width};
use crate::cpu::Cpu;
use crate::element::Element;
use crate::gated_delta_rule::DeltaHeads;
use crate::view::{View, ViewMut};
use std::ops::Range;

/// `x [t, width]`, by key head → `y`, by kind.
pub(super) fn forward(cpu: &Cpu, heads: &DeltaHeads, x: View<'_>, y: ViewMut<'_>) {
    copy(cpu, heads, x, y, |parts| parts);
}

/// `d_y [t, width]`, by kind → `d_x`, by key head.
pub(super) fn backward(cpu: &Cpu, heads: &DeltaHeads, d_y: View<'_>, d_x: ViewMut<'_>) {
    copy(cpu, heads, d_y, d_x, |(from, to)| (to, from));
}

/// From where, and to where.
type Move = (Range<usize>, Range<usize>);

fn copy(cpu: &Cpu, heads: &DeltaHeads, x: View<'_>, y: ViewMut<'_>, order: fn(Move) -> Move) {
    let moves: Vec<Move> =
        (0..heads.num_key_heads).flat_map(|head| parts(heads, head)).map(order).collect();
    match (x, y) {
        (View::F32(x), ViewMut::F32(y)) => copy_typed(cpu, width(heads), &moves, x, y),
        (View::Bf16(x), ViewMut::Bf16(y)) => copy_typed(cpu, width(heads), &moves, x, y),
        _ => panic!("both have the same element type"),
    }
}

fn copy_typed<T: Element>(cpu: &Cpu, width: usize, moves: &[Move], x: &[T], y: &mut [T]) {
    cpu.rows(y, width, 2 * width, |t, y| {
        let x = &x[t * width..][..width];
        for (from, to) in moves {
            y[to.clone()].copy_from_slice(&x[from.clone()]);
        }
    });
}
