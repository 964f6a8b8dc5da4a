//! CPU kernels. Two numbers a head and token are few, so they are computed one by one; sums over
//! tokens are of blocks of tokens, and then of the blocks in order.

use super::{Gradients, Inputs};
use crate::cpu::{Cpu, Split};
use crate::element::Element;
use crate::math::{exp, sigmoid};
use crate::view::{View, ViewMut, with_elements};

/// Tokens of a task of the backward pass, and of a sum; fixed, so that sums do not depend on the
/// number of threads.
const TOKENS: usize = 256;

/// See [`crate::Processor::delta_gates`].
pub(super) fn forward(cpu: &Cpu, inputs: Inputs<'_>, gates: &mut [f32]) {
    let (heads, b_a) = (inputs.heads(), inputs.b_a);
    let (a_log, dt_bias) = (inputs.a_log.f32(), inputs.dt_bias.f32());
    with_elements!(b_a.x, x => cpu.rows(gates, 2 * heads, 60 * heads, |t, gates| {
        let (b, a) = x[t * b_a.width + b_a.col..][..2 * heads].split_at(heads);
        let (beta, g) = gates.split_at_mut(heads);
        beta.iter_mut().zip(b).for_each(|(beta, b)| *beta = sigmoid(b.to_f32()));
        for (h, (g, a)) in g.iter_mut().zip(a).enumerate() {
            *g = -exp(a_log[h]) * softplus(a.to_f32() + dt_bias[h]);
        }
    }));
}

/// `ln(1 + e^x)`; above 20 the difference to `x` is lost in rounding.
fn softplus(x: f32) -> f32 {
    if x > 20.0 { x } else { exp(x).ln_1p() }
}

/// See [`crate::Processor::delta_gates_backward`].
pub(super) fn backward(cpu: &Cpu, inputs: Inputs<'_>, d_gates: &[f32], gradients: Gradients<'_>) {
    let Gradients { d_b_a, d_a_log, d_dt_bias } = gradients;
    let sums = [d_a_log.map(ViewMut::f32), d_dt_bias.map(ViewMut::f32)];
    match (inputs.b_a.x, d_b_a) {
        (View::F32(x), None) => typed(cpu, inputs, x, d_gates, None, sums),
        (View::Bf16(x), None) => typed(cpu, inputs, x, d_gates, None, sums),
        (View::F32(x), Some(ViewMut::F32(d))) => typed(cpu, inputs, x, d_gates, Some(d), sums),
        (View::Bf16(x), Some(ViewMut::Bf16(d))) => typed(cpu, inputs, x, d_gates, Some(d), sums),
        _ => panic!("b and a have the element type of their gradient"),
    }
}

fn typed<T: Element>(
    cpu: &Cpu,
    inputs: Inputs<'_>,
    x: &[T],
    d_gates: &[f32],
    d_b_a: Option<&mut [T]>,
    sums: [Option<&mut [f32]>; 2],
) {
    let (heads, b_a) = (inputs.heads(), inputs.b_a);
    let (a_log, dt_bias) = (inputs.a_log.f32(), inputs.dt_bias.f32());
    let t = d_gates.len() / (2 * heads);
    let num_tasks = t.div_ceil(TOKENS);
    // Sums of each task: of `a_log`, then of `dt_bias`.
    let mut partial = vec![0.0; num_tasks * 2 * heads];
    let (partial_of, d_b_a) = (Split::new(&mut partial), d_b_a.map(Split::new));
    cpu.pool.run(num_tasks, &|task| {
        // SAFETY: each task has its own sums.
        let partial = unsafe { partial_of.slice(task * 2 * heads, 2 * heads) };
        let (d_a_log, d_dt_bias) = partial.split_at_mut(heads);
        for t in task * TOKENS..t.min((task + 1) * TOKENS) {
            let at = t * b_a.width + b_a.col;
            let (b, a) = x[at..at + 2 * heads].split_at(heads);
            let (d_beta, d_g) = d_gates[2 * t * heads..][..2 * heads].split_at(heads);
            // SAFETY: each task has its own rows.
            let mut d_row = d_b_a.as_ref().map(|d| unsafe { d.slice(at, 2 * heads) });
            let mut add = |i: usize, by: f32| {
                if let Some(d) = &mut d_row {
                    d[i] = T::from_f32(d[i].to_f32() + by);
                }
            };
            for h in 0..heads {
                let (beta, x, rate) =
                    (sigmoid(b[h].to_f32()), a[h].to_f32() + dt_bias[h], exp(a_log[h]));
                let d_a = -d_g[h] * rate * sigmoid(x);
                add(h, d_beta[h] * beta * (1.0 - beta));
                add(heads + h, d_a);
                d_a_log[h] -= d_g[h] * rate * softplus(x);
                d_dt_bias[h] += d_a;
            }
        }
    });
    for (i, sums) in sums.into_iter().enumerate() {
        let Some(sums) = sums else { continue };
        for partial in partial.chunks_exact(2 * heads) {
            let partial = &partial[i * heads..(i + 1) * heads];
            sums.iter_mut().zip(partial).for_each(|(sum, x)| *sum += x);
        }
    }
}
