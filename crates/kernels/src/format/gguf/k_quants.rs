//! "K-quants": blocks of 256 weights, whose scales of 32 or 16 weights are integers themselves.

use super::encode::{Parts, Searched};
use super::fit::{Grid, Offsets};
use super::{Block, GROUP, half, searched, to_half};
use crate::cuda::source::Source;
use crate::format::WeightFormat;

pub(in crate::format) static Q6_K: WeightFormat = searched::<Q6KBlock>("q6_k", &Q6_K_SOURCE);
pub(in crate::format) static Q5_K: WeightFormat = searched::<Q5KBlock>("q5_k", &Q5_K_SOURCE);
pub(in crate::format) static Q4_K: WeightFormat = searched::<Q4KBlock>("q4_k", &Q4_K_SOURCE);
pub(in crate::format) static Q3_K: WeightFormat = searched::<Q3KBlock>("q3_k", &Q3_K_SOURCE);
pub(in crate::format) static Q2_K: WeightFormat = searched::<Q2KBlock>("q2_k", &Q2_K_SOURCE);

static Q6_K_SOURCE: Source = super::source!("q6_k", "Q6_K");
static Q5_K_SOURCE: Source = super::source!("q5_k", "Q5_K");
static Q4_K_SOURCE: Source = super::source!("q4_k", "Q4_K");
static Q3_K_SOURCE: Source = super::source!("q3_k", "Q3_K");
static Q2_K_SOURCE: Source = super::source!("q2_k", "Q2_K");

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

/// Weights of two bits, four groups of which share their bytes, and a third bit of each, without
/// which four are taken off: bit `i` of all bytes is group `i`'s. Each 16 weights have a scale of
/// six bits, of which 32 stands for zero: four of the first eight scales' in the lower halves of
/// bytes, and of the last eight's in the upper, then two of each four apart, in the last four
/// bytes.
#[repr(C)]
struct Q3KBlock {
    third_bits: [u8; GROUP],
    two_bits: [u8; WEIGHTS / 4],
    scales: [u8; 8],
    upper_scales: [u8; 4],
    scale: [u8; 2],
}

/// Weights of two bits, four groups of which share their bytes. Each 16 have a scale and an offset
/// of four bits in a byte.
#[repr(C)]
struct Q2KBlock {
    scales: [u8; WEIGHTS / 16],
    two_bits: [u8; WEIGHTS / 4],
    scale: [u8; 2],
    offset: [u8; 2],
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

/// Bits `shift..` of the bytes that four groups share.
#[inline(always)]
fn quarters(bytes: &[u8; WEIGHTS / 4], group: usize) -> (&[u8; GROUP], u32) {
    (&bytes.as_chunks().0[group / 4], 2 * (group % 4) as u32)
}

/// The four bits of a weight whose byte two groups share.
fn of_halves(bytes: &[u8; WEIGHTS / 2], i: usize) -> u8 {
    bytes[i / 64 * GROUP + i % GROUP] >> (4 * (i / GROUP % 2)) & 15
}

/// The two bits of a weight whose byte four groups share.
fn of_quarters(bytes: &[u8; WEIGHTS / 4], i: usize) -> u8 {
    bytes[i / 128 * GROUP + i % GROUP] >> (2 * (i / GROUP % 4)) & 3
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

impl Q3KBlock {
    /// The scale of 16 weights.
    #[inline(always)]
    fn scale_of(&self, i: usize) -> i32 {
        let lower = self.scales[i % 8] >> (4 * (i / 8)) & 15;
        let upper = self.upper_scales[i % 4] >> (2 * (i / 4)) & 3;
        i32::from(lower | upper << 4) - 32
    }
}

// SAFETY: made of bytes.
unsafe impl Block for Q3KBlock {
    const WEIGHTS: usize = WEIGHTS;

    #[inline(always)]
    fn unpack(&self, group: usize, out: &mut [f32; GROUP]) {
        let (bytes, shift) = quarters(&self.two_bits, group);
        for (part, out) in out.as_chunks_mut::<{ GROUP / 2 }>().0.iter_mut().enumerate() {
            let scale = half(self.scale) * self.scale_of(2 * group + part) as f32;
            let at = GROUP / 2 * part..;
            for ((out, &byte), &third) in
                out.iter_mut().zip(&bytes[at.clone()]).zip(&self.third_bits[at])
            {
                let value = u32::from(byte) >> shift & 3 | (u32::from(third) >> group & 1) << 2;
                *out = scale * (value as i32 - 4) as f32;
            }
        }
    }
}

// SAFETY: made of bytes.
unsafe impl Block for Q2KBlock {
    const WEIGHTS: usize = WEIGHTS;

    #[inline(always)]
    fn unpack(&self, group: usize, out: &mut [f32; GROUP]) {
        let (bytes, shift) = quarters(&self.two_bits, group);
        for (part, out) in out.as_chunks_mut::<{ GROUP / 2 }>().0.iter_mut().enumerate() {
            let both = self.scales[2 * group + part];
            let scale = half(self.scale) * f32::from(both & 15);
            let offset = half(self.offset) * f32::from(both >> 4);
            for (out, &byte) in out.iter_mut().zip(&bytes[GROUP / 2 * part..]) {
                *out = scale * (u32::from(byte) >> shift & 3) as i32 as f32 - offset;
            }
        }
    }
}

impl Searched for Q6KBlock {
    const GRID: Grid = Grid {
        levels: [-32.0, 31.0],
        table: None,
        scales: Some([-128.0, 127.0]),
        offsets: Offsets::None,
    };
    const GROUP_LEN: usize = 16;

    fn assembled(parts: &Parts) -> Self {
        let (mut four_bits, mut two_bits) = ([0; WEIGHTS / 2], [0; WEIGHTS / 4]);
        for (i, &code) in parts.codes.iter().enumerate() {
            let (half, group, lane) = (i / 128, i / GROUP % 4, i % GROUP);
            four_bits[64 * half + 32 * (group % 2) + lane] |= (code & 15) << (4 * (group / 2));
            two_bits[32 * half + lane] |= (code >> 4) << (2 * group);
        }
        let scales = parts.scales.map(|scale| scale as i8);
        Self { four_bits, two_bits, scales, scale: to_half(parts.scale) }
    }

    fn parts(&self) -> Parts {
        let code = |i: usize| {
            let (half, group, lane) = (i / 128, i / GROUP % 4, i % GROUP);
            let four = self.four_bits[64 * half + 32 * (group % 2) + lane] >> (4 * (group / 2));
            four & 15 | (self.two_bits[32 * half + lane] >> (2 * group) & 3) << 4
        };
        Parts {
            scale: half(self.scale),
            scales: self.scales.map(i32::from),
            codes: std::array::from_fn(code),
            ..Parts::ZERO
        }
    }
}

impl Searched for Q5KBlock {
    const GRID: Grid = with_offsets(31.0);
    const GROUP_LEN: usize = GROUP;

    fn assembled(parts: &Parts) -> Self {
        let (mut fifth_bits, mut halves) = ([0; GROUP], [0; WEIGHTS / 2]);
        for (i, &code) in parts.codes.iter().enumerate() {
            halves[i / 64 * GROUP + i % GROUP] |= (code & 15) << (4 * (i / GROUP % 2));
            fifth_bits[i % GROUP] |= (code >> 4) << (i / GROUP);
        }
        let (scale, offset) = (to_half(parts.scale), to_half(parts.offset));
        Self { scale, offset, scales: SixBits::of_groups(parts), fifth_bits, halves }
    }

    fn parts(&self) -> Parts {
        let fifth = |i: usize| self.fifth_bits[i % GROUP] >> (i / GROUP) & 1;
        let codes = std::array::from_fn(|i| of_halves(&self.halves, i) | fifth(i) << 4);
        let [scale, offset] = [self.scale, self.offset].map(half);
        Parts { scale, offset, codes, ..self.scales.parts() }
    }
}

impl Searched for Q4KBlock {
    const GRID: Grid = with_offsets(15.0);
    const GROUP_LEN: usize = GROUP;

    fn assembled(parts: &Parts) -> Self {
        let mut halves = [0; WEIGHTS / 2];
        for (i, &code) in parts.codes.iter().enumerate() {
            halves[i / 64 * GROUP + i % GROUP] |= code << (4 * (i / GROUP % 2));
        }
        let (scale, offset) = (to_half(parts.scale), to_half(parts.offset));
        Self { scale, offset, scales: SixBits::of_groups(parts), halves }
    }

    fn parts(&self) -> Parts {
        let codes = std::array::from_fn(|i| of_halves(&self.halves, i));
        let [scale, offset] = [self.scale, self.offset].map(half);
        Parts { scale, offset, codes, ..self.scales.parts() }
    }
}

/// Levels from 0 on, with scales and offsets of six bits.
const fn with_offsets(highest: f32) -> Grid {
    Grid {
        levels: [0.0, highest],
        table: None,
        scales: Some([0.0, 63.0]),
        offsets: Offsets::Integers(63.0),
    }
}

impl SixBits {
    /// The integers of groups.
    fn parts(&self) -> Parts {
        let mut parts = Parts::ZERO;
        for group in 0..WEIGHTS / GROUP {
            let [scale, offset] = self.of(group);
            (parts.scales[group], parts.offsets[group]) = (scale as i32, offset as i32);
        }
        parts
    }

    fn of_groups(parts: &Parts) -> Self {
        let [scales, offsets] = [parts.scales, parts.offsets].map(|all| all.map(|x| x as u8));
        let first = |all: [u8; 16], i: usize| all[i] | (all[i + 4] >> 4) << 6;
        Self {
            scales: std::array::from_fn(|i| first(scales, i)),
            offsets: std::array::from_fn(|i| first(offsets, i)),
            last: std::array::from_fn(|i| scales[i + 4] & 15 | (offsets[i + 4] & 15) << 4),
        }
    }
}

impl Searched for Q3KBlock {
    const GRID: Grid = Grid {
        levels: [-4.0, 3.0],
        table: None,
        scales: Some([-32.0, 31.0]),
        offsets: Offsets::None,
    };
    const GROUP_LEN: usize = 16;

    fn assembled(parts: &Parts) -> Self {
        let (mut third_bits, mut two_bits) = ([0; GROUP], [0; WEIGHTS / 4]);
        for (i, &code) in parts.codes.iter().enumerate() {
            two_bits[i / 128 * GROUP + i % GROUP] |= (code & 3) << (2 * (i / GROUP % 4));
            third_bits[i % GROUP] |= (code >> 2) << (i / GROUP);
        }
        let (mut scales, mut upper_scales) = ([0; 8], [0; 4]);
        for (i, scale) in parts.scales.iter().enumerate() {
            let scale = (scale + 32) as u8;
            scales[i % 8] |= (scale & 15) << (4 * (i / 8));
            upper_scales[i % 4] |= (scale >> 4) << (2 * (i / 4));
        }
        Self { third_bits, two_bits, scales, upper_scales, scale: to_half(parts.scale) }
    }

    fn parts(&self) -> Parts {
        let third = |i: usize| self.third_bits[i % GROUP] >> (i / GROUP) & 1;
        Parts {
            scale: half(self.scale),
            scales: std::array::from_fn(|i| self.scale_of(i)),
            codes: std::array::from_fn(|i| of_quarters(&self.two_bits, i) | third(i) << 2),
            ..Parts::ZERO
        }
    }
}

impl Searched for Q2KBlock {
    const GRID: Grid = Grid {
        levels: [0.0, 3.0],
        table: None,
        scales: Some([0.0, 15.0]),
        offsets: Offsets::Integers(15.0),
    };
    const GROUP_LEN: usize = 16;

    fn assembled(parts: &Parts) -> Self {
        let mut two_bits = [0; WEIGHTS / 4];
        for (i, &code) in parts.codes.iter().enumerate() {
            two_bits[i / 128 * GROUP + i % GROUP] |= code << (2 * (i / GROUP % 4));
        }
        let both = |i: usize| parts.scales[i] as u8 | (parts.offsets[i] as u8) << 4;
        let (scale, offset) = (to_half(parts.scale), to_half(parts.offset));
        Self { scales: std::array::from_fn(both), two_bits, scale, offset }
    }

    fn parts(&self) -> Parts {
        Parts {
            scale: half(self.scale),
            offset: half(self.offset),
            scales: self.scales.map(|both| i32::from(both & 15)),
            offsets: self.scales.map(|both| i32::from(both >> 4)),
            codes: std::array::from_fn(|i| of_quarters(&self.two_bits, i)),
        }
    }
}
