//! Blocked product: tiles of the output are tasks; panels of the right operand are packed by the
//! task that uses them, rows of the left one are read in place.
//!
//! A term of some rows is skipped in tiles of other rows, and no tile straddles the bounds of a
//! term's rows, so the panels that all rows share are packed once.
//!
//! Every output element is one chain along `k`, over the terms in order, starting from zero: of
//! multiply-adds, or of sums of [`BLOCK`](super::tile::BLOCK) steps of bf16, which begin anew with
//! each term. Cutting operands into passes only interrupts the chain. So the bits depend neither on
//! the sizes of tasks nor on threads. An int8 term is one link of that chain for each
//! [`INT8_STEPS`] of its steps.

use super::block::{padded, panel_vectors};
use super::tile::{
    Lines, Narrow, Part, Segment, Store, Sums, Tile, int8, pack_panel, pack_rows, with_tile,
};
use super::{Epilogue, Matrix, Product, Rows, Term};
use crate::cpu::{Cpu, Kernel, Scratch, Split, prefetch_for_writing, with_scratch};
use crate::element::DType;
use crate::view::{ViewMut, with_elements};
use std::marker::PhantomData;

/// Columns of a task.
const COLUMNS: usize = WHOLE_PANELS;
/// Columns of a task if its left operand must be packed, which every task repeats, and if they fit.
const MAX_COLUMNS: usize = 2 * COLUMNS;
/// Maximum bytes of a packed line; longer contractions take several passes.
const LINE_BYTES: usize = 4096;
/// Maximum steps of an int8 term that are summed in integers: a line without its header.
const INT8_STEPS: usize = LINE_BYTES - 64;
/// Rows of a block if there are several passes, which pack their panels once for so many.
const PASS_ROWS: usize = 1024;
/// Rows of the left operand packed at a time if they cannot be read in place.
const PACKED_ROWS: usize = 64;
/// Rows of the tallest tile of any instruction set.
const MAX_ROWS: usize = 32;
/// Minimum rows of a task, to amortise packing its panels.
const MIN_ROWS: usize = 64;

/// Columns of the widest panel of any instruction set.
pub(crate) const MAX_PANEL: usize = 48;
/// Columns of whole panels, whatever the instruction set: every width divides it.
pub(crate) const WHOLE_PANELS: usize = 96;
const B_BYTES: usize = COLUMNS * LINE_BYTES;
const A_BYTES: usize = PACKED_ROWS * (LINE_BYTES + 64);
const SUM_BYTES: usize = PASS_ROWS * COLUMNS * 4;

/// Bytes of scratch memory that a thread needs.
pub(super) const SCRATCH_BYTES: usize = B_BYTES + A_BYTES + SUM_BYTES;

/// Computes `products`, which write to disjoint regions of `out`. Operands are multiplied as they
/// are (`compute = F32`) or rounded to bf16 (`Bf16`), and accumulated in `f32`. Terms whose
/// operands are both int8 are summed in integers instead.
///
/// # Panics
/// If a slice is too short for its matrix, neither stride of a matrix is 1, or an int8 term breaks
/// the rules of [`Term`].
pub fn gemm(cpu: &Cpu, compute: DType, products: &[Product<'_>], out: ViewMut<'_>) {
    products.iter().for_each(|product| check(product, out.len()));
    with_elements!(mut out, out => {
        let outputs = Outputs::Shared(Split::new(out));
        with_tile!(cpu.isa, compute, M => Job { products, outputs }.run::<M>(cpu))
    })
}

/// [`gemm`] of products that each have an output array of their own, of f32; scheduled together.
///
/// # Panics
/// As [`gemm`], and if there are not as many arrays.
pub fn gemm_each(cpu: &Cpu, compute: DType, products: &[Product<'_>], outputs: Vec<ViewMut<'_>>) {
    assert_eq!(products.len(), outputs.len());
    products.iter().zip(&outputs).for_each(|(product, out)| check(product, out.len()));
    let outputs = outputs.into_iter().map(|out| Split::new(out.f32())).collect();
    let outputs = Outputs::Own(outputs);
    with_tile!(cpu.isa, compute, M => Job { products, outputs }.run::<M>(cpu))
}

/// Panics unless the product's operands and output can be read and written.
fn check(product: &Product<'_>, len: usize) {
    product.output.check(len);
    for term in product.terms {
        assert!(term.a.is_contiguous() && term.b.is_contiguous(), "one stride must be 1");
        let whole_rows = term.a.has_whole_rows() && term.b.has_whole_rows();
        assert!(whole_rows, "packed operands consist of whole rows of their array");
        let in_place = term.a.col_stride == 1 && term.k.is_multiple_of(int8::STEP);
        let in_place = in_place && term.rows == Rows::ALL;
        assert!(in_place || !term.is_int8(), "int8 rows are read in place, in fours, all rows");
    }
    assert!(product.terms.is_sorted_by_key(|term| !term.is_int8()), "int8 terms come first");
}

struct Job<'a, T> {
    products: &'a [Product<'a>],
    outputs: Outputs<'a, T>,
}

/// Where products are written.
enum Outputs<'a, T> {
    /// To regions of one array.
    Shared(Split<'a, T>),
    /// Each to its own array.
    Own(Vec<Split<'a, T>>),
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

/// A range of the contraction: part of a term.
#[derive(Clone, Copy)]
struct KRange {
    term: usize,
    k0: usize,
    k: usize,
    int8: bool,
}

/// Bytes of a packed line of `k` steps.
fn line_bytes<M: Tile>(int8: bool, k: usize) -> usize {
    match int8 {
        true => 4 * int8::panel_len(k, 1),
        false => padded::<M>(k) * size_of::<M::Elem>(),
    }
}

impl<T: Narrow> Job<'_, T> {
    fn run<M: Tile>(&self, cpu: &Cpu) {
        let blocks = self.blocks::<M>(cpu.threads());
        cpu.pool.run(blocks.len(), &|task| {
            with_scratch(SCRATCH_BYTES, |mut scratch| {
                let kernel = Task::<T, M> {
                    job: self,
                    block: blocks[task],
                    a: scratch.take(A_BYTES / size_of::<M::Elem>()),
                    sums: scratch.take(SUM_BYTES / 4),
                    b: scratch,
                };
                cpu.isa.run(kernel)
            });
        });
    }

    /// Splits by columns only if that balances the threads; otherwise by rows as well, which packs
    /// panels more often.
    fn blocks<M: Tile>(&self, threads: usize) -> Vec<Block> {
        let cols = |product: &Product<'_>| {
            let width = panel_vectors::<M>(product.output.n) * M::LANES;
            columns::<M>(product) / width * width
        };
        let col_blocks: usize = self.products.iter().map(|p| p.output.n.div_ceil(cols(p))).sum();
        let is_balanced = |splits: usize| {
            let blocks = col_blocks * splits;
            threads == 1 || blocks.is_multiple_of(threads) || blocks >= 8 * threads
        };
        let splits = (1..=threads).find(|&splits| is_balanced(splits)).unwrap_or(threads);
        let mut blocks = Vec::new();
        for (product, p) in self.products.iter().enumerate() {
            let (m, n, cols) = (p.output.m, p.output.n, cols(p));
            let rows = m.div_ceil(splits).max(MIN_ROWS).next_multiple_of(M::ROWS);
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

/// Columns of a task at most.
fn columns<M: Tile>(product: &Product<'_>) -> usize {
    let is_packed = |term: &Term<'_>| {
        !term.is_int8() && (term.a.col_stride != 1 || M::direct(term.a.data).is_none())
    };
    let bytes = |term: &Term<'_>| line_bytes::<M>(term.is_int8(), term.k);
    let line: usize = product.terms.iter().map(bytes).sum();
    if product.output.m < 4 * MIN_ROWS || !product.terms.iter().any(is_packed) {
        return COLUMNS;
    }
    (COLUMNS * LINE_BYTES / line.max(1)).clamp(COLUMNS, MAX_COLUMNS)
}

struct Task<'a, 'b, T, M: Tile> {
    job: &'a Job<'b, T>,
    block: Block,
    /// Packed operands: rows of the left one, panels of the right one.
    a: &'a mut [M::Elem],
    b: Scratch<'a>,
    sums: &'a mut [f32],
}

impl<T: Narrow, M: Tile> Kernel for Task<'_, '_, T, M> {
    type Output = ();
    const RUNS_TILES: bool = true;

    #[inline(always)]
    fn run(self) {
        let Self { job, block, a, mut b, sums } = self;
        let product = &job.products[block.product];
        let passes = passes::<M>(product.terms);
        let pass_rows = if passes.len() == 1 { block.rows } else { PASS_ROWS };
        for first in (0..block.rows).step_by(pass_rows) {
            let rows = pass_rows.min(block.rows - first);
            for (pass, ranges) in passes.iter().enumerate() {
                let pass = Pass::<T, M> {
                    job,
                    product,
                    block: Block { row: block.row + first, rows, ..block },
                    ranges,
                    first: pass == 0,
                    last: pass + 1 == passes.len(),
                    tile: PhantomData,
                };
                pass.run(b.reborrow(), a, sums);
            }
        }
    }
}

/// Cuts the terms into passes whose packed lines are at most [`LINE_BYTES`]; at least one pass.
fn passes<M: Tile>(terms: &[Term<'_>]) -> Vec<Vec<KRange>> {
    let mut passes = vec![Vec::new()];
    let mut room = LINE_BYTES;
    for (term, t) in terms.iter().enumerate() {
        let (int8, mut k0) = (t.is_int8(), 0);
        while k0 < t.k {
            let left = t.k - k0;
            // Where an int8 term is cut changes the bits, so the cut must not depend on the room.
            let k = match int8 {
                true => left.min(INT8_STEPS),
                false if left * size_of::<M::Elem>() <= room => left,
                false => room / size_of::<M::Elem>() / M::PADDING * M::PADDING,
            };
            let bytes = line_bytes::<M>(int8, k);
            if k == 0 || bytes > room {
                passes.push(Vec::new());
                room = LINE_BYTES;
                continue;
            }
            passes.last_mut().expect("never empty").push(KRange { term, k0, k, int8 });
            room -= bytes;
            k0 += k;
        }
    }
    passes
}

/// Some ranges of the contraction for a block.
struct Pass<'a, 'b, T, M> {
    job: &'a Job<'b, T>,
    product: &'a Product<'b>,
    block: Block,
    ranges: &'a [KRange],
    first: bool,
    last: bool,
    tile: PhantomData<M>,
}

/// Where the rows of the left operand are, for one range of the contraction.
struct Left<'a, E> {
    /// The operand's elements if rows are read in place.
    direct: Option<&'a [E]>,
    /// Offset of row 0: in the elements if read in place, else within a packed row.
    offset: usize,
    stride: usize,
}

impl<T: Narrow, M: Tile> Pass<'_, '_, T, M> {
    /// Elements of a packed row; odd in cache lines, so that rows fall into different sets.
    const ROW: usize = (LINE_BYTES + 64) / size_of::<M::Elem>();

    #[inline(always)]
    fn run(&self, mut scratch: Scratch<'_>, a: &mut [M::Elem], sums: &mut [f32]) {
        let Block { rows: num_rows, cols, .. } = self.block;
        let width = self.block.vectors * M::LANES;
        let (int8, floats) = self.ranges.split_at(self.ranges.partition_point(|range| range.int8));
        let int8_len: usize = int8.iter().map(|s| int8::panel_len(s.k, width)).sum();
        let float_len = width * floats.iter().map(|s| padded::<M>(s.k)).sum::<usize>();
        let int8_panels = scratch.take(cols.div_ceil(width) * int8_len);
        let float_panels = scratch.take(cols.div_ceil(width) * float_len);
        for (panel, col) in (0..cols).step_by(width).enumerate() {
            let int8 = &mut int8_panels[panel * int8_len..];
            self.pack_panel(col, (int8, &mut float_panels[panel * float_len..]));
        }
        // With one pass, sums live only until they are stored.
        let (one_pass, stride) = (self.first && self.last, cols.next_multiple_of(width));
        let left = self.left(floats);
        let mut segments = self.segments(floats, &left);
        // Segments of terms that cover the rows of a tile.
        let mut active = Vec::with_capacity(segments.len());
        let mut int8: Vec<_> = int8.iter().map(|range| self.int8_rows(range)).collect();
        for packed_row in (0..num_rows).step_by(PACKED_ROWS) {
            let packed_rows = PACKED_ROWS.min(num_rows - packed_row);
            self.pack_rows(floats, &left, packed_row, packed_rows, a);
            let mut i = packed_row;
            while i < packed_row + packed_rows {
                let row = self.block.row + i;
                let rows = M::ROWS.min(packed_row + packed_rows - i).min(self.uniform_rows(row));
                for (segment, left) in segments.iter_mut().zip(&left) {
                    segment.a = match left.direct {
                        Some(data) => &raw const data[left.offset + row * left.stride],
                        None => &raw const a[left.offset + (i - packed_row) * left.stride],
                    };
                }
                if self.last {
                    self.prefetch(row, rows);
                }
                let at = if one_pass { 0 } else { i * stride };
                let sums = &mut sums[at..at + rows * stride];
                for (panel, col) in (0..cols).step_by(width).enumerate() {
                    let (mut int8_at, mut float_at) = (panel * int8_len, panel * float_len);
                    for segment in &mut int8 {
                        segment.b = &raw const int8_panels[int8_at];
                        int8_at += int8::panel_len(segment.groups * int8::STEP, width);
                    }
                    active.clear();
                    for (segment, range) in segments.iter_mut().zip(floats) {
                        segment.b = &raw const float_panels[float_at];
                        float_at += segment.groups * M::STEP * width;
                        if self.rows_of(range).contains(row) {
                            active.push(*segment);
                        }
                    }
                    self.tile(rows, (&int8, &active), &mut sums[col..], stride);
                }
                if self.last {
                    self.store(row, rows, sums, stride);
                }
                int8.iter_mut().for_each(|segment| segment.skip_rows(rows));
                i += rows;
            }
        }
    }

    /// The array that the product is written to.
    #[inline(always)]
    fn out(&self) -> &Split<'_, T> {
        match &self.job.outputs {
            Outputs::Shared(out) => out,
            Outputs::Own(outputs) => &outputs[self.block.product],
        }
    }

    /// The rows that a range is added to.
    #[inline(always)]
    fn rows_of(&self, range: &KRange) -> Rows {
        self.product.terms[range.term].rows
    }

    /// Number of rows, starting at `row`, that the same ranges are added to.
    #[inline(always)]
    fn uniform_rows(&self, row: usize) -> usize {
        let uniform = |range: &KRange| self.rows_of(range).uniform_from(row);
        self.ranges.iter().map(uniform).min().unwrap_or(usize::MAX)
    }

    /// Adds the products of a tile to its sums.
    #[inline(always)]
    fn tile(
        &self,
        rows: usize,
        (int8, floats): (&[int8::Segment], &[Segment<M::Elem>]),
        sums: &mut [f32],
        stride: usize,
    ) {
        let vectors = self.block.vectors;
        assert!(sums.len() >= (rows - 1) * stride + vectors * M::LANES);
        let store = if self.first { Store::Overwrite } else { Store::Continue };
        let mut to = Sums { start: sums.as_mut_ptr(), stride, store };
        // SAFETY: `gemm` chose the tile by the instruction set; panels were packed with `vectors`;
        // rows in place were checked by `left` and `int8_rows`, packed ones are slices.
        unsafe {
            for &segment in int8 {
                M::run_int8(rows, vectors, segment, to);
                to.store = Store::Continue;
            }
            if int8.is_empty() || !floats.is_empty() {
                M::run(rows, vectors, floats, to);
            }
        }
    }

    #[inline(always)]
    fn pack_panel(&self, col: usize, (mut int8, mut floats): (&mut [i32], &mut [M::Elem])) {
        let Block { vectors, cols, .. } = self.block;
        let width = vectors * M::LANES;
        let rows = self.block.row..self.block.row + self.block.rows;
        for range in self.ranges {
            let is_used = !self.rows_of(range).within(rows.clone()).is_empty();
            let lines = width.min(cols - col);
            let part = Part { line: self.block.col + col, lines, k0: range.k0, k: range.k };
            let b = lines_of(self.product.terms[range.term].b.transposed());
            // SAFETY: `gemm` chose the tile by the instruction set.
            unsafe {
                if range.int8 {
                    M::pack_int8(b, part, vectors, int8);
                    int8 = &mut int8[int8::panel_len(range.k, width)..];
                } else {
                    let len = padded::<M>(range.k) * width;
                    if is_used {
                        pack_panel::<M>(b, part, vectors, &mut floats[..len]);
                    }
                    floats = &mut floats[len..];
                }
            }
        }
    }

    /// The block's rows of an int8 term, in place; its panel is set later.
    #[inline(always)]
    fn int8_rows(&self, range: &KRange) -> int8::Segment {
        let a = self.product.terms[range.term].a;
        let (lines, data) = (lines_of(a), a.data.packed().int8());
        let (first, last) = (self.block.row, self.block.row + self.block.rows - 1);
        assert!(lines.index(last, range.k0) + range.k <= data.values.len());
        let rows = lines.rows();
        assert!(rows.of(last, range.k0) < data.scales.len());
        int8::Segment {
            a: &raw const data.values[lines.index(first, range.k0)],
            a_stride: a.row_stride,
            scales: &raw const data.scales[rows.of(first, range.k0)],
            b: std::ptr::null(),
            groups: range.k.div_ceil(int8::STEP),
        }
    }

    /// Rows of the left operand: in place if type, order and length allow.
    #[inline(always)]
    fn left(&self, floats: &[KRange]) -> Vec<Left<'_, M::Elem>> {
        let mut packed = 0;
        let left = |range: &KRange| {
            let a = self.product.terms[range.term].a;
            let in_place = a.col_stride == 1 && range.k.is_multiple_of(M::PADDING);
            if let Some(data) = M::direct(a.data).filter(|_| in_place) {
                let offset = a.offset + range.k0;
                let last = self.block.row + self.block.rows - 1;
                assert!(offset + last * a.row_stride + range.k <= data.len());
                return Left { direct: Some(data), offset, stride: a.row_stride };
            }
            let offset = packed;
            packed += padded::<M>(range.k);
            Left { direct: None, offset, stride: Self::ROW }
        };
        floats.iter().map(left).collect()
    }

    #[inline(always)]
    fn pack_rows(
        &self,
        floats: &[KRange],
        left: &[Left<'_, M::Elem>],
        row: usize,
        rows: usize,
        packed: &mut [M::Elem],
    ) {
        for (range, left) in floats.iter().zip(left) {
            let line = self.block.row + row;
            let lines = self.rows_of(range).within(line..line + rows);
            if left.direct.is_none() && !lines.is_empty() {
                let offset = left.offset + (lines.start - line) * Self::ROW;
                let (k0, k) = (range.k0, range.k);
                let part = Part { line: lines.start, lines: lines.len(), k0, k };
                let a = lines_of(self.product.terms[range.term].a);
                // SAFETY: `gemm` chose the tile by the instruction set.
                unsafe { pack_rows::<M>(a, part, Self::ROW, &mut packed[offset..]) };
            }
        }
    }

    /// A segment for each range; its operands are set later.
    #[inline(always)]
    fn segments(&self, floats: &[KRange], left: &[Left<'_, M::Elem>]) -> Vec<Segment<M::Elem>> {
        let segment = |(range, left): (&KRange, &Left<'_, M::Elem>)| Segment {
            a: std::ptr::null(),
            a_stride: left.stride,
            b: std::ptr::null(),
            groups: padded::<M>(range.k) / M::STEP,
        };
        floats.iter().zip(left).map(segment).collect()
    }

    /// Prefetches rows of the output that will be written, so that stores do not wait for memory.
    #[inline(always)]
    fn prefetch(&self, row: usize, rows: usize) {
        let (output, out) = (&self.product.output, self.out());
        if output.col_stride == 1 {
            for i in row..row + rows {
                let start = output.index(i, self.block.col);
                // SAFETY: tiles of different tasks do not overlap, nor do products' outputs.
                prefetch_for_writing(unsafe { out.slice(start, self.block.cols) });
            }
        }
    }

    /// Applies the epilogue to rows of sums and writes the result.
    #[inline(always)]
    fn store(&self, row: usize, rows: usize, sums: &mut [f32], stride: usize) {
        let (output, epilogue) = (&self.product.output, &self.product.epilogue);
        let Block { col, cols, .. } = self.block;
        let all = self.out();
        if output.col_stride == 1 {
            let bias = epilogue.bias.map(|bias| &bias.f32()[col..col + cols]);
            for i in 0..rows {
                let start = output.index(row + i, col);
                // SAFETY: tiles of different tasks do not overlap, nor do products' outputs.
                let out = unsafe { all.slice(start, cols) };
                finish::<T, M>(epilogue, &mut sums[i * stride..][..cols], bias, start, out);
            }
        } else {
            let mut line = [0.0; MAX_ROWS];
            for j in 0..cols {
                let start = output.index(row, col + j);
                // SAFETY: as above.
                let out = unsafe { all.slice(start, rows) };
                for (i, x) in line.iter_mut().enumerate().take(rows) {
                    *x = sums[i * stride + j];
                }
                let bias = epilogue.bias.map(|bias| [bias.f32()[col + j]; MAX_ROWS]);
                let bias = bias.as_ref().map(|bias| &bias[..rows]);
                finish::<T, M>(epilogue, &mut line[..rows], bias, start, out);
            }
        }
    }
}

/// `out = scale · sums + bias + add (+ out)` for elements of the output starting at `start`.
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
    if let Some(addend) = epilogue.add {
        add(sums, &addend.f32()[start..start + sums.len()]);
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

/// The rows of a matrix as lines.
pub(super) fn lines_of(x: Matrix<'_>) -> Lines<'_> {
    Lines { data: x.data, offset: x.offset, line_stride: x.row_stride, step: x.col_stride }
}
