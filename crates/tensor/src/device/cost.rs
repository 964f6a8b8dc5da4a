//! What operations take, and how long they ran.

use std::time::Instant;

/// Kinds of work, which run at different speeds. What is left of an operation is bound by memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Matrix products.
    Product,
    /// Matrix products in 8-bit integers, or in FP8.
    Int8,
    /// Matrix products whose contraction goes over tokens, as weight gradients do: both operands
    /// have to be turned or packed.
    OverTokens,
    /// Matrix products with an adapter's rank on one side.
    Thin,
    /// Attention.
    Attention,
    /// Element by element, with exponentials.
    Elementwise,
}

impl Work {
    /// All kinds.
    pub const ALL: [Self; 6] = [
        Self::Product,
        Self::Int8,
        Self::OverTokens,
        Self::Thin,
        Self::Attention,
        Self::Elementwise,
    ];
}

const NONE: [u64; Work::ALL.len()] = [0; Work::ALL.len()];

/// Copies from the CPU's memory to a GPU, which go on beside operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transfer {
    /// None.
    None,
    /// One of so many bytes begins when the ones before have ended.
    Start(u64),
    /// What follows begins when all have ended.
    Await,
}

/// What an operation takes.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    /// Operation, for profiles.
    pub name: &'static str,
    /// Floating-point operations by kind of work, in the order of [`Work::ALL`].
    flops: [u64; Work::ALL.len()],
    /// Those that blocks of the operation compute beyond what is asked for.
    padding: [u64; Work::ALL.len()],
    /// Bytes read and written, each operand once.
    pub bytes: u64,
    /// Bytes that a GPU takes inside the operation, beside what is allocated for it.
    pub scratch_bytes: u64,
    /// What it is of copies to a GPU.
    pub transfer: Transfer,
}

impl Cost {
    /// An operation that reads and writes so many bytes, and as yet does nothing else.
    pub fn memory(name: &'static str, bytes: usize) -> Self {
        let (bytes, transfer) = (bytes as u64, Transfer::None);
        Self { name, flops: NONE, padding: NONE, bytes, scratch_bytes: 0, transfer }
    }

    /// The beginning of a copy to a GPU, or the end of it.
    pub fn transfer(name: &'static str, transfer: Transfer) -> Self {
        Self { transfer, ..Self::memory(name, 0) }
    }

    /// The same with so many bytes inside the operation.
    pub fn with_scratch(mut self, bytes: usize) -> Self {
        self.scratch_bytes += bytes as u64;
        self
    }

    /// The same with so many more floating-point operations, a multiply-add counted as two.
    pub fn with(mut self, work: Work, flops: usize) -> Self {
        self.flops[work as usize] += flops as u64;
        self
    }

    /// The same with so many that take time but are not asked for.
    pub fn with_padding(mut self, work: Work, flops: usize) -> Self {
        self.padding[work as usize] += flops as u64;
        self
    }

    /// Floating-point operations of one kind that are carried out, padding included.
    pub fn done_of(&self, work: Work) -> u64 {
        self.flops[work as usize] + self.padding[work as usize]
    }

    /// Floating-point operations of all kinds that are asked for.
    pub fn flops(&self) -> u64 {
        self.flops.iter().sum()
    }
}

/// An operation as it ran.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    /// What ran.
    pub cost: Cost,
    /// When it began.
    pub start: Instant,
    /// Seconds until the next one began.
    pub seconds: f64,
}
