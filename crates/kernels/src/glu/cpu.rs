//! CPU kernels, vectorised along rows.

use crate::activation::{Activation, Curve, with_curve};
use crate::cpu::{Cpu, Kernel};
use crate::element::Element;
use crate::view::{View, ViewMut};

/// `gate_up [t, 2 i]` → `y [t, i]`, of one element type.
pub fn forward(cpu: &Cpu, activation: Activation, gate_up: View<'_>, i: usize, y: ViewMut<'_>) {
    with_curve!(activation, C => match (gate_up, y) {
        (View::F32(x), ViewMut::F32(y)) => forward_typed::<_, C>(cpu, x, i, y),
        (View::Bf16(x), ViewMut::Bf16(y)) => forward_typed::<_, C>(cpu, x, i, y),
        _ => panic!("gate_up and y have the same element type"),
    });
}

fn forward_typed<T: Element, C: Curve>(cpu: &Cpu, gate_up: &[T], i: usize, y: &mut [T]) {
    cpu.rows(y, i, 8 * i, |t, y| {
        let (gate, up) = gate_up[2 * i * t..2 * i * (t + 1)].split_at(i);
        cpu.isa.run(Forward { gate, up, y, through: (C::share, C::factor) });
    });
}

struct Forward<'a, T, F> {
    gate: &'a [T],
    up: &'a [T],
    y: &'a mut [T],
    through: F,
}

impl<T: Element, S: Fn(f32) -> f32, U: Fn(f32) -> f32> Kernel for Forward<'_, T, (S, U)> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { gate, up, y, through: (share, factor) } = self;
        for ((y, gate), up) in y.iter_mut().zip(gate).zip(up) {
            let gate = gate.to_f32();
            *y = T::from_f32(gate * share(gate) * factor(up.to_f32()));
        }
    }
}

/// `d_gate_up [t, 2 i]`, overwritten, for `d_y [t, i]`; all of one element type.
pub fn backward(
    cpu: &Cpu,
    activation: Activation,
    gate_up: View<'_>,
    i: usize,
    d_y: View<'_>,
    d_gate_up: ViewMut<'_>,
) {
    with_curve!(activation, C => match (gate_up, d_y, d_gate_up) {
        (View::F32(x), View::F32(d_y), ViewMut::F32(d)) => {
            backward_typed::<_, C>(cpu, x, i, d_y, d);
        }
        (View::Bf16(x), View::Bf16(d_y), ViewMut::Bf16(d)) => {
            backward_typed::<_, C>(cpu, x, i, d_y, d);
        }
        _ => panic!("gate_up, d_y and d_gate_up have the same element type"),
    });
}

fn backward_typed<T: Element, C: Curve>(
    cpu: &Cpu,
    gate_up: &[T],
    i: usize,
    d_y: &[T],
    d: &mut [T],
) {
    cpu.rows(d, 2 * i, 12 * i, |t, d| {
        let (d_gate, d_up) = d.split_at_mut(i);
        let (gate, up) = gate_up[2 * i * t..2 * i * (t + 1)].split_at(i);
        let d_y = &d_y[i * t..i * (t + 1)];
        let through = ((C::share, C::back), (C::factor, C::factor_back));
        cpu.isa.run(Backward { gate, up, d_y, d_gate, d_up, through });
    });
}

struct Backward<'a, T, F> {
    gate: &'a [T],
    up: &'a [T],
    d_y: &'a [T],
    d_gate: &'a mut [T],
    d_up: &'a mut [T],
    through: F,
}

impl<T, S, B, U, V> Kernel for Backward<'_, T, ((S, B), (U, V))>
where
    T: Element,
    S: Fn(f32) -> f32,
    B: Fn(f32, f32, f32) -> f32,
    U: Fn(f32) -> f32,
    V: Fn(f32, f32) -> f32,
{
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { gate, up, d_y, d_gate, d_up, through } = self;
        let ((share, back), (factor, factor_back)) = through;
        let n = gate.len();
        let (up, d_y, d_gate, d_up) = (&up[..n], &d_y[..n], &mut d_gate[..n], &mut d_up[..n]);
        for c in 0..n {
            let (gate, up, d_y) = (gate[c].to_f32(), up[c].to_f32(), d_y[c].to_f32());
            let s = share(gate);
            d_gate[c] = T::from_f32(back(d_y * factor(up), gate, s));
            d_up[c] = T::from_f32(factor_back(d_y * gate * s, up));
        }
    }
}
