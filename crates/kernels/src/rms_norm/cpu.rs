//! One row per step, vectorised along the row.

use crate::cpu::{Apply, Cpu, Kernel, Split, rows_per_task};
use crate::element::{Element, View, ViewMut, with_elements};
use crate::math::{dot, dot3};

/// `x [t, h]` f32, `w [h]` → `y [t, h]`, `rstd [t]`.
pub fn forward(cpu: &Cpu, x: &[f32], w: &[f32], eps: f32, y: ViewMut<'_>, rstd: &mut [f32]) {
    let h = w.len();
    let rstd = Split::new(rstd);
    with_elements!(mut y, y => cpu.rows(y, h, h, |t, y| {
        // SAFETY: row `t` belongs to this task.
        let rstd = unsafe { &mut rstd.slice(t, 1)[0] };
        cpu.isa.run(Forward { x: &x[t * h..(t + 1) * h], w, eps, y, rstd });
    }));
}

struct Forward<'a, Y> {
    x: &'a [f32],
    w: &'a [f32],
    eps: f32,
    y: &'a mut [Y],
    rstd: &'a mut f32,
}

impl<Y: Element> Kernel for Forward<'_, Y> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let x = self.x;
        let mean = dot(x, x) / x.len() as f32;
        let rstd = 1.0 / (mean + self.eps).sqrt();
        *self.rstd = rstd;
        for ((y, x), w) in self.y.iter_mut().zip(x).zip(self.w) {
            *y = Y::from_f32(x * rstd * w);
        }
    }
}

/// `d_x [t, h]` f32 for `d_y [t, h]`, from `(x, w, rstd)`; added to what `d_x` holds if it `adds`.
pub fn backward(
    cpu: &Cpu,
    (x, w, rstd): (&[f32], &[f32], &[f32]),
    d_y: View<'_>,
    adds: bool,
    d_x: &mut [f32],
) {
    let h = w.len();
    with_elements!(d_y, d_y => cpu.rows(d_x, h, 2 * h, |t, d_x| {
        let row = t * h..(t + 1) * h;
        cpu.isa.run(Backward { x: &x[row.clone()], w, rstd: rstd[t], d_y: &d_y[row], adds, d_x });
    }));
}

struct Backward<'a, Y> {
    x: &'a [f32],
    w: &'a [f32],
    rstd: f32,
    d_y: &'a [Y],
    adds: bool,
    d_x: &'a mut [f32],
}

impl<Y: Element> Kernel for Backward<'_, Y> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { x, w, rstd, d_y, adds, d_x } = self;
        let h = x.len();
        let (w, d_y) = (&w[..h], &d_y[..h]);
        let dot = dot3(d_y, w, x);
        let along_x = rstd * rstd * rstd * dot / h as f32;
        let d = |i: usize| d_y[i].to_f32() * w[i] * rstd - x[i] * along_x;
        if adds {
            d_x.iter_mut().enumerate().for_each(|(i, d_x)| *d_x += d(i));
        } else {
            d_x.iter_mut().enumerate().for_each(|(i, d_x)| *d_x = d(i));
        }
    }
}

/// `d_w [h] += Σ_t d_y · x · rstd`: columns are spread over the threads, tokens summed in order.
pub fn backward_weight(cpu: &Cpu, x: &[f32], rstd: &[f32], d_y: View<'_>, d_w: &mut [f32]) {
    let (h, t) = (d_w.len(), rstd.len());
    let width = (rows_per_task(t) * 16).min(h);
    let split = Split::new(d_w);
    with_elements!(d_y, d_y => cpu.pool.run(h.div_ceil(width), &|task| {
        let (start, end) = (task * width, ((task + 1) * width).min(h));
        // SAFETY: column ranges of different tasks do not overlap.
        let d_w = unsafe { split.slice(start, end - start) };
        cpu.isa.run(Apply(|| {
            for (t, &rstd) in rstd.iter().enumerate() {
                let row = t * h + start..t * h + end;
                for ((d_w, x), d_y) in d_w.iter_mut().zip(&x[row.clone()]).zip(&d_y[row]) {
                    *d_w += d_y.to_f32() * x * rstd;
                }
            }
        }));
    }));
}
