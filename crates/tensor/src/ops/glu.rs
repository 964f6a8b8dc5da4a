//! Gated activation.

use super::rows_cols;
use crate::{Cost, Tape, Var, Work};
use hone_kernels::activation::Activation;

/// Floating-point operations per element, most of them for the exponential.
const FORWARD_FLOPS: usize = 24;
const BACKWARD_FLOPS: usize = 34;

/// `gate_up [t, 2 i]` (gate first) → `activation(gate) · up [t, i]`.
pub fn glu(tape: &mut Tape<'_>, gate_up: Var, activation: Activation) -> Var {
    let (t, width) = rows_cols(gate_up.value().shape());
    let i = width / 2;
    let mut y = tape.activation(gate_up.value().dtype(), &[t, i]);
    let bytes = gate_up.value().num_bytes() + y.num_bytes();
    let cost = Cost::memory_bound("glu", bytes).with(Work::Elementwise, FORWARD_FLOPS * t * i);
    if let Some(on) = tape.device().begin(cost) {
        on.glu(activation, gate_up.value().view(), i, y.view_mut());
    }
    let requires_grad = gate_up.requires_grad();
    tape.push(y, requires_grad, move |sweep, d_y| {
        let mut d = sweep.activation(d_y.dtype(), &[t, width]);
        let bytes = 2 * d.num_bytes() + d_y.num_bytes();
        let cost =
            Cost::memory_bound("d_glu", bytes).with(Work::Elementwise, BACKWARD_FLOPS * t * i);
        if let Some(on) = sweep.device.begin(cost) {
            let gate_up = gate_up.value().view();
            on.glu_backward(activation, gate_up, i, d_y.view(), d.view_mut());
        }
        drop(d_y);
        sweep.add(gate_up.id(), d);
    })
}
