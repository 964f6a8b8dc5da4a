//! AVX-512: `f32` tiles, and bf16 tiles with `vdpbf16ps`, of 8 × 48.
//!
//! Sixteen lanes of 32 bits are sixteen `f32` or sixteen bf16 pairs, so one transposition serves
//! the packing of both.

use super::plain::direct_f32;
use super::{Lines, Old, Part, Segment, Sums, Tile, for_size};
use crate::element::{View, bf16, f16, with_elements};
use std::arch::x86_64::*;
use std::mem::transmute;

const LANES: usize = 16;

/// `f32`: 8 rows by 3 vectors in 24 of 32 registers.
pub(crate) struct Avx512;

/// bf16 in pairs, likewise.
pub(crate) struct Avx512Bf16;

/// The implementation of [`Tile`]; types differ in their multiply-add.
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

            unsafe fn pack_panel(x: Lines<'_>, part: Part, vectors: usize, panel: &mut [$elem]) {
                #[target_feature(enable = $features)]
                unsafe fn packed(x: Lines<'_>, part: Part, vectors: usize, panel: &mut [$elem]) {
                    // SAFETY: as the caller promises.
                    unsafe { pack_panel::<$name>(x, part, vectors, panel) }
                }
                // SAFETY: as the caller promises.
                unsafe { packed(x, part, vectors, panel) }
            }

            unsafe fn pack_rows(x: Lines<'_>, part: Part, stride: usize, rows: &mut [$elem]) {
                #[target_feature(enable = $features)]
                unsafe fn packed(x: Lines<'_>, part: Part, stride: usize, rows: &mut [$elem]) {
                    // SAFETY: as the caller promises.
                    unsafe { pack_rows::<$name>(x, part, stride, rows) }
                }
                // SAFETY: as the caller promises.
                unsafe { packed(x, part, stride, rows) }
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
                        if sums.old == Old::Continued {
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
                                if sums.old == Old::Added {
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
        // SAFETY: only elements under the mask are read and written, and these exist.
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
    // SAFETY: vectors of one size, without invalid patterns.
    unsafe { transmute::<__m512, __m512bh>(x) }
}

fn direct_bf16(data: View<'_>) -> Option<&[bf16]> {
    match data {
        View::Bf16(x) => Some(x),
        _ => None,
    }
}

/// What a packed lane of 32 bits holds.
trait Lane: Tile {
    /// `16 * STEP` steps of one line from `from` on, of which `count` exist; the rest zero.
    ///
    /// # Safety
    /// `count` elements are there; the machine has the instruction set.
    unsafe fn along<S: Source>(from: *const S, count: usize) -> __m512i;

    /// One group of `steps ≤ STEP` steps, `step` apart, of 16 lines of which `lines` exist.
    ///
    /// # Safety
    /// `lines` elements are there at each step; the machine has the instruction set.
    unsafe fn across<S: Source>(from: *const S, step: usize, steps: usize, lines: u16) -> __m512i;
}

impl Lane for Avx512 {
    #[inline(always)]
    unsafe fn along<S: Source>(from: *const S, count: usize) -> __m512i {
        // SAFETY: as the caller promises.
        unsafe { _mm512_castps_si512(S::load(from, first_16(count))) }
    }

    #[inline(always)]
    unsafe fn across<S: Source>(from: *const S, _: usize, _: usize, lines: u16) -> __m512i {
        // SAFETY: as the caller promises.
        unsafe { _mm512_castps_si512(S::load(from, lines)) }
    }
}

impl Lane for Avx512Bf16 {
    #[inline(always)]
    unsafe fn along<S: Source>(from: *const S, count: usize) -> __m512i {
        // SAFETY: as the caller promises; the second half is loaded only where it exists.
        unsafe { S::load_bf16(from, count) }
    }

    #[inline(always)]
    unsafe fn across<S: Source>(from: *const S, step: usize, steps: usize, lines: u16) -> __m512i {
        // SAFETY: as the caller promises.
        unsafe {
            let even = _mm512_castsi256_si512(S::load_half_bf16(from, lines));
            let odd = match steps {
                1 => _mm256_setzero_si256(),
                _ => S::load_half_bf16(from.wrapping_add(step), lines),
            };
            let both = _mm512_inserti64x4::<1>(even, odd);
            _mm512_permutexvar_epi16(_mm512_loadu_si512(ZIP.as_ptr().cast()), both)
        }
    }
}

/// Element `i` of the low half beside element `i` of the high half.
const ZIP: [u16; 32] = {
    let mut order = [0; 32];
    let mut i = 0;
    while i < 32 {
        order[i] = (i / 2 + i % 2 * 16) as u16;
        i += 1;
    }
    order
};

/// An element type that packing reads.
trait Source: Copy {
    /// 16 values under a mask, as `f32`.
    ///
    /// # Safety
    /// The elements under the mask are there; the machine has the instruction set.
    unsafe fn load(from: *const Self, mask: u16) -> __m512;

    /// 16 values under a mask, as bf16.
    ///
    /// # Safety
    /// As [`Source::load`].
    #[inline(always)]
    unsafe fn load_half_bf16(from: *const Self, mask: u16) -> __m256i {
        // SAFETY: as the caller promises; vectors of one size.
        unsafe { transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(Self::load(from, mask))) }
    }

    /// The bits of 32 values as bf16, of which `count` exist.
    ///
    /// # Safety
    /// As [`Source::load`].
    #[inline(always)]
    unsafe fn load_bf16(from: *const Self, count: usize) -> __m512i {
        // SAFETY: as the caller promises; an address under an empty mask is not read.
        unsafe {
            let low = Self::load(from, first_16(count));
            let high = Self::load(from.wrapping_add(LANES), first_16(count.saturating_sub(LANES)));
            transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low))
        }
    }
}

impl Source for f32 {
    #[inline(always)]
    unsafe fn load(from: *const f32, mask: u16) -> __m512 {
        // SAFETY: as the caller promises.
        unsafe { _mm512_maskz_loadu_ps(mask, from) }
    }
}

impl Source for bf16 {
    #[inline(always)]
    unsafe fn load(from: *const bf16, mask: u16) -> __m512 {
        // SAFETY: as the caller promises.
        unsafe {
            let bits = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, from.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits))
        }
    }

    #[inline(always)]
    unsafe fn load_half_bf16(from: *const bf16, mask: u16) -> __m256i {
        // SAFETY: as the caller promises.
        unsafe { _mm256_maskz_loadu_epi16(mask, from.cast()) }
    }

    #[inline(always)]
    unsafe fn load_bf16(from: *const bf16, count: usize) -> __m512i {
        let mask = if count >= 32 { u32::MAX } else { (1 << count) - 1 };
        // SAFETY: as the caller promises.
        unsafe { _mm512_maskz_loadu_epi16(mask, from.cast()) }
    }
}

impl Source for f16 {
    #[inline(always)]
    unsafe fn load(from: *const f16, mask: u16) -> __m512 {
        // SAFETY: as the caller promises.
        unsafe { _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, from.cast())) }
    }
}

/// A mask of the first `count` of 16 lanes.
#[inline(always)]
fn first_16(count: usize) -> u16 {
    if count >= LANES { u16::MAX } else { (1 << count) - 1 }
}

#[inline(always)]
unsafe fn pack_panel<T: Lane>(x: Lines<'_>, part: Part, vectors: usize, panel: &mut [T::Elem]) {
    let groups = part.k.div_ceil(T::STEP);
    assert!(panel.len() >= groups * vectors * LANES * T::STEP);
    let panel = panel.as_mut_ptr().cast::<i32>();
    with_elements!(x.data, data => {
        assert!(part.end(&x) <= data.len());
        for v in 0..vectors {
            let lines = part.lines.saturating_sub(v * LANES).min(LANES);
            let part = Part { line: part.line + v * LANES, lines, ..part };
            // SAFETY: the part is inside the slice and the panel has room, as asserted.
            unsafe {
                blocks::<T, _>(data.as_ptr(), x, part, x.step == 1, |group, count, block| {
                    for (g, row) in block.iter().enumerate().take(count) {
                        let to = ((group + g) * vectors + v) * LANES;
                        _mm512_storeu_si512(panel.add(to).cast(), *row);
                    }
                });
            }
        }
    });
}

#[inline(always)]
unsafe fn pack_rows<T: Lane>(x: Lines<'_>, part: Part, stride: usize, rows: &mut [T::Elem]) {
    let groups = part.k.div_ceil(T::STEP);
    assert!(stride.is_multiple_of(T::STEP) && stride >= groups * T::STEP);
    assert!(rows.len() >= (part.lines - 1) * stride + groups * T::STEP);
    let stride = stride / T::STEP;
    let to = rows.as_mut_ptr().cast::<i32>();
    with_elements!(x.data, data => {
        assert!(part.end(&x) <= data.len());
        // SAFETY: the part is inside the slice and the rows have room, as asserted.
        unsafe {
            if x.step == 1 {
                for line in 0..part.lines {
                    for group in (0..groups).step_by(LANES) {
                        let k = group * T::STEP;
                        let from = data.as_ptr().add(x.index(part.line + line, part.k0 + k));
                        let mask = first_16(groups - group);
                        let row = T::along(from, part.k - k);
                        _mm512_mask_storeu_epi32(to.add(line * stride + group), mask, row);
                    }
                }
                return;
            }
            for first in (0..part.lines).step_by(LANES) {
                let lines = (part.lines - first).min(LANES);
                let part = Part { line: part.line + first, lines, ..part };
                blocks::<T, _>(data.as_ptr(), x, part, false, |group, count, block| {
                    transpose(block);
                    let mask = first_16(count);
                    for (i, line) in block.iter().enumerate().take(lines) {
                        let to = to.add((first + i) * stride + group);
                        _mm512_mask_storeu_epi32(to, mask, *line);
                    }
                });
            }
        }
    });
}

/// Asks for a cache line. Packing reads many short stretches of memory, which the processor does
/// not foresee.
#[inline(always)]
fn prefetch<S>(from: *const S) {
    // SAFETY: a prefetch reads nothing and cannot fault.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(from.cast()) };
}

/// Calls `body(group, count, rows)` for up to 16 groups at a time, each row one group of (at most)
/// 16 lines; rows from `count` on are left over. `turn` says that lines are contiguous along the
/// contraction and must be transposed.
///
/// # Safety
/// The part must be inside the slice that `data` points to.
#[inline(always)]
unsafe fn blocks<T: Lane, S: Source>(
    data: *const S,
    x: Lines<'_>,
    part: Part,
    turn: bool,
    mut body: impl FnMut(usize, usize, &mut [__m512i; LANES]),
) {
    let groups = part.k.div_ceil(T::STEP);
    // SAFETY: the caller promises the instruction set.
    let zero = unsafe { [_mm512_setzero_si512(); LANES] };
    let mut block = zero;
    for group in (0..groups).step_by(LANES) {
        let k = group * T::STEP;
        let count = (groups - group).min(LANES);
        // SAFETY: lines and steps are those of the part.
        unsafe {
            if turn {
                for (i, line) in block.iter_mut().enumerate().take(part.lines) {
                    let from = data.add(x.index(part.line + i, part.k0 + k));
                    // The same place in the lines that are packed next.
                    prefetch(from.wrapping_add(LANES * x.line_stride));
                    *line = T::along(from, part.k - k);
                }
                transpose(&mut block);
            } else {
                for (g, row) in block.iter_mut().enumerate().take(count) {
                    let k = k + g * T::STEP;
                    let from = data.add(x.index(part.line, part.k0 + k));
                    let steps = (part.k - k).min(T::STEP);
                    for step in 0..steps {
                        prefetch(from.wrapping_add((LANES * T::STEP + step) * x.step));
                    }
                    *row = T::across(from, x.step, steps, first_16(part.lines));
                }
            }
        }
        body(group, count, &mut block);
        if turn && part.lines < LANES {
            block = zero;
        }
    }
}

/// Row `i`, lane `j` to row `j`, lane `i`.
///
/// # Safety
/// The machine must have the instruction set.
#[inline(always)]
unsafe fn transpose(rows: &mut [__m512i; LANES]) {
    // SAFETY: the caller promises the instruction set.
    unsafe {
        let mut a = *rows;
        let mut b = a;
        for i in 0..8 {
            b[2 * i] = _mm512_unpacklo_epi32(a[2 * i], a[2 * i + 1]);
            b[2 * i + 1] = _mm512_unpackhi_epi32(a[2 * i], a[2 * i + 1]);
        }
        // Row 4 i + j holds columns j, j + 4, j + 8, j + 12 of rows 4 i .. 4 i + 4.
        for i in 0..4 {
            for j in 0..2 {
                a[4 * i + 2 * j] = _mm512_unpacklo_epi64(b[4 * i + j], b[4 * i + j + 2]);
                a[4 * i + 2 * j + 1] = _mm512_unpackhi_epi64(b[4 * i + j], b[4 * i + j + 2]);
            }
        }
        for i in 0..2 {
            for j in 0..4 {
                let (low, high) = (a[8 * i + j], a[8 * i + j + 4]);
                b[8 * i + j] = _mm512_shuffle_i32x4::<0x88>(low, high);
                b[8 * i + j + 4] = _mm512_shuffle_i32x4::<0xdd>(low, high);
            }
        }
        for j in 0..8 {
            a[j] = _mm512_shuffle_i32x4::<0x88>(b[j], b[j + 8]);
            a[j + 8] = _mm512_shuffle_i32x4::<0xdd>(b[j], b[j + 8]);
        }
        *rows = a;
    }
}
