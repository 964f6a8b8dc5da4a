//! Blocked product: tiles of the output are tasks, operands are packed block by block.
//!
//! Every output element is one chain of fused multiply-adds along `k`, starting from zero, over
//! the terms in order; blocking only interrupts the chain. So the bits depend neither on tile
//! sizes, threads, nor instruction set.

use super::micro::{self, Micro};
use super::{Epilogue, Matrix, Target, Term};
use crate::cpu::{Cpu, Isa, Kernel, Split};
use crate::element::{DType, Element, ViewMut, bf16, with_elements};
use std::cell::RefCell;
use std::marker::PhantomData;

/// Rows and columns of the output per task, at most.
const TILE_ROWS: usize = 192;
const TILE_COLS: usize = 256;
/// Steps of the contraction between packings.
const BLOCK_K: usize = 256;

thread_local! {
    /// Packed operands and the accumulator tile; kept between tasks of a thread.
    static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Bytes of scratch memory that each thread keeps after its first product.
pub const SCRATCH_BYTES: usize =
    4 * (TILE_ROWS * TILE_COLS + BLOCK_K * TILE_COLS + BLOCK_K * TILE_ROWS);

/// `out = Σ terms + epilogue`, see the module above. `compute` says how operands enter the
/// products: as they are (`F32`) or rounded to bf16 (`Bf16`); sums are always in `f32`.
///
/// # Panics
/// If a slice is too short for its matrix.
pub fn gemm(
    cpu: &Cpu,
    compute: DType,
    terms: &[Term<'_>],
    epilogue: Epilogue<'_>,
    target: Target,
    out: ViewMut<'_>,
) {
    if target.m == 0 || target.n == 0 {
        return;
    }
    assert!((target.m - 1) * target.row_stride + target.col + target.n <= out.len());
    // Rows that overlap would be written by several tasks at once.
    assert!(target.m == 1 || target.n <= target.row_stride);
    with_elements!(mut out, out => {
        let job = Job { compute, terms, epilogue, target, out: Split::new(out) };
        job.spread(cpu)
    })
}

struct Job<'a, T> {
    compute: DType,
    terms: &'a [Term<'a>],
    epilogue: Epilogue<'a>,
    target: Target,
    out: Split<'a, T>,
}

impl<T: Element> Job<'_, T> {
    fn spread(&self, cpu: &Cpu) {
        let Target { m, n, .. } = self.target;
        let (rows, cols) = tile_size(m, n, cpu.threads());
        let (row_tiles, col_tiles) = (m.div_ceil(rows), n.div_ceil(cols));
        cpu.pool.run(row_tiles * col_tiles, &|task| {
            let (i, j) = (task / col_tiles * rows, task % col_tiles * cols);
            let tile = Tile { i, j, rows: rows.min(m - i), cols: cols.min(n - j) };
            SCRATCH.with_borrow_mut(|scratch| {
                scratch.resize(SCRATCH_BYTES / 4, 0.0);
                match cpu.isa {
                    #[cfg(target_arch = "x86_64")]
                    Isa::Avx512 => {
                        cpu.isa.run(TileTask::<T, micro::Avx512, 8, 32>::new(self, tile, scratch))
                    }
                    #[cfg(target_arch = "x86_64")]
                    Isa::Avx2 => {
                        cpu.isa.run(TileTask::<T, micro::Avx2, 6, 16>::new(self, tile, scratch))
                    }
                    _ => cpu.isa.run(TileTask::<T, micro::Scalar, 4, 8>::new(self, tile, scratch)),
                }
            });
        });
    }
}

/// Tiles as large as the cache likes, but small enough to keep all threads busy.
fn tile_size(m: usize, n: usize, threads: usize) -> (usize, usize) {
    let (mut rows, mut cols) = (TILE_ROWS, TILE_COLS);
    let tasks = |rows: usize, cols: usize| m.div_ceil(rows) * n.div_ceil(cols);
    while threads > 1 && tasks(rows, cols) < 3 * threads && m * n > 4096 {
        if rows > 48 && (m > n || cols <= 64) {
            rows /= 2;
        } else if cols > 64 {
            cols /= 2;
        } else {
            break;
        }
    }
    (rows, cols)
}

#[derive(Clone, Copy)]
struct Tile {
    i: usize,
    j: usize,
    rows: usize,
    cols: usize,
}

struct TileTask<'a, 'b, T, M, const MR: usize, const NR: usize> {
    job: &'a Job<'b, T>,
    tile: Tile,
    scratch: &'a mut [f32],
    micro: PhantomData<M>,
}

impl<'a, 'b, T, M, const MR: usize, const NR: usize> TileTask<'a, 'b, T, M, MR, NR> {
    fn new(job: &'a Job<'b, T>, tile: Tile, scratch: &'a mut [f32]) -> Self {
        Self { job, tile, scratch, micro: PhantomData }
    }
}

impl<T: Element, M: Micro<MR, NR>, const MR: usize, const NR: usize> Kernel
    for TileTask<'_, '_, T, M, MR, NR>
{
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Tile { i, j, rows, cols } = self.tile;
        let (acc, packed) = self.scratch.split_at_mut(TILE_ROWS * TILE_COLS);
        let (b_packed, a_packed) = packed.split_at_mut(BLOCK_K * TILE_COLS);
        let stride = cols.next_multiple_of(NR);
        acc[..rows.next_multiple_of(MR) * stride].fill(0.0);
        let round = self.job.compute == DType::Bf16;
        for term in self.job.terms {
            for k0 in (0..term.k).step_by(BLOCK_K) {
                let k = BLOCK_K.min(term.k - k0);
                pack::<NR>(term.b.transposed(), j, cols, k0, k, round, b_packed);
                pack::<MR>(term.a, i, rows, k0, k, round, a_packed);
                for (panel, jb) in (0..cols).step_by(NR).enumerate() {
                    let b = &b_packed[panel * k * NR..(panel + 1) * k * NR];
                    for (panel, ib) in (0..rows).step_by(MR).enumerate() {
                        let a = &a_packed[panel * k * MR..(panel + 1) * k * MR];
                        // SAFETY: `spread` chose the micro-kernel by the CPU's instruction set, and
                        // the accumulator has room for whole tiles.
                        unsafe { M::run(a, b, &mut acc[ib * stride + jb..], stride) };
                    }
                }
            }
        }
        self.job.store(self.tile, acc, stride);
    }
}

/// Copies lines `first..first + count` of `x` (along its rows), steps `k0..k0 + k`, into panels of
/// `P` lines: `packed[panel][step][line]`, missing lines as zeros.
#[inline(always)]
fn pack<const P: usize>(
    x: Matrix<'_>,
    first: usize,
    count: usize,
    k0: usize,
    k: usize,
    round: bool,
    packed: &mut [f32],
) {
    with_elements!(x.data, data => {
        for (panel, line0) in (0..count).step_by(P).enumerate() {
            let lines = P.min(count - line0);
            let start = x.offset + (first + line0) * x.row_stride + k0 * x.col_stride;
            let out = &mut packed[panel * k * P..(panel + 1) * k * P];
            if lines < P {
                out.fill(0.0);
            }
            pack_panel::<P, _>(data, start, x.row_stride, x.col_stride, lines, out);
        }
    });
    if round {
        let panels = count.div_ceil(P);
        packed[..panels * k * P].iter_mut().for_each(|v| *v = bf16::from_f32(*v).to_f32());
    }
}

#[inline(always)]
fn pack_panel<const P: usize, X: Element>(
    data: &[X],
    start: usize,
    line_stride: usize,
    step: usize,
    lines: usize,
    out: &mut [f32],
) {
    if line_stride == 1 {
        for (s, out) in out.chunks_exact_mut(P).enumerate() {
            let source = &data[start + s * step..][..lines];
            for (o, x) in out.iter_mut().zip(source) {
                *o = x.to_f32();
            }
        }
    } else {
        let k = out.len() / P;
        for line in 0..lines {
            let base = start + line * line_stride;
            let source = &data[base..base + (k - 1) * step + 1];
            for (s, out) in out.chunks_exact_mut(P).enumerate() {
                out[line] = source[s * step].to_f32();
            }
        }
    }
}

impl<T: Element> Job<'_, T> {
    #[inline(always)]
    fn store(&self, tile: Tile, acc: &mut [f32], stride: usize) {
        for row in 0..tile.rows {
            let start = (tile.i + row) * self.target.row_stride + self.target.col + tile.j;
            // SAFETY: tiles of different tasks do not overlap.
            let out = unsafe { self.out.slice(start, tile.cols) };
            let acc = &mut acc[row * stride..][..tile.cols];
            if self.epilogue.scale != 1.0 {
                acc.iter_mut().for_each(|a| *a *= self.epilogue.scale);
            }
            if let Some(bias) = self.epilogue.bias {
                add(acc, &bias[tile.j..tile.j + tile.cols]);
            }
            if let Some(more) = self.epilogue.add {
                add(acc, &more[start..start + tile.cols]);
            }
            if self.epilogue.accumulate {
                for (a, o) in acc.iter_mut().zip(&*out) {
                    *a += o.to_f32();
                }
            }
            for (o, &a) in out.iter_mut().zip(&*acc) {
                *o = T::from_f32(a);
            }
        }
    }
}

#[inline(always)]
fn add(x: &mut [f32], y: &[f32]) {
    for (x, y) in x.iter_mut().zip(y) {
        *x += y;
    }
}
