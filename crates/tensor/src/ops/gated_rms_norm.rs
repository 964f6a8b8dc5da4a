//! Gated root-mean-square normalisation of heads.

use super::Part;
use crate::{Cost, Params, Tape, Tensor, Var, Weight, Work};
use hone_kernels::gated_rms_norm::{Gradients, Inputs, scratch_bytes};

/// Floating-point operations per element, most of them for the exponential.
const FORWARD_FLOPS: usize = 28;
const BACKWARD_FLOPS: usize = 84;

/// `x [t, n]` with the gates `z [t, n]`, both in the compute type, and `weight [h]` f32 → `[t, n]`:
/// each `h` elements of a row are normalised by themselves and multiplied by weight and `silu(z)`.
pub fn gated_rms_norm<'a>(
    tape: &mut Tape<'a>,
    x: Var,
    z: Part,
    weight: &'a Weight,
    eps: f32,
) -> Var {
    let mut y = tape.activation(x.value().dtype(), x.value().shape());
    let cost = Cost::memory_bound("gated_rms_norm", 3 * y.num_bytes())
        .with(Work::Elementwise, FORWARD_FLOPS * y.len());
    if let Some(on) = tape.device().begin(cost) {
        on.gated_rms_norm(inputs(tape.params(), x.value(), &z, weight, eps), y.view_mut());
    }
    let any_input = x.requires_grad() || z.of.requires_grad();
    let requires_grad = any_input || weight.param().is_some();
    tape.push(y, requires_grad, move |sweep, d_y| {
        let mut d_z = z.of.requires_grad().then(|| sweep.take_or_zeros(&z.of));
        let mut d_x = sweep.activation(d_y.dtype(), d_y.shape());
        let num_heads = d_y.len() / weight.shape()[0];
        let cost = Cost::memory_bound("d_gated_rms_norm", 6 * d_y.num_bytes())
            .with(Work::Elementwise, BACKWARD_FLOPS * d_y.len())
            .with_scratch(scratch_bytes(sweep.device.target(), num_heads));
        if let Some(on) = sweep.device.begin(cost) {
            let inputs = inputs(sweep.params, x.value(), &z, weight, eps);
            let d_weight = weight.param().map(|param| sweep.gradients.get_mut(param).view_mut());
            let d_z = d_z.as_mut().map(Tensor::view_mut);
            let gradients = Gradients { d_x: d_x.view_mut(), d_z, d_weight };
            on.gated_rms_norm_backward(inputs, d_y.view(), gradients);
        }
        drop(d_y);
        if let Some(d_z) = d_z {
            sweep.add(z.of.id(), d_z);
        }
        if x.requires_grad() {
            sweep.add(x.id(), d_x);
        }
    })
}

fn inputs<'v>(
    params: &'v Params,
    x: &'v Tensor,
    z: &'v Part,
    weight: &'v Weight,
    eps: f32,
) -> Inputs<'v> {
    Inputs { x: x.view(), z: z.columns(), weight: params.resolve(weight).view(), eps }
}
