//! One pass over parameter, gradient and moments.

use super::{Factors, Update};
use crate::cpu::{Cpu, Kernel, Split, rows_per_task};

/// Updates `p` and its moments `m`, `v` in place; all of one length.
pub fn step(cpu: &Cpu, update: &Update, p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32]) {
    let (n, width) = (p.len(), rows_per_task(4));
    let (p, m, v) = (Split::new(p), Split::new(m), Split::new(v));
    cpu.pool.run(n.div_ceil(width), &|task| {
        let start = task * width;
        let len = width.min(n - start);
        // SAFETY: ranges of different tasks do not overlap.
        let (p, m, v) = unsafe { (p.slice(start, len), m.slice(start, len), v.slice(start, len)) };
        cpu.isa.run(Step { update, p, g: &g[start..start + len], m, v });
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
