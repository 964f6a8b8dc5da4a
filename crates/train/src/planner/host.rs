//! The memory that a run has to keep to.

use crate::machine;
use crate::profile::{DeviceProfile, GpuFigures};
use crate::setup::Setup;
use hone_tensor::Target;

/// Bytes of the program that only training touches: its code, stacks of threads, small buffers.
/// Measured: 2.2 MiB, whatever the model.
const UNTOUCHED: u64 = 9 << 18;

/// What CUDA takes of a GPU's memory for itself, code and stacks of kernels, and cuBLASLt's
/// workspace: as others report it, not measured.
const CUDA_CONTEXT: u64 = 640 << 20;

/// The memory that a run has to keep to, and what of it is in use before anything is loaded for
/// training: by program, tokenizer and data, or by the GPU's driver.
#[derive(Clone, Copy)]
pub(super) struct Host {
    pub(super) target: Target,
    /// Bytes in use now.
    pub(super) bytes: u64,
    /// The most so far; reading and tokenising data may have taken more than a step will.
    pub(super) peak_bytes: u64,
    /// Bytes there are.
    pub(super) total: Option<u64>,
    /// Bytes that can be taken now, those in use included; `None`: the machine is not at hand.
    pub(super) free: Option<u64>,
}

impl Host {
    pub(super) fn of(profile: &DeviceProfile) -> Self {
        let target = profile.target();
        if let Some(GpuFigures { memory_bytes: total, free_bytes, .. }) = profile.gpu {
            let bytes = CUDA_CONTEXT;
            // Free memory does not include what the driver holds already.
            let free = free_bytes.map(|free| (free + bytes).min(total));
            return Self { target, bytes, peak_bytes: 0, total: Some(total), free };
        }
        hone_tensor::release_free_memory();
        let bytes = machine::resident_bytes().unwrap_or(0) + UNTOUCHED;
        Self {
            target,
            bytes,
            peak_bytes: machine::peak_resident_bytes().unwrap_or(bytes),
            total: machine::total_memory(),
            free: machine::available_memory().map(|free| free + bytes),
        }
    }

    /// `budget.memory`, or three quarters of what the machine has; of a GPU, whose memory is there
    /// for nothing else and cannot be exceeded, at most all but a thirty-second. Not what is free:
    /// that differs from hour to hour, and the policy must not.
    pub(super) fn budget(&self, setup: &Setup) -> Option<u64> {
        let (asked, total) = (setup.run.budget.memory.map(|memory| memory.0), self.total);
        match self.target {
            Target::Cpu => asked.or(total.map(|total| total / 4 * 3)),
            Target::Cuda => asked.into_iter().chain(total.map(|total| total - total / 32)).min(),
        }
    }

    /// Whether this is a GPU's, and the GPU is in this machine.
    pub(super) fn gpu_is_here(&self) -> bool {
        self.target == Target::Cuda && self.free.is_some()
    }

    /// Whether the budget holds so much.
    pub(super) fn fits(&self, setup: &Setup, needed_bytes: u64) -> bool {
        self.budget(setup).is_none_or(|budget| needed_bytes <= budget)
    }
}
