//! CPU kernels, vectorised along rows.

use super::Activation;
use crate::cpu::{Cpu, Kernel};
use crate::element::Element;
use crate::math::sigmoid;
use crate::view::{View, ViewMut};

/// An activation `x · sigmoid(z(x))`.
trait Gate: Sync {
    /// `z(x)`.
    fn argument(x: f32) -> f32;
    /// `x · z'(x)`.
    fn slope(x: f32) -> f32;
}

struct Silu;

impl Gate for Silu {
    #[inline(always)]
    fn argument(x: f32) -> f32 {
        x
    }

    #[inline(always)]
    fn slope(x: f32) -> f32 {
        x
    }
}

struct GeluTanh;

impl GeluTanh {
    /// `2 √(2/π)`.
    const LINEAR: f32 = 1.595_769;
    const CUBIC: f32 = Self::LINEAR * 0.044_715;
    /// Beyond this the sigmoid is 0 or 1; clamped, since the cube might overflow.
    const SATURATED: f32 = 16.0;
}

impl Gate for GeluTanh {
    #[inline(always)]
    fn argument(x: f32) -> f32 {
        let x = x.clamp(-Self::SATURATED, Self::SATURATED);
        x * (Self::LINEAR + Self::CUBIC * x * x)
    }

    #[inline(always)]
    fn slope(x: f32) -> f32 {
        let x = x.clamp(-Self::SATURATED, Self::SATURATED);
        x * (Self::LINEAR + 3.0 * Self::CUBIC * x * x)
    }
}

/// `gate_up [t, 2 i]` → `y [t, i]`, of one element type.
pub fn forward(cpu: &Cpu, activation: Activation, gate_up: View<'_>, i: usize, y: ViewMut<'_>) {
    match activation {
        Activation::Silu => forward_gated::<Silu>(cpu, gate_up, i, y),
        Activation::GeluTanh => forward_gated::<GeluTanh>(cpu, gate_up, i, y),
    }
}

fn forward_gated<G: Gate>(cpu: &Cpu, gate_up: View<'_>, i: usize, y: ViewMut<'_>) {
    match (gate_up, y) {
        (View::F32(x), ViewMut::F32(y)) => forward_typed::<_, G>(cpu, x, i, y),
        (View::Bf16(x), ViewMut::Bf16(y)) => forward_typed::<_, G>(cpu, x, i, y),
        _ => panic!("gate_up and y have the same element type"),
    }
}

fn forward_typed<T: Element, G: Gate>(cpu: &Cpu, gate_up: &[T], i: usize, y: &mut [T]) {
    cpu.rows(y, i, 8 * i, |t, y| {
        let (gate, up) = gate_up[2 * i * t..2 * i * (t + 1)].split_at(i);
        cpu.isa.run(Forward { gate, up, y, through: G::argument });
    });
}

struct Forward<'a, T, Z> {
    gate: &'a [T],
    up: &'a [T],
    y: &'a mut [T],
    through: Z,
}

impl<T: Element, Z: Fn(f32) -> f32> Kernel for Forward<'_, T, Z> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for ((y, gate), up) in self.y.iter_mut().zip(self.gate).zip(self.up) {
            let gate = gate.to_f32();
            *y = T::from_f32(gate * sigmoid((self.through)(gate)) * up.to_f32());
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
    match activation {
        Activation::Silu => backward_gated::<Silu>(cpu, gate_up, i, d_y, d_gate_up),
        Activation::GeluTanh => backward_gated::<GeluTanh>(cpu, gate_up, i, d_y, d_gate_up),
    }
}

fn backward_gated<G: Gate>(
    cpu: &Cpu,
    gate_up: View<'_>,
    i: usize,
    d_y: View<'_>,
    d_gate_up: ViewMut<'_>,
) {
    match (gate_up, d_y, d_gate_up) {
        (View::F32(x), View::F32(d_y), ViewMut::F32(d)) => {
            backward_typed::<_, G>(cpu, x, i, d_y, d);
        }
        (View::Bf16(x), View::Bf16(d_y), ViewMut::Bf16(d)) => {
            backward_typed::<_, G>(cpu, x, i, d_y, d);
        }
        _ => panic!("gate_up, d_y and d_gate_up have the same element type"),
    }
}

fn backward_typed<T: Element, G: Gate>(cpu: &Cpu, gate_up: &[T], i: usize, d_y: &[T], d: &mut [T]) {
    cpu.rows(d, 2 * i, 12 * i, |t, d| {
        let (d_gate, d_up) = d.split_at_mut(i);
        let (gate, up) = gate_up[2 * i * t..2 * i * (t + 1)].split_at(i);
        let d_y = &d_y[i * t..i * (t + 1)];
        cpu.isa.run(Backward { gate, up, d_y, d_gate, d_up, through: (G::argument, G::slope) });
    });
}

struct Backward<'a, T, Z> {
    gate: &'a [T],
    up: &'a [T],
    d_y: &'a [T],
    d_gate: &'a mut [T],
    d_up: &'a mut [T],
    through: Z,
}

impl<T: Element, Z: Fn(f32) -> f32, S: Fn(f32) -> f32> Kernel for Backward<'_, T, (Z, S)> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { gate, up, d_y, d_gate, d_up, through: (argument, slope) } = self;
        let n = gate.len();
        let (up, d_y, d_gate, d_up) = (&up[..n], &d_y[..n], &mut d_gate[..n], &mut d_up[..n]);
        for c in 0..n {
            let (gate, d_y) = (gate[c].to_f32(), d_y[c].to_f32());
            let s = sigmoid(argument(gate));
            d_gate[c] = T::from_f32(d_y * up[c].to_f32() * s * (1.0 + slope(gate) * (1.0 - s)));
            d_up[c] = T::from_f32(d_y * gate * s);
        }
    }
}
