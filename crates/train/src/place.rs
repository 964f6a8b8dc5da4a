//! Where a run computes: on the CPU or on a GPU.

use crate::error::TrainError;
use crate::machine;
use crate::profile::{DeviceProfile, catalogue};
use hone_tensor::cuda::{CudaError, Gpu, num_devices};
use hone_tensor::{Compute, Device};

/// A processor that is there and can be used.
#[derive(Clone)]
pub enum Place {
    /// The CPU.
    Cpu {
        /// Threads to use.
        threads: usize,
    },
    /// A GPU.
    Cuda(Gpu),
}

impl Place {
    /// The place that `asked` names: `auto`, `cpu`, `cuda` or `cuda:N`. `setting` is what it was
    /// asked with, for messages: `run.device =`. With `auto`, `note` is told of a GPU that is there
    /// and cannot be used.
    ///
    /// # Errors
    /// If it is no such name, or that GPU cannot be used.
    pub fn open(
        (setting, asked): (&str, &str),
        threads: usize,
        note: &mut dyn FnMut(String),
    ) -> Result<Self, TrainError> {
        let unusable = |error| TrainError::Usage(format!("{setting} \"{asked}\": {error}"));
        match (asked, asked.strip_prefix("cuda:").map(str::parse)) {
            ("cpu", _) => Ok(Self::Cpu { threads }),
            ("cuda", _) => Gpu::open(0).map(Self::Cuda).map_err(unusable),
            (_, Some(Ok(index))) => Gpu::open(index).map(Self::Cuda).map_err(unusable),
            ("auto", _) => Ok(first_gpu(note).map_or(Self::Cpu { threads }, Self::Cuda)),
            _ => Err(TrainError::Usage(format!(
                "{setting} \"{asked}\": expected auto, cpu, cuda, or cuda: and a number"
            ))),
        }
    }

    /// The device.
    pub fn device(&self) -> Device {
        match self {
            Self::Cpu { threads } => Device::cpu(*threads),
            Self::Cuda(gpu) => Device::cuda(gpu.clone()),
        }
    }

    /// What its speed and memory are: measured for the CPU, published for a GPU.
    pub fn profile(&self) -> DeviceProfile {
        match self {
            Self::Cpu { threads } => DeviceProfile::of_this_machine(*threads),
            Self::Cuda(gpu) => catalogue::of(gpu.info(), Some(gpu.free_bytes())),
        }
    }

    /// Most bytes of memory taken so far; of a GPU, what is taken now, by whomever: step memory is
    /// one piece that stays.
    pub fn peak_bytes(&self) -> Option<u64> {
        match self {
            Self::Cpu { .. } => machine::peak_resident_bytes(),
            Self::Cuda(gpu) => Some(gpu.info().memory_bytes.saturating_sub(gpu.free_bytes())),
        }
    }

    /// Refuses what this place cannot compute in.
    ///
    /// # Errors
    /// A word on what to choose instead, `key` being where products are chosen.
    pub fn check(&self, key: &str, compute: Compute) -> Result<(), TrainError> {
        let Self::Cuda(gpu) = self else { return Ok(()) };
        check_gpu((&gpu.info().name, gpu.info().compute_capability), key, compute)
    }
}

/// Refuses what a GPU of that name and compute capability cannot compute in.
///
/// # Errors
/// As [`Place::check`].
pub fn check_gpu(
    (name, (major, minor)): (&str, (u32, u32)),
    key: &str,
    compute: Compute,
) -> Result<(), TrainError> {
    match compute {
        Compute::Int8 => Err(TrainError::Usage(format!(
            "{key}: int8 is for the CPU; on a GPU products of int8 weights are in bf16. Hold \
             weights as int8 and set {key} to bf16"
        ))),
        Compute::Bf16 if major < 8 => Err(TrainError::Usage(format!(
            "{key}: {name} has no products in bf16 (compute capability {major}.{minor}, needed: \
             8.0); set {key} to f32"
        ))),
        _ => Ok(()),
    }
}

fn first_gpu(note: &mut dyn FnMut(String)) -> Option<Gpu> {
    match Gpu::open(0) {
        Ok(gpu) => Some(gpu),
        // No driver, or none for it to drive: nothing that anybody forgot.
        Err(CudaError::NoDriver | CudaError::NoDevice { .. }) => None,
        Err(_) if num_devices().is_err() => None,
        Err(error) => {
            note(format!("a GPU is there and cannot be used, so the CPU is: {error}"));
            None
        }
    }
}
