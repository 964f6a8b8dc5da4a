//! What this machine could do at best: the yardstick of benchmarks.

use crate::cpu::Cpu;
use crate::element::DType;
use crate::gemm::tile::{Old, Segment, Sums, Tile, with_tile};
use std::time::{Duration, Instant};

/// Groups of the contraction: operands of a tile stay in the first-level cache.
const GROUPS: usize = 128;
/// Tiles between two looks at the clock.
const TILES: usize = 500;

/// FLOP/s (a multiply-add counted as two) of products whose operands are in the first-level cache:
/// what a product would reach if memory and packing cost nothing. The best of `duration`.
pub fn product_rate(cpu: &Cpu, compute: DType, duration: Duration) -> f64 {
    with_tile!(cpu.isa, compute, M => tile_rate::<M>(cpu, duration))
}

fn tile_rate<M: Tile>(cpu: &Cpu, duration: Duration) -> f64 {
    let columns = M::VECTORS * M::LANES;
    let steps = GROUPS * M::STEP;
    let tasks = 4 * cpu.threads();
    let flops = (2 * M::ROWS * columns * steps * TILES * tasks) as f64;
    let (begun, mut best) = (Instant::now(), 0.0f64);
    while begun.elapsed() < duration {
        let start = Instant::now();
        cpu.pool.run(tasks, &|_| {
            crate::cpu::with_scratch(8 * (steps + 1) * (columns + 1) + 8192, |mut scratch| {
                let (a, b) = (scratch.take::<M::Elem>(steps), scratch.take(steps * columns));
                let sums = scratch.take::<f32>(M::ROWS * columns);
                let segment = Segment { a: a.as_ptr(), a_stride: 0, b: b.as_ptr(), groups: GROUPS };
                let to = Sums { start: sums.as_mut_ptr(), stride: columns, old: Old::Dropped };
                for _ in 0..TILES {
                    // SAFETY: `Cpu` has checked the instruction set; operands and sums are there.
                    unsafe { M::run(M::ROWS, M::VECTORS, &[segment], to) };
                }
            });
        });
        best = best.max(flops / start.elapsed().as_secs_f64());
    }
    best
}
