//! Products of blocks that fit in the cache, for operations built from them.

use super::WHOLE_PANELS;
use super::tile::{
    BLOCK, Lines, Narrow, Part, Segment, Store, Sums, Tile, Tiles, int8, pack_panel, pack_rows,
};
use crate::cpu::{Apply, Cpu, Plain, Split};
use crate::element::bf16;
use crate::view::{View, ViewMut};
use std::ops::Range;

/// An element type of operations that are built from these products.
pub(crate) trait Typed: Narrow + Plain {
    /// Its tile on an instruction set.
    type TileOf<I: Tiles>: Tile;
    fn view(x: &[Self]) -> View<'_>;
    /// # Panics
    /// If the elements have another type, as for `slice_mut`.
    fn slice(x: View<'_>) -> &[Self];
    fn slice_mut(x: ViewMut<'_>) -> &mut [Self];
}

impl Typed for f32 {
    type TileOf<I: Tiles> = I::F32;
    fn view(x: &[f32]) -> View<'_> {
        View::F32(x)
    }
    fn slice(x: View<'_>) -> &[f32] {
        x.f32()
    }
    fn slice_mut(x: ViewMut<'_>) -> &mut [f32] {
        x.f32()
    }
}

impl Typed for bf16 {
    type TileOf<I: Tiles> = I::Bf16;
    fn view(x: &[Self]) -> View<'_> {
        View::Bf16(x)
    }
    fn slice(x: View<'_>) -> &[Self] {
        let View::Bf16(x) = x else { panic!("expected bf16, found {}", x.storage().name()) };
        x
    }
    fn slice_mut(x: ViewMut<'_>) -> &mut [Self] {
        let ViewMut::Bf16(x) = x else { panic!("expected bf16") };
        x
    }
}

/// Rows of a left operand, in place or packed.
#[derive(Clone, Copy)]
pub(crate) struct Left<'a, E> {
    rows: &'a [E],
    stride: usize,
}

impl<'a, E> Left<'a, E> {
    /// Rows packed `stride` apart.
    pub fn packed(rows: &'a [E], stride: usize) -> Self {
        Self { rows, stride }
    }
}

/// A right operand in panels.
#[derive(Clone, Copy)]
pub(crate) struct Right<'a, E> {
    panels: &'a [E],
    vectors: usize,
    /// Steps of the contraction, including padding.
    pub depth: usize,
    cols: usize,
}

impl<E> Right<'_, E> {
    /// Number of panels.
    pub fn num_panels<M: Tile>(&self) -> usize {
        self.cols.div_ceil(self.vectors * M::LANES)
    }
}

/// Distance between packed rows of `k` steps: one extra cache line, so that the rows of a tile map
/// to different cache sets.
pub(crate) fn packed_stride<M: Tile>(k: usize) -> usize {
    padded::<M>(k) + 64 / size_of::<M::Elem>()
}

/// Length of a packed line of `k` steps, including padding.
pub(crate) fn padded<M: Tile>(k: usize) -> usize {
    k.next_multiple_of(M::PADDING)
}

/// The longest [`padded`] line of `k` steps, on any instruction set.
pub(crate) const fn max_padded(k: usize) -> usize {
    k.next_multiple_of(BLOCK)
}

/// Vectors per panel such that the panels for `n` columns are equally wide.
pub(crate) fn panel_vectors<M: Tile>(n: usize) -> usize {
    let vectors = n.div_ceil(M::LANES).max(1);
    vectors.div_ceil(vectors.div_ceil(M::VECTORS))
}

/// Total columns of the panels for `n` columns.
pub(crate) fn panel_cols<M: Tile>(n: usize) -> usize {
    n.next_multiple_of(panel_vectors::<M>(n) * M::LANES)
}

/// The rows `part` of `x`, packed into `scratch` unless their type, order and length allow reading
/// them in place.
#[inline(always)]
pub(crate) fn left<'a, M: Tile>(
    x: Lines<'a>,
    part: Part,
    scratch: &'a mut [M::Elem],
) -> Left<'a, M::Elem> {
    if x.step == 1
        && part.k.is_multiple_of(M::PADDING)
        && let Some(data) = M::direct(x.data)
    {
        let rows = &data[x.index(part.line, part.k0)..part.end(&x)];
        return Left { rows, stride: x.line_stride };
    }
    let stride = padded::<M>(part.k);
    // SAFETY: kernels take the tile from a `Cpu`, which has checked the instruction set.
    unsafe { pack_rows::<M>(x, part, stride, scratch) };
    Left { rows: &scratch[..part.lines * stride], stride }
}

/// The columns `part` of `x`, packed into `scratch`.
#[inline(always)]
pub(crate) fn right<'a, M: Tile>(
    x: Lines<'_>,
    part: Part,
    scratch: &'a mut [M::Elem],
) -> Right<'a, M::Elem> {
    let (vectors, depth) = (panel_vectors::<M>(part.lines), padded::<M>(part.k));
    let (width, cols) = (vectors * M::LANES, part.lines);
    for (panel, col) in scratch.chunks_exact_mut(width * depth).zip((0..cols).step_by(width)) {
        let lines = width.min(cols - col);
        let part = Part { line: part.line + col, lines, ..part };
        // SAFETY: as in `left`.
        unsafe { pack_panel::<M>(x, part, vectors, panel) };
    }
    Right { panels: &scratch[..panel_cols::<M>(cols) * depth], vectors, depth, cols }
}

/// Maximum elements that [`right_of_all`] needs on any instruction set.
pub(crate) fn right_of_all_len(cols: usize, k: usize) -> usize {
    max_padded(k) * cols.next_multiple_of(WHOLE_PANELS)
}

/// The columns `part` of `x`, packed into `panels` by all threads, for tasks to share.
pub(crate) fn right_of_all<'a, M: Tile>(
    cpu: &Cpu,
    x: Lines<'_>,
    part: Part,
    panels: &'a mut [M::Elem],
) -> Right<'a, M::Elem> {
    let (vectors, depth, cols) = (panel_vectors::<M>(part.lines), padded::<M>(part.k), part.lines);
    let (width, panels) = (vectors * M::LANES, &mut panels[..panel_cols::<M>(cols) * depth]);
    let split = Split::new(&mut *panels);
    cpu.pool.run(cols.div_ceil(width), &|panel| {
        let col = panel * width;
        let part = Part { line: part.line + col, lines: width.min(cols - col), ..part };
        // SAFETY: each task has its own panel.
        let panel = unsafe { split.slice(col * depth, width * depth) };
        // SAFETY: as in `left`.
        cpu.isa.run(Apply(|| unsafe { pack_panel::<M>(x, part, vectors, panel) }));
    });
    Right { panels, vectors, depth, cols }
}

/// `out[rows, ·] (+)= a · b` for rows `stride` apart, in tiles. `steps(rows, columns)` is the range
/// of the contraction that can be non-zero; if empty, it is not written. It is asked for groups of
/// [`BLOCK`] rows, and rounded to as many steps, whatever the size of tiles: where `b` is infinite,
/// zeros that are left out are not those that are multiplied. Writes whole panels: `stride` must be
/// at least [`panel_cols`].
#[inline(always)]
pub(crate) fn multiply<M: Tile>(
    a: Left<'_, M::Elem>,
    num_rows: usize,
    b: Right<'_, M::Elem>,
    (out, stride): (&mut [f32], usize),
    store: Store,
    steps: impl Fn(Range<usize>, Range<usize>) -> Range<usize>,
) {
    let width = b.vectors * M::LANES;
    assert!(a.rows.len() >= (num_rows - 1) * a.stride + b.depth);
    assert!(stride >= b.cols.next_multiple_of(width) && out.len() >= num_rows * stride);
    let mut i = 0;
    while i < num_rows {
        let first = i / BLOCK * BLOCK;
        let group = first..num_rows.min(first + BLOCK);
        let rows = M::ROWS.min(group.end - i);
        for (panel, col) in (0..b.cols).step_by(width).enumerate() {
            let steps = steps(group.clone(), col..col + width);
            if steps.is_empty() {
                continue;
            }
            assert!(steps.end <= b.depth);
            let first = steps.start / BLOCK * BLOCK;
            let end = steps.end.next_multiple_of(BLOCK).min(b.depth);
            let segment = Segment {
                a: &raw const a.rows[i * a.stride + first],
                a_stride: a.stride,
                b: &raw const b.panels[(panel * b.depth + first) * width],
                groups: (end - first) / M::STEP,
            };
            let start = &raw mut out[i * stride + col];
            // SAFETY: operands and sums are inside their slices, as asserted above; the instruction
            // set was checked as in `left`.
            unsafe { M::run(rows, b.vectors, &[segment], Sums { start, stride, store }) };
        }
        i += rows;
    }
}

/// `out[rows, ·] += a · b` for one panel of `b`; `out(row, columns)` returns a row's elements.
/// `sums` must have room for the product.
#[inline(always)]
pub(crate) fn multiply_add<'a, M: Tile>(
    a: Left<'_, M::Elem>,
    num_rows: usize,
    b: Right<'_, M::Elem>,
    panel: usize,
    sums: &mut [f32],
    out: impl Fn(usize, Range<usize>) -> &'a mut [f32],
) {
    let width = b.vectors * M::LANES;
    let columns = panel * width..b.cols.min((panel + 1) * width);
    let panels = &b.panels[panel * width * b.depth..][..width * b.depth];
    let b = Right { panels, cols: columns.len(), ..b };
    multiply::<M>(a, num_rows, b, (sums, width), Store::Overwrite, |_, _| 0..b.depth);
    for (i, sums) in sums.chunks_exact(width).take(num_rows).enumerate() {
        out(i, columns.clone()).iter_mut().zip(sums).for_each(|(out, sum)| *out += sum);
    }
}

/// An int8 left operand: rows `stride` apart, with a scale each.
#[derive(Clone, Copy)]
pub(crate) struct Int8Left<'a> {
    pub values: &'a [u8],
    pub stride: usize,
    pub scales: &'a [f32],
}

/// An int8 right operand in panels.
#[derive(Clone, Copy)]
pub(crate) struct Int8Right<'a> {
    panels: &'a [i32],
    vectors: usize,
    k: usize,
    cols: usize,
}

/// Maximum elements that [`int8_right`] needs on any instruction set.
pub(crate) fn int8_right_len(cols: usize, k: usize) -> usize {
    int8::panel_len(k, cols.next_multiple_of(WHOLE_PANELS))
}

/// The columns `part` of `x`, packed into `scratch`.
#[inline(always)]
pub(crate) fn int8_right<'a, M: Tile>(
    x: Lines<'_>,
    part: Part,
    scratch: &'a mut [i32],
) -> Int8Right<'a> {
    let (vectors, cols) = (panel_vectors::<M>(part.lines), part.lines);
    let width = vectors * M::LANES;
    let panels = scratch.chunks_exact_mut(int8::panel_len(part.k, width));
    for (panel, col) in panels.zip((0..cols).step_by(width)) {
        let part = Part { line: part.line + col, lines: width.min(cols - col), ..part };
        // SAFETY: as in `left`.
        unsafe { M::pack_int8(x, part, vectors, panel) };
    }
    Int8Right { panels: scratch, vectors, k: part.k, cols }
}

/// [`multiply`] for int8 operands, over the whole contraction; overwrites `out`.
#[inline(always)]
pub(crate) fn multiply_int8<M: Tile>(
    a: Int8Left<'_>,
    num_rows: usize,
    b: Int8Right<'_>,
    (out, stride): (&mut [f32], usize),
) {
    let width = b.vectors * M::LANES;
    let (groups, panel_len) = (b.k.div_ceil(int8::STEP), int8::panel_len(b.k, width));
    assert!(a.scales.len() >= num_rows);
    assert!(a.values.len() >= (num_rows - 1) * a.stride + groups * int8::STEP);
    assert!(stride >= b.cols.next_multiple_of(width) && out.len() >= num_rows * stride);
    for i in (0..num_rows).step_by(M::ROWS) {
        let rows = M::ROWS.min(num_rows - i);
        for (panel, col) in (0..b.cols).step_by(width).enumerate() {
            let segment = int8::Segment {
                a: &raw const a.values[i * a.stride],
                a_stride: a.stride,
                scales: &raw const a.scales[i],
                b: b.panels[panel * panel_len..][..panel_len].as_ptr(),
                groups,
            };
            let start = &raw mut out[i * stride + col];
            let to = Sums { start, stride, store: Store::Overwrite };
            // SAFETY: operands and sums are inside their slices, as asserted above; the instruction
            // set was checked as in `left`.
            unsafe { M::run_int8(rows, b.vectors, segment, to) };
        }
    }
}
