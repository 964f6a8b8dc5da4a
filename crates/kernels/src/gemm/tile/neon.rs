//! NEON: `f32` tiles of 8 × 8, and products of bytes with `sdot` where the processor has it.
//!
//! bf16 is emulated as on AVX2: `bfdot` and `bfmmla` round sums differently, so their results would
//! differ from those of every other instruction set.

use super::floats::float_tiles;
use super::plain::{self, direct_f32};
use super::{BLOCK, Blocks, Lines, Part, Scalar, Segment, Store, Sums, Tile, for_size, int8};
use crate::format::Int8Rows;
use crate::view::View;
#[allow(clippy::wildcard_imports, reason = "dozens of intrinsics")]
use std::arch::aarch64::*;
use std::arch::asm;

/// 8 rows by 2 vectors in 16 of 32 registers: three would not divide the blocks of attention.
pub(crate) struct Neon;

const LANES: usize = 4;

impl Tile for Neon {
    type Elem = f32;
    const STEP: usize = 1;
    const LANES: usize = LANES;
    const VECTORS: usize = 2;
    const ROWS: usize = 8;

    #[inline(always)]
    fn direct(data: View<'_>) -> Option<&[f32]> {
        direct_f32(data)
    }

    #[inline(always)]
    unsafe fn pack_panel(x: Lines<'_>, part: Part, vectors: usize, panel: &mut [f32]) {
        plain::pack_panel(x, part, vectors * LANES, panel, plain::Values::AsTheyAre);
    }

    #[inline(always)]
    unsafe fn pack_rows(x: Lines<'_>, part: Part, stride: usize, rows: &mut [f32]) {
        // SAFETY: plain Rust needs nothing.
        unsafe { Scalar::pack_rows(x, part, stride, rows) }
    }

    #[inline(always)]
    unsafe fn run(rows: usize, vectors: usize, segments: &[Segment<f32>], sums: Sums) {
        // SAFETY: as the caller promises.
        unsafe { for_size!(rows, vectors, [1 2 3 4 5 6 7 8], tile(segments, sums)) }
    }

    #[inline(always)]
    unsafe fn run_in_registers(count: usize) -> usize {
        // SAFETY: as the caller promises.
        unsafe { in_registers::<8, 2>(count) }
    }

    #[inline(always)]
    unsafe fn run_int8_in_registers(count: usize) -> Option<usize> {
        // SAFETY: the extension was detected.
        std::arch::is_aarch64_feature_detected!("dotprod")
            .then(|| unsafe { bytes_in_registers(count) })
    }

    #[inline(always)]
    unsafe fn run_int8(rows: usize, vectors: usize, segment: int8::Segment, sums: Sums) {
        // SAFETY: as the caller promises.
        unsafe {
            if std::arch::is_aarch64_feature_detected!("dotprod") {
                for_size!(rows, vectors, [1 2 3 4 5 6 7 8], int8_tile(segment, sums))
            } else {
                int8::run::<LANES>(rows, vectors, segment, sums)
            }
        }
    }
}

impl Blocks for Neon {
    #[inline(always)]
    unsafe fn run_blocks(rows: usize, vectors: usize, segments: &[Segment<f32>], sums: Sums) {
        // SAFETY: as the caller promises.
        unsafe { for_size!(rows, vectors, [1 2 3 4 5 6 7 8], tile_of_blocks(segments, sums)) }
    }
}

float_tiles!(
    "neon",
    LANES,
    float32x4_t,
    (zero, vld1q_f32, vst1q_f32, vaddq_f32),
    (|a| vdupq_n_f32(a), |acc, a, b| vfmaq_f32(acc, a, b))
);

#[inline(always)]
fn zero() -> float32x4_t {
    // SAFETY: NEON is part of the AArch64 baseline.
    unsafe { vdupq_n_f32(0.0) }
}

/// `sdot` takes signed bytes, so the zero point is removed from rows as they are read, and no
/// corrections are needed.
// Indices name registers: iterators over them are not unrolled.
#[allow(clippy::needless_range_loop)]
#[target_feature(enable = "neon,dotprod")]
unsafe fn int8_tile<const R: usize, const V: usize>(segment: int8::Segment, sums: Sums) {
    let mut acc = [[vdupq_n_s32(0); V]; R];
    let zero_point = vdupq_n_s32(i32::from_ne_bytes([Int8Rows::ZERO_POINT; 4]));
    // SAFETY: the caller promises that operands and sums are there.
    unsafe {
        let (mut a, mut b) = (segment.a, segment.b.add(2 * V * LANES));
        for _ in 0..segment.groups {
            let mut columns = [vdupq_n_s32(0); V];
            for v in 0..V {
                columns[v] = vld1q_s32(b.add(v * LANES));
            }
            for i in 0..R {
                let four = a.add(i * segment.a_stride).cast::<i32>().read_unaligned();
                let row = veorq_s32(vdupq_n_s32(four), zero_point);
                for v in 0..V {
                    acc[i][v] = dot(acc[i][v], row, columns[v]);
                }
            }
            a = a.add(int8::STEP);
            b = b.add(V * LANES);
        }
        for i in 0..R {
            for v in 0..V {
                let scales = vld1q_f32(segment.b.add((V + v) * LANES).cast());
                let scale = vmulq_n_f32(scales, *segment.scales.add(i));
                let out = sums.start.add(i * sums.stride + v * LANES);
                let sum = vcvtq_f32_s32(acc[i][v]);
                let sum = match sums.store {
                    Store::Overwrite => vmulq_f32(sum, scale),
                    Store::Continue | Store::Add => vfmaq_f32(vld1q_f32(out), sum, scale),
                };
                vst1q_f32(out, sum);
            }
        }
    }
}

/// [`Tile::run_int8_in_registers`] with `sdot`.
#[target_feature(enable = "neon,dotprod")]
fn bytes_in_registers(count: usize) -> usize {
    let (mut acc, ones) = ([vdupq_n_s32(0); 16], std::hint::black_box(vdupq_n_s32(0x0101_0101)));
    for _ in 0..count {
        for acc in &mut acc {
            *acc = dot(*acc, ones, ones);
        }
    }
    std::hint::black_box(acc);
    2 * count * acc.len() * LANES * int8::STEP
}

/// `sum + Σ x · y` over the four signed bytes of each lane; the intrinsic is not stable yet.
#[target_feature(enable = "neon,dotprod")]
#[inline]
fn dot(mut sum: int32x4_t, x: int32x4_t, y: int32x4_t) -> int32x4_t {
    // SAFETY: the instruction only uses registers.
    unsafe {
        asm!(
            "sdot {sum:v}.4s, {x:v}.16b, {y:v}.16b",
            sum = inout(vreg) sum, x = in(vreg) x, y = in(vreg) y,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sum
}
