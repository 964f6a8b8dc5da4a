//! AVX-512: `f32` tiles, and bf16 tiles with `vdpbf16ps`, of 8 × 48.

use super::avx512_pack::{pack_int8, pack_panel, pack_rows, packs};
use super::avx512_source::{LANES, first_16};
use super::plain::direct_f32;
use super::{Lines, Part, Segment, Store, Sums, Tile, for_size, int8};
use crate::element::bf16;
use crate::view::View;
#[allow(clippy::wildcard_imports, reason = "dozens of intrinsics")]
use std::arch::x86_64::*;
use std::mem::transmute;

/// `f32`: 8 rows by 3 vectors in 24 of 32 registers.
pub(crate) struct Avx512;

/// Pairs of bf16, in tiles of the same size.
pub(crate) struct Avx512Bf16;

/// Implements [`Tile`]; the types differ in their multiply-add.
macro_rules! tile {
    ($name:ident, $elem:ty, $step:literal, $direct:expr, $features:literal, $multiply_add:expr
     $(, $narrow:item)?) => {
        impl Tile for $name {
            type Elem = $elem;
            const STEP: usize = $step;
            const LANES: usize = LANES;
            const VECTORS: usize = 3;
            const ROWS: usize = 8;

            #[inline(always)]
            fn direct(data: View<'_>) -> Option<&[$elem]> {
                $direct(data)
            }

            #[inline(always)]
            fn packs(x: Lines<'_>, part: Part) -> bool {
                packs(x, part)
            }

            unsafe fn pack_panel(x: Lines<'_>, part: Part, vectors: usize, panel: &mut [$elem]) {
                #[target_feature(enable = $features)]
                unsafe fn packed(x: Lines<'_>, part: Part, vectors: usize, panel: &mut [$elem]) {
                    // SAFETY: as the caller promises.
                    unsafe { pack_panel(x, part, vectors, panel) }
                }
                // SAFETY: as the caller promises.
                unsafe { packed(x, part, vectors, panel) }
            }

            unsafe fn pack_rows(x: Lines<'_>, part: Part, stride: usize, rows: &mut [$elem]) {
                #[target_feature(enable = $features)]
                unsafe fn packed(x: Lines<'_>, part: Part, stride: usize, rows: &mut [$elem]) {
                    // SAFETY: as the caller promises.
                    unsafe { pack_rows(x, part, stride, rows) }
                }
                // SAFETY: as the caller promises.
                unsafe { packed(x, part, stride, rows) }
            }

            unsafe fn pack_int8(x: Lines<'_>, part: Part, vectors: usize, panel: &mut [i32]) {
                #[target_feature(enable = $features)]
                unsafe fn packed(x: Lines<'_>, part: Part, vectors: usize, panel: &mut [i32]) {
                    // SAFETY: as the caller promises.
                    unsafe { pack_int8(x, part, vectors, panel) }
                }
                // SAFETY: as the caller promises.
                unsafe { packed(x, part, vectors, panel) }
            }

            #[inline(always)]
            unsafe fn run_int8(rows: usize, vectors: usize, segment: int8::Segment, sums: Sums) {
                // SAFETY: as the caller promises.
                unsafe {
                    if is_x86_feature_detected!("avx512vnni") {
                        int8::avx512::run(rows, vectors, segment, sums)
                    } else {
                        int8::run::<LANES>(rows, vectors, segment, sums)
                    }
                }
            }

            #[inline(always)]
            unsafe fn run(rows: usize, vectors: usize, segments: &[Segment<$elem>], sums: Sums) {
                // Indices name registers: iterators over them are not unrolled.
                #[allow(clippy::needless_range_loop)]
                #[target_feature(enable = $features)]
                unsafe fn tile<const R: usize, const V: usize>(
                    segments: &[Segment<$elem>],
                    sums: Sums,
                ) {
                    let mut acc = [[_mm512_setzero_ps(); V]; R];
                    // SAFETY: the caller promises that operands and sums are there.
                    unsafe {
                        let at = |i: usize, v: usize| sums.start.add(i * sums.stride + v * LANES);
                        if sums.store == Store::Continue {
                            for i in 0..R {
                                for v in 0..V {
                                    acc[i][v] = _mm512_loadu_ps(at(i, v));
                                }
                            }
                        }
                        for segment in segments {
                            let (mut a, mut b) = (segment.a, segment.b);
                            for _ in 0..segment.groups {
                                let mut columns = [_mm512_setzero_ps(); V];
                                for v in 0..V {
                                    columns[v] = _mm512_loadu_ps(b.add(v * LANES * $step).cast());
                                }
                                for i in 0..R {
                                    let group = a.add(i * segment.a_stride).cast::<f32>();
                                    let row = _mm512_set1_ps(group.read_unaligned());
                                    for v in 0..V {
                                        acc[i][v] = $multiply_add(acc[i][v], row, columns[v]);
                                    }
                                }
                                a = a.add($step);
                                b = b.add(V * LANES * $step);
                            }
                        }
                        for i in 0..R {
                            for v in 0..V {
                                if sums.store == Store::Add {
                                    acc[i][v] = _mm512_add_ps(acc[i][v], _mm512_loadu_ps(at(i, v)));
                                }
                                _mm512_storeu_ps(at(i, v), acc[i][v]);
                            }
                        }
                    }
                }
                // SAFETY: as the caller promises.
                unsafe { for_size!(rows, vectors, [1 2 3 4 5 6 7 8], tile(segments, sums)) }
            }

            $($narrow)?
        }
    };
}

tile!(Avx512, f32, 1, direct_f32, "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma", |sum, a, b| {
    _mm512_fmadd_ps(a, b, sum)
});
tile!(
    Avx512Bf16,
    bf16,
    2,
    direct_bf16,
    "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,avx512bf16",
    |sum, a: __m512, b: __m512| _mm512_dpbf16_ps(sum, pairs(a), pairs(b)),
    #[inline(always)]
    unsafe fn narrow(x: &[f32], out: &mut [bf16]) {
        // SAFETY: as the caller promises.
        unsafe { narrow(x, out) }
    }
);

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn narrow(x: &[f32], out: &mut [bf16]) {
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

fn direct_bf16(data: View<'_>) -> Option<&[bf16]> {
    match data {
        View::Bf16(x) => Some(x),
        _ => None,
    }
}
