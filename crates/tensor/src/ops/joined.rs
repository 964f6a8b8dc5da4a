//! Columns of several matrices in one.

use super::Part;
use crate::tape::Sweep;
use crate::{Cost, DType, Tape, Tensor};
use hone_kernels::columns::Span;

/// The columns of `parts [t, n_i]`, which have one type, one after another: `[t, Σ n_i]`. Parts may
/// be of one matrix, and share columns.
pub fn joined(tape: &mut Tape<'_>, parts: Vec<Part>) -> crate::Var {
    let width: usize = parts.iter().map(|part| part.count).sum();
    let first = parts.first().expect("a part");
    let (t, dtype) = (first.rows(), first.of.value().dtype());
    assert!(parts.iter().all(|part| part.rows() == t && part.of.value().dtype() == dtype));
    let mut y = tape.activation(dtype, &[t, width]);
    let spans = spans(&parts, width);
    if let Some(on) = tape.device().begin(Cost::memory_bound("joined", 2 * y.num_bytes())) {
        for (span, part) in spans.iter().zip(&parts) {
            on.copy_columns(*span, part.of.value().view(), false, y.view_mut());
        }
    }
    let requires_grad = parts.iter().any(|part| part.of.requires_grad());
    let inputs = spans.into_iter().zip(&parts).filter(|(_, part)| part.of.requires_grad());
    let inputs: Vec<(usize, Span)> = inputs.map(|(span, part)| (part.of.id(), span)).collect();
    drop(parts);
    tape.push(y, requires_grad, move |sweep, d_y| {
        for (id, span) in inputs {
            let d_x = gradient(sweep, id, span, t, &d_y);
            sweep.add(id, d_x);
        }
    })
}

/// Which columns of each part are which of the result.
fn spans(parts: &[Part], width: usize) -> Vec<Span> {
    let mut to = 0;
    let span = |part: &Part| {
        let from = [part.of.value().shape()[1], part.first];
        to += part.count;
        Span { from, to: [width, to - part.count], count: part.count }
    };
    parts.iter().map(span).collect()
}

/// The gradient of a part's matrix: what is known of it, and the part's columns of `d_y`.
fn gradient(sweep: &mut Sweep<'_, '_>, id: usize, span: Span, t: usize, d_y: &Tensor) -> Tensor {
    let (dtype, shape): (DType, _) = (d_y.dtype(), [t, span.from[0]]);
    let known = sweep.take(id);
    let adds = known.is_some() || span.count < span.from[0];
    let mut d_x = match known {
        Some(known) => known,
        None if adds => sweep.zeros(dtype, &shape),
        None => sweep.activation(dtype, &shape),
    };
    let bytes = if adds { 3 } else { 2 } * dtype.num_bytes(&[t, span.count]);
    if let Some(on) = sweep.device.begin(Cost::memory_bound("d_joined", bytes)) {
        on.copy_columns(span.reversed(), d_y.view(), adds, d_x.view_mut());
    }
    d_x
}
