//! The processor that operations run on.

use crate::cpu::Cpu;
use crate::cuda::Gpu;

/// A CPU or a GPU. The folder of each operation adds its methods, whose arguments must be in this
/// processor's memory.
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
    /// Begins an operation; scratch memory of the previous one may be overwritten.
    pub fn begin(&self) {
        if let Self::Cuda(gpu) = self {
            gpu.begin_operation();
        }
    }
}
