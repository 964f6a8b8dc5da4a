//! Inverted dropout with counter-based random numbers.

pub(crate) mod cuda;

use crate::cpu::{Cpu, Kernel, Split};
use crate::element::Element;
use crate::processor::Processor;
use crate::random::{Philox, unit};
use crate::view::{View, ViewMut, with_elements};

impl Processor {
    /// `y = mask · x`, elementwise.
    pub fn dropout(&self, mask: Mask, x: View<'_>, y: ViewMut<'_>) {
        match self {
            Self::Cpu(cpu) => apply(cpu, mask, x, y),
            Self::Cuda(gpu) => cuda::apply(gpu, mask, x.cuda(), y.cuda()),
        }
    }

    /// `d_x += mask · d_y`, elementwise; `d_y` f32.
    pub fn add_masked(&self, mask: Mask, d_y: View<'_>, d_x: ViewMut<'_>) {
        match self {
            Self::Cpu(cpu) => add_masked(cpu, mask, d_y.f32(), d_x),
            Self::Cuda(gpu) => cuda::add_masked(gpu, mask, d_y.cuda().f32(), d_x.cuda()),
        }
    }
}

/// A dropout mask.
#[derive(Clone, Copy, Debug)]
pub struct Mask {
    /// Source of the decisions; element `i` uses position `i`.
    pub random: Philox,
    /// Probability of dropping an element, in `[0, 1)`.
    pub probability: f32,
}

impl Mask {
    /// Multiplier of element `i`: `0` or `1 / (1 - probability)`.
    #[inline(always)]
    pub fn factor(&self, i: usize) -> f32 {
        let kept = self.random.uniform(i as u64) >= self.probability;
        if kept { 1.0 / (1.0 - self.probability) } else { 0.0 }
    }
}

/// `y = mask · x`, elementwise.
pub fn apply(cpu: &Cpu, mask: Mask, x: View<'_>, y: ViewMut<'_>) {
    with_elements!(x, x => with_elements!(mut y, y => masked(cpu, mask, x, y, false)));
}

/// `d_x += mask · d_y`, elementwise.
pub fn add_masked(cpu: &Cpu, mask: Mask, d_y: &[f32], d_x: ViewMut<'_>) {
    with_elements!(mut d_x, d_x => masked(cpu, mask, d_y, d_x, true));
}

/// Elements per task, and per block whose random numbers are drawn at once.
const CHUNK: usize = 2048;
const BLOCK: usize = 256;

fn masked<X: Element, Y: Element>(cpu: &Cpu, mask: Mask, x: &[X], y: &mut [Y], add: bool) {
    assert_eq!(x.len(), y.len());
    let split = Split::new(y);
    cpu.pool.run(x.len().div_ceil(CHUNK), &|task| {
        let start = task * CHUNK;
        let x = &x[start..x.len().min(start + CHUNK)];
        // SAFETY: ranges of different tasks do not overlap.
        let y = unsafe { split.slice(start, x.len()) };
        cpu.isa.run(Masked { mask, start, x, y, add });
    });
}

struct Masked<'a, X, Y> {
    mask: Mask,
    /// Position of the first element.
    start: usize,
    x: &'a [X],
    y: &'a mut [Y],
    /// Whether to accumulate into `y`.
    add: bool,
}

impl<X: Element, Y: Element> Kernel for Masked<'_, X, Y> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { mask, start, x, y, add } = self;
        let kept = 1.0 / (1.0 - mask.probability);
        let mut words = [0; BLOCK];
        for (i, (x, y)) in x.chunks(BLOCK).zip(y.chunks_mut(BLOCK)).enumerate() {
            mask.random.fill_words(((start + i * BLOCK) / 4) as u64, &mut words);
            for ((x, y), word) in x.iter().zip(y).zip(&words) {
                let factor = if unit(*word) >= mask.probability { kept } else { 0.0 };
                let masked = x.to_f32() * factor;
                *y = Y::from_f32(if add { y.to_f32() + masked } else { masked });
            }
        }
    }
}

#[cfg(test)]
mod tests;
