//! The residual stream times a number.

use crate::{Cost, DType, Device, Tape, Tensor, Var};

/// `x` f32 times a factor that is never trained.
pub fn scaled(tape: &mut Tape<'_>, x: Var, by: f32) -> Var {
    let mut y = tape.activation(DType::F32, x.value().shape());
    scale(tape.device(), x.value(), by, &mut y);
    let (id, requires_grad) = (x.id(), x.requires_grad());
    drop(x);
    tape.push(y, requires_grad, move |sweep, d_y| {
        let mut d_x = sweep.activation(DType::F32, d_y.shape());
        scale(sweep.device, &d_y, by, &mut d_x);
        drop(d_y);
        sweep.add(id, d_x);
    })
}

fn scale(device: &Device, x: &Tensor, by: f32, y: &mut Tensor) {
    if let Some(on) = device.begin(Cost::memory_bound("scaled", 2 * x.num_bytes())) {
        on.scale(x.view(), by, y.view_mut());
    }
}
