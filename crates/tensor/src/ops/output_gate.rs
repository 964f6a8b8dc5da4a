//! Output gates of attention.

use super::rows_cols;
use crate::{Cost, Heads, Tape, Var, Work};
use hone_kernels::output_gate::GatedRows;

/// Floating-point operations per element, most of them for the exponential.
const FORWARD_FLOPS: usize = 22;
const BACKWARD_FLOPS: usize = 26;

fn gated_rows(heads: &Heads) -> GatedRows {
    let Heads { num_heads, num_kv_heads, head_dim, .. } = *heads;
    GatedRows { num_heads, head_dim, rest: 2 * num_kv_heads * head_dim }
}

/// `x [t, out_width + qkv_width]`, each query head followed by its gate → `[t, qkv_width]`.
pub fn without_gates(tape: &mut Tape<'_>, x: &Var, heads: &Heads) -> Var {
    let (t, _) = rows_cols(x.value().shape());
    let rows = gated_rows(heads);
    let mut y = tape.activation(x.value().dtype(), &[t, rows.ungated_width()]);
    if let Some(on) = tape.device().begin(Cost::memory_bound("without_gates", 2 * y.num_bytes())) {
        on.without_gates(rows, x.value().view(), y.view_mut());
    }
    let (x, requires_grad) = (x.clone(), x.requires_grad());
    tape.push(y, requires_grad, move |sweep, d_y| {
        // Those of the gates are there already.
        let mut d_x = sweep.take_or_zeros(&x);
        let cost = Cost::memory_bound("d_without_gates", 2 * d_y.num_bytes());
        if let Some(on) = sweep.device.begin(cost) {
            on.without_gates_backward(rows, d_y.view(), d_x.view_mut());
        }
        drop(d_y);
        sweep.add(x.id(), d_x);
    })
}

/// `attended [t, out_width]` times the sigmoid of the gates in `x`, see [`without_gates`].
pub fn gate_output(tape: &mut Tape<'_>, attended: Var, x: Var, heads: &Heads) -> Var {
    let (rows, shape) = (gated_rows(heads), attended.value().shape().to_owned());
    let mut y = tape.activation(attended.value().dtype(), &shape);
    let flops = attended.value().len();
    let cost = Cost::memory_bound("gate_output", 3 * y.num_bytes())
        .with(Work::Elementwise, FORWARD_FLOPS * flops);
    if let Some(on) = tape.device().begin(cost) {
        on.gate_output(rows, (attended.value().view(), x.value().view()), y.view_mut());
    }
    let requires_grad = attended.requires_grad() || x.requires_grad();
    tape.push(y, requires_grad, move |sweep, d_y| {
        let mut d_x = sweep.take_or_zeros(&x);
        let mut d_attended = sweep.activation(d_y.dtype(), d_y.shape());
        let cost = Cost::memory_bound("d_gate_output", 5 * d_y.num_bytes())
            .with(Work::Elementwise, BACKWARD_FLOPS * flops);
        if let Some(on) = sweep.device.begin(cost) {
            let of = (attended.value().view(), x.value().view(), d_y.view());
            on.gate_output_backward(rows, of, (d_attended.view_mut(), d_x.view_mut()));
        }
        drop(d_y);
        for (of, d) in [(x, d_x), (attended, d_attended)] {
            if of.requires_grad() {
                sweep.add(of.id(), d);
            }
        }
    })
}
