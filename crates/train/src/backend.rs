//! Where a run computes: on the CPU or on a GPU.

use crate::code::Code;
use crate::error::TrainError;
use crate::machine;
use crate::profile::{DeviceProfile, catalogue};
use crate::report::format_bytes;
use crate::run_file::Precision;
use hone_tensor::cuda::{Gpu, Info, num_devices};
use hone_tensor::ops::MAX_KEY_DIM;
use hone_tensor::{Compute, DType, Device, Target, max_head_dim};
use std::fmt;

/// What a run computes on.
#[derive(Clone)]
pub enum Backend {
    /// The CPU.
    Cpu {
        /// Threads to use.
        threads: usize,
    },
    /// A GPU of this machine.
    Cuda(Gpu),
    /// A GPU that need not be here, to plan for.
    Catalogued {
        /// Its name in the catalogue.
        name: String,
        /// Compute capability.
        capability: (u32, u32),
        /// What is published of it.
        profile: Box<DeviceProfile>,
    },
}

/// The device that a setting or a flag names, for messages.
#[derive(Clone, Copy)]
pub struct Asked<'a> {
    /// How it was asked for: `run.device =` or `--device`.
    pub setting: &'a str,
    /// `auto`, `cpu`, `cuda` or `cuda:N`.
    pub device: &'a str,
}

/// Compute capability from which on GPUs multiply bf16.
const BF16_FROM: (u32, u32) = (8, 0);

/// Compute capability from which on GPUs multiply FP8.
const FP8_FROM: (u32, u32) = (8, 9);

impl Backend {
    /// The GPU of the catalogue that has this name.
    ///
    /// # Errors
    /// If there is none; says which there are.
    pub fn catalogued(name: &str) -> Result<Self, TrainError> {
        let name = name.to_lowercase();
        if let Some((capability, profile)) = catalogue::named(&name) {
            let profile = Box::new(profile);
            return Ok(Self::Catalogued { name, capability, profile });
        }
        let keys = catalogue::keys();
        let near = keys.iter().find(|key| key.starts_with(&name));
        let near = near.map_or(String::new(), |key| format!("; did you mean {key}?"));
        Err(TrainError::Usage(
            Code::DeviceUnknown,
            format!(
                "--device {name}: no such GPU is in the catalogue, which has {}{near}",
                keys.join(", ")
            ),
        ))
    }

    /// Name and compute capability of a GPU.
    fn gpu(&self) -> Option<(&str, (u32, u32))> {
        match self {
            Self::Cpu { .. } => None,
            Self::Cuda(gpu) => Some((&gpu.info().name, gpu.info().compute_capability)),
            Self::Catalogued { name, capability, .. } => Some((name, *capability)),
        }
    }

    /// Refuses a model whose heads, of attention or of gated delta nets, are too wide for a GPU's
    /// kernels.
    ///
    /// # Errors
    /// With both figures.
    pub fn check_heads(&self, head_dim: usize, delta_key_dim: usize) -> Result<(), TrainError> {
        let Some((name, capability)) = self.gpu() else { return Ok(()) };
        let most = max_head_dim(Info::shared_bytes_of(capability));
        let checked = [
            ("this model's heads", head_dim, most),
            ("the keys of this model's gated delta nets", delta_key_dim, MAX_KEY_DIM),
        ];
        let too_wide = checked.into_iter().find(|(_, has, most)| has > most);
        let Some((what, has, most)) = too_wide else { return Ok(()) };
        let text = format!(
            "{name}: {what} have {has} dimensions, and this GPU's kernels serve up to {most}. \
             Compute on the CPU"
        );
        Err(TrainError::Usage(Code::DeviceUnsupported, text))
    }

    /// What products are computed in for a model whose matrices are `file` in its files: as
    /// `asked`, or in f32 for f32 files and otherwise in bf16, or f16 on a GPU that has no bf16.
    ///
    /// # Errors
    /// If this cannot compute so; says what to choose instead.
    pub fn compute_for(&self, asked: Precision, file: DType) -> Result<Compute, TrainError> {
        let refused = |why: String| Err(TrainError::Usage(Code::DeviceUnsupported, why));
        match (asked, self.gpu()) {
            (Precision::F32, _) => Ok(Compute::F32),
            (Precision::Auto, _) if file == DType::F32 => Ok(Compute::F32),
            (Precision::F16 | Precision::Fp8, None) => refused(
                "compute = \"f16\" and \"fp8\" are for GPUs; on the CPU choose \"auto\", \"bf16\" \
                 or \"int8\""
                    .to_owned(),
            ),
            (Precision::F16, Some(_)) => Ok(Compute::F16),
            (Precision::Fp8, Some((name, (major, minor)))) if (major, minor) < FP8_FROM => {
                refused(format!(
                    "{name}: no products in fp8 (compute capability {major}.{minor}, needed: 8.9). \
                     Choose compute = \"int8\" (from 8.0 on), or \"auto\" with base_precision = \
                     \"int8\" for the memory"
                ))
            }
            (Precision::Fp8, Some(_)) => Ok(Compute::Fp8),
            // What is not in integers is in bf16.
            (Precision::Int8, Some((name, (major, minor)))) if (major, minor) < BF16_FROM => {
                refused(format!(
                    "{name}: compute = \"int8\" has activations in bf16, which this GPU has not \
                     (compute capability {major}.{minor}, needed: 8.0). Choose compute = \"auto\", \
                     with base_precision = \"int8\" for the memory"
                ))
            }
            (Precision::Int8, _) => Ok(Compute::Int8),
            (Precision::Auto, Some((_, capability))) if capability < BF16_FROM => Ok(Compute::F16),
            (Precision::Bf16, Some((name, (major, minor)))) if (major, minor) < BF16_FROM => {
                refused(format!(
                    "{name}: no products in bf16 (compute capability {major}.{minor}, needed: \
                     8.0). Choose compute = \"auto\", \"f16\" or \"f32\""
                ))
            }
            (Precision::Bf16 | Precision::Auto, _) => Ok(Compute::Bf16),
        }
    }
    /// What `asked` names, and what products are computed in there: see [`Self::compute_for`]. With
    /// `auto`, `note` is told of a GPU that is there and cannot be used.
    ///
    /// # Errors
    /// If it is no such name, or that GPU cannot be used.
    pub fn open(
        asked: Asked<'_>,
        (precision, file): (Precision, DType),
        threads: usize,
        note: &mut dyn FnMut(String),
    ) -> Result<(Self, Compute), TrainError> {
        let able = |backend: Self| {
            let compute = backend.compute_for(precision, file)?;
            Ok((backend, compute))
        };
        match asked.parse()? {
            Choice::Cpu => able(Self::Cpu { threads }),
            Choice::Cuda(index) => match Gpu::open(index) {
                Ok(gpu) => able(Self::Cuda(gpu)),
                Err(error) => {
                    Err(TrainError::Usage(Code::DeviceUnavailable, format!("{asked}: {error}")))
                }
            },
            Choice::Auto => {
                let gpu = first_gpu(note).map(|gpu| able(Self::Cuda(gpu)));
                let backend = gpu.and_then(|able: Result<_, TrainError>| {
                    able.map_err(|error| note(format!("the CPU is used: {error}"))).ok()
                });
                backend.map_or_else(|| able(Self::Cpu { threads }), Ok)
            }
        }
    }

    /// The device; a dry one for a GPU that is only planned for.
    pub fn device(&self) -> Device {
        match self {
            Self::Cpu { threads } => Device::cpu(*threads),
            Self::Cuda(gpu) => Device::cuda(gpu.clone()),
            Self::Catalogued { .. } => Device::dry_as(Target::Cuda),
        }
    }

    /// What its speed and memory are: measured for the CPU; of a GPU published, unless
    /// `hone doctor` has measured it.
    pub fn profile(&self) -> DeviceProfile {
        match self {
            Self::Cpu { threads } => DeviceProfile::of_this_machine(*threads),
            Self::Cuda(gpu) => DeviceProfile::of_gpu(gpu),
            Self::Catalogued { profile, .. } => DeviceProfile::clone(profile),
        }
    }

    /// Most bytes of memory taken so far; of a GPU, what is taken now, by whomever: step memory is
    /// one piece that stays.
    pub fn peak_bytes(&self) -> Option<u64> {
        match self {
            Self::Cpu { .. } => machine::peak_resident_bytes(),
            Self::Cuda(gpu) => Some(gpu.info().memory_bytes.saturating_sub(gpu.free_bytes())),
            Self::Catalogued { .. } => None,
        }
    }

    /// Name of a GPU of this machine.
    pub fn gpu_name(&self) -> Option<&str> {
        match self {
            Self::Cuda(gpu) => Some(&gpu.info().name),
            _ => None,
        }
    }

    /// Versions of what compiles and multiplies for a GPU of this machine.
    pub fn gpu_libraries(&self) -> Option<&str> {
        match self {
            Self::Cuda(gpu) => Some(&gpu.info().libraries),
            _ => None,
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
            false => Err(TrainError::Usage(
                Code::MemoryDoesNotFit,
                format!(
                    "{}: the weights take {needed}, and {free} are free; hold them as int8, or \
                 compute on the CPU",
                    gpu.info().name
                ),
            )),
        }
    }
}

enum Choice {
    Auto,
    Cpu,
    Cuda(u32),
}

impl Asked<'_> {
    /// Refuses what names no device, whether that is here or not.
    ///
    /// # Errors
    /// What would be one.
    pub fn check(self) -> Result<(), TrainError> {
        self.parse().map(|_| ())
    }

    fn parse(self) -> Result<Choice, TrainError> {
        match (self.device, self.device.strip_prefix("cuda:").map(str::parse)) {
            ("auto", _) => Ok(Choice::Auto),
            ("cpu", _) => Ok(Choice::Cpu),
            ("cuda", _) => Ok(Choice::Cuda(0)),
            (_, Some(Ok(index))) => Ok(Choice::Cuda(index)),
            _ => Err(TrainError::Usage(
                Code::DeviceUnknown,
                format!("{self}: expected auto, cpu, cuda, or cuda: and a small number"),
            )),
        }
    }
}

impl fmt::Display for Asked<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} \"{}\"", self.setting, self.device)
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
