//! Blocks of 32 weights. Of halves, the lower ones of all bytes are the first 16 weights.

mod pack;
mod search;

use super::{Block, GROUP, half, packing, packing_or_searched};
use crate::cuda::source::Source;
use crate::format::{Packed, WeightFormat};

pub(in crate::format) static Q8_0: WeightFormat = packing::<Q8_0Block>("q8_0", &Q8_0_SOURCE);
pub(in crate::format) static Q5_1: WeightFormat =
    packing_or_searched::<Q5_1Block>("q5_1", &Q5_1_SOURCE);
pub(in crate::format) static Q5_0: WeightFormat =
    packing_or_searched::<Q5_0Block>("q5_0", &Q5_0_SOURCE);
pub(in crate::format) static Q4_1: WeightFormat =
    packing_or_searched::<Q4_1Block>("q4_1", &Q4_1_SOURCE);
pub(in crate::format) static Q4_0: WeightFormat =
    packing_or_searched::<Q4_0Block>("q4_0", &Q4_0_SOURCE);
pub(in crate::format) static MXFP4: WeightFormat = packing::<Mxfp4Block>("mxfp4", &MXFP4_SOURCE);

static Q8_0_SOURCE: Source = super::source!("q8_0", "Q8_0");
static Q5_1_SOURCE: Source = super::source!("q5_1", "Q5_1");
static Q5_0_SOURCE: Source = super::source!("q5_0", "Q5_0");
static Q4_1_SOURCE: Source = super::source!("q4_1", "Q4_1");
static Q4_0_SOURCE: Source = super::source!("q4_0", "Q4_0");
static MXFP4_SOURCE: Source = super::source!("mxfp4", "Mxfp4");

pub(super) use search::codes_of;

/// A scale and signed bytes.
#[repr(C)]
struct Q8_0Block {
    scale: [u8; 2],
    values: [i8; GROUP],
}

/// Blocks of [`Q8_0`], for packing panels straight from them.
#[derive(Clone, Copy)]
pub(crate) struct Q8_0Blocks<'a>(&'a [u8]);

impl<'a> Q8_0Blocks<'a> {
    const BYTES: usize = size_of::<Q8_0Block>();

    /// The blocks of a matrix; `None` if it has another format.
    pub fn of(packed: Packed<'a>) -> Option<Self> {
        std::ptr::eq(packed.format(), &Q8_0).then_some(Self(packed.bytes()))
    }

    /// Number of weights.
    pub fn len(self) -> usize {
        self.0.len() / Self::BYTES * GROUP
    }

    pub fn bytes(self) -> &'a [u8] {
        self.0
    }

    /// Where the byte of a weight is.
    #[inline(always)]
    pub fn offset(index: usize) -> usize {
        index / GROUP * Self::BYTES + std::mem::offset_of!(Q8_0Block, values) + index % GROUP
    }

    /// The bits of the f16 that a weight's byte is multiplied with.
    #[inline(always)]
    pub fn scale_bits(self, index: usize) -> u16 {
        let at = index / GROUP * Self::BYTES;
        u16::from_le_bytes([self.0[at], self.0[at + 1]])
    }
}

/// A scale, the least weight, the fifth bits of all weights, and their halves of bytes.
#[repr(C)]
struct Q5_1Block {
    scale: [u8; 2],
    least: [u8; 2],
    fifth_bits: [u8; 4],
    halves: [u8; GROUP / 2],
}

/// A scale, the fifth bits of all weights, and their halves of bytes; 16 stands for zero.
#[repr(C)]
struct Q5_0Block {
    scale: [u8; 2],
    fifth_bits: [u8; 4],
    halves: [u8; GROUP / 2],
}

/// A scale, the least weight, and halves of bytes.
#[repr(C)]
struct Q4_1Block {
    scale: [u8; 2],
    least: [u8; 2],
    halves: [u8; GROUP / 2],
}

/// A scale and halves of bytes; 8 stands for zero.
#[repr(C)]
struct Q4_0Block {
    scale: [u8; 2],
    halves: [u8; GROUP / 2],
}

/// A power of two (e8m0) and halves of bytes, floats of four bits (e2m1): OCP Microscaling, 2023.
#[repr(C)]
struct Mxfp4Block {
    exponent: u8,
    halves: [u8; GROUP / 2],
}

/// The blocks of a matrix of which `blocks` has two neighbours in each byte, and `scales` the
/// powers of two.
pub(in crate::format) fn write_mxfp4(blocks: &[u8], scales: &[u8], bytes: &mut [u8]) {
    let (to, _) = bytes.as_chunks_mut::<{ size_of::<Mxfp4Block>() }>();
    let (blocks, _) = blocks.as_chunks::<{ GROUP / 2 }>();
    assert!(to.len() == scales.len() && to.len() == blocks.len(), "as many as blocks");
    for ((to, block), &scale) in to.iter_mut().zip(blocks).zip(scales) {
        let weight = |i: usize| block[i / 2] >> (4 * (i % 2)) & 15;
        to[0] = scale;
        for (i, to) in to[1..].iter_mut().enumerate() {
            *to = weight(i) | weight(i + GROUP / 2) << 4;
        }
    }
}

/// Calls `weight(half, number)` for all weights of a block.
#[inline(always)]
pub(super) fn from_halves(
    halves: &[u8; GROUP / 2],
    out: &mut [f32; GROUP],
    weight: impl Fn(u8, usize) -> f32,
) {
    let (low, high) = out.split_at_mut(GROUP / 2);
    for (i, (out, byte)) in low.iter_mut().zip(halves).enumerate() {
        *out = weight(byte & 15, i);
    }
    for (i, (out, byte)) in high.iter_mut().zip(halves).enumerate() {
        *out = weight(byte >> 4, i + GROUP / 2);
    }
}

// SAFETY: made of bytes.
unsafe impl Block for Q8_0Block {
    const WEIGHTS: usize = GROUP;

    #[inline(always)]
    fn unpack(&self, _: usize, out: &mut [f32; GROUP]) {
        let scale = half(self.scale);
        for (out, &value) in out.iter_mut().zip(&self.values) {
            *out = scale * f32::from(value);
        }
    }
}

/// Half of a block's power of two, since [`e2m1`] is twice the floats.
#[inline(always)]
fn power_of_two(exponent: u8) -> f32 {
    f32::from_bits(match exponent {
        0 | 1 => 0x0020_0000 << exponent,
        _ => u32::from(exponent - 1) << 23,
    })
}

/// Twice a float of four bits.
#[inline(always)]
fn e2m1(bits: u8) -> i32 {
    let (exponent, mantissa) = (i32::from(bits >> 1 & 3), i32::from(bits & 1));
    let magnitude = match exponent {
        0 => mantissa,
        _ => (2 | mantissa) << (exponent - 1),
    };
    if bits & 8 == 0 { magnitude } else { -magnitude }
}

/// With the fifth bit of weight `i`.
#[inline(always)]
fn five_bits(half: u8, fifth_bits: u32, i: usize) -> i32 {
    (u32::from(half) | (fifth_bits >> i & 1) << 4) as i32
}

// SAFETY: made of bytes.
unsafe impl Block for Q5_1Block {
    const WEIGHTS: usize = GROUP;

    #[inline(always)]
    fn unpack(&self, _: usize, out: &mut [f32; GROUP]) {
        let (scale, least) = (half(self.scale), half(self.least));
        let fifth_bits = u32::from_le_bytes(self.fifth_bits);
        from_halves(&self.halves, out, |half, i| {
            scale * five_bits(half, fifth_bits, i) as f32 + least
        });
    }
}

// SAFETY: made of bytes.
unsafe impl Block for Q5_0Block {
    const WEIGHTS: usize = GROUP;

    #[inline(always)]
    fn unpack(&self, _: usize, out: &mut [f32; GROUP]) {
        let (scale, fifth_bits) = (half(self.scale), u32::from_le_bytes(self.fifth_bits));
        from_halves(&self.halves, out, |half, i| {
            scale * (five_bits(half, fifth_bits, i) - 16) as f32
        });
    }
}

// SAFETY: made of bytes.
unsafe impl Block for Q4_1Block {
    const WEIGHTS: usize = GROUP;

    #[inline(always)]
    fn unpack(&self, _: usize, out: &mut [f32; GROUP]) {
        let (scale, least) = (half(self.scale), half(self.least));
        from_halves(&self.halves, out, |half, _| scale * f32::from(half) + least);
    }
}

// SAFETY: made of bytes.
unsafe impl Block for Q4_0Block {
    const WEIGHTS: usize = GROUP;

    #[inline(always)]
    fn unpack(&self, _: usize, out: &mut [f32; GROUP]) {
        let scale = half(self.scale);
        from_halves(&self.halves, out, |half, _| scale * (i32::from(half) - 8) as f32);
    }
}

// SAFETY: made of bytes.
unsafe impl Block for Mxfp4Block {
    const WEIGHTS: usize = GROUP;

    #[inline(always)]
    fn unpack(&self, _: usize, out: &mut [f32; GROUP]) {
        let scale = power_of_two(self.exponent);
        from_halves(&self.halves, out, |half, _| scale * e2m1(half) as f32);
    }
}
