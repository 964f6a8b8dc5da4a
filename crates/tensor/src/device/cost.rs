//! Costs of operations, and how long they ran.

use std::time::Instant;

/// Kinds of work, which run at different rates. Anything else in an operation is memory-bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Matmuls.
    Product,
    /// Matmuls with 8-bit operands: int8 or FP8.
    Int8,
    /// Matmuls that contract over tokens, such as weight gradients: both operands have to be
    /// transposed or packed.
    OverTokens,
    /// Matmuls in which one dimension is an adapter's rank.
    LowRank,
    /// Attention.
    Attention,
    /// Attention by a GPU's kernels for any heads and mask, without tensor cores.
    GeneralAttention,
    /// Elementwise operations with exponentials.
    Elementwise,
}

impl Work {
    /// All kinds.
    pub const ALL: [Self; 7] = [
        Self::Product,
        Self::Int8,
        Self::OverTokens,
        Self::LowRank,
        Self::Attention,
        Self::GeneralAttention,
        Self::Elementwise,
    ];
}

const NONE: [u64; Work::ALL.len()] = [0; Work::ALL.len()];

/// Copies from host memory to a GPU, which run concurrently with operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transfer {
    /// No copy.
    None,
    /// Starts a copy of this many bytes, after earlier copies.
    Start(u64),
    /// Makes later operations wait for all copies.
    Await,
}

/// Cost of an operation.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    /// Name of the operation in profiles.
    pub name: &'static str,
    /// Floating-point operations by kind of work, in the order of [`Work::ALL`].
    flops: [u64; Work::ALL.len()],
    /// Additional operations that are computed but not needed, at the edges of blocks.
    padding: [u64; Work::ALL.len()],
    /// Bytes read and written, each operand once.
    pub bytes: u64,
    /// Scratch bytes on a GPU, in addition to allocated tensors.
    pub scratch_bytes: u64,
    /// Copy to a GPU that the operation starts or waits for.
    pub transfer: Transfer,
}

impl Cost {
    /// Cost of an operation that reads and writes `bytes` and computes nothing.
    pub fn memory_bound(name: &'static str, bytes: usize) -> Self {
        let (bytes, transfer) = (bytes as u64, Transfer::None);
        Self { name, flops: NONE, padding: NONE, bytes, scratch_bytes: 0, transfer }
    }

    /// Cost of a copy to a GPU.
    pub fn transfer(name: &'static str, transfer: Transfer) -> Self {
        Self { transfer, ..Self::memory_bound(name, 0) }
    }

    /// Adds scratch bytes.
    pub fn with_scratch(mut self, bytes: usize) -> Self {
        self.scratch_bytes += bytes as u64;
        self
    }

    /// Adds bytes that are read or written.
    pub fn with_bytes(mut self, bytes: usize) -> Self {
        self.bytes += bytes as u64;
        self
    }

    /// Adds floating-point operations; a multiply-add counts as two.
    pub fn with(mut self, work: Work, flops: usize) -> Self {
        self.flops[work as usize] += flops as u64;
        self
    }

    /// Adds floating-point operations that are computed but not needed.
    pub fn with_padding(mut self, work: Work, flops: usize) -> Self {
        self.padding[work as usize] += flops as u64;
        self
    }

    /// Floating-point operations of one kind that are executed, including padding.
    pub fn executed_flops(&self, work: Work) -> u64 {
        self.flops[work as usize] + self.padding[work as usize]
    }

    /// Floating-point operations of all kinds, without padding.
    pub fn flops(&self) -> u64 {
        self.flops.iter().sum()
    }
}

/// A recorded operation.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    /// Its cost.
    pub cost: Cost,
    /// When it began.
    pub start: Instant,
    /// Seconds until the next operation began.
    pub seconds: f64,
}
