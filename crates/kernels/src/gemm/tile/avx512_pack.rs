//! Packing with AVX-512.
//!
//! Sixteen 32-bit lanes hold sixteen `f32`, sixteen pairs of bf16, or sixteen groups of four bytes,
//! so one transposition serves all: see [`super::avx512_layout`].

use super::avx512_layout::{Int8, Lane, Lanes};
use super::avx512_source::{Array, LANES, RowPtr, first_16};
use super::{Lines, Part, int8};
use crate::format::{Int8Rows, Nf4Blocks, Q8_0Blocks, Storage};
use crate::view::{View, not_floats, out_of_reach};
#[allow(clippy::wildcard_imports, reason = "dozens of intrinsics")]
use std::arch::x86_64::*;

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

/// Implements the packing of a [`Tile`](super::Tile), in a layout, on a machine with some features;
/// with names of functions only that of floats, under these.
macro_rules! packing {
    ($layout:ty, $features:literal) => {
        #[inline(always)]
        fn packs(x: Lines<'_>, part: Part) -> bool {
            avx512_pack::packs(x, part)
        }

        #[inline(always)]
        unsafe fn pack_int8(x: Lines<'_>, part: Part, vectors: usize, panel: &mut [i32]) {
            // SAFETY: as the caller promises.
            unsafe { avx512_pack::pack_int8(x, part, vectors, panel) }
        }

        packing!($layout, $features, pack_panel, pack_rows);
    };
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

/// Packs up to 16 groups of up to 16 lines at a time. `transposes` if lines are contiguous along
/// the contraction.
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
