//! Columns of gated delta nets, whose files have them key head by key head.

use super::DeltaHeads;
use crate::{Cost, Tape, Var};

/// `x [t, width]`, key head by key head queries, keys, values and output gates, and then key head
/// by key head `b` and `a` → the same columns, each kind of all heads together, in this order.
pub fn delta_columns(tape: &mut Tape<'_>, x: Var, heads: &DeltaHeads) -> Var {
    let heads = *heads;
    let mut y = tape.activation(x.value().dtype(), x.value().shape());
    if let Some(on) = tape.device().begin(Cost::memory_bound("delta_columns", 2 * y.num_bytes())) {
        on.delta_columns(&heads, x.value().view(), y.view_mut());
    }
    let (id, requires_grad) = (x.id(), x.requires_grad());
    drop(x);
    tape.push(y, requires_grad, move |sweep, d_y| {
        let mut d_x = sweep.activation(d_y.dtype(), d_y.shape());
        let cost = Cost::memory_bound("d_delta_columns", 2 * d_y.num_bytes());
        if let Some(on) = sweep.device.begin(cost) {
            on.delta_columns_backward(&heads, d_y.view(), d_x.view_mut());
        }
        drop(d_y);
        sweep.add(id, d_x);
    })
}
