//! Gates of the gated delta rule.

use super::Part;
use crate::{Cost, DType, Params, Tape, Tensor, Var, Weight, Work};
use hone_kernels::delta_gates::{Gradients, Inputs};

/// Floating-point operations per number, most of them for exponentials and a logarithm.
const FORWARD_FLOPS: usize = 50;
const BACKWARD_FLOPS: usize = 80;

/// Weights of the gates, `[heads]` f32 each.
#[derive(Clone, Copy)]
pub struct DeltaGates<'a> {
    /// Logarithms of the decay rates.
    pub a_log: &'a Weight,
    /// Added to `a`.
    pub dt_bias: &'a Weight,
}

/// `b_a [t, 2 heads]`, `b` of all value heads and then `a` → gates `[t, 2 heads]` f32:
/// `β = σ(b)` of all heads, then `g = -exp(a_log) · softplus(a + dt_bias)`.
pub fn delta_gates<'a>(tape: &mut Tape<'a>, b_a: Part, of: DeltaGates<'a>) -> Var {
    let (t, n) = (b_a.rows(), b_a.count);
    let mut y = tape.activation(DType::F32, &[t, n]);
    let bytes = t * n * b_a.of.value().dtype().size() + y.num_bytes();
    let cost =
        Cost::memory_bound("delta_gates", bytes).with(Work::Elementwise, FORWARD_FLOPS * t * n);
    if let Some(on) = tape.device().begin(cost) {
        on.delta_gates(inputs(tape.params(), &b_a, of), y.view_mut());
    }
    let weights = [of.a_log.param(), of.dt_bias.param()];
    let requires_grad = b_a.of.requires_grad() || weights.iter().any(Option::is_some);
    tape.push(y, requires_grad, move |sweep, d_y| {
        let mut d = b_a.of.requires_grad().then(|| sweep.take_or_zeros(&b_a.of));
        let cost = Cost::memory_bound("d_delta_gates", 3 * d_y.num_bytes())
            .with(Work::Elementwise, BACKWARD_FLOPS * t * n);
        if let Some(on) = sweep.device.begin(cost) {
            let d_weights = sweep.gradients.each_mut(weights);
            let [d_a_log, d_dt_bias] = d_weights.map(|d| d.map(Tensor::view_mut));
            let d_b_a = d.as_mut().map(Tensor::view_mut);
            let gradients = Gradients { d_b_a, d_a_log, d_dt_bias };
            on.delta_gates_backward(inputs(sweep.params, &b_a, of), d_y.view(), gradients);
        }
        drop(d_y);
        if let Some(d) = d {
            sweep.add(b_a.of.id(), d);
        }
    })
}

fn inputs<'v>(params: &'v Params, b_a: &'v Part, of: DeltaGates<'v>) -> Inputs<'v> {
    let [a_log, dt_bias] = [of.a_log, of.dt_bias].map(|weight| params.resolve(weight).view());
    Inputs { b_a: b_a.columns(), a_log, dt_bias }
}
