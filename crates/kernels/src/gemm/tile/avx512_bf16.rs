//! AVX-512 with BF16: tiles of 4 × 48.
//!
//! `vdpbf16ps` adds the product of the upper halves of two lanes to an accumulator, and then that
//! of the lower halves, rounded after each; it takes subnormals for zero. Lanes that hold steps two
//! apart therefore make a chain of even steps, and one of odd steps: the order of AMX.

use super::avx512_layout::{Crossed, Layout};
use super::avx512_pack::{self, packing};
use super::avx512_source::{LANES, first_16};
use super::{BLOCK, Lines, Part, Segment, Store, Sums, Tile, for_size, int8};
use crate::element::bf16;
use crate::view::View;
#[allow(clippy::wildcard_imports, reason = "dozens of intrinsics")]
use std::arch::x86_64::*;
use std::mem::transmute;

/// 4 rows by 3 vectors, of even and of odd steps, in 24 of 32 registers.
pub(crate) struct Avx512Bf16;

/// Lanes of a block.
const GROUPS: usize = BLOCK / 2;

impl Tile for Avx512Bf16 {
    type Elem = bf16;
    const STEP: usize = 2;
    const PADDING: usize = BLOCK;
    const LANES: usize = LANES;
    const VECTORS: usize = 3;
    const ROWS: usize = 4;

    /// None: steps are in another order.
    #[inline(always)]
    fn direct(_: View<'_>) -> Option<&[bf16]> {
        None
    }

    packing!(Crossed, "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,avx512bf16");

    #[inline(always)]
    unsafe fn run(rows: usize, vectors: usize, segments: &[Segment<bf16>], sums: Sums) {
        // SAFETY: as the caller promises.
        unsafe { for_size!(rows, vectors, [1 2 3 4], tile(segments, sums)) }
    }

    #[inline(always)]
    unsafe fn run_int8_in_registers(count: usize) -> Option<usize> {
        // SAFETY: as the caller promises.
        unsafe { int8::run_avx512_in_registers(count) }
    }

    #[inline(always)]
    unsafe fn run_in_registers(count: usize) -> usize {
        // SAFETY: as the caller promises.
        unsafe { in_registers(count) }
    }

    #[inline(always)]
    unsafe fn run_int8(rows: usize, vectors: usize, segment: int8::Segment, sums: Sums) {
        // SAFETY: as the caller promises.
        unsafe { int8::run_avx512(rows, vectors, segment, sums) }
    }

    #[inline(always)]
    unsafe fn narrow(x: &[f32], out: &mut [bf16]) {
        // SAFETY: as the caller promises.
        unsafe { narrow(x, out) }
    }
}

// Indices name registers: iterators over them are not unrolled.
#[allow(clippy::needless_range_loop)]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,avx512bf16")]
unsafe fn tile<const R: usize, const V: usize>(segments: &[Segment<bf16>], sums: Sums) {
    let zero = [[_mm512_setzero_ps(); V]; R];
    let mut total = zero;
    // SAFETY: the caller promises that operands and sums are there.
    unsafe {
        let at = |i: usize, v: usize| sums.start.add(i * sums.stride + v * LANES);
        if sums.store != Store::Overwrite {
            for i in 0..R {
                for v in 0..V {
                    total[i][v] = _mm512_loadu_ps(at(i, v));
                }
            }
        }
        for segment in segments {
            let (mut a, mut b) = (segment.a, segment.b);
            for _ in 0..segment.groups / GROUPS {
                let mut chains = [zero; 2];
                for _ in 0..GROUPS / 2 {
                    // Even steps, then odd ones.
                    for acc in &mut chains {
                        let mut columns = [_mm512_setzero_ps(); V];
                        for v in 0..V {
                            columns[v] = _mm512_loadu_ps(b.add(v * LANES * 2).cast());
                        }
                        for i in 0..R {
                            let pair = a.add(i * segment.a_stride).cast::<f32>();
                            let row = _mm512_set1_ps(pair.read_unaligned());
                            for v in 0..V {
                                acc[i][v] =
                                    _mm512_dpbf16_ps(acc[i][v], pairs(row), pairs(columns[v]));
                            }
                        }
                        a = a.add(2);
                        b = b.add(V * LANES * 2);
                    }
                }
                for i in 0..R {
                    for v in 0..V {
                        let block = _mm512_add_ps(chains[0][i][v], chains[1][i][v]);
                        total[i][v] = _mm512_add_ps(total[i][v], block);
                    }
                }
            }
        }
        for i in 0..R {
            for v in 0..V {
                _mm512_storeu_ps(at(i, v), total[i][v]);
            }
        }
    }
}

#[target_feature(enable = "avx512f,avx512bf16")]
fn in_registers(count: usize) -> usize {
    const ACCUMULATORS: usize = 24;
    let zero = _mm512_setzero_ps();
    let (mut acc, pair) = ([zero; ACCUMULATORS], pairs(std::hint::black_box(zero)));
    for _ in 0..count {
        for acc in &mut acc {
            *acc = _mm512_dpbf16_ps(*acc, pair, pair);
        }
    }
    std::hint::black_box(acc);
    2 * count * ACCUMULATORS * 2 * LANES
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(super) fn narrow(x: &[f32], out: &mut [bf16]) {
    assert_eq!(x.len(), out.len());
    for (x, out) in x.chunks(LANES).zip(out.chunks_mut(LANES)) {
        let mask = first_16(x.len());
        // SAFETY: only elements under the mask are accessed, and these exist.
        unsafe {
            let rounded = _mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(mask, x.as_ptr()));
            let rounded = transmute::<__m256bh, __m256i>(rounded);
            _mm256_mask_storeu_epi16(out.as_mut_ptr().cast(), mask, rounded);
        }
    }
}

/// The same bits as bf16 pairs.
#[inline(always)]
fn pairs(x: __m512) -> __m512bh {
    // SAFETY: vectors of the same size, for which every bit pattern is valid.
    unsafe { transmute::<__m512, __m512bh>(x) }
}
