//! Inverted dropout with counter-based random numbers.

use crate::cpu::{Cpu, rows_per_task};
use crate::element::{Element, View, ViewMut, with_elements};
use crate::random::Philox;

/// Which elements are kept, and by what they are multiplied.
#[derive(Clone, Copy, Debug)]
pub struct Mask {
    /// Source of the decisions; element `i` uses position `i`.
    pub random: Philox,
    /// Probability of dropping an element, in `[0, 1)`.
    pub probability: f32,
}

impl Mask {
    /// What element `i` is multiplied by: `0` or `1 / (1 - probability)`.
    #[inline(always)]
    pub fn factor(&self, i: usize) -> f32 {
        let kept = self.random.uniform(i as u64) >= self.probability;
        if kept { 1.0 / (1.0 - self.probability) } else { 0.0 }
    }
}

/// `y = mask · x`, elementwise.
pub fn apply(cpu: &Cpu, mask: Mask, x: View<'_>, y: ViewMut<'_>) {
    let width = rows_per_task(8);
    with_elements!(x, x => with_elements!(mut y, y => {
        let split = crate::cpu::Split::new(y);
        cpu.pool.run(x.len().div_ceil(width), &|task| {
            let start = task * width;
            let len = width.min(x.len() - start);
            // SAFETY: ranges of different tasks do not overlap.
            let y = unsafe { split.slice(start, len) };
            for (i, y) in y.iter_mut().enumerate() {
                *y = Element::from_f32(x[start + i].to_f32() * mask.factor(start + i));
            }
        });
    }));
}

/// `d_x += mask · d_y`, elementwise.
pub fn add_masked(cpu: &Cpu, mask: Mask, d_y: &[f32], d_x: ViewMut<'_>) {
    let width = rows_per_task(8);
    with_elements!(mut d_x, d_x => {
        let split = crate::cpu::Split::new(d_x);
        cpu.pool.run(d_y.len().div_ceil(width), &|task| {
            let start = task * width;
            let len = width.min(d_y.len() - start);
            // SAFETY: ranges of different tasks do not overlap.
            let d_x = unsafe { split.slice(start, len) };
            for (i, d_x) in d_x.iter_mut().enumerate() {
                let add = d_y[start + i] * mask.factor(start + i);
                *d_x = Element::from_f32(d_x.to_f32() + add);
            }
        });
    });
}

#[cfg(test)]
mod tests;
