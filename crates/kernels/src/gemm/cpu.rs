//! Blocked product: tiles of the output are tasks; panels of the right operand are packed by the
//! task that uses them, rows of the left one are read where they stand.
//!
//! Every output element is one chain of multiply-adds along `k`, over the terms in order, starting
//! from zero; blocking only interrupts the chain. So the bits depend neither on the sizes of tasks
//! nor on threads.

use super::block::{padded, panel_vectors};
use super::tile::{Lines, Narrow, Old, Part, Segment, Sums, Tile, with_tile};
use super::{Epilogue, Matrix, Product, Term};
use crate::cpu::{Cpu, Kernel, Split, prefetch_for_writing, with_scratch};
use crate::element::{DType, ViewMut, with_elements};
use std::marker::PhantomData;

/// Panels of a task.
const PANELS: usize = 2;
/// Bytes of a packed line: what is longer is walked in several passes.
const LINE_BYTES: usize = 4096;
/// Rows of a pass, where there are several.
const PASS_ROWS: usize = 256;
/// Rows of the left operand that are packed at a time, where they cannot be read in place.
const PACKED_ROWS: usize = 64;
/// Rows that a task has at least, so that packing its panels is worth it.
const LEAST_ROWS: usize = 64;

/// Columns of the widest panel of all instruction sets.
const MAX_PANEL: usize = 48;
const B_BYTES: usize = PANELS * MAX_PANEL * LINE_BYTES;
const A_BYTES: usize = PACKED_ROWS * (LINE_BYTES + 64);
const SUM_BYTES: usize = PASS_ROWS * PANELS * MAX_PANEL * 4;

/// Bytes of scratch memory that each thread keeps after its first product.
pub const SCRATCH_BYTES: usize = B_BYTES + A_BYTES + SUM_BYTES;

/// Computes `products`, which share `out` and write to different parts of it. `compute` says how
/// operands enter the products: as they are (`F32`) or rounded to bf16 (`Bf16`); sums are always in
/// `f32`.
///
/// # Panics
/// If a slice is too short for its matrix, or neither stride of a matrix is one.
pub fn gemm(cpu: &Cpu, compute: DType, products: &[Product<'_>], out: ViewMut<'_>) {
    for product in products {
        product.target.check(out.len());
        for term in product.terms {
            assert!(term.a.is_contiguous() && term.b.is_contiguous(), "one stride must be 1");
        }
    }
    with_elements!(mut out, out => {
        let job = Job { products, out: Split::new(out) };
        with_tile!(cpu.isa, compute, M => job.spread::<M>(cpu))
    })
}

struct Job<'a, T> {
    products: &'a [Product<'a>],
    out: Split<'a, T>,
}

/// The output of one task.
#[derive(Clone, Copy)]
struct Block {
    product: usize,
    row: usize,
    rows: usize,
    col: usize,
    cols: usize,
    /// Vectors of a panel.
    vectors: usize,
}

/// A stretch of the contraction: part of a term.
#[derive(Clone, Copy)]
struct Stretch {
    term: usize,
    k0: usize,
    k: usize,
}

impl<T: Narrow> Job<'_, T> {
    fn spread<M: Tile>(&self, cpu: &Cpu) {
        let blocks = self.blocks::<M>(cpu.threads());
        cpu.pool.run(blocks.len(), &|task| {
            with_scratch(SCRATCH_BYTES, |mut scratch| {
                let kernel = Task::<T, M> {
                    job: self,
                    block: blocks[task],
                    b: scratch.take(B_BYTES / size_of::<M::Elem>()),
                    a: scratch.take(A_BYTES / size_of::<M::Elem>()),
                    sums: scratch.take(SUM_BYTES / 4),
                };
                cpu.isa.run(kernel)
            });
        });
    }

    /// Whole rows where columns alone give every thread the same; else rows are split too, which
    /// packs panels more often.
    fn blocks<M: Tile>(&self, threads: usize) -> Vec<Block> {
        let cols = |product: &Product<'_>| PANELS * panel_vectors::<M>(product.target.n) * M::LANES;
        let col_blocks: usize = self.products.iter().map(|p| p.target.n.div_ceil(cols(p))).sum();
        let even = |splits: usize| {
            let blocks = col_blocks * splits;
            threads == 1 || blocks.is_multiple_of(threads) || blocks >= 8 * threads
        };
        let splits = (1..=threads).find(|&splits| even(splits)).unwrap_or(threads);
        let mut blocks = Vec::new();
        for (product, described) in self.products.iter().enumerate() {
            let (m, n, cols) = (described.target.m, described.target.n, cols(described));
            let rows = m.div_ceil(splits).max(LEAST_ROWS).next_multiple_of(M::ROWS);
            for (row, col) in
                (0..m).step_by(rows).flat_map(|row| (0..n).step_by(cols).map(move |col| (row, col)))
            {
                let (rows, cols) = (rows.min(m - row), cols.min(n - col));
                let vectors = panel_vectors::<M>(n);
                blocks.push(Block { product, row, rows, col, cols, vectors });
            }
        }
        blocks
    }
}

struct Task<'a, 'b, T, M: Tile> {
    job: &'a Job<'b, T>,
    block: Block,
    /// Packed operands.
    b: &'a mut [M::Elem],
    a: &'a mut [M::Elem],
    sums: &'a mut [f32],
}

impl<T: Narrow, M: Tile> Kernel for Task<'_, '_, T, M> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { job, block, b, a, sums } = self;
        let product = &job.products[block.product];
        let passes = passes(product.terms, LINE_BYTES / size_of::<M::Elem>());
        let pass_rows = if passes.len() == 1 { block.rows } else { PASS_ROWS };
        for first in (0..block.rows).step_by(pass_rows) {
            let rows = pass_rows.min(block.rows - first);
            for (pass, stretches) in passes.iter().enumerate() {
                let pass = Pass::<T, M> {
                    job,
                    product,
                    block: Block { row: block.row + first, rows, ..block },
                    stretches,
                    first: pass == 0,
                    last: pass + 1 == passes.len(),
                    tile: PhantomData,
                };
                pass.run(b, a, sums);
            }
        }
    }
}

/// The terms cut into passes of at most `most` steps; always at least one pass.
fn passes(terms: &[Term<'_>], most: usize) -> Vec<Vec<Stretch>> {
    let mut passes = vec![Vec::new()];
    let mut room = most;
    for (term, &Term { k, .. }) in terms.iter().enumerate() {
        let mut k0 = 0;
        while k0 < k {
            if room == 0 {
                passes.push(Vec::new());
                room = most;
            }
            let steps = (k - k0).min(room);
            passes.last_mut().expect("never empty").push(Stretch { term, k0, k: steps });
            // No padding is longer than a group of four.
            room -= steps.next_multiple_of(4);
            k0 += steps;
        }
    }
    passes
}

/// Some stretches of the contraction for a block.
struct Pass<'a, 'b, T, M> {
    job: &'a Job<'b, T>,
    product: &'a Product<'b>,
    block: Block,
    stretches: &'a [Stretch],
    first: bool,
    last: bool,
    tile: PhantomData<M>,
}

/// How the rows of the left operand are found in one stretch.
struct Left<'a, E> {
    /// Row 0 of the product, where rows are read in place.
    direct: Option<&'a [E]>,
    /// Where a row begins: in place, from its start; else within a packed row.
    offset: usize,
    stride: usize,
}

impl<T: Narrow, M: Tile> Pass<'_, '_, T, M> {
    /// Elements of a packed row; odd in cache lines, so that rows fall into different sets.
    const ROW: usize = (LINE_BYTES + 64) / size_of::<M::Elem>();

    #[inline(always)]
    fn run(&self, b: &mut [M::Elem], a: &mut [M::Elem], sums: &mut [f32]) {
        let Block { vectors, row: row0, rows: num_rows, cols, .. } = self.block;
        let width = vectors * M::LANES;
        let panel_len = width * self.stretches.iter().map(|s| padded::<M>(s.k)).sum::<usize>();
        for (panel, col) in (0..cols).step_by(width).enumerate() {
            self.pack_panel(col, &mut b[panel * panel_len..(panel + 1) * panel_len]);
        }
        let (b, left) = (&b[..], self.left());
        let mut segments = self.segments(&left);
        for packed_row in (0..num_rows).step_by(PACKED_ROWS) {
            let packed_rows = PACKED_ROWS.min(num_rows - packed_row);
            self.pack_rows(&left, packed_row, packed_rows, a);
            for i in (packed_row..packed_row + packed_rows).step_by(M::ROWS) {
                let rows = M::ROWS.min(packed_row + packed_rows - i);
                for (segment, left) in segments.iter_mut().zip(&left) {
                    segment.a = match left.direct {
                        Some(data) => &raw const data[left.offset + (row0 + i) * left.stride],
                        None => &raw const a[left.offset + (i - packed_row) * left.stride],
                    };
                }
                for (panel, col) in (0..cols).step_by(width).enumerate() {
                    let mut from = panel * panel_len;
                    for segment in &mut segments {
                        segment.b = &raw const b[from];
                        from += segment.groups * M::STEP * width;
                    }
                    // One pass needs the sums only for as long as it takes to store them.
                    let one_pass = self.first && self.last;
                    let stride = if one_pass { width } else { PANELS * width };
                    let at = if one_pass { 0 } else { i * stride + col };
                    let tile = &mut sums[at..at + (rows - 1) * stride + width];
                    if self.last {
                        self.prefetch(row0 + i, self.block.col + col, rows, width.min(cols - col));
                    }
                    let old = if self.first { Old::Dropped } else { Old::Continued };
                    let to = Sums { start: tile.as_mut_ptr(), stride, old };
                    // SAFETY: `gemm` chose the tile by the instruction set; panels were packed with
                    // `vectors`; rows in place were checked by `left`, packed ones are slices.
                    unsafe { M::run(rows, vectors, &segments, to) };
                    if self.last {
                        let cols = width.min(cols - col);
                        self.store(row0 + i, self.block.col + col, (rows, cols), tile, stride);
                    }
                }
            }
        }
    }

    #[inline(always)]
    fn pack_panel(&self, col: usize, mut panel: &mut [M::Elem]) {
        let Block { vectors, cols, .. } = self.block;
        let width = vectors * M::LANES;
        for stretch in self.stretches {
            let (this, rest) = panel.split_at_mut(padded::<M>(stretch.k) * width);
            let lines = width.min(cols - col);
            let part = Part { line: self.block.col + col, lines, k0: stretch.k0, k: stretch.k };
            let b = lines_of(self.product.terms[stretch.term].b.transposed());
            // SAFETY: `gemm` chose the tile by the instruction set.
            unsafe { M::pack_panel(b, part, vectors, this) };
            panel = rest;
        }
    }

    /// Rows of the left operand: in place where type, order and length allow.
    #[inline(always)]
    fn left(&self) -> Vec<Left<'_, M::Elem>> {
        let mut packed = 0;
        let of_stretch = |stretch: &Stretch| {
            let a = self.product.terms[stretch.term].a;
            let in_place = a.col_stride == 1 && stretch.k.is_multiple_of(M::PADDING);
            if let Some(data) = M::direct(a.data).filter(|_| in_place) {
                let offset = a.offset + stretch.k0;
                let last = self.block.row + self.block.rows - 1;
                assert!(offset + last * a.row_stride + stretch.k <= data.len());
                return Left { direct: Some(data), offset, stride: a.row_stride };
            }
            let offset = packed;
            packed += padded::<M>(stretch.k);
            Left { direct: None, offset, stride: Self::ROW }
        };
        self.stretches.iter().map(of_stretch).collect()
    }

    #[inline(always)]
    fn pack_rows(
        &self,
        left: &[Left<'_, M::Elem>],
        row: usize,
        rows: usize,
        packed: &mut [M::Elem],
    ) {
        for (stretch, left) in self.stretches.iter().zip(left) {
            if left.direct.is_none() {
                let line = self.block.row + row;
                let part = Part { line, lines: rows, k0: stretch.k0, k: stretch.k };
                let a = lines_of(self.product.terms[stretch.term].a);
                // SAFETY: `gemm` chose the tile by the instruction set.
                unsafe { M::pack_rows(a, part, Self::ROW, &mut packed[left.offset..]) };
            }
        }
    }

    /// A segment for each stretch, still without operands.
    #[inline(always)]
    fn segments(&self, left: &[Left<'_, M::Elem>]) -> Vec<Segment<M::Elem>> {
        let of_stretch = |(stretch, left): (&Stretch, &Left<'_, M::Elem>)| Segment {
            a: std::ptr::null(),
            a_stride: left.stride,
            b: std::ptr::null(),
            groups: padded::<M>(stretch.k) / M::STEP,
        };
        self.stretches.iter().zip(left).map(of_stretch).collect()
    }

    /// Fetches the part of the output that a tile will write, while it is computed: without, a
    /// tile's stores wait for memory.
    #[inline(always)]
    fn prefetch(&self, row: usize, col: usize, rows: usize, cols: usize) {
        let target = &self.product.target;
        if target.col_stride == 1 {
            for i in 0..rows {
                let start = target.offset + (row + i) * target.row_stride + col;
                // SAFETY: tiles of different tasks do not overlap, nor do products' targets.
                prefetch_for_writing(unsafe { self.job.out.slice(start, cols) });
            }
        }
    }

    /// Carries out the epilogue for a tile of sums.
    #[inline(always)]
    fn store(
        &self,
        row: usize,
        col: usize,
        (rows, cols): (usize, usize),
        sums: &mut [f32],
        stride: usize,
    ) {
        let (target, epilogue) = (&self.product.target, &self.product.epilogue);
        if target.col_stride == 1 {
            for i in 0..rows {
                let start = target.offset + (row + i) * target.row_stride + col;
                // SAFETY: tiles of different tasks do not overlap, nor do products' targets.
                let out = unsafe { self.job.out.slice(start, cols) };
                let bias = epilogue.bias.map(|bias| &bias[col..col + cols]);
                finish::<T, M>(epilogue, &mut sums[i * stride..][..cols], bias, start, out);
            }
        } else {
            let mut line = [0.0; 8];
            for j in 0..cols {
                let start = target.offset + row + (col + j) * target.col_stride;
                // SAFETY: as above.
                let out = unsafe { self.job.out.slice(start, rows) };
                for (i, x) in line.iter_mut().enumerate().take(rows) {
                    *x = sums[i * stride + j];
                }
                let bias = epilogue.bias.map(|bias| [bias[col + j]; 8]);
                let bias = bias.as_ref().map(|bias| &bias[..rows]);
                finish::<T, M>(epilogue, &mut line[..rows], bias, start, out);
            }
        }
    }
}

/// `out = scale · sums + bias + add (+ out)` for elements of the output from `start` on.
#[inline(always)]
fn finish<T: Narrow, M: Tile>(
    epilogue: &Epilogue<'_>,
    sums: &mut [f32],
    bias: Option<&[f32]>,
    start: usize,
    out: &mut [T],
) {
    if epilogue.scale != 1.0 {
        sums.iter_mut().for_each(|x| *x *= epilogue.scale);
    }
    if let Some(bias) = bias {
        add(sums, bias);
    }
    if let Some(more) = epilogue.add {
        add(sums, &more[start..start + sums.len()]);
    }
    if epilogue.accumulate {
        for (x, o) in sums.iter_mut().zip(&*out) {
            *x += o.to_f32();
        }
    }
    // SAFETY: `gemm` chose the tile by the instruction set.
    unsafe { T::narrow::<M>(sums, out) };
}

#[inline(always)]
fn add(x: &mut [f32], y: &[f32]) {
    for (x, y) in x.iter_mut().zip(y) {
        *x += y;
    }
}

/// A matrix as lines along its rows.
fn lines_of(x: Matrix<'_>) -> Lines<'_> {
    Lines { data: x.data, offset: x.offset, line_stride: x.row_stride, step: x.col_stride }
}
