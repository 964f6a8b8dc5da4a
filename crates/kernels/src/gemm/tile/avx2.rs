//! AVX2 with FMA: `f32` tiles of 6 × 16.

use super::plain::direct_f32;
use super::{Lines, Part, Scalar, Segment, Store, Sums, Tile, for_size, int8};
use crate::view::View;
#[allow(clippy::wildcard_imports, reason = "dozens of intrinsics")]
use std::arch::x86_64::*;

/// 6 rows by 2 vectors in 12 of 16 registers.
pub(crate) struct Avx2;

impl Tile for Avx2 {
    type Elem = f32;
    const STEP: usize = 1;
    const LANES: usize = 8;
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
    unsafe fn run_int8(rows: usize, vectors: usize, segment: int8::Segment, sums: Sums) {
        // SAFETY: as the caller promises.
        unsafe {
            if is_x86_feature_detected!("avxvnni") {
                int8::avx_vnni::run(rows, vectors, segment, sums)
            } else if is_x86_feature_detected!("avx512vnni") && is_x86_feature_detected!("avx512vl")
            {
                int8::avx512_vl::run(rows, vectors, segment, sums)
            } else {
                int8::run::<{ Self::LANES }>(rows, vectors, segment, sums)
            }
        }
    }
}

// Indices name registers: iterators over them are not unrolled.
#[allow(clippy::needless_range_loop)]
#[target_feature(enable = "avx2,fma")]
unsafe fn tile<const R: usize, const V: usize>(segments: &[Segment<f32>], sums: Sums) {
    const LANES: usize = Avx2::LANES;
    let mut acc = [[_mm256_setzero_ps(); V]; R];
    // SAFETY: the caller promises that operands and sums are valid.
    unsafe {
        let at = |i: usize, v: usize| sums.start.add(i * sums.stride + v * LANES);
        if sums.store == Store::Continue {
            for i in 0..R {
                for v in 0..V {
                    acc[i][v] = _mm256_loadu_ps(at(i, v));
                }
            }
        }
        for segment in segments {
            for k in 0..segment.groups {
                let mut b = [_mm256_setzero_ps(); V];
                for v in 0..V {
                    b[v] = _mm256_loadu_ps(segment.b.add((k * V + v) * LANES));
                }
                for i in 0..R {
                    let a = _mm256_broadcast_ss(&*segment.a.add(i * segment.a_stride + k));
                    for v in 0..V {
                        acc[i][v] = _mm256_fmadd_ps(a, b[v], acc[i][v]);
                    }
                }
            }
        }
        for i in 0..R {
            for v in 0..V {
                if sums.store == Store::Add {
                    acc[i][v] = _mm256_add_ps(acc[i][v], _mm256_loadu_ps(at(i, v)));
                }
                _mm256_storeu_ps(at(i, v), acc[i][v]);
            }
        }
    }
}
