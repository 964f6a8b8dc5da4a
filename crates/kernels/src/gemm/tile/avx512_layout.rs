//! What lines are packed to with AVX-512: which steps of the contraction a lane holds, and how it
//! is filled.

use super::avx512_source::{Nf4Pair, RowPtr, SignedByte, Source, first_16, load_centred};
use super::{BLOCK, int8};
use crate::element::{bf16, f16};
use crate::format::Int8Rows;
#[allow(clippy::wildcard_imports, reason = "dozens of intrinsics")]
use std::arch::x86_64::*;

/// What 32-bit lanes of packed lines hold.
pub(super) trait Layout {
    /// Packed elements.
    type Elem;
    /// Steps of the contraction in a lane.
    const STEP: usize;
    /// Lines are padded to a multiple of so many steps.
    const PADDING: usize;

    /// The step that part `i` of lane `group` of a line holds.
    #[inline(always)]
    fn step(group: usize, i: usize) -> usize {
        group * Self::STEP + i
    }
}

/// `f32` as they are.
pub(super) struct F32;

impl Layout for F32 {
    type Elem = f32;
    const STEP: usize = 1;
    const PADDING: usize = 1;
}

/// `f32` rounded to bf16.
pub(super) struct Rounded;

impl Layout for Rounded {
    type Elem = f32;
    const STEP: usize = 1;
    const PADDING: usize = BLOCK;
}

/// Pairs of bf16 that follow each other: the operands of `tdpbf16ps`.
pub(super) struct Pairs;

impl Layout for Pairs {
    type Elem = bf16;
    const STEP: usize = 2;
    const PADDING: usize = BLOCK;
}

/// Pairs of bf16 two steps apart, the earlier one in the upper half, which `vdpbf16ps` adds first:
/// of four steps the lanes hold 2 and 0, 3 and 1.
pub(super) struct Crossed;

impl Layout for Crossed {
    type Elem = bf16;
    const STEP: usize = 2;
    const PADDING: usize = BLOCK;

    #[inline(always)]
    fn step(group: usize, i: usize) -> usize {
        group / 2 * 4 + group % 2 + 2 * (1 - i)
    }
}

/// Signed bytes in groups of four, without their scales: the second operand of `vpdpbusd`.
pub(super) struct Int8;

impl Layout for Int8 {
    type Elem = i32;
    const STEP: usize = int8::STEP;
    const PADDING: usize = int8::STEP * int8::GROUPS;
}

/// A layout whose lanes are filled from elements `S`.
pub(super) trait Lane<S: Source>: Layout {
    /// `16 * STEP` steps of one line, of which `count` exist; the rest is zero.
    ///
    /// # Safety
    /// `count` elements must exist; the machine must have the instruction set.
    unsafe fn along(from: RowPtr<S>, count: usize) -> __m512i;

    /// One group of steps, the `i`th at `from(i)`, of 16 lines under a mask; steps that do not
    /// exist are zero.
    ///
    /// # Safety
    /// The lines under the mask must exist at each step; the machine must have the instruction set.
    unsafe fn across(from: impl Fn(usize) -> Option<RowPtr<S>>, lines: u16) -> __m512i;
}

impl<S: Source> Lane<S> for F32 {
    #[inline(always)]
    unsafe fn along(from: RowPtr<S>, count: usize) -> __m512i {
        // SAFETY: as the caller promises.
        unsafe { _mm512_castps_si512(S::load(from, first_16(count))) }
    }

    #[inline(always)]
    unsafe fn across(from: impl Fn(usize) -> Option<RowPtr<S>>, lines: u16) -> __m512i {
        // SAFETY: as the caller promises.
        unsafe {
            match from(0) {
                Some(from) => _mm512_castps_si512(S::load(from, lines)),
                None => _mm512_setzero_si512(),
            }
        }
    }
}

impl<S: Source> Lane<S> for Rounded {
    #[inline(always)]
    unsafe fn along(from: RowPtr<S>, count: usize) -> __m512i {
        // SAFETY: as the caller promises.
        unsafe { rounded(<F32 as Lane<S>>::along(from, count)) }
    }

    #[inline(always)]
    unsafe fn across(from: impl Fn(usize) -> Option<RowPtr<S>>, lines: u16) -> __m512i {
        // SAFETY: as the caller promises.
        unsafe { rounded(<F32 as Lane<S>>::across(from, lines)) }
    }
}

/// Rounds `f32` to the nearest bf16, ties to even; subnormals become zero, as in instructions that
/// convert to bf16.
///
/// # Safety
/// The machine must have the instruction set.
#[inline(always)]
unsafe fn rounded(x: __m512i) -> __m512i {
    // SAFETY: as the caller promises.
    unsafe {
        let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(x), _mm512_set1_epi32(1));
        let half = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
        let values = _mm512_castsi512_ps(x);
        let is_nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(values, values);
        let nearest = _mm512_add_epi32(x, half);
        // What makes a NaN quiet is in the upper half.
        let quiet = _mm512_set1_epi32(0x0040_0000);
        let nearest = _mm512_mask_or_epi32(nearest, is_nan, x, quiet);
        let is_normal = _mm512_test_epi32_mask(x, _mm512_set1_epi32(0x7f80_0000));
        let [sign, upper] = [i32::MIN, 0xffff_0000_u32.cast_signed()];
        let kept = _mm512_mask_set1_epi32(_mm512_set1_epi32(sign), is_normal, upper);
        _mm512_and_si512(nearest, kept)
    }
}

impl<S: Source> Lane<S> for Pairs {
    #[inline(always)]
    unsafe fn along(from: RowPtr<S>, count: usize) -> __m512i {
        // SAFETY: as the caller promises; the second half is loaded only where it exists.
        unsafe { S::load_bf16(from, count) }
    }

    #[inline(always)]
    unsafe fn across(from: impl Fn(usize) -> Option<RowPtr<S>>, lines: u16) -> __m512i {
        // SAFETY: as the caller promises.
        unsafe {
            let (low, high) = (half(from(0), lines), half(from(1), lines));
            let both = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high);
            _mm512_permutexvar_epi16(_mm512_loadu_si512(ZIP.as_ptr().cast()), both)
        }
    }
}

/// 16 values as bf16, or zeros.
///
/// # Safety
/// As [`Source::load`].
#[inline(always)]
unsafe fn half<S: Source>(from: Option<RowPtr<S>>, mask: u16) -> __m256i {
    // SAFETY: as the caller promises.
    unsafe {
        match from {
            Some(from) => S::load_half_bf16(from, mask),
            None => _mm256_setzero_si256(),
        }
    }
}

/// 16 bytes without their zero point, or zeros.
///
/// # Safety
/// As [`Source::load`].
#[inline(always)]
unsafe fn centred(from: Option<RowPtr<u8>>, mask: u16) -> __m128i {
    // SAFETY: as the caller promises.
    unsafe {
        match from {
            Some(from) => load_centred(from.start, mask),
            None => _mm_setzero_si128(),
        }
    }
}

impl<S: Source> Lane<S> for Crossed {
    #[inline(always)]
    unsafe fn along(from: RowPtr<S>, count: usize) -> __m512i {
        // SAFETY: as the caller promises.
        unsafe {
            let pairs = <Pairs as Lane<S>>::along(from, count);
            // Of each eight bytes.
            let order = _mm512_set4_epi32(0x0b0a_0f0e, 0x0908_0d0c, 0x0302_0706, 0x0100_0504);
            _mm512_shuffle_epi8(pairs, order)
        }
    }

    #[inline(always)]
    unsafe fn across(from: impl Fn(usize) -> Option<RowPtr<S>>, lines: u16) -> __m512i {
        // SAFETY: as the caller promises: the layout says which steps a lane holds.
        unsafe { <Pairs as Lane<S>>::across(from, lines) }
    }
}

/// A layout of floating-point products, filled from any element type.
pub(super) trait Lanes:
    Lane<f32> + Lane<bf16> + Lane<f16> + Lane<u8> + Lane<SignedByte> + Lane<Nf4Pair>
{
}
impl Lanes for F32 {}
impl Lanes for Rounded {}
impl Lanes for Pairs {}
impl Lanes for Crossed {}

impl Lane<u8> for Int8 {
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
    unsafe fn across(from: impl Fn(usize) -> Option<RowPtr<u8>>, lines: u16) -> __m512i {
        // SAFETY: as the caller promises.
        unsafe {
            let mut rows = [_mm_setzero_si128(); 4];
            for (step, row) in rows.iter_mut().enumerate() {
                *row = centred(from(step), lines);
            }
            // Pairs of steps of the first eight lines, and of the last.
            let [a, b, c, d] = rows;
            let first = (_mm_unpacklo_epi8(a, b), _mm_unpacklo_epi8(c, d));
            let last = (_mm_unpackhi_epi8(a, b), _mm_unpackhi_epi8(c, d));
            let all = _mm512_castsi128_si512(_mm_unpacklo_epi16(first.0, first.1));
            let all = _mm512_inserti32x4::<1>(all, _mm_unpackhi_epi16(first.0, first.1));
            let all = _mm512_inserti32x4::<2>(all, _mm_unpacklo_epi16(last.0, last.1));
            _mm512_inserti32x4::<3>(all, _mm_unpackhi_epi16(last.0, last.1))
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
