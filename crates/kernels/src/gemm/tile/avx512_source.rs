//! What packing with AVX-512 reads: floats, and bytes and blocks that become floats on the way.

use crate::element::{bf16, f16};
use crate::format::{Int8Rows, Nf4Blocks, Q8_0Blocks};
#[allow(clippy::wildcard_imports, reason = "dozens of intrinsics")]
use std::arch::x86_64::*;
use std::mem::transmute;

/// 32-bit lanes of a vector.
pub(super) const LANES: usize = 16;

/// A pointer into a row, with the scale of what it points at.
#[derive(Clone, Copy)]
pub(super) struct RowPtr<S: Source> {
    pub start: *const S,
    pub scale: S::Scale,
}

impl<S: Source> RowPtr<S> {
    /// The pointer `n` numbers further along the row, within what has the same scale.
    #[inline(always)]
    fn add(self, n: usize) -> Self {
        Self { start: self.start.wrapping_add(n / S::NUMBERS), ..self }
    }
}

/// An array that packing reads.
pub(super) trait Array: Copy {
    type Elem: Source;
    /// How many numbers there are.
    fn len(&self) -> usize;
    /// Where number `index` lies. It is not read, and may lie beyond the end.
    fn start(&self, index: usize) -> *const Self::Elem;
    /// The scale of number `index`, which is in `row`.
    fn scale(&self, index: usize, row: usize) -> <Self::Elem as Source>::Scale;
}

impl<S: Source<Scale = f32>> Array for &[S] {
    type Elem = S;

    #[inline(always)]
    fn len(&self) -> usize {
        <[S]>::len(self)
    }

    #[inline(always)]
    fn start(&self, index: usize) -> *const S {
        self.as_ptr().wrapping_add(index)
    }

    #[inline(always)]
    fn scale(&self, _: usize, _: usize) -> f32 {
        1.0
    }
}

impl Array for Int8Rows<'_> {
    type Elem = u8;

    #[inline(always)]
    fn len(&self) -> usize {
        self.values.len()
    }

    #[inline(always)]
    fn start(&self, index: usize) -> *const u8 {
        self.values.as_ptr().wrapping_add(index)
    }

    #[inline(always)]
    fn scale(&self, _: usize, row: usize) -> f32 {
        self.scales[row]
    }
}

/// A signed byte of a Q8_0 block.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(super) struct SignedByte(#[allow(dead_code)] u8);

impl Array for Q8_0Blocks<'_> {
    type Elem = SignedByte;

    #[inline(always)]
    fn len(&self) -> usize {
        Self::len(*self)
    }

    #[inline(always)]
    fn start(&self, index: usize) -> *const SignedByte {
        self.bytes().as_ptr().wrapping_add(Self::offset(index)).cast()
    }

    /// The bits of an f16.
    #[inline(always)]
    fn scale(&self, index: usize, _: usize) -> u16 {
        self.scale_bits(index)
    }
}

/// Two weights in NF4, the first in the upper half.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(super) struct Nf4Pair(#[allow(dead_code)] u8);

impl Array for Nf4Blocks<'_> {
    type Elem = Nf4Pair;

    #[inline(always)]
    fn len(&self) -> usize {
        Self::len(self)
    }

    #[inline(always)]
    fn start(&self, index: usize) -> *const Nf4Pair {
        self.pairs().as_ptr().wrapping_add(index / 2).cast()
    }

    #[inline(always)]
    fn scale(&self, index: usize, _: usize) -> f32 {
        self.magnitude(index)
    }
}

/// An element type that packing reads.
pub(super) trait Source: Copy {
    /// What numbers are multiplied with; one for floats.
    type Scale: Copy;
    /// Numbers in an element.
    const NUMBERS: usize = 1;

    /// 16 values under a mask, as `f32`.
    ///
    /// # Safety
    /// The elements under the mask must exist; the machine must have the instruction set.
    unsafe fn load(from: RowPtr<Self>, mask: u16) -> __m512;

    /// 16 values under a mask, as bf16.
    ///
    /// # Safety
    /// As [`Source::load`].
    #[inline(always)]
    unsafe fn load_half_bf16(from: RowPtr<Self>, mask: u16) -> __m256i {
        // SAFETY: as the caller promises; vectors of the same size.
        unsafe { transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(Self::load(from, mask))) }
    }

    /// The bits of 32 values as bf16, of which `count` exist.
    ///
    /// # Safety
    /// As [`Source::load`].
    #[inline(always)]
    unsafe fn load_bf16(from: RowPtr<Self>, count: usize) -> __m512i {
        // SAFETY: as the caller promises; an address under an empty mask is not read.
        unsafe {
            let low = Self::load(from, first_16(count));
            let high = Self::load(from.add(LANES), first_16(count.saturating_sub(LANES)));
            transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low))
        }
    }
}

impl Source for f32 {
    type Scale = f32;

    #[inline(always)]
    unsafe fn load(from: RowPtr<f32>, mask: u16) -> __m512 {
        // SAFETY: as the caller promises.
        unsafe { _mm512_maskz_loadu_ps(mask, from.start) }
    }
}

impl Source for bf16 {
    type Scale = f32;

    #[inline(always)]
    unsafe fn load(from: RowPtr<bf16>, mask: u16) -> __m512 {
        // SAFETY: as the caller promises.
        unsafe {
            let bits = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, from.start.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(bits))
        }
    }

    #[inline(always)]
    unsafe fn load_half_bf16(from: RowPtr<bf16>, mask: u16) -> __m256i {
        // SAFETY: as the caller promises.
        unsafe { _mm256_maskz_loadu_epi16(mask, from.start.cast()) }
    }

    #[inline(always)]
    unsafe fn load_bf16(from: RowPtr<bf16>, count: usize) -> __m512i {
        let mask = if count >= 32 { u32::MAX } else { (1 << count) - 1 };
        // SAFETY: as the caller promises.
        unsafe { _mm512_maskz_loadu_epi16(mask, from.start.cast()) }
    }
}

impl Source for f16 {
    type Scale = f32;

    #[inline(always)]
    unsafe fn load(from: RowPtr<f16>, mask: u16) -> __m512 {
        // SAFETY: as the caller promises.
        unsafe { _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, from.start.cast())) }
    }
}

impl Source for u8 {
    type Scale = f32;

    #[inline(always)]
    unsafe fn load(from: RowPtr<u8>, mask: u16) -> __m512 {
        // SAFETY: as the caller promises.
        unsafe {
            let values = _mm512_cvtepi8_epi32(load_centred(from.start, mask));
            _mm512_mul_ps(_mm512_cvtepi32_ps(values), _mm512_set1_ps(from.scale))
        }
    }
}

impl Source for SignedByte {
    type Scale = u16;

    #[inline(always)]
    unsafe fn load(from: RowPtr<Self>, mask: u16) -> __m512 {
        // SAFETY: as the caller promises.
        unsafe {
            let values = _mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(mask, from.start.cast()));
            let scale = _mm512_cvtph_ps(_mm256_set1_epi16(from.scale as i16));
            _mm512_maskz_mul_ps(mask, scale, _mm512_cvtepi32_ps(values))
        }
    }
}

impl Source for Nf4Pair {
    type Scale = f32;
    const NUMBERS: usize = 2;

    #[inline(always)]
    unsafe fn load(from: RowPtr<Self>, mask: u16) -> __m512 {
        // SAFETY: as the caller promises: the lanes under the mask are the first ones.
        unsafe {
            let pairs = first_16(mask.count_ones().div_ceil(2) as usize);
            let pairs = _mm_maskz_loadu_epi8(pairs, from.start.cast());
            let low = _mm_set1_epi8(15);
            let upper = _mm_and_si128(_mm_srli_epi16::<4>(pairs), low);
            let indices = _mm_unpacklo_epi8(upper, _mm_and_si128(pairs, low));
            let levels = _mm512_loadu_ps(Nf4Blocks::LEVELS.as_ptr());
            let levels = _mm512_permutexvar_ps(_mm512_cvtepu8_epi32(indices), levels);
            _mm512_maskz_mul_ps(mask, levels, _mm512_set1_ps(from.scale))
        }
    }
}

/// 16 bytes under a mask without their zero point, zero elsewhere.
///
/// # Safety
/// The bytes under the mask must exist; the machine must have the instruction set.
#[inline(always)]
pub(super) unsafe fn load_centred(from: *const u8, mask: u16) -> __m128i {
    // SAFETY: as the caller promises.
    unsafe {
        let zero = _mm_set1_epi8(Int8Rows::ZERO_POINT as i8);
        _mm_xor_si128(_mm_mask_loadu_epi8(zero, mask, from.cast()), zero)
    }
}

/// A mask of the first `count` of 16 lanes.
#[inline(always)]
pub(super) fn first_16(count: usize) -> u16 {
    if count >= LANES { u16::MAX } else { (1 << count) - 1 }
}
