//! Combining what the experts of each token computed.

use super::{Routing, rows_cols};
use crate::{Cost, DType, Tape, Var};
use hone_kernels::combine::Chosen;

/// `x [t · top_k, h]`, rows in the order of the experts, times `weights [t, top_k]` f32 → the sum
/// of each token's rows, `[t, h]`: in the compute type, or in f32 if a `residual [t, h]` f32 is
/// added.
pub fn combine<'a>(
    tape: &mut Tape<'a>,
    x: Var,
    weights: Var,
    routing: &Routing,
    residual: Option<Var>,
) -> Var {
    let (rows, h) = rows_cols(x.value().shape());
    let (t, k) = (routing.num_tokens(), routing.top_k());
    assert!(rows == routing.num_rows() && *weights.value().shape() == [t, k]);
    let dtype = if residual.is_some() { DType::F32 } else { tape.dtype() };
    let mut y = tape.activation(dtype, &[t, h]);
    let cost = Cost::memory_bound("combine", x.value().num_bytes() + 2 * y.num_bytes());
    if let Some(on) = tape.device().begin(cost) {
        let add = residual.as_ref().map(|residual| residual.value().view());
        let weights = Some(weights.value().view());
        on.combine(
            Chosen { slots: routing.rows(), k, weights },
            x.value().view(),
            add,
            y.view_mut(),
        );
    }
    let inner_grad = x.requires_grad() || weights.requires_grad();
    let residual_grad = residual.as_ref().is_some_and(Var::requires_grad);
    let residual = residual.map(|residual| residual.id());
    if !(tape.is_recording() && (inner_grad || residual_grad)) {
        return tape.push(y, inner_grad || residual_grad, |_, _| {});
    }
    let saved = inner_grad.then(|| (x, weights, routing.clone()));
    tape.push(y, true, move |sweep, d_y| {
        if let Some((x, weights, routing)) = saved {
            let mut d_x = sweep.activation(x.value().dtype(), &[rows, h]);
            let mut d_weights = sweep.activation(DType::F32, &[t, k]);
            let bytes = 2 * d_x.num_bytes() + k * d_y.num_bytes();
            if let Some(on) = sweep.device.begin(Cost::memory_bound("d_combine", bytes)) {
                let of_weights = Some(weights.value().view());
                let chosen = Chosen { slots: routing.rows(), k, weights: of_weights };
                let (x, d_x) = (x.value().view(), d_x.view_mut());
                on.combine_backward(chosen, x, d_y.view(), d_x, d_weights.view_mut());
            }
            let [x, weights] = [x, weights].map(|var| (var.id(), var.requires_grad()));
            for ((id, _), d) in
                [(x, d_x), (weights, d_weights)].into_iter().filter(|((_, g), _)| *g)
            {
                sweep.add(id, d);
            }
        }
        if let Some(residual) = residual.filter(|_| residual_grad) {
            sweep.add(residual, d_y);
        }
    })
}
