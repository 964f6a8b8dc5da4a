//! Packing with AVX-512.
//!
//! Sixteen 32-bit lanes hold sixteen `f32`, sixteen pairs of bf16, or sixteen groups of four bytes,
//! so one transposition serves all: see [`Layout`].

use super::avx512_source::{
    Array, LANES, Nf4Pair, RowPtr, SignedByte, Source, first_16, load_centred,
};
use super::{BLOCK, Lines, Part, int8};
use crate::element::{bf16, f16};
use crate::format::{Int8Rows, Nf4Blocks, Q8_0Blocks, Storage};
use crate::view::{View, not_floats, out_of_reach};
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
struct Int8;

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

    /// One group of steps, the `i`th at `from(i)`, of 16 lines under a mask; steps that do not exist
    /// are zero.
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

/// Rounds `f32` to the nearest bf16, ties to even.
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
        _mm512_and_si512(nearest, _mm512_set1_epi32(0xffff_0000_u32.cast_signed()))
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

/// [`super::Tile::packs`]: bytes with a scale for each row in any place, and blocks where what one
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

/// Implements the packing of a [`Tile`](super::Tile), in a layout, on a machine with some features.
macro_rules! packing {
    ($layout:ty, $features:literal, $pack_panel:ident, $pack_rows:ident) => {
        unsafe fn $pack_panel(x: Lines<'_>, part: Part, vectors: usize, panel: &mut [Self::Elem]) {
            #[target_feature(enable = $features)]
            unsafe fn packed(
                x: Lines<'_>,
                part: Part,
                vectors: usize,
                panel: &mut [<$layout as Layout>::Elem],
            ) {
                // SAFETY: as the caller promises.
                unsafe { avx512_pack::pack_panel::<$layout>(x, part, vectors, panel) }
            }
            // SAFETY: as the caller promises.
            unsafe { packed(x, part, vectors, panel) }
        }

        unsafe fn $pack_rows(x: Lines<'_>, part: Part, stride: usize, rows: &mut [Self::Elem]) {
            #[target_feature(enable = $features)]
            unsafe fn packed(
                x: Lines<'_>,
                part: Part,
                stride: usize,
                rows: &mut [<$layout as Layout>::Elem],
            ) {
                // SAFETY: as the caller promises.
                unsafe { avx512_pack::pack_rows::<$layout>(x, part, stride, rows) }
            }
            // SAFETY: as the caller promises.
            unsafe { packed(x, part, stride, rows) }
        }
    };
}
pub(super) use packing;

/// [`super::Tile::pack_panel`].
///
/// # Safety
/// The machine must have the instruction set.
#[inline(always)]
pub(super) unsafe fn pack_panel<L: Lanes>(
    x: Lines<'_>,
    part: Part,
    vectors: usize,
    panel: &mut [L::Elem],
) {
    let groups = part.k.next_multiple_of(L::PADDING) / L::STEP;
    assert!(size_of_val(panel) >= groups * vectors * LANES * 4);
    let panel = panel.as_mut_ptr().cast();
    // SAFETY: the panel has room, as asserted; the caller promises the instruction set.
    with_array!(x.data, data => unsafe {
        pack_lanes::<L, _>(data, x, part, vectors, panel)
    });
}

/// Writes `[group][line]` lanes.
///
/// # Safety
/// The panel must have room; the machine must have the instruction set.
#[inline(always)]
unsafe fn pack_lanes<L: Lane<A::Elem>, A: Array>(
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
            let to = Panel { start: panel.add(v * LANES), stride: vectors * LANES };
            blocks::<L, A>(data, x, part, x.step == 1, to);
        }
    }
}

/// [`super::Tile::pack_int8`].
///
/// # Safety
/// The machine must have the instruction set.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
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

/// [`super::Tile::pack_rows`].
///
/// # Safety
/// The machine must have the instruction set.
#[inline(always)]
pub(super) unsafe fn pack_rows<L: Lanes>(
    x: Lines<'_>,
    part: Part,
    stride: usize,
    rows: &mut [L::Elem],
) {
    let groups = part.k.next_multiple_of(L::PADDING) / L::STEP;
    let (stride, room) = (stride / L::STEP, size_of_val(rows) / 4);
    assert!(stride >= groups && room >= (part.lines - 1) * stride + groups);
    let to = rows.as_mut_ptr().cast::<i32>();
    with_array!(x.data, data => {
        assert!(part.end(&x) <= Array::len(&data));
        let rows = x.rows();
        // SAFETY: the part is inside the slice and the rows have room, as asserted.
        unsafe {
            if x.step == 1 {
                for line in 0..part.lines {
                    let row = rows.of(part.line + line, part.k0);
                    for group in (0..groups).step_by(LANES) {
                        let k = group * L::STEP;
                        let mask = first_16(groups - group);
                        let mut lanes = _mm512_setzero_si512();
                        if k < part.k {
                            let index = x.index(part.line + line, part.k0 + k);
                            let scale = data.scale(index, row);
                            let from = RowPtr { start: data.start(index), scale };
                            lanes = L::along(from, part.k - k);
                        }
                        _mm512_mask_storeu_epi32(to.add(line * stride + group), mask, lanes);
                    }
                }
                return;
            }
            for first in (0..part.lines).step_by(LANES) {
                let lines = (part.lines - first).min(LANES);
                let part = Part { line: part.line + first, lines, ..part };
                let to = Rows { start: to.add(first * stride), stride, lines };
                blocks::<L, _>(data, x, part, false, to);
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

/// Where groups of lines are packed to. Not a closure, as intrinsics would not be inlined in it.
trait Packed {
    /// Stores the first `count` of 16 groups, which begin at `group`, each of up to 16 lines.
    ///
    /// # Safety
    /// There must be room; the machine must have the instruction set.
    unsafe fn store(&self, group: usize, count: usize, block: &mut [__m512i; LANES]);
}

/// `[group][line]`, groups `stride` lanes apart.
struct Panel {
    start: *mut i32,
    stride: usize,
}

impl Packed for Panel {
    #[inline(always)]
    unsafe fn store(&self, group: usize, count: usize, block: &mut [__m512i; LANES]) {
        for (g, row) in block.iter().enumerate().take(count) {
            // SAFETY: as the caller promises.
            unsafe {
                let to = self.start.add((group + g) * self.stride);
                _mm512_storeu_si512(to.cast(), *row);
            }
        }
    }
}

/// `[line][group]`, lines `stride` lanes apart.
struct Rows {
    start: *mut i32,
    stride: usize,
    lines: usize,
}

impl Packed for Rows {
    #[inline(always)]
    unsafe fn store(&self, group: usize, count: usize, block: &mut [__m512i; LANES]) {
        // SAFETY: as the caller promises.
        unsafe { transpose(block) };
        let mask = first_16(count);
        for (i, line) in block.iter().enumerate().take(self.lines) {
            // SAFETY: as the caller promises.
            unsafe {
                let to = self.start.add(i * self.stride + group);
                _mm512_mask_storeu_epi32(to, mask, *line);
            }
        }
    }
}

/// Packs up to 16 groups of up to 16 lines at a time. `transposes` if lines are contiguous along the
/// contraction.
///
/// # Safety
/// The part must be inside the array, and there must be room for what is packed; the machine must
/// have the instruction set.
#[inline(always)]
unsafe fn blocks<L: Lane<A::Elem>, A: Array>(
    data: A,
    x: Lines<'_>,
    part: Part,
    transposes: bool,
    to: impl Packed,
) {
    let groups = part.k.next_multiple_of(L::PADDING) / L::STEP;
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
        let k = group * L::STEP;
        let count = (groups - group).min(LANES);
        // SAFETY: lines and steps are those of the part.
        unsafe {
            if k >= part.k {
                block = zero;
            } else if transposes {
                for (i, line) in block.iter_mut().enumerate().take(part.lines) {
                    // The same steps of the lines that are packed next.
                    prefetch(data.start(index(i + LANES, k)));
                    *line = L::along(at(i, k), part.k - k);
                }
                transpose(&mut block);
            } else if part.lines > 0 {
                // Beyond the last line of the last step there is no scale to read.
                for (g, row) in block.iter_mut().enumerate().take(count) {
                    let step = |i| k + L::step(g, i);
                    for i in 0..L::STEP {
                        prefetch(data.start(index(0, step(i) + LANES * L::STEP)));
                    }
                    let from = |i| if step(i) < part.k { Some(at(0, step(i))) } else { None };
                    *row = L::across(from, first_16(part.lines));
                }
            }
        }
        // SAFETY: the caller promises that there is room.
        unsafe { to.store(group, count, &mut block) };
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
