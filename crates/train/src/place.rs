//! Where a run computes: on the CPU or on a GPU.

use crate::error::TrainError;
use crate::machine;
use crate::profile::{DeviceProfile, catalogue};
use crate::report::format_bytes;
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
    /// The place that `asked` names: `auto`, `cpu`, `cuda` or `cuda:N`, where products are in
    /// `compute`. `setting` is what it was asked with, for messages: `run.device =`. With `auto`,
    /// `note` is told of a GPU that is there and cannot be used.
    ///
    /// # Errors
    /// If it is no such name, or that GPU cannot be used for `compute`.
    pub fn open(
        (setting, asked): (&str, &str),
        compute: Compute,
        threads: usize,
        note: &mut dyn FnMut(String),
    ) -> Result<Self, TrainError> {
        let gpu = |index| {
            let gpu = Gpu::open(index);
            gpu.map_err(|error| TrainError::Usage(format!("{setting} \"{asked}\": {error}")))
        };
        match Asked::parse((setting, asked))? {
            Asked::Cpu => Ok(Self::Cpu { threads }),
            Asked::Cuda(index) => able(gpu(index)?, compute),
            Asked::Auto => {
                let gpu = first_gpu(note).map(|gpu| able(gpu, compute));
                let place = gpu.and_then(|able| {
                    able.map_err(|error| note(format!("the CPU is used: {error}"))).ok()
                });
                Ok(place.unwrap_or(Self::Cpu { threads }))
            }
        }
    }

    /// Refuses what names no place, whether that is here or not.
    ///
    /// # Errors
    /// What would be one.
    pub fn check_name(asked: (&str, &str)) -> Result<(), TrainError> {
        Asked::parse(asked).map(|_| ())
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

    /// Name of the GPU; `None` on the CPU.
    pub fn gpu_name(&self) -> Option<&str> {
        match self {
            Self::Cpu { .. } => None,
            Self::Cuda(gpu) => Some(&gpu.info().name),
        }
    }

    /// Refuses a model whose weights a GPU has no room for. Those of the CPU are files' pages.
    ///
    /// # Errors
    /// With the figures.
    pub fn check_room(&self, weight_bytes: u64) -> Result<(), TrainError> {
        let Self::Cuda(gpu) = self else { return Ok(()) };
        let (free, needed) = (format_bytes(gpu.free_bytes()), format_bytes(weight_bytes));
        match weight_bytes <= gpu.free_bytes() {
            true => Ok(()),
            false => Err(TrainError::Usage(format!(
                "{}: the weights take {needed}, and {free} are free; hold them as int8, or compute \
                 on the CPU",
                gpu.info().name
            ))),
        }
    }
}

/// A place as it is asked for.
enum Asked {
    Auto,
    Cpu,
    Cuda(u32),
}

impl Asked {
    fn parse((setting, asked): (&str, &str)) -> Result<Self, TrainError> {
        match (asked, asked.strip_prefix("cuda:").map(str::parse)) {
            ("auto", _) => Ok(Self::Auto),
            ("cpu", _) => Ok(Self::Cpu),
            ("cuda", _) => Ok(Self::Cuda(0)),
            (_, Some(Ok(index))) => Ok(Self::Cuda(index)),
            _ => Err(TrainError::Usage(format!(
                "{setting} \"{asked}\": expected auto, cpu, cuda, or cuda: and a small number"
            ))),
        }
    }
}

/// A place on `gpu`, if it can compute so.
fn able(gpu: Gpu, compute: Compute) -> Result<Place, TrainError> {
    check_gpu((&gpu.info().name, gpu.info().compute_capability), compute)?;
    Ok(Place::Cuda(gpu))
}

/// Refuses what a GPU of that name and compute capability cannot compute in.
///
/// # Errors
/// A word on what to choose instead.
pub fn check_gpu(
    (name, (major, minor)): (&str, (u32, u32)),
    compute: Compute,
) -> Result<(), TrainError> {
    match compute {
        Compute::Int8 => Err(TrainError::Usage(format!(
            "{name}: products in int8 are for the CPU. Hold weights as int8 and compute in bf16, \
             or let the CPU compute"
        ))),
        Compute::Bf16 if major < 8 => Err(TrainError::Usage(format!(
            "{name}: no products in bf16 (compute capability {major}.{minor}, needed: 8.0). \
             Compute in f32, or let the CPU compute"
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
