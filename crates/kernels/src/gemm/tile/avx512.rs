//! AVX-512: `f32` tiles of 8 × 48.

use super::avx512_layout::{F32, Layout, Rounded};
use super::avx512_pack::{self, packing};
use super::avx512_source::LANES;
use super::floats::float_tiles;
use super::plain::direct_f32;
use super::{BLOCK, Blocks, Lines, Part, Segment, Store, Sums, Tile, for_size, int8};
use crate::view::View;
#[allow(clippy::wildcard_imports, reason = "dozens of intrinsics")]
use std::arch::x86_64::*;

/// 8 rows by 3 vectors in 24 of 32 registers.
pub(crate) struct Avx512;

impl Tile for Avx512 {
    type Elem = f32;
    const STEP: usize = 1;
    const LANES: usize = LANES;
    const VECTORS: usize = 3;
    const ROWS: usize = 8;

    #[inline(always)]
    fn direct(data: View<'_>) -> Option<&[f32]> {
        direct_f32(data)
    }

    packing!(F32, "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma");

    #[inline(always)]
    unsafe fn run(rows: usize, vectors: usize, segments: &[Segment<f32>], sums: Sums) {
        // SAFETY: as the caller promises.
        unsafe { for_size!(rows, vectors, [1 2 3 4 5 6 7 8], tile(segments, sums)) }
    }

    #[inline(always)]
    unsafe fn run_in_registers(count: usize) -> usize {
        // SAFETY: as the caller promises.
        unsafe { in_registers::<8, 3>(count) }
    }

    #[inline(always)]
    unsafe fn run_int8_in_registers(count: usize) -> Option<usize> {
        // SAFETY: as the caller promises.
        unsafe { int8::run_avx512_in_registers(count) }
    }

    #[inline(always)]
    unsafe fn run_int8(rows: usize, vectors: usize, segment: int8::Segment, sums: Sums) {
        // SAFETY: as the caller promises.
        unsafe { int8::run_avx512(rows, vectors, segment, sums) }
    }
}

impl Blocks for Avx512 {
    packing!(
        Rounded,
        "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma",
        pack_rounded_panel,
        pack_rounded_rows
    );

    #[inline(always)]
    unsafe fn run_blocks(rows: usize, vectors: usize, segments: &[Segment<f32>], sums: Sums) {
        // SAFETY: as the caller promises.
        unsafe { for_size!(rows, vectors, [1 2 3 4 5 6 7 8], tile_of_blocks(segments, sums)) }
    }
}

float_tiles!(
    "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma",
    LANES,
    __m512,
    (_mm512_setzero_ps, _mm512_loadu_ps, _mm512_storeu_ps, _mm512_add_ps),
    (|a| _mm512_set1_ps(a), |acc, a, b| _mm512_fmadd_ps(a, b, acc))
);
