//! The microkernel, a tile of the output in registers, and the packing that feeds it.
//!
//! The contraction runs in groups of [`Tile::STEP`] steps, as the instructions require: one for
//! `f32`, pairs for bf16. The right operand is packed into panels `[group][column][step]`; rows of
//! the left operand are read in place if their type and the tile allow.
//!
//! All implementations give the same bits. `f32` products are one chain of fused multiply-adds.
//! bf16 products are summed as AMX's `tdpbf16ps` does it: each [`BLOCK`] of 32 steps apart, its
//! even and its odd steps as two chains of fused multiply-adds that begin at zero; their sum is
//! added to what is there. A contraction is padded with zeros to whole blocks, on every instruction
//! set.

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod avx512_bf16;
#[cfg(target_arch = "x86_64")]
mod avx512_layout;
#[cfg(target_arch = "x86_64")]
mod avx512_pack;
#[cfg(target_arch = "x86_64")]
mod avx512_source;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod floats;
pub(crate) mod int8;
#[cfg(target_arch = "aarch64")]
mod neon;
mod plain;

#[cfg(target_arch = "x86_64")]
pub(crate) use amx::{Amx, Configured};
#[cfg(target_arch = "x86_64")]
pub(crate) use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) use avx512::Avx512;
#[cfg(target_arch = "x86_64")]
pub(crate) use avx512_bf16::Avx512Bf16;
#[cfg(target_arch = "aarch64")]
pub(crate) use neon::Neon;
pub(crate) use plain::{Emulated, Scalar};

use crate::cpu::Plain;
use crate::element::{Element, bf16};
use crate::format::Storage;
use crate::view::View;

/// Steps of the contraction that bf16 products sum apart.
pub(crate) const BLOCK: usize = 32;

/// An operand as lines along the contraction: rows of the left one, columns of the right one.
/// Element `k` of line `i` is at `offset + i * line_stride + k * step`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lines<'a> {
    pub data: View<'a>,
    pub offset: usize,
    pub line_stride: usize,
    pub step: usize,
}

/// A part of [`Lines`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Part {
    /// First line.
    pub line: usize,
    /// Number of lines.
    pub lines: usize,
    /// First step of the contraction.
    pub k0: usize,
    /// Number of steps.
    pub k: usize,
}

/// A range of the contraction of one tile.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct Segment<E> {
    /// First row of the left operand.
    pub a: *const E,
    /// Distance between its rows.
    pub a_stride: usize,
    /// Panel of the right operand.
    pub b: *const E,
    /// Groups of [`Tile::STEP`] steps; whole blocks of bf16.
    pub groups: usize,
}

/// Where a tile's sums are stored, and how.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sums {
    /// First element.
    pub start: *mut f32,
    /// Distance between rows.
    pub stride: usize,
    pub store: Store,
}

/// How a tile's sums are combined with the values in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Store {
    /// They replace them.
    Overwrite,
    /// The chain of multiply-adds continues from them.
    Continue,
    /// They are added at the end: many short sums are more accurate than one long chain. Sums of
    /// blocks of bf16 are short already, and added as they come.
    Add,
}

/// An implementation of tiles.
pub(crate) trait Tile {
    /// Element of packed operands.
    type Elem: Plain + Send + Sync + 'static;
    /// Steps of the contraction in a group.
    const STEP: usize;
    /// Lengths of packed lines are rounded up to a multiple of this.
    const PADDING: usize = Self::STEP;
    /// Columns of a vector.
    const LANES: usize;
    /// Vectors of the widest panel.
    const VECTORS: usize;
    /// Rows of the tallest tile.
    const ROWS: usize;

    /// The elements, if rows of them can be multiplied in place.
    fn direct(data: View<'_>) -> Option<&[Self::Elem]>;

    /// Packs at most `vectors * LANES` lines into a panel of that width; the rest becomes zero.
    ///
    /// # Safety
    /// The machine must have the instruction set.
    unsafe fn pack_panel(x: Lines<'_>, part: Part, vectors: usize, panel: &mut [Self::Elem]);

    /// Packs lines `stride` apart, zero-padded to a multiple of [`Tile::PADDING`].
    ///
    /// # Safety
    /// The machine must have the instruction set.
    unsafe fn pack_rows(x: Lines<'_>, part: Part, stride: usize, rows: &mut [Self::Elem]);

    /// `sums[rows, vectors * LANES] (+)= Σ_segments a · b`, each element summed along `k` in the
    /// order that all tiles of the operands' type follow.
    ///
    /// # Safety
    /// The machine must have the instruction set; `rows ≤ ROWS`, `vectors ≤ VECTORS`; `segments`
    /// and `sums` must point to valid memory.
    unsafe fn run(rows: usize, vectors: usize, segments: &[Segment<Self::Elem>], sums: Sums);

    /// Packs at most `vectors * LANES` lines of bytes into a panel for [`Tile::run_int8`].
    ///
    /// # Safety
    /// The machine must have the instruction set.
    #[inline(always)]
    unsafe fn pack_int8(x: Lines<'_>, part: Part, vectors: usize, panel: &mut [i32]) {
        int8::pack_panel(x, part, vectors * Self::LANES, panel);
    }

    /// Like [`Tile::run`] for one int8 segment, with its scales applied.
    ///
    /// # Safety
    /// As [`Tile::run`].
    unsafe fn run_int8(rows: usize, vectors: usize, segment: int8::Segment, sums: Sums);

    /// Multiplies and adds what registers hold `count` times; returns the number of operations.
    ///
    /// # Safety
    /// As [`Tile::run`].
    unsafe fn run_in_registers(count: usize) -> usize;

    /// [`Tile::run_in_registers`] for bytes, if there is an instruction for them.
    ///
    /// # Safety
    /// As [`Tile::run`].
    #[inline(always)]
    unsafe fn run_int8_in_registers(_: usize) -> Option<usize> {
        None
    }

    /// Whether this packs these packed weights directly, without unpacking them first.
    fn packs(_: Lines<'_>, _: Part) -> bool {
        false
    }

    /// `out = x`, rounded to bf16.
    ///
    /// # Safety
    /// The machine must have the instruction set.
    #[inline(always)]
    unsafe fn narrow(x: &[f32], out: &mut [bf16]) {
        out.iter_mut().zip(x).for_each(|(out, x)| *out = Element::from_f32(*x));
    }
}

/// A tile of `f32` that can also sum as bf16 products are summed.
pub(crate) trait Blocks: Tile<Elem = f32> {
    /// [`Tile::run`] in the order of bf16 products, for operands that are rounded to bf16.
    ///
    /// # Safety
    /// As [`Tile::run`].
    unsafe fn run_blocks(rows: usize, vectors: usize, segments: &[Segment<f32>], sums: Sums);

    /// [`Tile::pack_panel`], rounded to bf16 and padded to whole blocks.
    ///
    /// # Safety
    /// As [`Tile::pack_panel`].
    #[inline(always)]
    unsafe fn pack_rounded_panel(x: Lines<'_>, part: Part, vectors: usize, panel: &mut [f32]) {
        plain::pack_panel(x, part, vectors * Self::LANES, panel, plain::Values::Rounded);
    }

    /// [`Tile::pack_rows`], rounded to bf16 and padded to whole blocks.
    ///
    /// # Safety
    /// As [`Tile::pack_rows`].
    #[inline(always)]
    unsafe fn pack_rounded_rows(x: Lines<'_>, part: Part, stride: usize, rows: &mut [f32]) {
        plain::pack_rows(x, part, stride, rows, plain::Values::Rounded);
    }
}

/// Lines unpacked at a time: those of the widest panel.
const UNPACKED_LINES: usize = super::MAX_PANEL;
/// Steps unpacked at a time: a multiple of every [`Tile::PADDING`].
const UNPACKED_STEPS: usize = 128;

/// [`Tile::pack_panel`] for weights in any format.
///
/// # Safety
/// As [`Tile::pack_panel`].
#[inline(always)]
pub(crate) unsafe fn pack_panel<M: Tile>(
    x: Lines<'_>,
    part: Part,
    vectors: usize,
    panel: &mut [M::Elem],
) {
    if !is_unpacked_for::<M>(x, part) {
        // SAFETY: as the caller promises.
        return unsafe { M::pack_panel(x, part, vectors, panel) };
    }
    let width = vectors * M::LANES;
    x.unpacked(part, |floats, floats_part, piece| {
        let panel = &mut panel[(piece.k0 - part.k0) * width..];
        // SAFETY: as the caller promises.
        unsafe { M::pack_panel(floats, floats_part, vectors, panel) }
    });
}

/// [`Tile::pack_rows`] for weights in any format.
///
/// # Safety
/// As [`Tile::pack_rows`].
#[inline(always)]
pub(crate) unsafe fn pack_rows<M: Tile>(
    x: Lines<'_>,
    part: Part,
    stride: usize,
    rows: &mut [M::Elem],
) {
    if !is_unpacked_for::<M>(x, part) {
        // SAFETY: as the caller promises.
        return unsafe { M::pack_rows(x, part, stride, rows) };
    }
    x.unpacked(part, |floats, floats_part, piece| {
        let rows = &mut rows[(piece.line - part.line) * stride + piece.k0 - part.k0..];
        // SAFETY: as the caller promises.
        unsafe { M::pack_rows(floats, floats_part, stride, rows) }
    });
}

/// Whether the tile needs these weights unpacked before it packs them.
#[inline(always)]
fn is_unpacked_for<M: Tile>(x: Lines<'_>, part: Part) -> bool {
    match x.data.storage() {
        Storage::Float(_) => false,
        Storage::Packed(_) => !M::packs(x, part),
    }
}

/// An element type of outputs.
pub(crate) trait Narrow: Element {
    /// `out = x`, rounded to the nearest.
    ///
    /// # Safety
    /// The machine must have the tile's instruction set.
    unsafe fn narrow<M: Tile>(x: &[f32], out: &mut [Self]);
}

impl Narrow for f32 {
    #[inline(always)]
    unsafe fn narrow<M: Tile>(x: &[f32], out: &mut [f32]) {
        out.copy_from_slice(x);
    }
}

impl Narrow for bf16 {
    #[inline(always)]
    unsafe fn narrow<M: Tile>(x: &[f32], out: &mut [bf16]) {
        // SAFETY: as the caller promises.
        unsafe { M::narrow(x, out) }
    }
}

/// Maps elements of [`Lines`] to rows of the stored matrix, and thus to scales.
#[derive(Clone, Copy)]
pub(crate) struct ScaleRows {
    first: usize,
    /// Whether lines are rows of the matrix, rather than columns.
    lines_are_rows: bool,
}

impl ScaleRows {
    /// The row that step `k` of a line belongs to.
    #[inline(always)]
    pub fn of(self, line: usize, k: usize) -> usize {
        self.first + if self.lines_are_rows { line } else { k }
    }
}

impl<'a> Lines<'a> {
    /// Unpacks `part` of packed weights piece by piece; calls `body(floats, part of the floats,
    /// part of the lines)` for each.
    #[inline(always)]
    fn unpacked(&self, part: Part, mut body: impl FnMut(Lines<'_>, Part, Part)) {
        let packed = self.data.packed();
        let mut floats = [0.0; UNPACKED_LINES * UNPACKED_STEPS];
        for piece in part.pieces() {
            let Part { line, lines, k0, k } = piece;
            let (line_stride, step) = if self.step == 1 { (k, 1) } else { (1, lines) };
            let floats = &mut floats[..lines * k];
            if self.step == 1 {
                for (i, row) in floats.chunks_exact_mut(k).enumerate() {
                    packed.unpack(self.index(line + i, k0), row);
                }
            } else {
                for (i, row) in floats.chunks_exact_mut(lines).enumerate() {
                    packed.unpack(self.index(line, k0 + i), row);
                }
            }
            let floats = Lines { data: View::F32(floats), offset: 0, line_stride, step };
            body(floats, Part { line: 0, lines, k0: 0, k }, piece);
        }
    }

    /// The matrix rows that the elements belong to.
    #[inline(always)]
    pub fn rows(&self) -> ScaleRows {
        ScaleRows { first: self.offset / self.data.cols(), lines_are_rows: self.step == 1 }
    }

    /// Index of step `k` of a line.
    #[inline(always)]
    pub fn index(&self, line: usize, k: usize) -> usize {
        self.offset + line * self.line_stride + k * self.step
    }
}

impl Part {
    /// Pieces of at most `UNPACKED_LINES` × `UNPACKED_STEPS`.
    fn pieces(self) -> impl Iterator<Item = Part> {
        let by_steps = move |line: usize| {
            (0..self.k).step_by(UNPACKED_STEPS).map(move |k0| Part {
                line: self.line + line,
                lines: UNPACKED_LINES.min(self.lines - line),
                k0: self.k0 + k0,
                k: UNPACKED_STEPS.min(self.k - k0),
            })
        };
        (0..self.lines).step_by(UNPACKED_LINES).flat_map(by_steps)
    }

    /// One past the index of the last element, for bounds checks.
    #[inline(always)]
    pub fn end(&self, x: &Lines<'_>) -> usize {
        x.index(self.line + self.lines - 1, self.k0 + self.k - 1) + 1
    }
}

/// Calls `$tile::<R, V>` for the given rows and one to three vectors.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
macro_rules! for_size {
    ($rows:expr, $vectors:expr, [$($r:literal)*], $tile:ident $args:tt) => {
        match ($rows, $vectors) {
            $(
                ($r, 1) => $tile::<$r, 1> $args,
                ($r, 2) => $tile::<$r, 2> $args,
                ($r, 3) => $tile::<$r, 3> $args,
            )*
            (rows, vectors) => unreachable!("no tile of {rows} rows and {vectors} vectors"),
        }
    };
}
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
pub(crate) use for_size;

/// The tiles of an instruction set.
pub(crate) trait Tiles {
    /// For products of `f32`.
    type F32: Tile;
    /// For products of bf16.
    type Bf16: Tile;
}

/// Tiles that are defined together.
pub(crate) struct Pair<F32, Bf16>(std::marker::PhantomData<(F32, Bf16)>);

impl<F32: Tile, Bf16: Tile> Tiles for Pair<F32, Bf16> {
    type F32 = F32;
    type Bf16 = Bf16;
}

pub(crate) type OnScalar = Pair<Scalar, Emulated<Scalar>>;
#[cfg(target_arch = "x86_64")]
pub(crate) type OnAvx2 = Pair<Avx2, Emulated<Avx2>>;
#[cfg(target_arch = "x86_64")]
pub(crate) type OnAvx512 = Pair<Avx512, Emulated<Avx512>>;
#[cfg(target_arch = "x86_64")]
pub(crate) type OnAvx512Bf16 = Pair<Avx512, Avx512Bf16>;
#[cfg(target_arch = "x86_64")]
pub(crate) type OnAmx = Pair<Avx512, Amx>;
#[cfg(target_arch = "aarch64")]
pub(crate) type OnNeon = Pair<Neon, Emulated<Neon>>;

/// Runs `$body` with `$tiles` naming the [`Tiles`] of `$isa`.
macro_rules! with_tiles {
    ($isa:expr, $tiles:ident => $body:expr) => {{
        use $crate::cpu::Isa;
        use $crate::gemm::tile;
        match $isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Amx => {
                type $tiles = tile::OnAmx;
                $body
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Bf16 => {
                type $tiles = tile::OnAvx512Bf16;
                $body
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => {
                type $tiles = tile::OnAvx512;
                $body
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => {
                type $tiles = tile::OnAvx2;
                $body
            }
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => {
                type $tiles = tile::OnNeon;
                $body
            }
            _ => {
                type $tiles = tile::OnScalar;
                $body
            }
        }
    }};
}
pub(crate) use with_tiles;

/// Runs `$body` with `$tile` naming the [`Tile`] for `$compute` products on `$isa`.
macro_rules! with_tile {
    ($isa:expr, $compute:expr, $tile:ident => $body:expr) => {
        $crate::gemm::tile::with_tiles!($isa, TilesOfIsa => match $compute {
            $crate::element::DType::F32 => {
                type $tile = <TilesOfIsa as $crate::gemm::tile::Tiles>::F32;
                $body
            }
            _ => {
                type $tile = <TilesOfIsa as $crate::gemm::tile::Tiles>::Bf16;
                $body
            }
        })
    };
}
pub(crate) use with_tile;
