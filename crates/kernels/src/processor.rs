//! What operations run on.

use crate::cpu::Cpu;
use crate::cuda::Gpu;

/// A processor. Each operation's folder adds its methods; slices given to them are in the
/// processor's own memory.
pub enum Processor {
    /// Threads of the CPU.
    Cpu(Cpu),
    /// An NVIDIA GPU.
    Cuda(Gpu),
}

/// Kinds of processors, whose operations need different memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// The CPU.
    Cpu,
    /// An NVIDIA GPU.
    Cuda,
}

impl Processor {
    /// Begins an operation: what is left of the one before may be overwritten.
    pub fn begin(&self) {
        if let Self::Cuda(gpu) = self {
            gpu.begin_operation();
        }
    }
}
