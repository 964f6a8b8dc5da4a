//! Plain rounding: a scale from the extremes of a block, and each weight to the nearest. Every byte
//! is the one that the `gguf` package writes.

use super::{Mxfp4Block, Q4_0Block, Q4_1Block, Q5_0Block, Q5_1Block, Q8_0Block};
use crate::format::gguf::{GROUP, Pack, to_half};

/// `1 / x`; 0 if there is none, as of a block of zeros.
#[inline(always)]
fn inverse(x: f32) -> f32 {
    let inverse = 1.0 / x;
    if inverse.is_finite() { inverse } else { 0.0 }
}

#[inline(always)]
fn largest_magnitude(weights: &[f32; GROUP]) -> f32 {
    weights.iter().fold(0.0, |largest: f32, x| largest.max(x.abs()))
}

/// The scale with which the first of the weights of largest magnitude is `-zero`, whatever its
/// sign, and the integers, to which `zero` is added.
#[inline(always)]
fn symmetric(weights: &[f32; GROUP], zero: u8) -> ([u8; 2], [u8; GROUP]) {
    let largest = largest_magnitude(weights);
    let signed = weights.iter().find(|x| x.abs() == largest).copied().unwrap_or(0.0);
    let scale = signed / -f32::from(zero);
    let (inverse, half) = (inverse(scale), f32::from(zero) + 0.5);
    let integer = |x: f32| ((x * inverse + half) as i32).min(2 * i32::from(zero) - 1) as u8;
    (to_half(scale), weights.map(integer))
}

/// Scale, least weight and integers up to `highest`.
#[inline(always)]
fn from_least(weights: &[f32; GROUP], highest: u8) -> ([[u8; 2]; 2], [u8; GROUP]) {
    let least = weights.iter().copied().fold(f32::INFINITY, f32::min);
    let largest = weights.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let scale = (largest - least) / f32::from(highest);
    let inverse = inverse(scale);
    let integer = |x: f32| (((x - least) * inverse + 0.5) as i32).min(i32::from(highest)) as u8;
    let halves = [scale, least].map(to_half);
    (halves, weights.map(integer))
}

/// The lower four bits.
#[inline(always)]
pub(super) fn halves(integers: &[u8; GROUP]) -> [u8; GROUP / 2] {
    std::array::from_fn(|i| integers[i] & 15 | integers[i + GROUP / 2] << 4)
}

#[inline(always)]
pub(super) fn fifth_bits(integers: &[u8; GROUP]) -> [u8; 4] {
    let bit = |(i, &integer): (usize, &u8)| u32::from(integer >> 4) << i;
    integers.iter().enumerate().map(bit).fold(0, |bits, bit| bits | bit).to_le_bytes()
}

impl Pack for Q8_0Block {
    #[inline(always)]
    fn pack(weights: &[f32; GROUP]) -> Self {
        let scale = largest_magnitude(weights) / 127.0;
        let inverse = inverse(scale);
        let values = weights.map(|x| (x * inverse).round() as i8);
        Self { scale: to_half(scale), values }
    }
}

impl Pack for Q5_1Block {
    #[inline(always)]
    fn pack(weights: &[f32; GROUP]) -> Self {
        let ([scale, least], integers) = from_least(weights, 31);
        Self { scale, least, fifth_bits: fifth_bits(&integers), halves: halves(&integers) }
    }
}

impl Pack for Q5_0Block {
    #[inline(always)]
    fn pack(weights: &[f32; GROUP]) -> Self {
        let (scale, integers) = symmetric(weights, 16);
        Self { scale, fifth_bits: fifth_bits(&integers), halves: halves(&integers) }
    }
}

impl Pack for Q4_1Block {
    #[inline(always)]
    fn pack(weights: &[f32; GROUP]) -> Self {
        let ([scale, least], integers) = from_least(weights, 15);
        Self { scale, least, halves: halves(&integers) }
    }
}

impl Pack for Q4_0Block {
    #[inline(always)]
    fn pack(weights: &[f32; GROUP]) -> Self {
        let (scale, integers) = symmetric(weights, 8);
        Self { scale, halves: halves(&integers) }
    }
}

impl Pack for Mxfp4Block {
    #[inline(always)]
    fn pack(weights: &[f32; GROUP]) -> Self {
        let exponent = exponent(largest_magnitude(weights));
        let scale = super::power_of_two(exponent);
        let (mut integers, mut least) = ([0; GROUP], [f32::INFINITY; GROUP]);
        for bits in 0..16 {
            let level = scale * super::e2m1(bits) as f32;
            for ((integer, least), x) in integers.iter_mut().zip(&mut least).zip(weights) {
                let error = (level - x).abs();
                *integer = if error < *least { bits } else { *integer };
                *least = least.min(error);
            }
        }
        Self { exponent, halves: halves(&integers) }
    }
}

/// The power of two with which the largest magnitude of a block is between 4 and 8: 6 is the
/// largest e2m1 float.
#[inline(always)]
fn exponent(largest: f32) -> u8 {
    const BIAS: f32 = 127.0;
    if largest == 0.0 {
        return 0;
    }
    // The logarithm is rounded to `f32` before it is cut off, as in the package.
    let exponent = (f64::from(largest).log2() as f32).floor() - 2.0 + BIAS;
    exponent.max(0.0) as u8
}
