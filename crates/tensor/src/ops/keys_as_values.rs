//! Values that are the keys.

use super::rows_cols;
use crate::{Cost, Heads, Tape, Var};
use hone_kernels::keys_as_values::KeyedRows;

/// Queries and keys `[t, out_width + kv]` → queries, keys and values `[t, qkv_width]`.
pub fn keys_as_values(tape: &mut Tape<'_>, x: Var, heads: &Heads) -> Var {
    let (t, _) = rows_cols(x.value().shape());
    let keys = heads.num_kv_heads * heads.head_dim;
    let rows = KeyedRows { queries: heads.out_width(), keys };
    let mut y = tape.activation(x.value().dtype(), &[t, rows.valued_width()]);
    let bytes = x.value().num_bytes() + y.num_bytes();
    if let Some(on) = tape.device().begin(Cost::memory_bound("keys_as_values", bytes)) {
        on.keys_as_values(rows, x.value().view(), y.view_mut());
    }
    let (id, requires_grad) = (x.id(), x.requires_grad());
    drop(x);
    tape.push(y, requires_grad, move |sweep, d_y| {
        let mut d_x = sweep.activation(d_y.dtype(), &[t, rows.width()]);
        let cost = Cost::memory_bound("d_keys_as_values", bytes);
        if let Some(on) = sweep.device.begin(cost) {
            on.keys_as_values_backward(rows, d_y.view(), d_x.view_mut());
        }
        drop(d_y);
        sweep.add(id, d_x);
    })
}
