//! One pass over parameters, gradients and moments.

use super::{Factors, Parameter, Update};
use crate::cpu::{Cpu, Kernel, Piece, Split, pieces, rows_per_task};

/// Updates parameters and their moments in place, pieces of all of them in one list of tasks: an
/// adapter of an expert is too small to be shared between threads.
///
/// # Panics
/// If an array is not f32, or not as long as its parameter.
pub fn step(cpu: &Cpu, update: &Update, parameters: Vec<Parameter<'_>>) {
    let arrays: Vec<_> = parameters
        .into_iter()
        .map(|Parameter { value, gradient, m, v }| {
            let (value, gradient, m, v) = (value.f32(), gradient.f32(), m.f32(), v.f32());
            let len = value.len();
            assert!([gradient.len(), m.len(), v.len()] == [len; 3]);
            (len, gradient, [value, m, v].map(Split::new))
        })
        .collect();
    let pieces = pieces(arrays.iter().map(|(len, ..)| *len), rows_per_task(4));
    cpu.pool.run(pieces.len(), &|task| {
        let Piece { array, range } = pieces[task].clone();
        let (_, gradient, [p, m, v]) = &arrays[array];
        let (start, len) = (range.start, range.len());
        // SAFETY: pieces do not overlap.
        let (p, m, v) = unsafe { (p.slice(start, len), m.slice(start, len), v.slice(start, len)) };
        cpu.isa.run(Step { update, p, g: &gradient[range.clone()], m, v });
    });
}

struct Step<'a> {
    update: &'a Update,
    p: &'a mut [f32],
    g: &'a [f32],
    m: &'a mut [f32],
    v: &'a mut [f32],
}

impl Kernel for Step<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { update, p, g, m, v } = self;
        let Factors { b1, rest1, b2, rest2, keep, step_size, root2, epsilon } = update.factors();
        for (((p, &g), m), v) in p.iter_mut().zip(g).zip(m).zip(v) {
            let g = g * update.gradient_scale;
            *m = b1.mul_add(*m, rest1 * g);
            *v = b2.mul_add(*v, rest2 * g * g);
            *p = *p * keep - step_size * *m / (v.sqrt() / root2 + epsilon);
        }
    }
}
