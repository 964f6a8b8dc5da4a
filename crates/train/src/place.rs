//! Where a run computes: on the CPU or on a GPU.

use crate::error::TrainError;
use crate::machine;
use crate::profile::DeviceProfile;
use crate::report::format_bytes;
use crate::run_file::Precision;
use hone_tensor::cuda::{Gpu, Info, num_devices};
use hone_tensor::{Compute, DType, Device, max_head_dim};

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

/// What decides what can be computed in.
#[derive(Clone, Copy, Debug)]
pub enum Hardware<'a> {
    /// The CPU, which computes in everything but f16.
    Cpu,
    /// A GPU.
    Gpu {
        /// For messages.
        name: &'a str,
        /// Compute capability.
        capability: (u32, u32),
    },
}

/// Compute capability from which on GPUs multiply bf16.
const BF16_FROM: (u32, u32) = (8, 0);

/// The same for FP8.
const FP8_FROM: (u32, u32) = (8, 9);

impl<'a> Hardware<'a> {
    /// What a GPU is.
    pub fn of(gpu: &'a Gpu) -> Self {
        let info = gpu.info();
        Self::Gpu { name: &info.name, capability: info.compute_capability }
    }

    /// Refuses a model whose attention has heads too wide for a GPU's kernels.
    ///
    /// # Errors
    /// With both figures.
    pub fn check_heads(self, head_dim: usize) -> Result<(), TrainError> {
        match self {
            Self::Gpu { name, capability } => {
                let most = max_head_dim(Info::shared_bytes_of(capability));
                if head_dim <= most {
                    return Ok(());
                }
                Err(TrainError::Usage(format!(
                    "{name}: this model's heads have {head_dim} dimensions, and this GPU's kernels \
                     serve up to {most}. Compute on the CPU"
                )))
            }
            Self::Cpu => Ok(()),
        }
    }

    /// What products are computed in for a model whose matrices are `file` in its files: as
    /// `asked`, or in f32 for f32 files and otherwise in bf16, or f16 on a GPU that has no bf16.
    ///
    /// # Errors
    /// If this cannot compute so; says what to choose instead.
    pub fn compute_for(self, asked: Precision, file: DType) -> Result<Compute, TrainError> {
        let refused = |why: String| Err(TrainError::Usage(why));
        match (asked, self) {
            (Precision::F32, _) => Ok(Compute::F32),
            (Precision::Auto, _) if file == DType::F32 => Ok(Compute::F32),
            (Precision::F16 | Precision::Fp8, Self::Cpu) => refused(
                "compute = \"f16\" and \"fp8\" are for GPUs; on the CPU choose \"auto\", \"bf16\" \
                 or \"int8\""
                    .to_owned(),
            ),
            (Precision::F16, Self::Gpu { .. }) => Ok(Compute::F16),
            (Precision::Fp8, Self::Gpu { name, capability: (major, minor) })
                if (major, minor) < FP8_FROM =>
            {
                refused(format!(
                    "{name}: no products in fp8 (compute capability {major}.{minor}, needed: 8.9). \
                     Choose compute = \"int8\" (from 8.0 on), or \"auto\" with base_precision = \
                     \"int8\" for the memory"
                ))
            }
            (Precision::Fp8, Self::Gpu { .. }) => Ok(Compute::Fp8),
            // What is not in integers is in bf16.
            (Precision::Int8, Self::Gpu { name, capability: (major, minor) })
                if (major, minor) < BF16_FROM =>
            {
                refused(format!(
                    "{name}: compute = \"int8\" has activations in bf16, which this GPU has not \
                     (compute capability {major}.{minor}, needed: 8.0). Choose compute = \"auto\", \
                     with base_precision = \"int8\" for the memory"
                ))
            }
            (Precision::Int8, _) => Ok(Compute::Int8),
            (Precision::Auto, Self::Gpu { capability, .. }) if capability < BF16_FROM => {
                Ok(Compute::F16)
            }
            (Precision::Bf16, Self::Gpu { name, capability: (major, minor) })
                if (major, minor) < BF16_FROM =>
            {
                refused(format!(
                    "{name}: no products in bf16 (compute capability {major}.{minor}, needed: \
                     8.0). Choose compute = \"auto\", \"f16\" or \"f32\""
                ))
            }
            (Precision::Bf16 | Precision::Auto, _) => Ok(Compute::Bf16),
        }
    }
}

impl Place {
    /// The place that `asked` names, `auto`, `cpu`, `cuda` or `cuda:N`, and what products are
    /// computed in there: see [`Hardware::compute_for`], which `model` is for. `setting` is what it
    /// was asked with, for messages: `run.device =`. With `auto`, `note` is told of a GPU that is
    /// there and cannot be used.
    ///
    /// # Errors
    /// If it is no such name, or that GPU cannot be used.
    pub fn open(
        (setting, asked): (&str, &str),
        model: (Precision, DType),
        threads: usize,
        note: &mut dyn FnMut(String),
    ) -> Result<(Self, Compute), TrainError> {
        let gpu = |index| {
            let gpu = Gpu::open(index);
            gpu.map_err(|error| TrainError::Usage(format!("{setting} \"{asked}\": {error}")))
        };
        let able = |place: Self| place.hardware().compute_for(model.0, model.1).map(|c| (place, c));
        match Asked::parse((setting, asked))? {
            Asked::Cpu => able(Self::Cpu { threads }),
            Asked::Cuda(index) => able(Self::Cuda(gpu(index)?)),
            Asked::Auto => {
                let gpu = first_gpu(note).map(|gpu| able(Self::Cuda(gpu)));
                let place = gpu.and_then(|able| {
                    able.map_err(|error| note(format!("the CPU is used: {error}"))).ok()
                });
                place.map_or_else(|| able(Self::Cpu { threads }), Ok)
            }
        }
    }

    /// What it can compute in.
    pub fn hardware(&self) -> Hardware<'_> {
        match self {
            Self::Cpu { .. } => Hardware::Cpu,
            Self::Cuda(gpu) => Hardware::of(gpu),
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

    /// What its speed and memory are: measured for the CPU; of a GPU published, unless
    /// `hone doctor` has measured it.
    pub fn profile(&self) -> DeviceProfile {
        match self {
            Self::Cpu { threads } => DeviceProfile::of_this_machine(*threads),
            Self::Cuda(gpu) => DeviceProfile::of_gpu(gpu),
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

    /// Versions of what compiles and multiplies for a GPU; `None` on the CPU.
    pub fn gpu_libraries(&self) -> Option<&str> {
        match self {
            Self::Cpu { .. } => None,
            Self::Cuda(gpu) => Some(&gpu.info().libraries),
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

/// The first GPU that can be used; `note` is told why one that is there cannot.
fn first_gpu(note: &mut dyn FnMut(String)) -> Option<Gpu> {
    // No driver, or none for it to drive: nothing that anybody forgot.
    let mut refused = None;
    for index in 0..num_devices().unwrap_or(0) {
        match Gpu::open(index) {
            Ok(gpu) => return Some(gpu),
            Err(error) => refused = refused.or(Some(error)),
        }
    }
    let error = refused?;
    note(format!("a GPU is there and cannot be used, so the CPU is: {error}"));
    None
}
