//! CPU kernels, vectorised along heads. The weight's gradient is summed by blocks of tokens, and
//! the blocks in order.

use super::{Gradients, Inputs};
use crate::cpu::{Cpu, Kernel, Split};
use crate::element::Element;
use crate::math::{LANES, dot, sigmoid, sum_lanes};
use crate::view::{View, ViewMut, with_elements};

/// Tokens of a task of the backward pass, and of a sum; fixed, so that sums do not depend on the
/// number of threads.
const TOKENS: usize = 64;

/// See [`crate::Processor::gated_rms_norm`].
pub(super) fn forward(cpu: &Cpu, inputs: Inputs<'_>, y: ViewMut<'_>) {
    let (n, w, z) = (inputs.n(), inputs.weight.f32(), inputs.z);
    with_elements!(inputs.x, x => with_elements!(z.x, gates => with_elements!(mut y, y => {
        cpu.rows(y, n, 6 * n, |t, y| {
            let (x, gates) = (&x[t * n..][..n], &gates[t * z.width + z.col..][..n]);
            cpu.isa.run(Forward { x, z: gates, w, eps: inputs.eps, y });
        });
    })));
}

struct Forward<'a, X, Z, Y> {
    x: &'a [X],
    z: &'a [Z],
    w: &'a [f32],
    eps: f32,
    y: &'a mut [Y],
}

impl<X: Element, Z: Element, Y: Element> Kernel for Forward<'_, X, Z, Y> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let h = self.w.len();
        let heads = self.x.chunks_exact(h).zip(self.z.chunks_exact(h));
        for ((x, z), y) in heads.zip(self.y.chunks_exact_mut(h)) {
            let rstd = rstd(x, self.eps);
            let factors = self.w.iter().zip(z);
            for ((y, x), (w, z)) in y.iter_mut().zip(x).zip(factors) {
                let z = z.to_f32();
                *y = Y::from_f32(x.to_f32() * rstd * w * (z * sigmoid(z)));
            }
        }
    }
}

#[inline(always)]
fn rstd<X: Element>(x: &[X], eps: f32) -> f32 {
    1.0 / (dot(x, x) / x.len() as f32 + eps).sqrt()
}

/// See [`crate::Processor::gated_rms_norm_backward`].
pub(super) fn backward(cpu: &Cpu, inputs: Inputs<'_>, d_y: View<'_>, gradients: Gradients<'_>) {
    let Gradients { d_x, d_z, d_weight } = gradients;
    let d_weight = d_weight.map(ViewMut::f32);
    match (inputs.x, inputs.z.x, d_y, d_x, d_z) {
        (View::F32(x), View::F32(z), View::F32(d_y), ViewMut::F32(d_x), d_z) => {
            let d_z = d_z.map(ViewMut::f32);
            Backward { inputs, x, z, d_y }.run(cpu, d_x, d_z, d_weight);
        }
        (View::Bf16(x), View::Bf16(z), View::Bf16(d_y), ViewMut::Bf16(d_x), None) => {
            Backward { inputs, x, z, d_y }.run(cpu, d_x, None, d_weight);
        }
        (
            View::Bf16(x),
            View::Bf16(z),
            View::Bf16(d_y),
            ViewMut::Bf16(d_x),
            Some(ViewMut::Bf16(d_z)),
        ) => Backward { inputs, x, z, d_y }.run(cpu, d_x, Some(d_z), d_weight),
        _ => panic!("inputs and gradients have the same element type"),
    }
}

struct Backward<'a, T> {
    inputs: Inputs<'a>,
    x: &'a [T],
    z: &'a [T],
    d_y: &'a [T],
}

impl<T: Element> Backward<'_, T> {
    fn run(self, cpu: &Cpu, d_x: &mut [T], d_z: Option<&mut [T]>, d_weight: Option<&mut [f32]>) {
        let (n, w, gates) = (self.inputs.n(), self.inputs.weight.f32(), self.inputs.z);
        let (h, t) = (w.len(), self.x.len() / n);
        let num_tasks = t.div_ceil(TOKENS);
        let mut sums = vec![0.0; if d_weight.is_some() { num_tasks * h } else { 0 }];
        let (d_x, d_z, sums_of) = (Split::new(d_x), d_z.map(Split::new), Split::new(&mut sums));
        cpu.pool.run(num_tasks, &|task| {
            // SAFETY: each task has its own sums, and its own rows.
            let mut d_w = d_weight.is_some().then(|| unsafe { sums_of.slice(task * h, h) });
            for t in task * TOKENS..t.min((task + 1) * TOKENS) {
                let (own, gate) = (t * n, t * gates.width + gates.col);
                cpu.isa.run(BackwardRow {
                    x: &self.x[own..own + n],
                    z: &self.z[gate..gate + n],
                    d_y: &self.d_y[own..own + n],
                    w,
                    eps: self.inputs.eps,
                    // SAFETY: as above.
                    d_x: unsafe { d_x.slice(own, n) },
                    // SAFETY: as above.
                    d_z: d_z.as_ref().map(|d_z| unsafe { d_z.slice(gate, n) }),
                    d_w: d_w.as_deref_mut(),
                });
            }
        });
        if let Some(d_weight) = d_weight {
            for sums in sums.chunks_exact(h) {
                d_weight.iter_mut().zip(sums).for_each(|(d, sum)| *d += sum);
            }
        }
    }
}

struct BackwardRow<'a, T> {
    x: &'a [T],
    z: &'a [T],
    d_y: &'a [T],
    w: &'a [f32],
    eps: f32,
    d_x: &'a mut [T],
    d_z: Option<&'a mut [T]>,
    d_w: Option<&'a mut [f32]>,
}

impl<T: Element> Kernel for BackwardRow<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run(mut self) {
        let h = self.w.len();
        for start in (0..self.x.len()).step_by(h) {
            let head = start..start + h;
            let (x, z, d_y) =
                (&self.x[head.clone()], &self.z[head.clone()], &self.d_y[head.clone()]);
            let (w, rstd) = (self.w, rstd(x, self.eps));
            let gated = |i: usize| {
                let z = z[i].to_f32();
                d_y[i].to_f32() * (z * sigmoid(z))
            };
            let along = |i: usize| gated(i) * w[i] * x[i].to_f32();
            let along_x = rstd * rstd * rstd * sum_of(h, along) / h as f32;
            for (i, d_x) in self.d_x[head.clone()].iter_mut().enumerate() {
                *d_x = T::from_f32(gated(i) * w[i] * rstd - x[i].to_f32() * along_x);
            }
            if let Some(d_w) = &mut self.d_w {
                let sums = d_w.iter_mut().enumerate();
                sums.for_each(|(i, d_w)| *d_w += gated(i) * (x[i].to_f32() * rstd));
            }
            if let Some(d_z) = &mut self.d_z {
                for (i, d_z) in d_z[head].iter_mut().enumerate() {
                    let (z, d) = (z[i].to_f32(), d_y[i].to_f32() * w[i] * x[i].to_f32() * rstd);
                    let s = sigmoid(z);
                    *d_z = T::from_f32(d_z.to_f32() + d * s * (1.0 + z * (1.0 - s)));
                }
            }
        }
    }
}

/// `Σ_i f(i)`, in lanes.
#[inline(always)]
fn sum_of(len: usize, f: impl Fn(usize) -> f32) -> f32 {
    let mut lanes = [0.0; LANES];
    let whole = len / LANES * LANES;
    for start in (0..whole).step_by(LANES) {
        lanes.iter_mut().enumerate().for_each(|(l, lane)| *lane += f(start + l));
    }
    lanes.iter_mut().take(len - whole).enumerate().for_each(|(l, lane)| *lane += f(whole + l));
    sum_lanes(lanes)
}
