//! AMX: tiles of 32 × 32 in the matrix unit's registers, four of 16 × 16 results each.
//!
//! `tdpbf16ps` multiplies 16 rows of 32 steps with 16 columns, `tdpbusd` 16 rows of 64 steps of
//! bytes. The left operand's rows are read in place; a panel is what the right operand's registers
//! hold. The instructions have no stable intrinsics, so the whole loop is one block of assembly for
//! each size.
//!
//! Registers are configured for whole tiles by whoever runs a task ([`Configured`]), as that takes
//! as long as a tile's products do. Rows or steps that fill no register are copied and padded.
//!
//! Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapter 18.

use super::avx512_bf16;
use super::avx512_layout::{Layout, Pairs};
use super::avx512_pack::{self, packing};
use super::avx512_source::LANES;
use super::{BLOCK, Lines, Part, Segment, Store, Sums, Tile, int8};
use crate::ceiling::RANDOM;
use crate::element::bf16;
use crate::view::View;
use std::arch::asm;
#[allow(clippy::wildcard_imports, reason = "dozens of intrinsics")]
use std::arch::x86_64::*;
use std::mem::MaybeUninit;

/// bf16, and bytes, in the matrix unit.
pub(crate) struct Amx;

/// Rows of a register.
const REGISTER_ROWS: usize = 16;
/// Bytes of a register's row.
const REGISTER_BYTES: usize = 64;
/// Rows of a tile.
const ROWS: usize = 2 * REGISTER_ROWS;
/// Columns of a tile.
const COLUMNS: usize = 2 * LANES;
/// Groups of steps in a register.
const GROUPS: usize = 16;
/// Registers that rows are copied to at a time, side by side.
const COPIED: usize = 8;

/// While it lives, this thread's matrix unit is configured for [`Amx`].
pub(crate) struct Configured(());

/// What `ldtilecfg` reads.
#[repr(C, align(64))]
struct Configuration {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

static CONFIGURATION: Configuration = {
    let (mut row_bytes, mut rows) = ([0; 16], [0; 16]);
    let mut register = 0;
    while register < 8 {
        row_bytes[register] = REGISTER_BYTES as u16;
        rows[register] = REGISTER_ROWS as u8;
        register += 1;
    }
    Configuration { palette: 1, start_row: 0, reserved: [0; 14], row_bytes, rows }
};

impl Configured {
    /// # Safety
    /// The machine must have AMX, and the process the permission to use it.
    pub unsafe fn new() -> Self {
        // SAFETY: as the caller promises; the configuration is valid.
        unsafe {
            asm!("ldtilecfg [{}]", in(reg) &raw const CONFIGURATION, options(nostack, readonly));
        }
        Self(())
    }
}

impl Drop for Configured {
    fn drop(&mut self) {
        // Registers in use would have to be saved when threads are switched.
        // SAFETY: there is AMX, since it was configured.
        unsafe { asm!("tilerelease", options(nostack, nomem)) };
    }
}

impl Tile for Amx {
    type Elem = bf16;
    const STEP: usize = 2;
    const PADDING: usize = BLOCK;
    const LANES: usize = LANES;
    const VECTORS: usize = COLUMNS / LANES;
    const ROWS: usize = ROWS;

    #[inline(always)]
    fn direct(data: View<'_>) -> Option<&[bf16]> {
        match data {
            View::Bf16(x) => Some(x),
            _ => None,
        }
    }

    packing!(Pairs, "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,avx512bf16");

    #[inline(always)]
    unsafe fn run(rows: usize, vectors: usize, segments: &[Segment<bf16>], sums: Sums) {
        // SAFETY: as the caller promises.
        unsafe {
            match rows.is_multiple_of(REGISTER_ROWS) {
                true => multiply(rows, vectors, segments, sums),
                false => multiply_copied(rows, vectors, segments, sums),
            }
        }
    }

    #[inline(always)]
    unsafe fn run_in_registers(count: usize) -> usize {
        // SAFETY: as the caller promises.
        unsafe { bf16_in_registers(count) }
        2 * count * ROWS * COLUMNS * BLOCK
    }

    #[inline(always)]
    unsafe fn run_int8_in_registers(count: usize) -> Option<usize> {
        // SAFETY: as the caller promises.
        unsafe { bytes_in_registers(count) }
        Some(2 * count * ROWS * COLUMNS * REGISTER_BYTES)
    }

    #[inline(always)]
    unsafe fn run_int8(rows: usize, vectors: usize, segment: int8::Segment, sums: Sums) {
        // SAFETY: as the caller promises.
        unsafe { multiply_int8(rows, vectors, segment, sums) }
    }

    #[inline(always)]
    unsafe fn narrow(x: &[f32], out: &mut [bf16]) {
        // SAFETY: as the caller promises.
        unsafe { avx512_bf16::narrow(x, out) }
    }
}

/// Rows of a tile that are copied: of [`COPIED`] registers side by side.
#[repr(align(64))]
struct Copied([MaybeUninit<u8>; ROWS * COPIED * REGISTER_BYTES]);

impl Copied {
    const STRIDE: usize = COPIED * REGISTER_BYTES;

    fn new() -> Self {
        Self([MaybeUninit::uninit(); _])
    }

    /// Copies `bytes` of each of `rows`, which are `stride` bytes apart, and pads what fills whole
    /// registers with zeros.
    ///
    /// # Safety
    /// The rows must be valid; they are at most [`ROWS`] of [`Copied::STRIDE`].
    unsafe fn fill(&mut self, from: *const u8, (rows, stride): (usize, usize), bytes: usize) {
        let padded = bytes.next_multiple_of(REGISTER_BYTES);
        let all = self.0.chunks_exact_mut(Self::STRIDE);
        for (i, to) in all.take(rows.next_multiple_of(REGISTER_ROWS)).enumerate() {
            let bytes = if i < rows { bytes } else { 0 };
            let from = if i < rows { from.wrapping_add(i * stride) } else { from };
            // SAFETY: as the caller promises; none of the bytes of a row that is not there.
            let row = unsafe { std::slice::from_raw_parts(from.cast(), bytes) };
            to[..bytes].copy_from_slice(row);
            to[bytes..padded].fill(MaybeUninit::new(0));
        }
    }
}

/// Sums of a tile, `f32` or integers.
#[repr(align(64))]
struct Results([MaybeUninit<u32>; ROWS * COLUMNS]);

/// [`Tile::run`] for whole registers.
///
/// # Safety
/// As [`Tile::run`].
unsafe fn multiply(rows: usize, vectors: usize, segments: &[Segment<bf16>], sums: Sums) {
    let (start, stride) = (sums.start.cast::<u8>(), 4 * sums.stride);
    let from = match sums.store {
        Store::Overwrite => Block { start: std::ptr::null_mut(), stride },
        Store::Continue | Store::Add => Block { start, stride },
    };
    // SAFETY: as the caller promises.
    unsafe {
        match (rows / REGISTER_ROWS, vectors) {
            (1, 1) => bf16_1x1(segments, from, Block { start, stride }),
            (1, _) => bf16_1x2(segments, from, Block { start, stride }),
            (_, 1) => bf16_2x1(segments, from, Block { start, stride }),
            (_, _) => bf16_2x2(segments, from, Block { start, stride }),
        }
    }
}

/// [`Tile::run`] for rows that do not fill their registers.
///
/// # Safety
/// As [`Tile::run`].
unsafe fn multiply_copied(rows: usize, vectors: usize, segments: &[Segment<bf16>], sums: Sums) {
    let (mut copied, mut results) = (Copied::new(), Results([MaybeUninit::uninit(); _]));
    let (padded, width) = (rows.next_multiple_of(REGISTER_ROWS), vectors * LANES);
    let start = results.0.as_mut_ptr().cast::<f32>();
    // SAFETY: the caller promises that operands and sums are valid; what is copied has room.
    unsafe {
        for i in 0..padded {
            let to = start.add(i * width);
            match i < rows && sums.store != Store::Overwrite {
                true => to.copy_from_nonoverlapping(sums.start.add(i * sums.stride), width),
                false => to.write_bytes(0, width),
            }
        }
        let of_results = Sums { start, stride: width, store: Store::Continue };
        for segment in segments {
            for first in (0..segment.groups).step_by(COPIED * GROUPS) {
                let groups = (COPIED * GROUPS).min(segment.groups - first);
                let from = segment.a.add(2 * first).cast();
                copied.fill(from, (rows, 2 * segment.a_stride), 4 * groups);
                let part = Segment {
                    a: copied.0.as_ptr().cast(),
                    a_stride: Copied::STRIDE / 2,
                    b: segment.b.add(2 * first * width),
                    groups,
                };
                multiply(padded, vectors, &[part], of_results);
            }
        }
        for i in 0..rows {
            let to = sums.start.add(i * sums.stride);
            to.copy_from_nonoverlapping(start.add(i * width), width);
        }
    }
}

/// [`Tile::run_int8`]: rows and steps that do not fill their registers are copied.
///
/// # Safety
/// As [`Tile::run_int8`].
unsafe fn multiply_int8(rows: usize, vectors: usize, segment: int8::Segment, sums: Sums) {
    let (mut copied, mut results) = (Copied::new(), Results([MaybeUninit::uninit(); _]));
    let (padded, width) = (rows.next_multiple_of(REGISTER_ROWS), vectors * LANES);
    let to = Block { start: results.0.as_mut_ptr().cast(), stride: 4 * width };
    let in_place = match rows == padded {
        true => segment.groups / GROUPS * GROUPS,
        false => 0,
    };
    // SAFETY: the caller promises that operands and sums are valid; what is copied has room.
    unsafe {
        // Each row begins with the corrections of the columns.
        let mut from = Block { start: segment.b.cast_mut().cast(), stride: 0 };
        let panel = segment.b.add(2 * width).cast::<u8>();
        let mut first = 0;
        while first < segment.groups {
            let mut part = Segment {
                a: segment.a.add(4 * first),
                a_stride: segment.a_stride,
                b: panel.add(4 * first * width),
                groups: in_place,
            };
            if first >= in_place {
                part.groups = (COPIED * GROUPS).min(segment.groups - first);
                copied.fill(part.a, (rows, part.a_stride), 4 * part.groups);
                (part.a, part.a_stride) = (copied.0.as_ptr().cast(), Copied::STRIDE);
            }
            first += part.groups;
            part.groups = part.groups.next_multiple_of(GROUPS);
            match (padded / REGISTER_ROWS, vectors) {
                (1, 1) => bytes_1x1(&[part], from, to),
                (1, _) => bytes_1x2(&[part], from, to),
                (_, 1) => bytes_2x1(&[part], from, to),
                (_, _) => bytes_2x2(&[part], from, to),
            }
            from = to;
        }
        scale(rows, vectors, results.0.as_ptr().cast(), &segment, sums);
    }
}

/// `sums (+)= results · scales` of rows and columns.
///
/// # Safety
/// As [`Tile::run_int8`]; the results are `[rows, vectors * LANES]`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
unsafe fn scale(
    rows: usize,
    vectors: usize,
    results: *const i32,
    segment: &int8::Segment,
    sums: Sums,
) {
    // SAFETY: as the caller promises.
    unsafe {
        for i in 0..rows {
            let row_scale = _mm512_set1_ps(*segment.scales.add(i));
            for v in 0..vectors {
                let scale = _mm512_loadu_ps(segment.b.add((vectors + v) * LANES).cast());
                let scale = _mm512_mul_ps(row_scale, scale);
                let sum = _mm512_loadu_si512(results.add((i * vectors + v) * LANES).cast());
                let sum = _mm512_cvtepi32_ps(sum);
                let out = sums.start.add(i * sums.stride + v * LANES);
                let sum = match sums.store {
                    Store::Overwrite => _mm512_mul_ps(sum, scale),
                    _ => _mm512_fmadd_ps(sum, scale, _mm512_loadu_ps(out)),
                };
                _mm512_storeu_ps(out, sum);
            }
        }
    }
}

/// Where registers are loaded from or stored to: 64 bytes a row, `stride` bytes apart.
#[derive(Clone, Copy)]
struct Block {
    start: *mut u8,
    stride: usize,
}

/// The assembly of a size of tiles. Of results, those of the first 16 rows are in `tmm0` and
/// `tmm1`, those below in `tmm2` and `tmm3`; rows of the left operand come to `tmm4` and `tmm5`,
/// columns of the right one to `tmm6` and `tmm7`.
macro_rules! template {
    ($to_bytes:literal, $panel:literal, $zero:literal, $load:literal, $step:expr,
     $store:literal
    ) => {
        concat!(
            "test {a0}, {a0}\njz 2f\n",
            $load,
            "jmp 3f\n2:\n",
            $zero,
            // For each segment, unless there is none.
            "3:\ncmp {segment}, {end}\nje 6f\n4:\n",
            "mov {a0}, [{segment}]\nmov {sa}, [{segment} + 8]\n",
            $to_bytes,
            "mov {b}, [{segment} + 16]\nmov {groups}, [{segment} + 24]\n",
            "mov {a1}, {sa}\nshl {a1}, 4\nadd {a1}, {a0}\n",
            // For each 64 bytes of rows.
            "5:\n",
            $step,
            "add {a0}, 64\nadd {a1}, 64\nadd {b}, ",
            $panel,
            "\nsub {groups}, 16\njnz 5b\n",
            "add {segment}, 32\ncmp {segment}, {end}\njne 4b\n6:\n",
            $store,
        )
    };
}

/// Prefetches eight lines of the columns, of those that come next. Without, loads from the
/// second-level cache take half as long again while a neighbour slows the core. Rows are left
/// alone: prefetching them as well takes a fifth of the rate when no neighbour does.
macro_rules! prefetch {
    ($base:literal) => {
        concat!(
            "prefetcht0 [{b} + ",
            $base,
            "]\nprefetcht0 [{b} + ",
            $base,
            " + 64]\n",
            "prefetcht0 [{b} + ",
            $base,
            " + 128]\nprefetcht0 [{b} + ",
            $base,
            " + 192]\n",
            "prefetcht0 [{b} + ",
            $base,
            " + 256]\nprefetcht0 [{b} + ",
            $base,
            " + 320]\n",
            "prefetcht0 [{b} + ",
            $base,
            " + 384]\nprefetcht0 [{b} + ",
            $base,
            " + 448]\n",
        )
    };
}

/// Defines a function that adds the products of segments to results loaded `from` somewhere, or to
/// zero if that is null, and stores them.
macro_rules! registers {
    ($name:ident, $elem:ty, $panel_row:literal, $template:expr) => {
        /// # Safety
        /// Segments, of whole registers, and results must be valid; this thread must be
        /// [`Configured`].
        unsafe fn $name(segments: &[Segment<$elem>], from: Block, to: Block) {
            let std::ops::Range { start, end } = segments.as_ptr_range();
            let below = |block: Block| block.start.wrapping_add(REGISTER_ROWS * block.stride);
            // SAFETY: as the caller promises.
            unsafe {
                asm!(
                    $template,
                    segment = inout(reg) start => _,
                    end = in(reg) end,
                    a0 = inout(reg) from.start => _,
                    a1 = inout(reg) below(from) => _,
                    sa = inout(reg) from.stride => _,
                    b = out(reg) _,
                    sb = in(reg) $panel_row as usize,
                    groups = out(reg) _,
                    c0 = in(reg) to.start,
                    c1 = in(reg) below(to),
                    sc = in(reg) to.stride,
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                    options(nostack),
                );
            }
        }
    };
}

/// Defines the functions of all sizes for an instruction, and one that only multiplies.
macro_rules! sizes {
    ($elem:ty, $product:literal, $to_bytes:literal, $in_registers:ident,
     [$one:ident $wide:ident $tall:ident $square:ident]
    ) => {
        /// # Safety
        /// This thread must be [`Configured`].
        unsafe fn $in_registers(count: usize) {
            // SAFETY: as the caller promises.
            unsafe {
                asm!(
                    "tileloadd tmm4, [{random} + {stride}]",
                    "tileloadd tmm5, [{random} + {stride} + 1024]",
                    "tileloadd tmm6, [{random} + {stride} + 2048]",
                    "tileloadd tmm7, [{random} + {stride} + 3072]",
                    "test {count}, {count}\njz 3f\n2:",
                    concat!($product, " tmm0, tmm4, tmm6"),
                    concat!($product, " tmm1, tmm4, tmm7"),
                    concat!($product, " tmm2, tmm5, tmm6"),
                    concat!($product, " tmm3, tmm5, tmm7"),
                    "dec {count}\njnz 2b\n3:",
                    count = inout(reg) count => _,
                    random = in(reg) RANDOM.as_ptr(),
                    stride = in(reg) REGISTER_BYTES,
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                    options(nostack, readonly),
                );
            }
        }

        registers!($one, $elem, 64, template!(
            $to_bytes,
            "1024",
            "tilezero tmm0\n",
            "tileloadd tmm0, [{a0} + {sa}]\n",
            concat!(
                "/* {a1} {c1} */ tileloadd tmm4, [{a0} + {sa}]\ntileloadd tmm6, [{b} + {sb}]\n",
                prefetch!("1024"), prefetch!("1536"),
                $product, " tmm0, tmm4, tmm6\n",
            ),
            "tilestored [{c0} + {sc}], tmm0\n"
        ));
        registers!($wide, $elem, 128, template!(
            $to_bytes,
            "2048",
            "tilezero tmm0\ntilezero tmm1\n",
            "tileloadd tmm0, [{a0} + {sa}]\ntileloadd tmm1, [{a0} + {sa} + 64]\n",
            concat!(
                "/* {c1} */ tileloadd tmm4, [{a0} + {sa}]\ntileloadd tmm6, [{b} + {sb}]\n",
                prefetch!("2048"), prefetch!("2560"),
                $product, " tmm0, tmm4, tmm6\ntileloadd tmm7, [{b} + {sb} + 64]\n",
                prefetch!("3072"), prefetch!("3584"),
                $product, " tmm1, tmm4, tmm7\n",
            ),
            "tilestored [{c0} + {sc}], tmm0\ntilestored [{c0} + {sc} + 64], tmm1\n"
        ));
        registers!($tall, $elem, 64, template!(
            $to_bytes,
            "1024",
            "tilezero tmm0\ntilezero tmm2\n",
            "tileloadd tmm0, [{a0} + {sa}]\ntileloadd tmm2, [{a1} + {sa}]\n",
            concat!(
                "tileloadd tmm4, [{a0} + {sa}]\ntileloadd tmm6, [{b} + {sb}]\n",
                prefetch!("1024"),
                $product, " tmm0, tmm4, tmm6\ntileloadd tmm5, [{a1} + {sa}]\n",
                prefetch!("1536"),
                $product, " tmm2, tmm5, tmm6\n",
            ),
            "tilestored [{c0} + {sc}], tmm0\ntilestored [{c1} + {sc}], tmm2\n"
        ));
        registers!($square, $elem, 128, template!(
            $to_bytes,
            "2048",
            "tilezero tmm0\ntilezero tmm1\ntilezero tmm2\ntilezero tmm3\n",
            "tileloadd tmm0, [{a0} + {sa}]\ntileloadd tmm1, [{a0} + {sa} + 64]\n\
             tileloadd tmm2, [{a1} + {sa}]\ntileloadd tmm3, [{a1} + {sa} + 64]\n",
            concat!(
                "tileloadd tmm4, [{a0} + {sa}]\ntileloadd tmm6, [{b} + {sb}]\n",
                prefetch!("2048"),
                $product, " tmm0, tmm4, tmm6\ntileloadd tmm7, [{b} + {sb} + 64]\n",
                prefetch!("2560"),
                $product, " tmm1, tmm4, tmm7\ntileloadd tmm5, [{a1} + {sa}]\n",
                prefetch!("3072"),
                $product, " tmm2, tmm5, tmm6\n",
                prefetch!("3584"),
                $product, " tmm3, tmm5, tmm7\n",
            ),
            "tilestored [{c0} + {sc}], tmm0\ntilestored [{c0} + {sc} + 64], tmm1\n\
             tilestored [{c1} + {sc}], tmm2\ntilestored [{c1} + {sc} + 64], tmm3\n"
        ));
    };
}

sizes!(
    bf16, "tdpbf16ps", "shl {sa}, 1\n", bf16_in_registers,
    [bf16_1x1 bf16_1x2 bf16_2x1 bf16_2x2]
);
sizes!(u8, "tdpbusd", "", bytes_in_registers, [bytes_1x1 bytes_1x2 bytes_2x1 bytes_2x2]);
