//! Plain Rust, for any machine, and packing for instruction sets without their own.

use super::{Lines, Part, Segment, Store, Sums, Tile, int8};
use crate::element::{DType, Element, bf16};
use crate::view::{View, with_elements};

/// Plain Rust.
pub(crate) struct Scalar;

impl Tile for Scalar {
    type Elem = f32;
    const STEP: usize = 1;
    const LANES: usize = 8;
    const VECTORS: usize = 1;
    const ROWS: usize = 4;

    #[inline(always)]
    fn direct(data: View<'_>) -> Option<&[f32]> {
        direct_f32(data)
    }

    #[inline(always)]
    unsafe fn pack_panel(x: Lines<'_>, part: Part, vectors: usize, panel: &mut [f32]) {
        pack_panel(x, part, vectors * Self::LANES, panel, |v| v, 0)
    }

    #[inline(always)]
    unsafe fn pack_rows(x: Lines<'_>, part: Part, stride: usize, rows: &mut [f32]) {
        pack_rows(x, part, stride, rows, |v| v, 0)
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
    unsafe fn run_int8(rows: usize, vectors: usize, segment: int8::Segment, sums: Sums) {
        // SAFETY: as the caller promises.
        unsafe { int8::run::<{ Self::LANES }>(rows, vectors, segment, sums) }
    }
}

#[inline(always)]
unsafe fn tile<const R: usize>(segments: &[Segment<f32>], sums: Sums) {
    const N: usize = Scalar::LANES;
    let mut acc = [[0.0f32; N]; R];
    if sums.store == Store::Continue {
        for (i, acc) in acc.iter_mut().enumerate() {
            // SAFETY: the caller promises that the sums are valid.
            *acc = unsafe { sums.start.add(i * sums.stride).cast::<[f32; N]>().read_unaligned() };
        }
    }
    for segment in segments {
        for k in 0..segment.groups {
            // SAFETY: the caller promises that operands are valid.
            let b = unsafe { segment.b.add(k * N).cast::<[f32; N]>().read_unaligned() };
            for (i, acc) in acc.iter_mut().enumerate() {
                // SAFETY: as above.
                let a = unsafe { *segment.a.add(i * segment.a_stride + k) };
                for j in 0..N {
                    acc[j] = a.mul_add(b[j], acc[j]);
                }
            }
        }
    }
    for (i, mut acc) in acc.into_iter().enumerate() {
        // SAFETY: as above.
        unsafe {
            let at = sums.start.add(i * sums.stride).cast::<[f32; N]>();
            if sums.store == Store::Add {
                let old = at.read_unaligned();
                acc.iter_mut().zip(old).for_each(|(a, o)| *a += o);
            }
            at.write_unaligned(acc);
        }
    }
}

/// bf16 products on an instruction set that has only `f32`.
pub(crate) struct Emulated<T>(std::marker::PhantomData<T>);

impl<T: Tile<Elem = f32>> Tile for Emulated<T> {
    type Elem = f32;
    const STEP: usize = 1;
    const PADDING: usize = 2;
    const LANES: usize = T::LANES;
    const VECTORS: usize = T::VECTORS;
    const ROWS: usize = T::ROWS;

    #[inline(always)]
    fn direct(_: View<'_>) -> Option<&[f32]> {
        None
    }

    #[inline(always)]
    unsafe fn pack_panel(x: Lines<'_>, part: Part, vectors: usize, panel: &mut [f32]) {
        pack_panel(x, part, vectors * Self::LANES, panel, round, 1)
    }

    #[inline(always)]
    unsafe fn pack_rows(x: Lines<'_>, part: Part, stride: usize, rows: &mut [f32]) {
        pack_rows(x, part, stride, rows, round, 1)
    }

    #[inline(always)]
    unsafe fn run(rows: usize, vectors: usize, segments: &[Segment<f32>], sums: Sums) {
        // SAFETY: as the caller promises.
        unsafe { T::run(rows, vectors, segments, sums) }
    }

    #[inline(always)]
    unsafe fn pack_int8(x: Lines<'_>, part: Part, vectors: usize, panel: &mut [i32]) {
        // SAFETY: as the caller promises.
        unsafe { T::pack_int8(x, part, vectors, panel) }
    }

    #[inline(always)]
    unsafe fn run_int8(rows: usize, vectors: usize, segment: int8::Segment, sums: Sums) {
        // SAFETY: as the caller promises.
        unsafe { T::run_int8(rows, vectors, segment, sums) }
    }
}

#[inline(always)]
fn round(x: f32) -> f32 {
    <bf16 as Element>::from_f32(x).to_f32()
}

#[inline(always)]
pub(super) fn direct_f32(data: View<'_>) -> Option<&[f32]> {
    (data.storage() == DType::F32).then(|| data.f32())
}

/// Step `k` goes to position `k ^ swap`: 1 exchanges the steps of a pair.
#[inline(always)]
pub(super) fn pack_panel(
    x: Lines<'_>,
    part: Part,
    width: usize,
    panel: &mut [f32],
    value: impl Fn(f32) -> f32,
    swap: usize,
) {
    let padded = part.k.next_multiple_of(1 + swap);
    if part.lines < width || padded > part.k {
        panel[..padded * width].fill(0.0);
    }
    with_elements!(x.data, data => {
        for k in 0..part.k {
            let out = &mut panel[(k ^ swap) * width..][..part.lines];
            let start = x.index(part.line, part.k0 + k);
            if x.line_stride == 1 {
                for (o, x) in out.iter_mut().zip(&data[start..]) {
                    *o = value(x.to_f32());
                }
            } else {
                for (j, o) in out.iter_mut().enumerate() {
                    *o = value(data[start + j * x.line_stride].to_f32());
                }
            }
        }
    });
}

#[inline(always)]
fn pack_rows(
    x: Lines<'_>,
    part: Part,
    stride: usize,
    rows: &mut [f32],
    value: impl Fn(f32) -> f32,
    swap: usize,
) {
    let padded = part.k.next_multiple_of(1 + swap);
    with_elements!(x.data, data => {
        for i in 0..part.lines {
            let out = &mut rows[i * stride..][..padded];
            out[part.k & !swap..].fill(0.0);
            let start = x.index(part.line + i, part.k0);
            for k in 0..part.k {
                out[k ^ swap] = value(data[start + k * x.step].to_f32());
            }
        }
    });
}
