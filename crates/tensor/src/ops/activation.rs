//! Activation of an MLP without a gate.

use crate::{Cost, Tape, Var, Work};
use hone_kernels::activation::Activation;

/// Floating-point operations per element, most of them for the exponential.
const FORWARD_FLOPS: usize = 30;
const BACKWARD_FLOPS: usize = 56;

/// `act(x)`, elementwise, in the type of `x`.
pub fn activation(tape: &mut Tape<'_>, x: Var, activation: Activation) -> Var {
    let mut y = tape.activation(x.value().dtype(), x.value().shape());
    let (bytes, len) = (y.num_bytes(), y.len());
    let cost =
        Cost::memory_bound("activation", 2 * bytes).with(Work::Elementwise, FORWARD_FLOPS * len);
    if let Some(on) = tape.device().begin(cost) {
        on.activate(activation, x.value().view(), y.view_mut());
    }
    let requires_grad = x.requires_grad();
    tape.push(y, requires_grad, move |sweep, d_y| {
        let mut d_x = sweep.activation(d_y.dtype(), d_y.shape());
        let cost = Cost::memory_bound("d_activation", 3 * bytes)
            .with(Work::Elementwise, BACKWARD_FLOPS * len);
        if let Some(on) = sweep.device.begin(cost) {
            on.activate_backward(activation, x.value().view(), d_y.view(), d_x.view_mut());
        }
        drop(d_y);
        sweep.add(x.id(), d_x);
    })
}
