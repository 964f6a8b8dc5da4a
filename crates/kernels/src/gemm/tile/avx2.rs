//! AVX2 with FMA: `f32` tiles of 6 × 16.

use super::floats::float_tiles;
use super::plain::direct_f32;
use super::{BLOCK, Blocks, Lines, Part, Scalar, Segment, Store, Sums, Tile, for_size, int8};
use crate::view::View;
#[allow(clippy::wildcard_imports, reason = "dozens of intrinsics")]
use std::arch::x86_64::*;

/// 6 rows by 2 vectors in 12 of 16 registers.
pub(crate) struct Avx2;

const LANES: usize = 8;

impl Tile for Avx2 {
    type Elem = f32;
    const STEP: usize = 1;
    const LANES: usize = LANES;
    const VECTORS: usize = 2;
    const ROWS: usize = 6;

    #[inline(always)]
    fn direct(data: View<'_>) -> Option<&[f32]> {
        direct_f32(data)
    }

    #[inline(always)]
    unsafe fn pack_panel(x: Lines<'_>, part: Part, vectors: usize, panel: &mut [f32]) {
        // SAFETY: plain Rust needs nothing.
        unsafe { Scalar::pack_panel(x, part, vectors, panel) }
    }

    #[inline(always)]
    unsafe fn pack_rows(x: Lines<'_>, part: Part, stride: usize, rows: &mut [f32]) {
        // SAFETY: plain Rust needs nothing.
        unsafe { Scalar::pack_rows(x, part, stride, rows) }
    }

    #[inline(always)]
    unsafe fn run(rows: usize, vectors: usize, segments: &[Segment<f32>], sums: Sums) {
        // SAFETY: as the caller promises.
        unsafe { for_size!(rows, vectors, [1 2 3 4 5 6], tile(segments, sums)) }
    }

    #[inline(always)]
    unsafe fn run_in_registers(count: usize) -> usize {
        // SAFETY: as the caller promises.
        unsafe { in_registers::<6, 2>(count) }
    }

    #[inline(always)]
    unsafe fn run_int8_in_registers(count: usize) -> Option<usize> {
        // SAFETY: as the caller promises, and as checked.
        unsafe {
            if is_x86_feature_detected!("avxvnni") {
                Some(int8::avx_vnni::in_registers::<6, 2>(count))
            } else if is_x86_feature_detected!("avx512vnni") && is_x86_feature_detected!("avx512vl")
            {
                Some(int8::avx512_vl::in_registers::<6, 2>(count))
            } else {
                None
            }
        }
    }

    #[inline(always)]
    unsafe fn run_int8(rows: usize, vectors: usize, segment: int8::Segment, sums: Sums) {
        // SAFETY: as the caller promises.
        unsafe {
            if is_x86_feature_detected!("avxvnni") {
                int8::avx_vnni::run(rows, vectors, segment, sums)
            } else if is_x86_feature_detected!("avx512vnni") && is_x86_feature_detected!("avx512vl")
            {
                int8::avx512_vl::run(rows, vectors, segment, sums)
            } else {
                int8::run::<LANES>(rows, vectors, segment, sums)
            }
        }
    }
}

impl Blocks for Avx2 {
    #[inline(always)]
    unsafe fn run_blocks(rows: usize, vectors: usize, segments: &[Segment<f32>], sums: Sums) {
        // SAFETY: as the caller promises.
        unsafe { for_size!(rows, vectors, [1 2 3 4 5 6], tile_of_blocks(segments, sums)) }
    }
}

float_tiles!(
    "avx2,fma",
    LANES,
    __m256,
    (_mm256_setzero_ps, _mm256_loadu_ps, _mm256_storeu_ps, _mm256_add_ps),
    (|a| _mm256_set1_ps(a), |acc, a, b| _mm256_fmadd_ps(a, b, acc))
);
