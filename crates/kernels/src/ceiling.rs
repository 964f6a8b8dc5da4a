//! What the machine's multiply-adds can do, the reference for benchmarks and plans.
//!
//! On a matrix unit the rate of the instruction alone says little: a neighbour that uses the other
//! half of the core takes half of it, and three quarters of the rate with loads. So there are two
//! rates, and what is measured should be compared with one that was taken in the same seconds. The
//! operands are random: a matrix unit multiplies zeros a fifth faster, as that takes less power.

use crate::cpu::{Cpu, Isa, Kernel, Plain, Scratch, with_scratch};
use crate::element::DType;
use crate::gemm::tile::{Segment, Store, Sums, Tile, int8, with_tile};
use std::marker::PhantomData;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// What is multiplied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Products {
    /// Numbers of a type.
    Floats(DType),
    /// Bytes, summed in integers.
    Int8,
}

impl Products {
    /// Of every type that there are tiles for.
    pub const ALL: [Self; 3] = [Self::Floats(DType::F32), Self::Floats(DType::Bf16), Self::Int8];

    /// `f32`, `bf16` or `int8`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Floats(dtype) => dtype.name(),
            Self::Int8 => "int8",
        }
    }
}

/// Where the operands are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operands {
    /// In registers already: the rate of the instruction.
    InRegisters,
    /// In the first-level cache, from where each tile loads them: what a product can reach if
    /// memory and packing are free.
    InCache,
}

/// Groups of the contraction, few enough for the operands of a tile to stay in the first-level
/// cache.
const GROUPS: usize = 128;
/// Tasks of a thread between two readings of the clock.
const TASKS: usize = 4;
/// Repetitions of a task in registers.
const REPETITIONS: usize = 4096;
/// Words of two bf16, of one `f32`, or of four bytes: random, of either sign and of magnitudes
/// below 2.
pub(crate) static RANDOM: [u32; 1024] = {
    let (mut words, mut state, mut i) = ([0; 1024], 1u64, 0);
    while i < words.len() {
        // Knuth's linear congruential generator, of which the upper half is good.
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        words[i] = (state >> 32) as u32 & 0x80ff_80ff | 0x3f00_3f00;
        i += 1;
    }
    words
};

/// Distance between rows of the left operand: an odd number of cache lines.
const ROW_BYTES: usize = 4 * GROUPS + 64;

/// Operations per second (a multiply-add counts as two) within `duration`, on all threads. `None`
/// in registers if plain Rust multiplies, and not an instruction.
pub fn rate(cpu: &Cpu, products: Products, operands: Operands, duration: Duration) -> Option<f64> {
    let compute = match products {
        Products::Floats(dtype) => dtype,
        Products::Int8 => DType::Bf16,
    };
    let is_int8 = products == Products::Int8;
    with_tile!(cpu.isa, compute, M => {
        let tile = PhantomData::<M>;
        let run =
            |scratch: Scratch<'_>| cpu.isa.run(Tiles { scratch, is_int8, operands, tile });
        rate_of(cpu, scratch_bytes::<M>(), duration, &run)
    })
}

/// The instruction set whose products of bf16 are faster on one thread, by what its instruction
/// does: asked whenever a program starts, so within a few milliseconds.
pub(crate) fn faster(sets: [Isa; 2]) -> Isa {
    const WINDOW: Duration = Duration::from_micros(200);
    let [first, second] = sets.map(|isa| {
        let cpu = Cpu::with_isa(1, isa);
        let products = Products::Floats(DType::Bf16);
        let window = |_| rate(&cpu, products, Operands::InRegisters, WINDOW).unwrap_or_default();
        (0..3).map(window).fold(0.0, f64::max)
    });
    if second > first { sets[1] } else { sets[0] }
}

fn rate_of(
    cpu: &Cpu,
    scratch_bytes: usize,
    duration: Duration,
    run: &(dyn Fn(Scratch<'_>) -> Option<usize> + Sync),
) -> Option<f64> {
    let done = AtomicUsize::new(0);
    let round = || {
        cpu.pool.run(TASKS * cpu.threads(), &|_| {
            let operations = with_scratch(scratch_bytes, run);
            done.fetch_add(operations.unwrap_or_default(), Ordering::Relaxed);
        });
    };
    round();
    done.store(0, Ordering::Relaxed);
    let begun = Instant::now();
    while begun.elapsed() < duration {
        round();
    }
    let done = done.into_inner();
    (done > 0).then(|| done as f64 / begun.elapsed().as_secs_f64())
}

/// Enough for rows with their scales, a panel, and sums.
fn scratch_bytes<M: Tile>() -> usize {
    let columns = M::VECTORS * M::LANES;
    M::ROWS * (ROW_BYTES + 4 * columns + 4) + 4 * (GROUPS + 2) * columns + 4 * 64
}

/// Fills memory, a multiple of four bytes, with random numbers.
fn fill<E: Plain>(memory: &mut [E]) -> *const E {
    let words = size_of_val(memory) / 4;
    let start = memory.as_mut_ptr();
    for (i, word) in RANDOM.iter().cycle().take(words).enumerate() {
        // SAFETY: inside the slice, whose elements may have any bits.
        unsafe { start.cast::<u32>().add(i).write_unaligned(*word) };
    }
    start
}

/// Tiles on random operands; returns the number of operations.
struct Tiles<'a, M> {
    scratch: Scratch<'a>,
    is_int8: bool,
    operands: Operands,
    tile: PhantomData<M>,
}

impl<M: Tile> Kernel for Tiles<'_, M> {
    type Output = Option<usize>;
    const RUNS_TILES: bool = true;

    #[inline(always)]
    fn run(mut self) -> Option<usize> {
        match (self.operands, self.is_int8) {
            // SAFETY: `Cpu` has checked the instruction set.
            (Operands::InRegisters, false) => Some(unsafe { M::run_in_registers(REPETITIONS) }),
            // SAFETY: as above.
            (Operands::InRegisters, true) => unsafe { M::run_int8_in_registers(REPETITIONS) },
            (Operands::InCache, false) => Some(self.floats()),
            (Operands::InCache, true) => Some(self.int8()),
        }
    }
}

impl<M: Tile> Tiles<'_, M> {
    const COLUMNS: usize = M::VECTORS * M::LANES;
    /// Tiles of a task: enough for the time in which operands are filled not to count, and few
    /// enough for instruction sets with small tiles, which are slow.
    const TILES: usize = 2 * M::ROWS * Self::COLUMNS;

    fn operations(step: usize) -> usize {
        2 * M::ROWS * Self::COLUMNS * GROUPS * step * Self::TILES
    }

    fn sums(&mut self) -> Sums {
        let start = self.scratch.take::<f32>(M::ROWS * Self::COLUMNS).as_mut_ptr();
        Sums { start, stride: Self::COLUMNS, store: Store::Overwrite }
    }

    #[inline(always)]
    fn floats(&mut self) -> usize {
        let a_stride = ROW_BYTES / size_of::<M::Elem>();
        let a = fill(self.scratch.take::<M::Elem>(M::ROWS * a_stride));
        let b = fill(self.scratch.take::<M::Elem>(GROUPS * M::STEP * Self::COLUMNS));
        let segment = Segment { a, a_stride, b, groups: GROUPS };
        let sums = self.sums();
        for _ in 0..Self::TILES {
            // SAFETY: `Cpu` has checked the instruction set; operands and sums are valid.
            unsafe { M::run(M::ROWS, M::VECTORS, &[segment], sums) };
        }
        Self::operations(M::STEP)
    }

    #[inline(always)]
    fn int8(&mut self) -> usize {
        let a = fill(self.scratch.take::<u8>(M::ROWS * ROW_BYTES));
        let scales = fill(self.scratch.take::<f32>(M::ROWS));
        let b = self.scratch.take::<i32>(int8::panel_len(GROUPS * int8::STEP, Self::COLUMNS));
        let b = fill(b);
        let segment = int8::Segment { a, a_stride: ROW_BYTES, scales, b, groups: GROUPS };
        let sums = self.sums();
        for _ in 0..Self::TILES {
            // SAFETY: as in `floats`.
            unsafe { M::run_int8(M::ROWS, M::VECTORS, segment, sums) };
        }
        Self::operations(int8::STEP)
    }
}
