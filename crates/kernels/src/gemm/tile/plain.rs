//! Plain Rust, for any machine, and packing for instruction sets without their own.

use super::{BLOCK, Blocks, Lines, Part, Segment, Store, Sums, Tile, int8};
use crate::element::{DType, Element, bf16};
use crate::view::{View, with_elements};

/// Plain Rust.
pub(crate) struct Scalar;

const LANES: usize = 8;

impl Tile for Scalar {
    type Elem = f32;
    const STEP: usize = 1;
    const LANES: usize = LANES;
    const VECTORS: usize = 1;
    const ROWS: usize = 4;

    #[inline(always)]
    fn direct(data: View<'_>) -> Option<&[f32]> {
        direct_f32(data)
    }

    #[inline(always)]
    unsafe fn pack_panel(x: Lines<'_>, part: Part, vectors: usize, panel: &mut [f32]) {
        pack_panel(x, part, vectors * LANES, panel, Values::AsTheyAre);
    }

    #[inline(always)]
    unsafe fn pack_rows(x: Lines<'_>, part: Part, stride: usize, rows: &mut [f32]) {
        pack_rows(x, part, stride, rows, Values::AsTheyAre);
    }

    #[inline(always)]
    unsafe fn run(rows: usize, _: usize, segments: &[Segment<f32>], sums: Sums) {
        // SAFETY: as the caller promises.
        unsafe {
            match rows {
                1 => tile::<1>(segments, sums),
                2 => tile::<2>(segments, sums),
                3 => tile::<3>(segments, sums),
                _ => tile::<4>(segments, sums),
            }
        }
    }

    #[inline(always)]
    unsafe fn run_in_registers(count: usize) -> usize {
        let (mut acc, one) = ([[0.0f32; LANES]; Self::ROWS], std::hint::black_box(1.0f32));
        for _ in 0..count {
            acc.as_flattened_mut().iter_mut().for_each(|acc| *acc = one.mul_add(one, *acc));
        }
        std::hint::black_box(acc);
        2 * count * Self::ROWS * LANES
    }

    #[inline(always)]
    unsafe fn run_int8(rows: usize, vectors: usize, segment: int8::Segment, sums: Sums) {
        // SAFETY: as the caller promises.
        unsafe { int8::run::<LANES>(rows, vectors, segment, sums) }
    }
}

impl Blocks for Scalar {
    #[inline(always)]
    unsafe fn run_blocks(rows: usize, _: usize, segments: &[Segment<f32>], sums: Sums) {
        // SAFETY: as the caller promises.
        unsafe {
            match rows {
                1 => tile_of_blocks::<1>(segments, sums),
                2 => tile_of_blocks::<2>(segments, sums),
                3 => tile_of_blocks::<3>(segments, sums),
                _ => tile_of_blocks::<4>(segments, sums),
            }
        }
    }
}

type Rows<const R: usize> = [[f32; LANES]; R];

/// Adds the products of every `by`-th step of `steps`.
///
/// # Safety
/// The operands must be valid.
#[inline(always)]
unsafe fn chain<const R: usize>(
    acc: &mut Rows<R>,
    segment: &Segment<f32>,
    steps: std::ops::Range<usize>,
    by: usize,
) {
    for k in steps.step_by(by) {
        // SAFETY: as the caller promises.
        let b = unsafe { segment.b.add(k * LANES).cast::<[f32; LANES]>().read_unaligned() };
        for (i, acc) in acc.iter_mut().enumerate() {
            // SAFETY: as the caller promises.
            let a = unsafe { *segment.a.add(i * segment.a_stride + k) };
            acc.iter_mut().zip(b).for_each(|(acc, b)| *acc = a.mul_add(b, *acc));
        }
    }
}

#[inline(always)]
unsafe fn tile<const R: usize>(segments: &[Segment<f32>], sums: Sums) {
    // SAFETY: the caller promises that operands and sums are valid.
    unsafe {
        let mut acc = match sums.store {
            Store::Continue => load(sums),
            Store::Overwrite | Store::Add => [[0.0; LANES]; R],
        };
        for segment in segments {
            chain(&mut acc, segment, 0..segment.groups, 1);
        }
        if sums.store == Store::Add {
            add(&mut acc, &load(sums));
        }
        store(acc, sums);
    }
}

#[inline(always)]
unsafe fn tile_of_blocks<const R: usize>(segments: &[Segment<f32>], sums: Sums) {
    // SAFETY: the caller promises that operands and sums are valid.
    unsafe {
        let mut total: Rows<R> = match sums.store {
            Store::Overwrite => [[0.0; LANES]; R],
            Store::Continue | Store::Add => load(sums),
        };
        for segment in segments {
            for first in (0..segment.groups).step_by(BLOCK) {
                let [mut even, mut odd] = [[[0.0; LANES]; R]; 2];
                chain(&mut even, segment, first..first + BLOCK, 2);
                chain(&mut odd, segment, first + 1..first + BLOCK, 2);
                add(&mut even, &odd);
                add(&mut total, &even);
            }
        }
        store(total, sums);
    }
}

#[inline(always)]
fn add<const R: usize>(x: &mut Rows<R>, y: &Rows<R>) {
    for (x, y) in x.as_flattened_mut().iter_mut().zip(y.as_flattened()) {
        *x += y;
    }
}

#[inline(always)]
unsafe fn load<const R: usize>(from: Sums) -> Rows<R> {
    std::array::from_fn(|i| {
        // SAFETY: the caller promises that the sums are valid.
        unsafe { from.start.add(i * from.stride).cast::<[f32; LANES]>().read_unaligned() }
    })
}

#[inline(always)]
unsafe fn store<const R: usize>(rows: Rows<R>, to: Sums) {
    for (i, row) in rows.into_iter().enumerate() {
        // SAFETY: the caller promises that the sums are valid.
        unsafe { to.start.add(i * to.stride).cast::<[f32; LANES]>().write_unaligned(row) };
    }
}

/// bf16 products on an instruction set that has only `f32`.
pub(crate) struct Emulated<T>(std::marker::PhantomData<T>);

impl<T: Blocks> Tile for Emulated<T> {
    type Elem = f32;
    const STEP: usize = 1;
    const PADDING: usize = BLOCK;
    const LANES: usize = T::LANES;
    const VECTORS: usize = T::VECTORS;
    const ROWS: usize = T::ROWS;

    #[inline(always)]
    fn direct(_: View<'_>) -> Option<&[f32]> {
        None
    }

    #[inline(always)]
    fn packs(x: Lines<'_>, part: Part) -> bool {
        T::packs(x, part)
    }

    #[inline(always)]
    unsafe fn pack_panel(x: Lines<'_>, part: Part, vectors: usize, panel: &mut [f32]) {
        // SAFETY: as the caller promises.
        unsafe { T::pack_rounded_panel(x, part, vectors, panel) }
    }

    #[inline(always)]
    unsafe fn pack_rows(x: Lines<'_>, part: Part, stride: usize, rows: &mut [f32]) {
        // SAFETY: as the caller promises.
        unsafe { T::pack_rounded_rows(x, part, stride, rows) }
    }

    #[inline(always)]
    unsafe fn run(rows: usize, vectors: usize, segments: &[Segment<f32>], sums: Sums) {
        // SAFETY: as the caller promises.
        unsafe { T::run_blocks(rows, vectors, segments, sums) }
    }

    #[inline(always)]
    unsafe fn pack_int8(x: Lines<'_>, part: Part, vectors: usize, panel: &mut [i32]) {
        // SAFETY: as the caller promises.
        unsafe { T::pack_int8(x, part, vectors, panel) }
    }

    #[inline(always)]
    unsafe fn run_in_registers(count: usize) -> usize {
        // SAFETY: as the caller promises.
        unsafe { T::run_in_registers(count) }
    }

    #[inline(always)]
    unsafe fn run_int8_in_registers(count: usize) -> Option<usize> {
        // SAFETY: as the caller promises.
        unsafe { T::run_int8_in_registers(count) }
    }

    #[inline(always)]
    unsafe fn run_int8(rows: usize, vectors: usize, segment: int8::Segment, sums: Sums) {
        // SAFETY: as the caller promises.
        unsafe { T::run_int8(rows, vectors, segment, sums) }
    }
}

/// How values are packed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Values {
    AsTheyAre,
    /// Rounded to bf16, and lines padded to whole blocks.
    Rounded,
}

impl Values {
    #[inline(always)]
    fn of<E: Element>(self, x: E) -> f32 {
        match self {
            Self::AsTheyAre => x.to_f32(),
            Self::Rounded => {
                let bits = x.to_f32().to_bits();
                // As instructions that convert to bf16, which take subnormals for zero.
                let bits = if bits & 0x7f80_0000 == 0 { bits & 0x8000_0000 } else { bits };
                <bf16 as Element>::from_f32(f32::from_bits(bits)).to_f32()
            }
        }
    }

    #[inline(always)]
    fn padded(self, k: usize) -> usize {
        match self {
            Self::AsTheyAre => k,
            Self::Rounded => k.next_multiple_of(BLOCK),
        }
    }
}

#[inline(always)]
pub(super) fn direct_f32(data: View<'_>) -> Option<&[f32]> {
    (data.storage() == DType::F32).then(|| data.f32())
}

#[inline(always)]
pub(super) fn pack_panel(
    x: Lines<'_>,
    part: Part,
    width: usize,
    panel: &mut [f32],
    values: Values,
) {
    let (used, padding) = panel[..values.padded(part.k) * width].split_at_mut(part.k * width);
    padding.fill(0.0);
    if part.lines < width {
        used.fill(0.0);
    }
    with_elements!(x.data, data => {
        for (k, out) in used.chunks_exact_mut(width).enumerate() {
            let out = &mut out[..part.lines];
            let start = x.index(part.line, part.k0 + k);
            if x.line_stride == 1 {
                for (o, x) in out.iter_mut().zip(&data[start..]) {
                    *o = values.of(*x);
                }
            } else {
                for (j, o) in out.iter_mut().enumerate() {
                    *o = values.of(data[start + j * x.line_stride]);
                }
            }
        }
    });
}

#[inline(always)]
pub(super) fn pack_rows(x: Lines<'_>, part: Part, stride: usize, rows: &mut [f32], values: Values) {
    let padded = values.padded(part.k);
    with_elements!(x.data, data => {
        for i in 0..part.lines {
            let (out, padding) = rows[i * stride..][..padded].split_at_mut(part.k);
            padding.fill(0.0);
            let start = x.index(part.line + i, part.k0);
            for (k, o) in out.iter_mut().enumerate() {
                *o = values.of(data[start + k * x.step]);
            }
        }
    });
}
