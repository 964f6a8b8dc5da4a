//! A look at what linear layers read, and at the gradients of what they give.

use crate::{Projection, Tensor};
use std::ops::Range;

/// Projections of one input, and the rows of it that they read.
pub type Reader<'s> = (&'s [Projection], Range<usize>);

/// Told of every linear layer of a pass, those of experts included, on devices that compute. It
/// tells projections apart by where they are.
pub trait Observer {
    /// In the order of the forward pass, once for each layer: `x [t, in_features]`, and who reads
    /// which of its rows.
    fn input(&self, _x: &Tensor, _readers: &[Reader<'_>]) {}

    /// In the order of the backward pass, with the gradient `[t, Σ out_features]` of what all
    /// projections of a reader give, one after another: the same rows of it.
    fn gradient(&self, _x: &Tensor, _readers: &[Reader<'_>], _d_y: &Tensor) {}
}
