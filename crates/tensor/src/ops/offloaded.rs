//! Operations on weights that have to be fetched first.

use crate::{Offloaded, Tape, Var};

/// `body` of `x`, with the weights of `block` in place, if they are kept elsewhere: while `body`
/// runs, and again while its backward pass does.
pub fn with_offloaded<'a>(
    tape: &mut Tape<'a>,
    block: Option<&'a Offloaded>,
    x: Var,
    body: impl FnOnce(&mut Tape<'a>, Var) -> Var,
) -> Var {
    let Some(block) = block else { return body(tape, x) };
    block.fetch();
    let y = body(tape, x);
    let (id, requires_grad) = (y.id(), y.requires_grad());
    // The last to be recorded is the first of the backward pass.
    tape.push(y.into_value(), requires_grad, move |sweep, d_y| {
        block.fetch();
        sweep.add(id, d_y);
    })
}
