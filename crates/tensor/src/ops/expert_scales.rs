//! Weights of experts, times a factor that each expert has.

use super::Routing;
use crate::{Cost, DType, Tape, Var, Weight};
use hone_kernels::combine::Chosen;

/// `weights [t, top_k]` f32, each times that one of `scales [num_experts]` whose expert it is of.
pub fn scaled_by_expert<'a>(
    tape: &mut Tape<'a>,
    weights: Var,
    routing: &Routing,
    scales: &'a Weight,
) -> Var {
    let shape = [routing.num_tokens(), routing.top_k()];
    assert!(*weights.value().shape() == shape && scales.shape() == [routing.num_experts()]);
    let experts = routing.experts();
    // In the order of rows, as what `combine` takes.
    let mut of_rows = tape.activation(DType::F32, &[routing.num_rows(), 1]);
    let mut y = tape.activation(DType::F32, &shape);
    let bytes = 5 * y.num_bytes();
    if let Some(on) = tape.device().begin(Cost::memory_bound("expert_scales", bytes)) {
        let scales = tape.params().resolve(scales).view();
        on.embedding(scales, &experts, 1.0, of_rows.view_mut());
        let chosen = Chosen { slots: routing.rows(), k: 1, weights: Some(weights.value().view()) };
        on.combine(chosen, of_rows.view(), None, y.view_mut());
    }
    let requires_grad = weights.requires_grad() || scales.param().is_some();
    if !(tape.is_recording() && requires_grad) {
        return tape.push(y, requires_grad, |_, _| {});
    }
    let routing = routing.clone();
    tape.push(y, true, move |sweep, d_y| {
        let mut d_rows = sweep.activation(DType::F32, of_rows.shape());
        let mut d_weights = sweep.activation(DType::F32, &shape);
        if let Some(on) = sweep.device.begin(Cost::memory_bound("d_expert_scales", 2 * bytes)) {
            let of_weights = Some(weights.value().view());
            let chosen = Chosen { slots: routing.rows(), k: 1, weights: of_weights };
            let (d_rows, d_weights) = (d_rows.view_mut(), d_weights.view_mut());
            on.combine_backward(chosen, of_rows.view(), d_y.view(), d_rows, d_weights);
        }
        drop(d_y);
        if let Some(param) = scales.param() {
            let cost = Cost::memory_bound("d_embedding", 3 * d_rows.num_bytes());
            if let Some(on) = sweep.device.begin(cost) {
                let d_scales = sweep.gradients.get_mut(param).view_mut();
                on.embedding_backward(&experts, 1.0, d_rows.view(), d_scales);
            }
        }
        drop(d_rows);
        if weights.requires_grad() {
            sweep.add(weights.id(), d_weights);
        }
    })
}
