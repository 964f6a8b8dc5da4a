//! CPU kernels, vectorised along rows.

use super::{Inputs, Saved};
use crate::cpu::{Apply, Cpu, Kernel, Split, rows_per_task};
use crate::element::Element;
use crate::math::{dot, sum_by, sum_by3};
use crate::view::{View, ViewMut, with_elements};

/// See [`crate::Processor::layer_norm`].
pub fn forward(cpu: &Cpu, inputs: Inputs<'_>, y: ViewMut<'_>, statistics: &mut [f32]) {
    let (w, bias, eps) = (inputs.weight.f32(), inputs.bias.map(|bias| bias.f32()), inputs.eps);
    let (h, statistics) = (w.len(), Split::new(statistics));
    with_elements!(inputs.x, x => with_elements!(mut y, y => {
        cpu.rows(y, h, 2 * h, |t, y| {
            // SAFETY: row `t` belongs to this task.
            let statistics = unsafe { statistics.slice(2 * t, 2) };
            let x = &x[t * h..(t + 1) * h];
            cpu.isa.run(Forward { x, w, bias, eps, y, statistics });
        });
    }));
}

struct Forward<'a, X, Y> {
    x: &'a [X],
    w: &'a [f32],
    bias: Option<&'a [f32]>,
    eps: f32,
    y: &'a mut [Y],
    statistics: &'a mut [f32],
}

impl<X: Element, Y: Element> Kernel for Forward<'_, X, Y> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let (x, h) = (self.x, self.x.len() as f32);
        let mean = sum_by(x, |x| x) / h;
        // In a second pass: the mean of squares minus the mean's square cancels.
        let variance = sum_by(x, |x| (x - mean) * (x - mean)) / h;
        let rstd = 1.0 / (variance + self.eps).sqrt();
        self.statistics.copy_from_slice(&[mean, rstd]);
        let normed = |x: &X, w: &f32| (x.to_f32() - mean) * rstd * w;
        let rows = self.y.iter_mut().zip(x).zip(self.w);
        match self.bias {
            None => rows.for_each(|((y, x), w)| *y = Y::from_f32(normed(x, w))),
            Some(bias) => {
                rows.zip(bias).for_each(|(((y, x), w), b)| *y = Y::from_f32(normed(x, w) + b))
            }
        }
    }
}

/// See [`crate::Processor::layer_norm_backward`].
pub fn backward(cpu: &Cpu, saved: Saved<'_>, d_y: View<'_>, adds: bool, d_x: ViewMut<'_>) {
    match (saved.x, d_x) {
        (View::F32(x), ViewMut::F32(d_x)) => backward_typed(cpu, saved, x, d_y, adds, d_x),
        (View::Bf16(x), ViewMut::Bf16(d_x)) => backward_typed(cpu, saved, x, d_y, adds, d_x),
        _ => panic!("x and d_x have the same element type"),
    }
}

fn backward_typed<X: Element>(
    cpu: &Cpu,
    saved: Saved<'_>,
    x: &[X],
    d_y: View<'_>,
    adds: bool,
    d_x: &mut [X],
) {
    let (w, statistics) = (saved.weight.f32(), saved.statistics.f32());
    let h = w.len();
    with_elements!(d_y, d_y => cpu.rows(d_x, h, 4 * h, |t, d_x| {
        let (x, d_y) = (&x[t * h..(t + 1) * h], &d_y[t * h..(t + 1) * h]);
        let statistics = [statistics[2 * t], statistics[2 * t + 1]];
        cpu.isa.run(Backward { x, w, statistics, d_y, adds, d_x });
    }));
}

struct Backward<'a, X, Y> {
    x: &'a [X],
    w: &'a [f32],
    statistics: [f32; 2],
    d_y: &'a [Y],
    adds: bool,
    d_x: &'a mut [X],
}

impl<X: Element, Y: Element> Kernel for Backward<'_, X, Y> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { x, w, statistics: [mean, rstd], d_y, adds, d_x } = self;
        let h = x.len();
        let (w, d_y) = (&w[..h], &d_y[..h]);
        let normed = |x: f32| (x - mean) * rstd;
        let d_mean = dot(d_y, w) / h as f32;
        let along = sum_by3(d_y, w, x, |d, w, x| d * w * normed(x)) / h as f32;
        let d = |i: usize| rstd * (d_y[i].to_f32() * w[i] - d_mean - normed(x[i].to_f32()) * along);
        let rows = d_x.iter_mut().enumerate();
        if adds {
            rows.for_each(|(i, d_x)| *d_x = X::from_f32(d_x.to_f32() + d(i)));
        } else {
            rows.for_each(|(i, d_x)| *d_x = X::from_f32(d(i)));
        }
    }
}

/// See [`crate::Processor::layer_norm_backward_weight`]: parallel over columns, with rows summed in
/// order.
pub fn backward_weight(cpu: &Cpu, saved: Saved<'_>, d_y: View<'_>, d_w: &mut [f32]) {
    let (statistics, _) = saved.statistics.f32().as_chunks::<2>();
    let h = d_w.len();
    let width = (rows_per_task(statistics.len()) * 16).min(h);
    let split = Split::new(d_w);
    with_elements!(saved.x, x => with_elements!(d_y, d_y => {
        cpu.pool.run(h.div_ceil(width), &|task| {
            let (start, end) = (task * width, ((task + 1) * width).min(h));
            // SAFETY: column ranges of different tasks do not overlap.
            let d_w = unsafe { split.slice(start, end - start) };
            cpu.isa.run(Apply(|| {
                for (t, &[mean, rstd]) in statistics.iter().enumerate() {
                    let row = t * h + start..t * h + end;
                    for ((d_w, x), d_y) in d_w.iter_mut().zip(&x[row.clone()]).zip(&d_y[row]) {
                        *d_w += d_y.to_f32() * ((x.to_f32() - mean) * rstd);
                    }
                }
            }));
        });
    }));
}
