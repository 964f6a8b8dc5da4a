//! CPU kernels, vectorised along rows; tokens are distributed over the threads.

use super::Chosen;
use crate::cpu::{Cpu, Kernel, Split};
use crate::element::Element;
use crate::math::{BLOCK, dot};
use crate::view::{View, ViewMut, with_elements};

/// See [`crate::Processor::combine`].
pub fn forward(
    cpu: &Cpu,
    chosen: Chosen<'_>,
    h: usize,
    x: View<'_>,
    add: Option<&[f32]>,
    y: ViewMut<'_>,
) {
    let Chosen { slots, k, weights } = chosen;
    let weights = weights.map(View::f32);
    with_elements!(x, x => with_elements!(mut y, y => cpu.rows(y, h, (k + 1) * h, |t, y| {
        let slots = &slots[t * k..][..k];
        let weights = weights.map(|weights| &weights[t * k..][..k]);
        let add = add.map(|add| &add[t * h..][..h]);
        cpu.isa.run(Forward { x, slots, weights, add, y });
    })));
}

struct Forward<'a, X, Y> {
    x: &'a [X],
    slots: &'a [u32],
    weights: Option<&'a [f32]>,
    add: Option<&'a [f32]>,
    y: &'a mut [Y],
}

impl<X: Element, Y: Element> Kernel for Forward<'_, X, Y> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { x, slots, weights, add, y } = self;
        let h = y.len();
        for (start, y) in (0..h).step_by(BLOCK).zip(y.chunks_mut(BLOCK)) {
            let mut sums = [0.0; BLOCK];
            let sums = &mut sums[..y.len()];
            for (j, &slot) in slots.iter().enumerate() {
                let weight = weights.map_or(1.0, |weights| weights[j]);
                let row = &x[slot as usize * h + start..][..sums.len()];
                sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += weight * x.to_f32());
            }
            if let Some(add) = add {
                sums.iter_mut().zip(&add[start..]).for_each(|(sum, add)| *sum += add);
            }
            y.iter_mut().zip(&*sums).for_each(|(y, sum)| *y = Y::from_f32(*sum));
        }
    }
}

/// See [`crate::Processor::combine_backward`].
pub fn backward(
    cpu: &Cpu,
    chosen: Chosen<'_>,
    h: usize,
    x: View<'_>,
    d_y: View<'_>,
    d_x: ViewMut<'_>,
    d_weights: &mut [f32],
) {
    match (x, d_x) {
        (View::F32(x), ViewMut::F32(d_x)) => {
            backward_typed(cpu, chosen, h, x, d_y, d_x, d_weights);
        }
        (View::Bf16(x), ViewMut::Bf16(d_x)) => {
            backward_typed(cpu, chosen, h, x, d_y, d_x, d_weights);
        }
        _ => panic!("x and d_x have the same element type"),
    }
}

fn backward_typed<X: Element>(
    cpu: &Cpu,
    chosen: Chosen<'_>,
    h: usize,
    x: &[X],
    d_y: View<'_>,
    d_x: &mut [X],
    d_weights: &mut [f32],
) {
    let Chosen { slots, k, weights } = chosen;
    let weights = weights.expect("rows are weighted").f32();
    let d_x = Split::new(d_x);
    with_elements!(d_y, d_y => cpu.rows(d_weights, k, 3 * k * h, |t, d_weights| {
        let d_y = &d_y[t * h..][..h];
        for (j, d_weight) in d_weights.iter_mut().enumerate() {
            let (start, weight) = (slots[t * k + j] as usize * h, weights[t * k + j]);
            // SAFETY: each row belongs to one token.
            let d_x = unsafe { d_x.slice(start, h) };
            *d_weight = cpu.isa.run(Backward { x: &x[start..][..h], weight, d_y, d_x });
        }
    }));
}

/// Returns the gradient of the weight.
struct Backward<'a, X, Y> {
    x: &'a [X],
    weight: f32,
    d_y: &'a [Y],
    d_x: &'a mut [X],
}

impl<X: Element, Y: Element> Kernel for Backward<'_, X, Y> {
    type Output = f32;

    #[inline(always)]
    fn run(self) -> f32 {
        let Self { x, weight, d_y, d_x } = self;
        d_x.iter_mut().zip(d_y).for_each(|(d_x, d_y)| *d_x = X::from_f32(weight * d_y.to_f32()));
        dot(x, d_y)
    }
}
