//! Combines what the experts of each token computed: `y = Σ_j weight_j · x[slot_j] (+ add)`.
//!
//! Rows of `x` are in the order of their experts; `slots` says where each token's are. Sums run in
//! the order of a token's choices, so no row depends on another token's.

mod cpu;
pub(crate) mod cuda;
#[cfg(any(test, feature = "reference"))]
pub mod reference;

pub use cpu::{backward, forward};

use crate::processor::Processor;
use crate::view::{View, ViewMut};

/// Where the rows of each token are, and what they are multiplied by.
#[derive(Clone, Copy)]
pub struct Chosen<'a> {
    /// `[t, k]`: rows of the operand, each once.
    pub slots: &'a [u32],
    /// Rows of each token.
    pub k: usize,
    /// `[t, k]` f32; `None`: ones.
    pub weights: Option<View<'a>>,
}

impl Processor {
    /// `x [t · k, h]` → `y [t, h]`, of any two types, plus `add [t, h]` f32.
    ///
    /// # Panics
    /// If a slot does not exist in `x`, or a slice has another length.
    pub fn combine(&self, chosen: Chosen<'_>, x: View<'_>, add: Option<View<'_>>, y: ViewMut<'_>) {
        let h = chosen.check(x.len());
        assert!(chosen.slots.len() * h == y.len() * chosen.k);
        assert!(add.is_none_or(|add| add.len() == y.len()));
        match self {
            Self::Cpu(cpu) => forward(cpu, chosen, h, x, add.map(View::f32), y),
            Self::Cuda(gpu) => {
                let add = add.map(|add| add.cuda().f32());
                cuda::forward(gpu, chosen, h, x.cuda(), add, y.cuda());
            }
        }
    }

    /// `d_x [t · k, h]`, of the type of `x` and overwritten, and `d_weights [t, k]` f32, for
    /// `d_y [t, h]`, of any type.
    ///
    /// # Panics
    /// If a slot does not exist, or a slice has another length, or there are no weights.
    pub fn combine_backward(
        &self,
        chosen: Chosen<'_>,
        x: View<'_>,
        d_y: View<'_>,
        d_x: ViewMut<'_>,
        d_weights: ViewMut<'_>,
    ) {
        let h = chosen.check(x.len());
        assert!(x.len() == d_x.len() && chosen.slots.len() * h == d_y.len() * chosen.k);
        assert!(d_weights.len() == chosen.slots.len() && chosen.weights.is_some());
        match self {
            Self::Cpu(cpu) => backward(cpu, chosen, h, x, d_y, d_x, d_weights.f32()),
            Self::Cuda(gpu) => {
                let (d_x, d_weights) = (d_x.cuda(), d_weights.cuda().f32());
                cuda::backward(gpu, chosen, h, x.cuda(), d_y.cuda(), d_x, d_weights);
            }
        }
    }
}

impl Chosen<'_> {
    /// Checks the slots, and returns the length of a row of an operand with `len` elements.
    fn check(&self, len: usize) -> usize {
        let num_slots = self.slots.len();
        let h = len / num_slots.max(1);
        assert!(h * num_slots == len && num_slots.is_multiple_of(self.k));
        assert!(self.slots.iter().all(|&slot| (slot as usize) < num_slots));
        assert!(self.weights.is_none_or(|weights| weights.len() == num_slots));
        h
    }
}
