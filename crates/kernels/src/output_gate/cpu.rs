//! CPU kernels, vectorised along heads.

use super::GatedRows;
use crate::cpu::{Cpu, Kernel, Split};
use crate::element::Element;
use crate::math::sigmoid;
use crate::view::{View, ViewMut};

/// `x [t, width]` → `y [t, ungated_width]`.
pub(super) fn without_gates(cpu: &Cpu, rows: GatedRows, x: View<'_>, y: ViewMut<'_>) {
    match (x, y) {
        (View::F32(x), ViewMut::F32(y)) => split(cpu, rows, x, y),
        (View::Bf16(x), ViewMut::Bf16(y)) => split(cpu, rows, x, y),
        _ => panic!("x and y have the same element type"),
    }
}

fn split<T: Element>(cpu: &Cpu, rows: GatedRows, x: &[T], y: &mut [T]) {
    let (d, queries) = (rows.head_dim, rows.queries());
    cpu.rows(y, rows.ungated_width(), 2 * rows.width(), |t, y| {
        let (with_gates, rest) = x[t * rows.width()..][..rows.width()].split_at(2 * queries);
        for (head, from) in y[..queries].chunks_exact_mut(d).zip(with_gates.chunks_exact(2 * d)) {
            head.copy_from_slice(&from[..d]);
        }
        y[queries..].copy_from_slice(rest);
    });
}

/// Elements of `d_x [t, width]` that are no gates, for `d_y [t, ungated_width]`.
pub(super) fn without_gates_backward(cpu: &Cpu, rows: GatedRows, d_y: View<'_>, d_x: ViewMut<'_>) {
    match (d_y, d_x) {
        (View::F32(d_y), ViewMut::F32(d_x)) => join(cpu, rows, d_y, d_x),
        (View::Bf16(d_y), ViewMut::Bf16(d_x)) => join(cpu, rows, d_y, d_x),
        _ => panic!("d_y and d_x have the same element type"),
    }
}

fn join<T: Element>(cpu: &Cpu, rows: GatedRows, d_y: &[T], d_x: &mut [T]) {
    let (d, queries) = (rows.head_dim, rows.queries());
    cpu.rows(d_x, rows.width(), 2 * rows.width(), |t, d_x| {
        let (of_queries, of_rest) =
            d_y[t * rows.ungated_width()..][..rows.ungated_width()].split_at(queries);
        let (heads, rest) = d_x.split_at_mut(2 * queries);
        for (head, from) in heads.chunks_exact_mut(2 * d).zip(of_queries.chunks_exact(d)) {
            head[..d].copy_from_slice(from);
        }
        rest.copy_from_slice(of_rest);
    });
}

/// `y = attended · sigmoid(gate)`, `[t, queries]`.
pub(super) fn gate(cpu: &Cpu, rows: GatedRows, attended: View<'_>, x: View<'_>, y: ViewMut<'_>) {
    match (attended, x, y) {
        (View::F32(a), View::F32(x), ViewMut::F32(y)) => gate_typed(cpu, rows, a, x, y),
        (View::Bf16(a), View::Bf16(x), ViewMut::Bf16(y)) => gate_typed(cpu, rows, a, x, y),
        _ => panic!("attended, x and y have the same element type"),
    }
}

fn gate_typed<T: Element>(cpu: &Cpu, rows: GatedRows, attended: &[T], x: &[T], y: &mut [T]) {
    cpu.rows(y, rows.queries(), 8 * rows.queries(), |t, y| {
        let attended = &attended[t * rows.queries()..][..rows.queries()];
        let x = &x[t * rows.width()..][..2 * rows.queries()];
        cpu.isa.run(Gate { d: rows.head_dim, attended, x, y });
    });
}

struct Gate<'a, T> {
    d: usize,
    attended: &'a [T],
    /// Queries with gates.
    x: &'a [T],
    y: &'a mut [T],
}

impl<T: Element> Kernel for Gate<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let heads = self.attended.chunks_exact(self.d).zip(self.x.chunks_exact(2 * self.d));
        for (y, (attended, x)) in self.y.chunks_exact_mut(self.d).zip(heads) {
            for ((y, a), gate) in y.iter_mut().zip(attended).zip(&x[self.d..]) {
                *y = T::from_f32(a.to_f32() * sigmoid(gate.to_f32()));
            }
        }
    }
}

/// `d_attended [t, queries]`, and the gates' elements of `d_x [t, width]`.
pub(super) fn gate_backward(
    cpu: &Cpu,
    rows: GatedRows,
    of: (View<'_>, View<'_>, View<'_>),
    d_attended: ViewMut<'_>,
    d_x: ViewMut<'_>,
) {
    match (of, d_attended, d_x) {
        ((View::F32(a), View::F32(x), View::F32(d)), ViewMut::F32(d_a), ViewMut::F32(d_x)) => {
            gate_backward_typed(cpu, rows, (a, x, d), d_a, d_x);
        }
        ((View::Bf16(a), View::Bf16(x), View::Bf16(d)), ViewMut::Bf16(d_a), ViewMut::Bf16(d_x)) => {
            gate_backward_typed(cpu, rows, (a, x, d), d_a, d_x);
        }
        _ => panic!("values and gradients have the same element type"),
    }
}

fn gate_backward_typed<T: Element>(
    cpu: &Cpu,
    rows: GatedRows,
    (attended, x, d_y): (&[T], &[T], &[T]),
    d_attended: &mut [T],
    d_x: &mut [T],
) {
    let (queries, width) = (rows.queries(), rows.width());
    let d_x = Split::new(d_x);
    cpu.rows(d_attended, queries, 12 * queries, |t, d_attended| {
        let own = t * queries..(t + 1) * queries;
        // SAFETY: a row belongs to one task.
        let d_x = unsafe { d_x.slice(t * width, 2 * queries) };
        cpu.isa.run(GateBackward {
            d: rows.head_dim,
            attended: &attended[own.clone()],
            x: &x[t * width..][..2 * queries],
            d_y: &d_y[own],
            d_attended,
            d_x,
        });
    });
}

struct GateBackward<'a, T> {
    d: usize,
    attended: &'a [T],
    x: &'a [T],
    d_y: &'a [T],
    d_attended: &'a mut [T],
    d_x: &'a mut [T],
}

impl<T: Element> Kernel for GateBackward<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let d = self.d;
        for head in 0..self.attended.len() / d {
            let own = head * d..(head + 1) * d;
            let gates = (2 * head + 1) * d..(2 * head + 2) * d;
            let (attended, d_y) = (&self.attended[own.clone()], &self.d_y[own.clone()]);
            let (x, d_x) = (&self.x[gates.clone()], &mut self.d_x[gates]);
            let d_attended = &mut self.d_attended[own];
            for c in 0..d {
                let (a, d) = (attended[c].to_f32(), d_y[c].to_f32());
                let s = sigmoid(x[c].to_f32());
                d_attended[c] = T::from_f32(d * s);
                d_x[c] = T::from_f32(d * a * s * (1.0 - s));
            }
        }
    }
}
