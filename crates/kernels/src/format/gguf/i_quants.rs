//! "I-quants" of four bits: each is a number of a table that is dense around zero.

use super::encode::{Parts, Searched};
use super::fit::{Grid, Offsets};
use super::{Block, GROUP, half, searched, to_half};
use crate::cuda::source::Source;
use crate::format::WeightFormat;

pub(in crate::format) static IQ4_XS: WeightFormat =
    searched::<Iq4XsBlock>("iq4_xs", &IQ4_XS_SOURCE);
pub(in crate::format) static IQ4_NL: WeightFormat =
    searched::<Iq4NlBlock>("iq4_nl", &IQ4_NL_SOURCE);

static IQ4_XS_SOURCE: Source = super::source!("iq4_xs", "IQ4_XS");
static IQ4_NL_SOURCE: Source = super::source!("iq4_nl", "IQ4_NL");

/// What the four bits stand for.
#[rustfmt::skip]
const LEVELS: [i8; 16] =
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// Weights of a block of [`IQ4_XS`].
const WEIGHTS: usize = 256;

/// A scale and halves of bytes, as in [`super::Q4_0`].
#[repr(C)]
struct Iq4NlBlock {
    scale: [u8; 2],
    halves: [u8; GROUP / 2],
}

/// Groups of 32 weights with halves of bytes and a scale of six bits each, of which 32 stands for
/// zero: the upper two of all groups, then the lower four, two groups a byte.
#[repr(C)]
struct Iq4XsBlock {
    scale: [u8; 2],
    upper: [u8; 2],
    lower: [u8; WEIGHTS / GROUP / 2],
    halves: [u8; WEIGHTS / 2],
}

#[inline(always)]
fn levels(halves: &[u8; GROUP / 2], scale: f32, out: &mut [f32; GROUP]) {
    let level = |half: u8| scale * f32::from(LEVELS[usize::from(half)]);
    super::small::from_halves(halves, out, |half, _| level(half));
}

// SAFETY: made of bytes.
unsafe impl Block for Iq4NlBlock {
    const WEIGHTS: usize = GROUP;

    #[inline(always)]
    fn unpack(&self, _: usize, out: &mut [f32; GROUP]) {
        levels(&self.halves, half(self.scale), out);
    }
}

impl Iq4XsBlock {
    /// The scale of a group.
    #[inline(always)]
    fn scale_of(&self, group: usize) -> i32 {
        let upper = u16::from_le_bytes(self.upper) >> (2 * group) & 3;
        let lower = u16::from(self.lower[group / 2] >> (4 * (group % 2)) & 15);
        i32::from(lower | upper << 4) - 32
    }
}

// SAFETY: made of bytes.
unsafe impl Block for Iq4XsBlock {
    const WEIGHTS: usize = WEIGHTS;

    #[inline(always)]
    fn unpack(&self, group: usize, out: &mut [f32; GROUP]) {
        let halves: &[u8; GROUP / 2] = &self.halves.as_chunks().0[group];
        levels(halves, half(self.scale) * self.scale_of(group) as f32, out);
    }
}

/// The levels of a group, and what they are multiplied by.
const fn grid(scales: Option<[f32; 2]>) -> Grid {
    Grid { levels: [-127.0, 113.0], table: Some(&LEVELS), scales, offsets: Offsets::None }
}

impl Searched for Iq4NlBlock {
    const GRID: Grid = grid(None);
    const GROUP_LEN: usize = GROUP;

    fn assembled(parts: &Parts) -> Self {
        let mut halves = [0; GROUP / 2];
        for (i, &code) in parts.codes[..GROUP].iter().enumerate() {
            halves[i % 16] |= code << (4 * (i / 16));
        }
        Self { scale: to_half(parts.scale), halves }
    }

    fn parts(&self) -> Parts {
        let scale = half(self.scale);
        Parts { scale, codes: super::small::codes_of(&self.halves, |_| 0), ..Parts::ZERO }
    }
}

impl Searched for Iq4XsBlock {
    const GRID: Grid = grid(Some([-32.0, 31.0]));
    const GROUP_LEN: usize = GROUP;

    fn assembled(parts: &Parts) -> Self {
        let (mut upper, mut lower, mut halves) = (0, [0; WEIGHTS / GROUP / 2], [0; WEIGHTS / 2]);
        for (group, scale) in parts.scales[..WEIGHTS / GROUP].iter().enumerate() {
            let scale = (scale + 32) as u16;
            upper |= (scale >> 4) << (2 * group);
            lower[group / 2] |= (scale as u8 & 15) << (4 * (group % 2));
        }
        for (i, &code) in parts.codes.iter().enumerate() {
            halves[i / GROUP * 16 + i % 16] |= code << (4 * (i / 16 % 2));
        }
        Self { scale: to_half(parts.scale), upper: upper.to_le_bytes(), lower, halves }
    }

    fn parts(&self) -> Parts {
        let code = |i: usize| self.halves[i / GROUP * 16 + i % 16] >> (4 * (i / 16 % 2)) & 15;
        let mut parts =
            Parts { scale: half(self.scale), codes: std::array::from_fn(code), ..Parts::ZERO };
        for (group, scale) in parts.scales[..WEIGHTS / GROUP].iter_mut().enumerate() {
            *scale = self.scale_of(group);
        }
        parts
    }
}
