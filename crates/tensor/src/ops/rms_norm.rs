//! Root-mean-square normalisation.

use super::rows_cols;
use crate::{Cost, DType, Tape, Var, Weight};
use hone_kernels::rms_norm as kernel;

/// `x [t, h]` f32, `weight [h]` → `[t, h]` in the tape's compute type.
pub fn rms_norm<'a>(tape: &mut Tape<'a>, x: &Var, weight: &'a Weight, eps: f32) -> Var {
    let (t, h) = rows_cols(x.value().shape());
    let mut y = tape.activation(tape.dtype(), &[t, h]);
    let mut rstd = tape.activation(DType::F32, &[t]);
    let bytes = x.value().num_bytes() + y.num_bytes();
    if let Some(cpu) = tape.device().begin(Cost::memory("rms_norm", bytes)) {
        let w = tape.params().resolve(weight).f32();
        kernel::forward(cpu, x.value().f32(), w, eps, y.view_mut(), rstd.f32_mut());
    }
    let requires_grad = x.requires_grad() || weight.param().is_some();
    if !(tape.is_recording() && requires_grad) {
        return tape.push(y, requires_grad, |_, _| {});
    }
    let x = x.clone();
    tape.push(y, requires_grad, move |sweep, d_y| {
        let bytes = 2 * x.value().num_bytes() + d_y.num_bytes();
        if let Some(param) = weight.param()
            && let Some(cpu) = sweep.device.begin(Cost::memory("d_rms_norm_weight", bytes))
        {
            let d_w = sweep.gradients.get_mut(param).f32_mut();
            kernel::backward_weight(cpu, x.value().f32(), rstd.f32(), d_y.view(), d_w);
        }
        if x.requires_grad() {
            let mut d_x = sweep.activation(DType::F32, &[t, h]);
            if let Some(cpu) = sweep.device.begin(Cost::memory("d_rms_norm", bytes)) {
                let w = sweep.params.resolve(weight).f32();
                let (x, rstd) = (x.value().f32(), rstd.f32());
                kernel::backward(cpu, x, w, rstd, d_y.view(), d_x.f32_mut());
            }
            drop(d_y);
            sweep.add(x.id(), d_x);
        }
    })
}
