//! "K-quants": blocks of 256 weights, whose scales of 32 or 16 weights are integers themselves.

use super::{Block, GROUP, format, half};
use crate::cuda::source::Source;
use crate::format::WeightFormat;

pub(in crate::format) static Q6_K: WeightFormat = format::<Q6KBlock>("q6_k", &Q6_K_SOURCE);
pub(in crate::format) static Q5_K: WeightFormat = format::<Q5KBlock>("q5_k", &Q5_K_SOURCE);
pub(in crate::format) static Q4_K: WeightFormat = format::<Q4KBlock>("q4_k", &Q4_K_SOURCE);

static Q6_K_SOURCE: Source = super::source!("q6_k", "Q6_K");
static Q5_K_SOURCE: Source = super::source!("q5_k", "Q5_K");
static Q4_K_SOURCE: Source = super::source!("q4_k", "Q4_K");

/// Weights of a block.
const WEIGHTS: usize = 256;

/// Weights of four bits and of two more; groups of half a block share their bytes. 32 stands for
/// zero, and each 16 weights have a scale.
#[repr(C)]
struct Q6KBlock {
    four_bits: [u8; WEIGHTS / 2],
    two_bits: [u8; WEIGHTS / 4],
    scales: [i8; WEIGHTS / 16],
    scale: [u8; 2],
}

/// [`Q4KBlock`] with a fifth bit of each weight: bit `i` of all bytes is group `i`'s.
#[repr(C)]
struct Q5KBlock {
    scale: [u8; 2],
    offset: [u8; 2],
    scales: SixBits,
    fifth_bits: [u8; GROUP],
    halves: [u8; WEIGHTS / 2],
}

/// Weights of four bits: the lower halves of 32 bytes are one group, the upper ones the next.
#[repr(C)]
struct Q4KBlock {
    scale: [u8; 2],
    offset: [u8; 2],
    scales: SixBits,
    halves: [u8; WEIGHTS / 2],
}

/// A scale and an offset of six bits for each group. Those of the last four groups have their upper
/// two bits where the first four leave theirs unused.
#[repr(C)]
struct SixBits {
    scales: [u8; 4],
    offsets: [u8; 4],
    last: [u8; 4],
}

impl SixBits {
    /// Scale and offset of a group.
    #[inline(always)]
    fn of(&self, group: usize) -> [f32; 2] {
        let i = group % 4;
        let [scale, offset] = [self.scales[i], self.offsets[i]];
        let integers = match group {
            0..4 => [scale & 63, offset & 63],
            _ => [self.last[i] & 15 | scale >> 6 << 4, self.last[i] >> 4 | offset >> 6 << 4],
        };
        integers.map(f32::from)
    }
}

/// Bits `shift..` of the bytes that two groups share.
#[inline(always)]
fn halves(bytes: &[u8; WEIGHTS / 2], group: usize) -> (&[u8; GROUP], u32) {
    (&bytes.as_chunks().0[group / 2], 4 * (group % 2) as u32)
}

// SAFETY: made of bytes.
unsafe impl Block for Q6KBlock {
    const WEIGHTS: usize = WEIGHTS;

    #[inline(always)]
    fn unpack(&self, group: usize, out: &mut [f32; GROUP]) {
        let scale = half(self.scale);
        // Of four groups, the first two share the bytes' lower halves with the last two's upper.
        let (half, i) = (group / 4, group % 4);
        let four_bits: &[u8; GROUP] = &self.four_bits.as_chunks().0[2 * half + i % 2];
        let two_bits: &[u8; GROUP] = &self.two_bits.as_chunks().0[half];
        let (low, high) = (4 * (i / 2) as u32, 2 * i as u32);
        for (part, out) in out.as_chunks_mut::<{ GROUP / 2 }>().0.iter_mut().enumerate() {
            let scale = scale * f32::from(self.scales[2 * group + part]);
            let at = GROUP / 2 * part..;
            for ((out, &four), &two) in
                out.iter_mut().zip(&four_bits[at.clone()]).zip(&two_bits[at])
            {
                let value = u32::from(four) >> low & 15 | (u32::from(two) >> high & 3) << 4;
                *out = scale * (value as i32 - 32) as f32;
            }
        }
    }
}

// SAFETY: made of bytes.
unsafe impl Block for Q5KBlock {
    const WEIGHTS: usize = WEIGHTS;

    #[inline(always)]
    fn unpack(&self, group: usize, out: &mut [f32; GROUP]) {
        let [scale, offset] = self.scales.of(group);
        let (scale, offset) = (half(self.scale) * scale, half(self.offset) * offset);
        let (bytes, shift) = halves(&self.halves, group);
        for ((out, &byte), &fifth) in out.iter_mut().zip(bytes).zip(&self.fifth_bits) {
            let value = u32::from(byte) >> shift & 15 | (u32::from(fifth) >> group & 1) << 4;
            *out = scale * value as i32 as f32 - offset;
        }
    }
}

// SAFETY: made of bytes.
unsafe impl Block for Q4KBlock {
    const WEIGHTS: usize = WEIGHTS;

    #[inline(always)]
    fn unpack(&self, group: usize, out: &mut [f32; GROUP]) {
        let [scale, offset] = self.scales.of(group);
        let (scale, offset) = (half(self.scale) * scale, half(self.offset) * offset);
        let (bytes, shift) = halves(&self.halves, group);
        for (out, &byte) in out.iter_mut().zip(bytes) {
            *out = scale * (u32::from(byte) >> shift & 15) as i32 as f32 - offset;
        }
    }
}
