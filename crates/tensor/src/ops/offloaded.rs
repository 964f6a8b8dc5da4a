//! Operations on offloaded weights.

use crate::{Offloaded, Tape, Var};

/// Applies `body` to `x` after fetching the weights of `block`, if they are offloaded; fetches them
/// again for its backward pass.
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
    // The last recorded operation is the first of the backward pass.
    tape.push(y.into_value(), requires_grad, move |sweep, d_y| {
        block.fetch();
        sweep.add(id, d_y);
    })
}
