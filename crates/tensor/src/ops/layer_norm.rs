//! Layer normalisation of whole rows.

use super::rows_cols;
use crate::{Cost, DType, Params, Tape, Tensor, Var, Weight};
use hone_kernels::layer_norm::{Inputs, Saved};

/// A layer normalisation.
#[derive(Clone, Copy, Debug)]
pub struct LayerNorm<'a> {
    /// `[h]`.
    pub weight: &'a Weight,
    /// `[h]`.
    pub bias: Option<&'a Weight>,
    /// Added to the variance.
    pub eps: f32,
}

/// `x [t, h]`, f32 or in the compute type → `[t, h]` in `dtype`, which is f32 where the result is
/// the residual stream, or the compute type.
pub fn layer_norm<'a>(tape: &mut Tape<'a>, x: Var, norm: LayerNorm<'a>, dtype: DType) -> Var {
    let (t, h) = rows_cols(x.value().shape());
    let mut y = tape.activation(dtype, &[t, h]);
    let mut statistics = tape.activation(DType::F32, &[t, 2]);
    let bytes = x.value().num_bytes() + y.num_bytes();
    if let Some(on) = tape.device().begin(Cost::memory_bound("layer_norm", bytes)) {
        let vector = |weight: &'a Weight| tape.params().resolve(weight).view();
        let (weight, bias) = (vector(norm.weight), norm.bias.map(vector));
        let inputs = Inputs { x: x.value().view(), weight, bias, eps: norm.eps };
        on.layer_norm(inputs, y.view_mut(), statistics.view_mut());
    }
    let params = [Some(norm.weight), norm.bias].map(|weight| weight.and_then(Weight::param));
    let requires_grad = x.requires_grad() || params.iter().any(Option::is_some);
    if !(tape.is_recording() && requires_grad) {
        return tape.push(y, requires_grad, |_, _| {});
    }
    let [weight_param, bias_param] = params;
    tape.push(y, requires_grad, move |sweep, d_y| {
        let (x_bytes, d_bytes) = (x.value().num_bytes(), d_y.num_bytes());
        if let Some(param) = weight_param {
            let cost = Cost::memory_bound("d_layer_norm_weight", x_bytes + d_bytes);
            if let Some(on) = sweep.device.begin(cost) {
                let saved = saved(sweep.params, &x, norm.weight, &statistics);
                let d_w = sweep.gradients.get_mut(param).view_mut();
                on.layer_norm_backward_weight(saved, d_y.view(), d_w);
            }
        }
        if let Some(param) = bias_param
            && let Some(on) = sweep.device.begin(Cost::memory_bound("d_layer_norm_bias", d_bytes))
        {
            let d_b = sweep.gradients.get_mut(param).view_mut();
            on.add_column_sums(d_y.view(), h, 0, d_b);
        }
        if x.requires_grad() {
            // Accumulates into the gradient known so far, usually that of the residual stream.
            let sum = sweep.take(x.id());
            let adds = sum.is_some();
            let mut d_x = sum.unwrap_or_else(|| sweep.activation(x.value().dtype(), &[t, h]));
            let bytes = 2 * x_bytes + d_bytes + if adds { d_x.num_bytes() } else { 0 };
            if let Some(on) = sweep.device.begin(Cost::memory_bound("d_layer_norm", bytes)) {
                let saved = saved(sweep.params, &x, norm.weight, &statistics);
                on.layer_norm_backward(saved, d_y.view(), adds, d_x.view_mut());
            }
            drop(d_y);
            sweep.add(x.id(), d_x);
        }
    })
}

fn saved<'v>(
    params: &'v Params,
    x: &'v Var,
    weight: &'v Weight,
    statistics: &'v Tensor,
) -> Saved<'v> {
    let weight = params.resolve(weight).view();
    Saved { x: x.value().view(), weight, statistics: statistics.view() }
}
