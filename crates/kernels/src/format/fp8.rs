//! FP8 with four bits of exponent and three of mantissa (e4m3, without infinities), as Hub
//! repositories ship it: one scale for the matrix, one for each row, or one for each 128 × 128
//! weights. Layout: the `f32` scales, then the bytes of all rows. Only read.

use super::{Packed, WeightFormat};
use crate::cpu::{Isa, Kernel};
use crate::cuda::arg::Arg;
use crate::cuda::source::Source;

pub(super) static FP8: WeightFormat = WeightFormat {
    name: "fp8",
    block: 1,
    for_tables: true,
    num_bytes: |[rows, cols]| 4 + rows * cols,
    unpack: |weights, first, out| unpack(weights, [usize::MAX; 2], first, out),
    pack: None,
    search: None,
    coding: None,
    tiles: None,
    source: &SOURCE,
    parameter: |address, [_, cols]| Arg::pair(address, cols as u64),
};

pub(super) static FP8_ROWS: WeightFormat = WeightFormat {
    name: "fp8_rows",
    num_bytes: |[rows, cols]| rows * (4 + cols),
    unpack: |weights, first, out| unpack(weights, [1, usize::MAX], first, out),
    source: &ROWS_SOURCE,
    parameter: |address, [rows, _]| Arg::pair(address, rows as u64),
    ..FP8
};

pub(super) static FP8_BLOCK: WeightFormat = WeightFormat {
    name: "fp8_block",
    block: 1,
    for_tables: true,
    num_bytes: |shape| 4 * num_scales(shape) + shape[0] * shape[1],
    unpack: |weights, first, out| unpack(weights, [BLOCK; 2], first, out),
    pack: None,
    search: None,
    coding: None,
    tiles: None,
    source: &BLOCK_SOURCE,
    parameter: |address, [rows, cols]| Arg::pair(address, (rows as u64) << 32 | cols as u64),
};

static SOURCE: Source = super::source!("fp8", include_str!("fp8.cuh"), "typedef Fp8 Weights;\n");

static ROWS_SOURCE: Source =
    super::source!("fp8_rows", include_str!("fp8.cuh"), "typedef Fp8Rows Weights;\n");

static BLOCK_SOURCE: Source =
    super::source!("fp8_block", include_str!("fp8.cuh"), "typedef Fp8Blocks Weights;\n");

/// Rows and columns that share a scale.
const BLOCK: usize = 128;

/// Scales of a matrix with one for each block.
pub(super) fn num_scales(shape: [usize; 2]) -> usize {
    let [rows, cols] = shape.map(|size| size.div_ceil(BLOCK));
    rows * cols
}

/// `block` is how many rows and columns share a scale.
fn unpack(weights: &Packed<'_>, block: [usize; 2], first: usize, out: &mut [f32]) {
    let ([down, block], len, cols) = (block, weights.len(), weights.cols());
    let (scales, values) = weights.bytes().split_at(weights.bytes().len() - len);
    let (row, mut col) = (first / cols, first % cols);
    let scales = &scales.as_chunks().0[row / down * cols.div_ceil(block)..];
    let (mut values, mut left) = (&values[first..], out);
    // A block at a time.
    while !left.is_empty() {
        let len = left.len().min(block - col % block);
        let (out, rest) = left.split_at_mut(len);
        let scale = f32::from_le_bytes(scales[col / block]);
        Isa::detect().run(Unpack { values: &values[..len], scale, out });
        (values, left, col) = (&values[len..], rest, col + len);
    }
}

struct Unpack<'a> {
    values: &'a [u8],
    scale: f32,
    out: &'a mut [f32],
}

impl Kernel for Unpack<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for (out, &value) in self.out.iter_mut().zip(self.values) {
            *out = e4m3(value) * self.scale;
        }
    }
}

/// The value of a byte. Below the least normal number, 2^-6, the mantissa is added to that and it
/// is taken off again, which some processors do faster than to multiply a subnormal `f32`.
#[inline(always)]
fn e4m3(byte: u8) -> f32 {
    const LEAST: u32 = 121 << 23;
    let (sign, magnitude) = (u32::from(byte & 0x80) << 24, u32::from(byte & 0x7f));
    let normal = (magnitude << 20) + (120 << 23);
    let subnormal = (f32::from_bits(LEAST | magnitude << 20) - f32::from_bits(LEAST)).to_bits();
    let bits = match magnitude {
        0..8 => subnormal,
        0x7f => 0x7fc0_0000,
        _ => normal,
    };
    f32::from_bits(sign | bits)
}

/// The byte whose value is nearest to `x`; on ties the even one, and of what is larger than all the
/// largest.
pub fn to_e4m3(x: f32) -> u8 {
    /// Below it values are as far apart as above, since they have no leading 1.
    const LEAST: f32 = 0.015_625;
    if x.is_nan() {
        return 0x7f;
    }
    let (sign, magnitude) = ((x.to_bits() >> 24 & 0x80) as u8, x.abs().min(448.0));
    if magnitude < LEAST {
        return sign | (magnitude * 512.0).round_ties_even() as u8;
    }
    // Three bits of the mantissa are left.
    let bits = magnitude.to_bits();
    let rounded = (bits + 0x7_ffff + (bits >> 20 & 1)) >> 20;
    sign | (rounded - (120 << 3)) as u8
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::tests::{PackedMatrix, check_on_gpu};

    /// Written down from the format: `(1 + m / 8) · 2^(e - 7)`, or `m / 8 · 2^-6` where `e` is 0.
    fn exact(byte: u8) -> f64 {
        let (exponent, mantissa) = (i32::from(byte >> 3 & 15), f64::from(byte & 7));
        let magnitude = match (exponent, byte & 7) {
            (15, 7) => f64::NAN,
            (0, _) => mantissa / 8.0 * 2f64.powi(-6),
            _ => (1.0 + mantissa / 8.0) * 2f64.powi(exponent - 7),
        };
        if byte < 128 { magnitude } else { -magnitude }
    }

    #[test]
    fn bytes_have_the_values_of_the_format() {
        for byte in 0..=u8::MAX {
            let (found, exact) = (e4m3(byte), exact(byte) as f32);
            let same = found.to_bits() == exact.to_bits() || found.is_nan() && exact.is_nan();
            assert!(same, "{byte:#x}: {found}");
        }
    }

    /// Every value, what is just beside the middle of two, and the middle.
    #[test]
    fn numbers_take_the_nearest_byte() {
        for byte in 0..0x7eu8 {
            let [low, high] = [byte, byte + 1].map(exact);
            let middle = ((low + high) / 2.0) as f32;
            assert_eq!(to_e4m3(low as f32), byte);
            assert_eq!(to_e4m3(-low as f32), byte | 0x80);
            assert_eq!(to_e4m3(middle.next_down()), byte);
            assert_eq!(to_e4m3(middle.next_up()), byte + 1);
            assert_eq!(to_e4m3(middle), byte + byte % 2, "{byte:#x}");
        }
        assert_eq!([448.0, 1e9, f32::INFINITY, f32::NAN].map(to_e4m3), [0x7e, 0x7e, 0x7e, 0x7f]);
    }

    /// Blocks that the edges cut, one scale for each row, and one for all.
    #[test]
    fn scales_belong_to_blocks() {
        let [rows, cols] = [130usize, 300];
        let values: Vec<u8> = (0..rows * cols).map(|i| (i * 37 % 251) as u8 & 0xfb).collect();
        for (format, [down, block]) in
            [(&FP8, [1000; 2]), (&FP8_ROWS, [1, 1000]), (&FP8_BLOCK, [128; 2])]
        {
            let across = cols.div_ceil(block);
            let scales: Vec<f32> =
                (0..across * rows.div_ceil(down)).map(|i| 0.3 + 0.1 * i as f32).collect();
            let bytes: Vec<u8> =
                scales.iter().flat_map(|x| x.to_le_bytes()).chain(values.clone()).collect();
            let held = PackedMatrix::of_bytes(format, &bytes, [rows, cols]);
            let expected: Vec<f32> = (0..rows * cols)
                .map(|i| {
                    let (row, col) = (i / cols, i % cols);
                    exact(values[i]) as f32 * scales[row / down * across + col / block]
                })
                .collect();
            assert_eq!(held.view().to_vec_f32(), expected);
            let mut row = vec![f32::NAN; cols - 3];
            held.view().packed().unpack(129 * cols + 2, &mut row);
            assert_eq!(row, expected[129 * cols + 2..130 * cols - 1]);
            check_on_gpu(&held, &expected);
        }
    }
}
