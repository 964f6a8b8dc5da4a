//! Peak matmul throughput of this machine, the reference for benchmarks.

use crate::cpu::{Cpu, Scratch, with_scratch};
use crate::element::DType;
use crate::gemm::tile::{Segment, Store, Sums, Tile, int8, with_tile};
use std::time::{Duration, Instant};

/// Groups of the contraction, few enough for the operands of a tile to stay in L1.
const GROUPS: usize = 128;
/// Tiles between two readings of the clock.
const TILES: usize = 500;

/// Peak FLOP/s (a multiply-add counts as two) of matmuls with operands in L1, as if memory and
/// packing were free; the best rate measured within `duration`.
pub fn product_rate(cpu: &Cpu, compute: DType, duration: Duration) -> f64 {
    with_tile!(cpu.isa, compute, M => {
        best_rate::<M>(cpu, M::STEP, duration, float_tiles::<M>)
    })
}

/// Peak operations per second of int8 matmuls; see [`product_rate`].
pub fn int8_product_rate(cpu: &Cpu, duration: Duration) -> f64 {
    with_tile!(cpu.isa, DType::Bf16, M => {
        best_rate::<M>(cpu, int8::STEP, duration, int8_tiles::<M>)
    })
}

fn best_rate<M: Tile>(
    cpu: &Cpu,
    step: usize,
    duration: Duration,
    tiles: impl Fn(Scratch<'_>) + Sync,
) -> f64 {
    let columns = M::VECTORS * M::LANES;
    let tasks = 4 * cpu.threads();
    let flops = (2 * M::ROWS * columns * GROUPS * step * TILES * tasks) as f64;
    // Operands of at most eight bytes per group, and sums.
    let bytes = 16 * (GROUPS + 2) * (columns + 1) + 8192;
    let (begun, mut best) = (Instant::now(), 0.0f64);
    while begun.elapsed() < duration {
        let start = Instant::now();
        cpu.pool.run(tasks, &|_| with_scratch(bytes, &tiles));
        best = best.max(flops / start.elapsed().as_secs_f64());
    }
    best
}

fn float_tiles<M: Tile>(mut scratch: Scratch<'_>) {
    let (columns, steps) = (M::VECTORS * M::LANES, GROUPS * M::STEP);
    let (a, b) = (scratch.take::<M::Elem>(steps), scratch.take(steps * columns));
    let sums = scratch.take::<f32>(M::ROWS * columns);
    let segment = Segment { a: a.as_ptr(), a_stride: 0, b: b.as_ptr(), groups: GROUPS };
    let to = Sums { start: sums.as_mut_ptr(), stride: columns, store: Store::Overwrite };
    for _ in 0..TILES {
        // SAFETY: `Cpu` has checked the instruction set; operands and sums are valid.
        unsafe { M::run(M::ROWS, M::VECTORS, &[segment], to) };
    }
}

fn int8_tiles<M: Tile>(mut scratch: Scratch<'_>) {
    let columns = M::VECTORS * M::LANES;
    let (a, scales) = (scratch.take::<i32>(GROUPS), scratch.take::<f32>(M::ROWS));
    let b = scratch.take::<i32>(int8::panel_len(GROUPS * int8::STEP, columns));
    // Values left by earlier tasks might overflow the sums.
    b.fill(0);
    let sums = scratch.take::<f32>(M::ROWS * columns);
    let (a, scales, b) = (a.as_ptr().cast(), scales.as_ptr(), b.as_ptr());
    let segment = int8::Segment { a, a_stride: 0, scales, b, groups: GROUPS };
    let to = Sums { start: sums.as_mut_ptr(), stride: columns, store: Store::Overwrite };
    for _ in 0..TILES {
        // SAFETY: as in `float_tiles`.
        unsafe { M::run_int8(M::ROWS, M::VECTORS, segment, to) };
    }
}
