//! The CPU as kernels see it: an instruction set and a thread pool.

mod isa;
mod matrix_unit;
mod pool;
mod scratch;
mod split;
mod subnormals;

pub use isa::Isa;
pub(crate) use isa::{Apply, Kernel};
pub use matrix_unit::MissingAmx;
pub use pool::Pool;
pub(crate) use scratch::{Plain, Scratch, reinterpret, with_scratch};
pub use split::Split;
pub(crate) use split::{Piece, pieces};

/// Prefetches the cache lines of `slice` for writing, on architectures that support it.
#[inline(always)]
pub(crate) fn prefetch_for_writing<T>(slice: &[T]) {
    #[cfg(target_arch = "x86_64")]
    for line in (0..size_of_val(slice)).step_by(64) {
        use std::arch::x86_64::{_MM_HINT_ET0, _mm_prefetch};
        // SAFETY: a prefetch reads nothing and cannot fault.
        unsafe { _mm_prefetch::<_MM_HINT_ET0>(slice.as_ptr().cast::<i8>().wrapping_add(line)) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = slice;
}

/// The instruction set and threads that CPU kernels run on.
pub struct Cpu {
    /// Instruction set in use.
    pub(crate) isa: Isa,
    /// Threads in use.
    pub(crate) pool: Pool,
}

impl Cpu {
    /// A CPU with `threads` threads (including the caller) and the best instruction set.
    pub fn new(threads: usize) -> Self {
        Self::with_isa(threads, Isa::detect())
    }

    /// A CPU with `threads` threads and a given instruction set.
    ///
    /// # Panics
    /// If the machine lacks `isa`.
    pub fn with_isa(threads: usize, isa: Isa) -> Self {
        assert!(Isa::available().contains(&isa), "this machine cannot run {isa:?}");
        Self { isa, pool: Pool::new(threads) }
    }

    /// Instruction set in use.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Number of threads, including the caller.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// Calls `body(row, out_row)` for each row of `out`, in parallel.
    ///
    /// `width` is the length of a row; `cost` is the number of elements touched per row, which
    /// determines how many rows form a task.
    pub fn rows<T: Send>(
        &self,
        out: &mut [T],
        width: usize,
        cost: usize,
        body: impl Fn(usize, &mut [T]) + Sync,
    ) {
        let rows = out.len() / width.max(1);
        let per_task = rows_per_task(cost);
        let out = Split::new(out);
        self.pool.run(rows.div_ceil(per_task), &|task| {
            for row in task * per_task..((task + 1) * per_task).min(rows) {
                // SAFETY: each row belongs to one task, and rows do not overlap.
                body(row, unsafe { out.slice(row * width, width) });
            }
        });
    }
}

/// Rows that together touch about 16,000 elements: a few microseconds, well above the overhead of a
/// task.
pub fn rows_per_task(cost: usize) -> usize {
    (16_384 / cost.max(1)).max(1)
}

#[cfg(test)]
mod tests;
