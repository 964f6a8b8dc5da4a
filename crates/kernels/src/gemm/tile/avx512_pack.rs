//! Packing with AVX-512.
//!
//! Sixteen 32-bit lanes hold sixteen `f32`, sixteen pairs of bf16, or sixteen groups of four bytes,
//! so one transposition serves all.

use super::avx512_source::{
    Array, LANES, Nf4Pair, RowPtr, SignedByte, Source, first_16, load_centred,
};
use super::{Lines, Part, int8};
use crate::element::{bf16, f16};
use crate::format::{Int8Rows, Nf4Blocks, Q8_0Blocks, Storage};
use crate::view::{View, not_floats, out_of_reach};
#[allow(clippy::wildcard_imports, reason = "dozens of intrinsics")]
use std::arch::x86_64::*;

/// Packed elements whose 32-bit lanes are filled from elements `S`.
pub(super) trait Lane<S: Source> {
    /// Steps of the contraction in a lane.
    const STEP: usize;

    /// `16 * STEP` steps of one line, of which `count` exist; the rest is zero.
    ///
    /// # Safety
    /// `count` elements must exist; the machine must have the instruction set.
    unsafe fn along(from: RowPtr<S>, count: usize) -> __m512i;

    /// One group of `steps ≤ STEP` steps, the `i`th at `from(i)`, of 16 lines under a mask.
    ///
    /// # Safety
    /// The lines under the mask must exist at each step; the machine must have the instruction set.
    unsafe fn across(from: impl Fn(usize) -> RowPtr<S>, steps: usize, lines: u16) -> __m512i;
}

impl<S: Source> Lane<S> for f32 {
    const STEP: usize = 1;

    #[inline(always)]
    unsafe fn along(from: RowPtr<S>, count: usize) -> __m512i {
        // SAFETY: as the caller promises.
        unsafe { _mm512_castps_si512(S::load(from, first_16(count))) }
    }

    #[inline(always)]
    unsafe fn across(from: impl Fn(usize) -> RowPtr<S>, _: usize, lines: u16) -> __m512i {
        // SAFETY: as the caller promises.
        unsafe { _mm512_castps_si512(S::load(from(0), lines)) }
    }
}

impl<S: Source> Lane<S> for bf16 {
    const STEP: usize = 2;

    #[inline(always)]
    unsafe fn along(from: RowPtr<S>, count: usize) -> __m512i {
        // SAFETY: as the caller promises; the second half is loaded only where it exists.
        unsafe { S::load_bf16(from, count) }
    }

    #[inline(always)]
    unsafe fn across(from: impl Fn(usize) -> RowPtr<S>, steps: usize, lines: u16) -> __m512i {
        // SAFETY: as the caller promises.
        unsafe {
            let even = _mm512_castsi256_si512(S::load_half_bf16(from(0), lines));
            let odd = match steps {
                1 => _mm256_setzero_si256(),
                _ => S::load_half_bf16(from(1), lines),
            };
            let both = _mm512_inserti64x4::<1>(even, odd);
            _mm512_permutexvar_epi16(_mm512_loadu_si512(ZIP.as_ptr().cast()), both)
        }
    }
}

/// Packed elements of floating-point products, filled from any element type.
pub(super) trait Lanes:
    Lane<f32> + Lane<bf16> + Lane<f16> + Lane<u8> + Lane<SignedByte> + Lane<Nf4Pair>
{
    /// Steps of the contraction in a lane, whatever it is filled from.
    const GROUP: usize = <Self as Lane<f32>>::STEP;
}
impl Lanes for f32 {}
impl Lanes for bf16 {}

/// Signed bytes in groups of four, without their scales: the second operand of `vpdpbusd`.
struct Int8;

impl Lane<u8> for Int8 {
    const STEP: usize = int8::STEP;

    #[inline(always)]
    unsafe fn along(from: RowPtr<u8>, count: usize) -> __m512i {
        let mask = if count >= 64 { u64::MAX } else { (1 << count) - 1 };
        // SAFETY: as the caller promises.
        unsafe {
            let zero = _mm512_set1_epi8(Int8Rows::ZERO_POINT as i8);
            _mm512_xor_si512(_mm512_mask_loadu_epi8(zero, mask, from.start.cast()), zero)
        }
    }

    #[inline(always)]
    unsafe fn across(from: impl Fn(usize) -> RowPtr<u8>, steps: usize, lines: u16) -> __m512i {
        // SAFETY: as the caller promises.
        unsafe {
            let mut rows = [_mm_setzero_si128(); 4];
            for (step, row) in rows.iter_mut().enumerate().take(steps) {
                *row = load_centred(from(step).start, lines);
            }
            let [low, high] = [(rows[0], rows[1]), (rows[2], rows[3])]
                .map(|(x, y)| (_mm_unpacklo_epi8(x, y), _mm_unpackhi_epi8(x, y)));
            let first = _mm512_castsi128_si512(_mm_unpacklo_epi16(low.0, high.0));
            let all = _mm512_inserti32x4::<1>(first, _mm_unpackhi_epi16(low.0, high.0));
            let all = _mm512_inserti32x4::<2>(all, _mm_unpacklo_epi16(low.1, high.1));
            _mm512_inserti32x4::<3>(all, _mm_unpackhi_epi16(low.1, high.1))
        }
    }
}

/// Interleaves the low and the high half.
const ZIP: [u16; 32] = {
    let mut order = [0; 32];
    let mut i = 0;
    while i < 32 {
        order[i] = (i / 2 + i % 2 * 16) as u16;
        i += 1;
    }
    order
};

/// Runs `$body` with `$name` bound to an [`Array`]: floats, or bytes with scales.
macro_rules! with_array {
    ($view:expr, $name:ident => $body:expr) => {
        match $view {
            View::F32($name) => $body,
            View::Bf16($name) => $body,
            View::F16($name) => $body,
            View::Packed(packed) if Storage::Packed(packed.format()).is_int8() => {
                let $name = packed.int8();
                $body
            }
            View::Packed(packed) => match (Q8_0Blocks::of(packed), Nf4Blocks::of(packed)) {
                (Some($name), _) => $body,
                (_, Some($name)) => $body,
                _ => not_floats(packed.format().name),
            },
            View::Cuda(_) => out_of_reach(),
        }
    };
}

/// [`Tile::packs`]: bytes with a scale for each row in any place, and blocks where what one
/// instruction reads lies within a block.
pub(super) fn packs(x: Lines<'_>, part: Part) -> bool {
    let View::Packed(packed) = x.data else { return false };
    if Storage::Packed(packed.format()).is_int8() {
        return true;
    }
    // Pairs of vectors along a line, or one across lines.
    let aligned = if x.step == 1 { 2 * LANES } else { LANES };
    let is_aligned = x.index(part.line, part.k0).is_multiple_of(aligned)
        && x.line_stride.max(x.step).is_multiple_of(aligned);
    is_aligned && (Q8_0Blocks::of(packed).is_some() || Nf4Blocks::of(packed).is_some())
}

/// [`Tile::pack_panel`].
///
/// # Safety
/// The machine must have the instruction set.
#[inline(always)]
pub(super) unsafe fn pack_panel<T: Lanes>(
    x: Lines<'_>,
    part: Part,
    vectors: usize,
    panel: &mut [T],
) {
    assert!(panel.len() >= part.k.next_multiple_of(T::GROUP) * vectors * LANES);
    let panel = panel.as_mut_ptr().cast();
    // SAFETY: the panel has room, as asserted; the caller promises the instruction set.
    with_array!(x.data, data => unsafe {
        pack_lanes::<T, _>(data, x, part, vectors, panel)
    });
}

/// Writes `[group][line]` lanes.
///
/// # Safety
/// The panel must have room; the machine must have the instruction set.
#[inline(always)]
unsafe fn pack_lanes<T: Lane<A::Elem>, A: Array>(
    data: A,
    x: Lines<'_>,
    part: Part,
    vectors: usize,
    panel: *mut i32,
) {
    assert!(part.end(&x) <= data.len());
    for v in 0..vectors {
        let lines = part.lines.saturating_sub(v * LANES).min(LANES);
        let part = Part { line: part.line + v * LANES, lines, ..part };
        // SAFETY: the part is inside the slice, as asserted, and the panel has room.
        unsafe {
            blocks::<T, A>(data, x, part, x.step == 1, |group, count, block| {
                for (g, row) in block.iter().enumerate().take(count) {
                    let to = ((group + g) * vectors + v) * LANES;
                    _mm512_storeu_si512(panel.add(to).cast(), *row);
                }
            });
        }
    }
}

/// [`Tile::pack_int8`].
///
/// # Safety
/// The machine must have the instruction set.
#[inline(always)]
pub(super) unsafe fn pack_int8(x: Lines<'_>, part: Part, vectors: usize, panel: &mut [i32]) {
    let width = vectors * LANES;
    assert!(panel.len() >= int8::panel_len(part.k, width));
    let (head, lanes) = panel.split_at_mut(2 * width);
    let (corrections, scales) = head.split_at_mut(width);
    int8::scales(x, part, scales);
    // SAFETY: the panel has room, as asserted; the caller promises the instruction set.
    unsafe {
        pack_lanes::<Int8, _>(x.data.packed().int8().values, x, part, vectors, lanes.as_mut_ptr());
        let (ones, factors) =
            (_mm512_set1_epi8(1), _mm512_set1_epi16(-i16::from(Int8Rows::ZERO_POINT)));
        for v in 0..vectors {
            let mut sums = _mm512_setzero_si512();
            for group in 0..part.k.div_ceil(int8::STEP) {
                let lane =
                    _mm512_loadu_si512(lanes.as_ptr().add((group * vectors + v) * LANES).cast());
                let pairs = _mm512_maddubs_epi16(ones, lane);
                sums = _mm512_add_epi32(sums, _mm512_madd_epi16(pairs, factors));
            }
            _mm512_storeu_si512(corrections.as_mut_ptr().add(v * LANES).cast(), sums);
        }
    }
}

/// [`Tile::pack_rows`].
///
/// # Safety
/// The machine must have the instruction set.
#[inline(always)]
pub(super) unsafe fn pack_rows<T: Lanes>(x: Lines<'_>, part: Part, stride: usize, rows: &mut [T]) {
    let step = T::GROUP;
    let groups = part.k.div_ceil(step);
    assert!(stride.is_multiple_of(step) && stride >= groups * step);
    assert!(rows.len() >= (part.lines - 1) * stride + groups * step);
    let (stride, to) = (stride / step, rows.as_mut_ptr().cast::<i32>());
    with_array!(x.data, data => {
        assert!(part.end(&x) <= Array::len(&data));
        let rows = x.rows();
        // SAFETY: the part is inside the slice and the rows have room, as asserted.
        unsafe {
            if x.step == 1 {
                for line in 0..part.lines {
                    let row = rows.of(part.line + line, part.k0);
                    for group in (0..groups).step_by(LANES) {
                        let k = group * step;
                        let index = x.index(part.line + line, part.k0 + k);
                        let scale = data.scale(index, row);
                        let from = RowPtr { start: data.start(index), scale };
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
                blocks::<T, _>(data, x, part, false, |group, count, block| {
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

/// Prefetches a cache line: packing reads many short runs, which hardware prefetchers miss.
#[inline(always)]
fn prefetch<S>(from: *const S) {
    // SAFETY: a prefetch cannot fault.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(from.cast()) };
}

/// Calls `body(group, count, rows)` for up to 16 groups at a time, each row holding one group of up
/// to 16 lines; only the first `count` rows are valid. `transposes` if lines are contiguous along
/// the contraction.
///
/// # Safety
/// The part must be inside the array; the machine must have the instruction set.
#[inline(always)]
unsafe fn blocks<T: Lane<A::Elem>, A: Array>(
    data: A,
    x: Lines<'_>,
    part: Part,
    transposes: bool,
    mut body: impl FnMut(usize, usize, &mut [__m512i; LANES]),
) {
    let groups = part.k.div_ceil(T::STEP);
    let rows = x.rows();
    let index = |line: usize, k: usize| x.index(part.line + line, part.k0 + k);
    let at = |line: usize, k: usize| {
        let (index, row) = (index(line, k), rows.of(part.line + line, part.k0 + k));
        RowPtr { start: data.start(index), scale: data.scale(index, row) }
    };
    // SAFETY: the caller promises the instruction set.
    let zero = unsafe { [_mm512_setzero_si512(); LANES] };
    let mut block = zero;
    for group in (0..groups).step_by(LANES) {
        let k = group * T::STEP;
        let count = (groups - group).min(LANES);
        // SAFETY: lines and steps are those of the part.
        unsafe {
            if transposes {
                for (i, line) in block.iter_mut().enumerate().take(part.lines) {
                    // The same steps of the lines that are packed next.
                    prefetch(data.start(index(i + LANES, k)));
                    *line = T::along(at(i, k), part.k - k);
                }
                transpose(&mut block);
            } else if part.lines > 0 {
                // Beyond the last line of the last step there is no scale to read.
                for (g, row) in block.iter_mut().enumerate().take(count) {
                    let k = k + g * T::STEP;
                    let steps = (part.k - k).min(T::STEP);
                    for step in 0..steps {
                        prefetch(data.start(index(0, k + LANES * T::STEP + step)));
                    }
                    *row = T::across(|step| at(0, k + step), steps, first_16(part.lines));
                }
            }
        }
        body(group, count, &mut block);
        if transposes && part.lines < LANES {
            block = zero;
        }
    }
}

/// Transposes a 16 × 16 block of lanes.
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
