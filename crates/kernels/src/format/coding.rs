//! What a block's bytes consist of: floats of the block, integers of its groups, levels of weights.
//!
//! While roundings are learned, each weight has a *latent*: a number whose nearest level it takes.
//! Gradients pass through the rounding as if it were none (straight-through: Bengio et al., 2013,
//! arXiv 1308.3432).

use crate::cpu::{Cpu, Kernel};

/// How blocks of a format are taken apart and put together.
#[derive(Clone, Copy)]
pub struct Coding {
    /// Weights along a row that share a scale and an offset.
    pub group: usize,
    /// The lowest and the highest level of a weight.
    pub range: [i8; 2],
    /// The levels in ascending order, if they are not all integers of the range.
    pub table: Option<&'static [i8; 16]>,
    /// Whether something is taken off a group's weights.
    pub has_offsets: bool,
    /// Takes whole blocks apart.
    pub read: fn(bytes: &[u8]) -> Coded,
    /// Puts whole blocks together, with floats rounded to f16.
    pub write: fn(&Coded, bytes: &mut [u8]),
}

/// Blocks taken apart. A weight is `shared[0] · scale · level − shared[1] · offset`, with the
/// floats of its block and the integers of its group.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Coded {
    /// Scale and offset of each block; the second is 0 of formats without offsets.
    pub shared: Vec<[f32; 2]>,
    /// Scale and offset of each group: integers, or ones where a block is a group of its own.
    pub groups: Vec<[f32; 2]>,
    /// Of each weight.
    pub levels: Vec<i8>,
}

impl Coding {
    /// The level nearest to `x`.
    #[inline(always)]
    pub fn nearest(&self, x: f32) -> f32 {
        // Adding 1.5 · 2^23 rounds to the nearest integer, ties to even.
        const ROUND: f32 = 12_582_912.0;
        let [lowest, highest] = self.range.map(f32::from);
        let Some(table) = self.table else {
            return (x.max(lowest).min(highest) + ROUND) - ROUND;
        };
        let mut level = lowest;
        for pair in table.windows(2) {
            let [lower, upper] = [pair[0], pair[1]].map(f32::from);
            level = if x > (lower + upper) / 2.0 { upper } else { level };
        }
        level
    }

    /// The weights that blocks with these latents have; those of `blocks` do not count.
    ///
    /// # Panics
    /// If lengths do not match.
    pub fn values(&self, cpu: &Cpu, blocks: &Coded, latents: &[f32], values: &mut [f32]) {
        let (len, groups) = blocks.lengths(latents.len());
        assert_eq!(latents.len(), values.len());
        cpu.rows(values, len, 4 * len, |block, values| {
            let latents = &latents[block * len..][..len];
            let affine = |group: usize| blocks.affine(block * groups + group);
            cpu.isa.run(Values { coding: self, latents, values, affine });
        });
    }

    /// The gradients of the scale and the offset of each block, given those of weights.
    ///
    /// # Panics
    /// If lengths do not match.
    pub fn shared_gradients(
        &self,
        cpu: &Cpu,
        blocks: &Coded,
        (latents, d_values): (&[f32], &[f32]),
        d_shared: &mut [f32],
    ) {
        let (len, groups) = blocks.lengths(latents.len());
        assert!(latents.len() == d_values.len() && d_shared.len() == 2 * blocks.shared.len());
        cpu.rows(d_shared, 2, 4 * len, |block, d_shared| {
            let [latents, d_values] = [latents, d_values].map(|of| &of[block * len..][..len]);
            let groups = &blocks.groups[block * groups..][..groups];
            let sums = cpu.isa.run(SharedGradients { coding: self, latents, d_values, groups });
            d_shared.copy_from_slice(&sums);
        });
    }

    /// Turns gradients of weights into those of latents.
    ///
    /// # Panics
    /// If lengths do not match.
    pub fn latent_gradients(&self, cpu: &Cpu, blocks: &Coded, d_values: &mut [f32]) {
        let (len, groups) = blocks.lengths(d_values.len());
        cpu.rows(d_values, len, 2 * len, |block, d_values| {
            for (group, d_values) in d_values.chunks_exact_mut(self.group).enumerate() {
                let [scale, _] = blocks.affine(block * groups + group);
                d_values.iter_mut().for_each(|x| *x *= scale);
            }
        });
    }
}

struct Values<'a, F> {
    coding: &'a Coding,
    latents: &'a [f32],
    values: &'a mut [f32],
    affine: F,
}

impl<F: Fn(usize) -> [f32; 2]> Kernel for Values<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { coding, latents, values, affine } = self;
        let groups = latents.chunks_exact(coding.group).zip(values.chunks_exact_mut(coding.group));
        for (group, (latents, values)) in groups.enumerate() {
            let [scale, offset] = affine(group);
            for (value, latent) in values.iter_mut().zip(latents) {
                *value = scale * coding.nearest(*latent) - offset;
            }
        }
    }
}

struct SharedGradients<'a> {
    coding: &'a Coding,
    latents: &'a [f32],
    d_values: &'a [f32],
    groups: &'a [[f32; 2]],
}

impl Kernel for SharedGradients<'_> {
    type Output = [f32; 2];

    #[inline(always)]
    fn run(self) -> [f32; 2] {
        let Self { coding, latents, d_values, groups } = self;
        let (mut d_scale, mut d_offset) = (0.0, 0.0);
        let of = latents.chunks_exact(coding.group).zip(d_values.chunks_exact(coding.group));
        for ((latents, d_values), [scale, offset]) in of.zip(groups) {
            let (mut products, mut sum) = ([0.0f32; 16], [0.0f32; 16]);
            for (latents, d) in latents.as_chunks::<16>().0.iter().zip(d_values.as_chunks::<16>().0)
            {
                for lane in 0..16 {
                    let d: f32 = d[lane];
                    products[lane] += d * coding.nearest(latents[lane]);
                    sum[lane] += d;
                }
            }
            d_scale += scale * products.iter().sum::<f32>();
            d_offset -= offset * sum.iter().sum::<f32>();
        }
        [d_scale, if coding.has_offsets { d_offset } else { 0.0 }]
    }
}

impl Coded {
    /// The float that levels of a group are multiplied with, and the one that is taken off then.
    #[inline]
    pub fn affine(&self, group: usize) -> [f32; 2] {
        let per_block = self.groups.len() / self.shared.len();
        let ([scale, offset], of) = (self.shared[group / per_block], self.groups[group]);
        [scale * of[0], offset * of[1]]
    }

    /// Weights and groups of a block, of `num_weights` weights.
    fn lengths(&self, num_weights: usize) -> (usize, usize) {
        let blocks = self.shared.len().max(1);
        assert!(num_weights.is_multiple_of(blocks), "whole blocks");
        (num_weights / blocks, self.groups.len() / blocks)
    }
}
