//! CPU kernels, vectorised along rows.

use super::{Inputs, RmsNorm, Rows, Saved};
use crate::cpu::{Apply, Cpu, Kernel, Split, rows_per_task};
use crate::element::Element;
use crate::math::{dot, dot3};
use crate::view::{View, ViewMut, with_elements};
use std::borrow::Cow;

/// See [`crate::Processor::rms_norm`].
pub fn forward(cpu: &Cpu, norm: RmsNorm, inputs: Inputs<'_>, y: ViewMut<'_>, rstd: &mut [f32]) {
    let (w, residual) = (inputs.weight.f32(), inputs.residual.map(|residual| residual.f32()));
    let (w, h) = (factors(norm, w), w.len());
    let Rows { stride, offset, count } = inputs.rows;
    let rstd = Split::new(rstd);
    with_elements!(inputs.x, x => with_elements!(mut y, y => {
        cpu.rows(y, stride, count * h, |t, y| {
            // SAFETY: row `t` belongs to this task.
            let rstd = unsafe { rstd.slice(t * count, count) };
            let rows = y[offset..offset + count * h].chunks_exact_mut(h).zip(rstd);
            for (i, (y, rstd)) in rows.enumerate() {
                let start = t * stride + offset + i * h;
                let residual = residual.map(|residual| &residual[start..start + h]);
                let x = &x[start..start + h];
                cpu.isa.run(Forward { x, w: &w, eps: norm.eps, residual, y, rstd });
            }
        });
    }));
}

/// The factors of a row: `w`, or `1 + w`.
fn factors(norm: RmsNorm, w: &[f32]) -> Cow<'_, [f32]> {
    match norm.plus_one {
        true => w.iter().map(|w| w + norm.offset()).collect(),
        false => Cow::Borrowed(w),
    }
}

struct Forward<'a, X, Y> {
    x: &'a [X],
    w: &'a [f32],
    eps: f32,
    residual: Option<&'a [f32]>,
    y: &'a mut [Y],
    rstd: &'a mut f32,
}

impl<X: Element, Y: Element> Kernel for Forward<'_, X, Y> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let x = self.x;
        let mean = dot(x, x) / x.len() as f32;
        let rstd = 1.0 / (mean + self.eps).sqrt();
        *self.rstd = rstd;
        let rows = self.y.iter_mut().zip(x).zip(self.w);
        match self.residual {
            None => rows.for_each(|((y, x), w)| *y = Y::from_f32(x.to_f32() * rstd * w)),
            Some(residual) => rows
                .zip(residual)
                .for_each(|(((y, x), w), r)| *y = Y::from_f32(r + x.to_f32() * rstd * w)),
        }
    }
}

/// See [`crate::Processor::rms_norm_backward`].
pub fn backward(
    cpu: &Cpu,
    norm: RmsNorm,
    saved: Saved<'_>,
    d_y: View<'_>,
    adds: bool,
    d_x: ViewMut<'_>,
) {
    match (saved.x, d_x) {
        (View::F32(x), ViewMut::F32(d_x)) => backward_typed(cpu, norm, saved, x, d_y, adds, d_x),
        (View::Bf16(x), ViewMut::Bf16(d_x)) => backward_typed(cpu, norm, saved, x, d_y, adds, d_x),
        _ => panic!("x and d_x have the same element type"),
    }
}

fn backward_typed<X: Element>(
    cpu: &Cpu,
    norm: RmsNorm,
    saved: Saved<'_>,
    x: &[X],
    d_y: View<'_>,
    adds: bool,
    d_x: &mut [X],
) {
    let (w, rstd) = (factors(norm, saved.weight.f32()), saved.rstd.f32());
    let (h, Rows { stride, offset, count }) = (w.len(), saved.rows);
    with_elements!(d_y, d_y => cpu.rows(d_x, stride, 2 * count * h, |t, d_x| {
        for (i, d_x) in d_x[offset..offset + count * h].chunks_exact_mut(h).enumerate() {
            let start = t * stride + offset + i * h;
            let (x, d_y) = (&x[start..start + h], &d_y[start..start + h]);
            cpu.isa.run(Backward { x, w: &w, rstd: rstd[t * count + i], d_y, adds, d_x });
        }
    }));
}

struct Backward<'a, X, Y> {
    x: &'a [X],
    w: &'a [f32],
    rstd: f32,
    d_y: &'a [Y],
    adds: bool,
    d_x: &'a mut [X],
}

impl<X: Element, Y: Element> Kernel for Backward<'_, X, Y> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { x, w, rstd, d_y, adds, d_x } = self;
        let h = x.len();
        let (w, d_y) = (&w[..h], &d_y[..h]);
        let dot = dot3(d_y, w, x);
        let along_x = rstd * rstd * rstd * dot / h as f32;
        let d = |i: usize| d_y[i].to_f32() * w[i] * rstd - x[i].to_f32() * along_x;
        let rows = d_x.iter_mut().enumerate();
        if adds {
            rows.for_each(|(i, d_x)| *d_x = X::from_f32(d_x.to_f32() + d(i)));
        } else {
            rows.for_each(|(i, d_x)| *d_x = X::from_f32(d(i)));
        }
    }
}

/// See [`crate::Processor::rms_norm_backward_weight`]: parallel over columns, with rows summed in
/// order.
pub fn backward_weight(cpu: &Cpu, saved: Saved<'_>, d_y: View<'_>, d_w: &mut [f32]) {
    let (rstd, Rows { stride, offset, count }) = (saved.rstd.f32(), saved.rows);
    let h = d_w.len();
    let width = (rows_per_task(rstd.len()) * 16).min(h);
    let split = Split::new(d_w);
    with_elements!(saved.x, x => with_elements!(d_y, d_y => {
        cpu.pool.run(h.div_ceil(width), &|task| {
            let (start, end) = (task * width, ((task + 1) * width).min(h));
            // SAFETY: column ranges of different tasks do not overlap.
            let d_w = unsafe { split.slice(start, end - start) };
            cpu.isa.run(Apply(|| {
                for (row, &rstd) in rstd.iter().enumerate() {
                    let first = row / count * stride + offset + row % count * h;
                    let row = first + start..first + end;
                    for ((d_w, x), d_y) in d_w.iter_mut().zip(&x[row.clone()]).zip(&d_y[row]) {
                        *d_w += d_y.to_f32() * x.to_f32() * rstd;
                    }
                }
            }));
        });
    }));
}
