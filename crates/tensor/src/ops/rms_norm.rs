//! Root-mean-square normalisation.

use super::rows_cols;
use crate::{Cost, DType, Tape, Var, Weight};

/// `x [t, h]` f32, `weight [h]` → `[t, h]` in the tape's compute type.
pub fn rms_norm<'a>(tape: &mut Tape<'a>, x: &Var, weight: &'a Weight, eps: f32) -> Var {
    let (t, h) = rows_cols(x.value().shape());
    let mut y = tape.activation(tape.dtype(), &[t, h]);
    let mut rstd = tape.activation(DType::F32, &[t]);
    let bytes = x.value().num_bytes() + y.num_bytes();
    if let Some(on) = tape.device().begin(Cost::memory("rms_norm", bytes)) {
        let w = tape.params().resolve(weight).view();
        on.rms_norm(x.value().view(), w, eps, y.view_mut(), rstd.view_mut());
    }
    let requires_grad = x.requires_grad() || weight.param().is_some();
    if !(tape.is_recording() && requires_grad) {
        return tape.push(y, requires_grad, |_, _| {});
    }
    let x = x.clone();
    tape.push(y, requires_grad, move |sweep, d_y| {
        let bytes = 2 * x.value().num_bytes() + d_y.num_bytes();
        if let Some(param) = weight.param()
            && let Some(on) = sweep.device.begin(Cost::memory("d_rms_norm_weight", bytes))
        {
            let d_w = sweep.gradients.get_mut(param).view_mut();
            on.rms_norm_backward_weight(x.value().view(), rstd.view(), d_y.view(), d_w);
        }
        if x.requires_grad() {
            // What flows along the residual stream, mostly, which it is added to at once.
            let sum = sweep.take(x.id());
            let adds = sum.is_some();
            let bytes = bytes + if adds { x.value().num_bytes() } else { 0 };
            let mut d_x = sum.unwrap_or_else(|| sweep.activation(DType::F32, &[t, h]));
            if let Some(on) = sweep.device.begin(Cost::memory("d_rms_norm", bytes)) {
                let w = sweep.params.resolve(weight).view();
                let saved = (x.value().view(), w, rstd.view());
                on.rms_norm_backward(saved, d_y.view(), adds, d_x.view_mut());
            }
            drop(d_y);
            sweep.add(x.id(), d_x);
        }
    })
}
