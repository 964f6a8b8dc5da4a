//! Token embedding.

use crate::{Cost, DType, Tape, Var, Weight};

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
        let Some(param) = table.param() else { return };
        if let Some(on) = sweep.device.begin(Cost::memory_bound("d_embedding", 3 * d_y.num_bytes()))
        {
            let d_table = sweep.gradients.get_mut(param).view_mut();
            on.embedding_backward(ids, scale, d_y.view(), d_table);
        }
    })
}
