//! Embedding of tokens, and of what else is known of them.

use crate::tape::Sweep;
use crate::{Cost, DType, Tape, Tensor, Var, Weight};

/// `scale` times rows of `table [v, h]`: `ids [t]` → `[t, h]` in f32, the start of the residual
/// stream.
///
/// # Panics
/// If an id is not below `v`; tokenizers are checked against the model when both are loaded.
pub fn embedding<'a>(tape: &mut Tape<'a>, table: &'a Weight, ids: &'a [u32], scale: f32) -> Var {
    let h = table.shape()[1];
    let mut y = tape.activation(DType::F32, &[ids.len(), h]);
    if let Some(on) = tape.device().begin(Cost::memory_bound("embedding", 2 * y.num_bytes())) {
        on.embedding(tape.params().resolve(table).view(), ids, scale, y.view_mut());
    }
    tape.push(y, table.param().is_some(), move |sweep, d_y| {
        add_table_gradient(sweep, table, (ids, scale), &d_y);
    })
}

/// `x [t, h]` f32 plus rows of `table [v, h]`, one for each of `ids [t]` → `[t, h]` f32: learned
/// positions, token types.
///
/// # Panics
/// If an id is not below `v`.
pub fn add_embedding<'a>(tape: &mut Tape<'a>, x: Var, table: &'a Weight, ids: &'a [u32]) -> Var {
    let mut y = tape.activation(DType::F32, x.value().shape());
    if let Some(on) = tape.device().begin(Cost::memory_bound("embedding", 4 * y.num_bytes())) {
        on.embedding(tape.params().resolve(table).view(), ids, 1.0, y.view_mut());
        on.add_assign(x.value().view(), y.view_mut());
    }
    let (input, input_grad) = (x.id(), x.requires_grad());
    tape.push(y, input_grad || table.param().is_some(), move |sweep, d_y| {
        add_table_gradient(sweep, table, (ids, 1.0), &d_y);
        if input_grad {
            sweep.add(input, d_y);
        }
    })
}

/// Adds to a table's gradient, if it is trained.
fn add_table_gradient(
    sweep: &mut Sweep<'_, '_>,
    table: &Weight,
    (ids, scale): (&[u32], f32),
    d_y: &Tensor,
) {
    let Some(param) = table.param() else { return };
    if let Some(on) = sweep.device.begin(Cost::memory_bound("d_embedding", 3 * d_y.num_bytes())) {
        let d_table = sweep.gradients.get_mut(param).view_mut();
        on.embedding_backward(ids, scale, d_y.view(), d_table);
    }
}
