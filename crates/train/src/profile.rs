//! How fast a device is: what the planner's times come from. The CPU is measured; of GPUs more is
//! published ([`catalogue`]) than of CPUs, and `hone doctor` measures those that are there.

pub mod catalogue;
mod measure;
mod sets;

pub use sets::{SetRates, measure_sets};

use crate::machine;
use hone_tensor::cuda::Gpu;
use hone_tensor::{Compute, Cost, Device, Target, Transfer, Work};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Rates of a device. FLOP/s count a multiply-add as two.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DeviceProfile {
    /// Name of the processor: of the CPU, or of the GPU.
    pub processor: String,
    /// Threads that were used.
    pub threads: usize,
    /// Instruction set that was used.
    pub isa: String,
    /// Version of Hone that measured.
    pub version: String,
    /// When.
    pub measured: String,
    /// FLOP/s of products in f32.
    pub product_f32: f64,
    /// FLOP/s of products in bf16.
    pub product_bf16: f64,
    /// Operations per second of products in 8-bit integers.
    pub product_int8: f64,
    /// FLOP/s of multiply-adds in f32 on operands that tiles load from the first-level cache.
    pub ceiling_f32: f64,
    /// The same in bf16.
    pub ceiling_bf16: f64,
    /// The same in 8-bit integers.
    pub ceiling_int8: f64,
    /// FLOP/s of products whose contraction goes over tokens, in bf16.
    pub product_over_tokens: f64,
    /// FLOP/s of products with a side as short as an adapter's rank, in bf16.
    pub product_low_rank: f64,
    /// FLOP/s of attention, forward and backward in bf16, with what tiles compute beyond it.
    pub attention: f64,
    /// FLOP/s of gated activations, forward and backward in bf16.
    pub elementwise: f64,
    /// Bytes per second read and written.
    pub memory: f64,
    /// Seconds that any operation takes at least.
    pub overhead: f64,
    /// `None`: the CPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gpu: Option<GpuFigures>,
}

/// What a GPU has that a CPU has not.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct GpuFigures {
    /// Bytes of its memory.
    pub memory_bytes: u64,
    /// Bytes of it that were free, where it is at hand.
    #[serde(skip)]
    pub free_bytes: Option<u64>,
    /// Bytes per second from the CPU's memory.
    pub link: f64,
    /// FLOP/s of attention by the kernels for heads, masks and types that have none on tensor
    /// cores.
    pub general_attention: f64,
    /// FLOP/s of products in FP8, where it has them.
    #[serde(default)]
    pub product_fp8: Option<f64>,
}

impl DeviceProfile {
    /// The profile of this machine with `threads`: the one measured before, or measured now (about
    /// a second) and kept.
    pub fn of_this_machine(threads: usize) -> Self {
        let path = Self::path(threads);
        let kept = path.as_ref().and_then(|path| std::fs::read_to_string(path).ok());
        let kept = kept.and_then(|text| serde_json::from_str::<Self>(&text).ok());
        match kept.filter(|profile| profile.is_of_here(threads)) {
            Some(profile) => profile,
            None => {
                let profile = Self::measure(threads);
                // Once on a machine: no part of the run that happens to be the first.
                machine::reset_peak_resident_bytes();
                profile
            }
        }
    }

    /// Measures, and keeps the result for later runs where that is possible.
    pub fn measure(threads: usize) -> Self {
        let device = Device::cpu(threads);
        let measured = measure::cpu(&device);
        let is_whole = measured.is_some();
        let profile = Self {
            processor: machine::cpu_name(),
            threads,
            isa: isa(&device),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            measured: now(),
            ..measured.unwrap_or_default()
        };
        if is_whole {
            profile.keep(Self::path(threads));
        }
        profile
    }

    /// The profile of a GPU: the one measured before, or what is published of it.
    pub fn of_gpu(gpu: &Gpu) -> Self {
        let published = catalogue::of(gpu.info(), Some(gpu.free_bytes()));
        let path = Self::gpu_path(&published.processor);
        let kept = path.and_then(|path| std::fs::read_to_string(path).ok());
        let kept = kept.and_then(|text| serde_json::from_str::<Self>(&text).ok());
        let is_of_it = |kept: &Self| {
            kept.processor == published.processor && kept.version == published.version
        };
        let Some(kept) = kept.filter(is_of_it) else { return published };
        let figures = |kept: GpuFigures| {
            published.gpu.map(|gpu| {
                let GpuFigures { memory_bytes, free_bytes, .. } = gpu;
                GpuFigures { memory_bytes, free_bytes, ..kept }
            })
        };
        Self { gpu: kept.gpu.and_then(figures), ..kept }
    }

    /// Measures a GPU, and keeps the result for later runs where that is possible. Peaks are as
    /// published.
    pub fn measure_gpu(gpu: &Gpu) -> Self {
        let published = catalogue::of(gpu.info(), Some(gpu.free_bytes()));
        let Some(measured) = measure::gpu(gpu, &measure::LARGE, published.clone()) else {
            return published;
        };
        let profile = Self { measured: format!("its speed of {}", now()), ..measured };
        profile.keep(Self::gpu_path(&profile.processor));
        profile
    }

    /// Whose rates they are.
    pub fn target(&self) -> Target {
        if self.gpu.is_some() { Target::Cuda } else { Target::Cpu }
    }

    /// Seconds that operations of these costs take, one after the other, with copies to a GPU
    /// under way meanwhile.
    pub fn seconds(&self, costs: &[Cost], compute: Compute) -> f64 {
        let link = self.gpu.map_or(f64::INFINITY, |gpu| gpu.link);
        let (mut now, mut copied) = (0.0_f64, 0.0_f64);
        for cost in costs {
            match cost.transfer {
                Transfer::None => now += self.seconds_of(cost, compute),
                Transfer::Start(bytes) => copied = copied.max(now) + bytes as f64 / link,
                Transfer::Await => now = now.max(copied),
            }
        }
        now
    }

    /// Rates of the CPU are measured on operands in the cache; the time to fetch these is added. A
    /// GPU fetches while it computes.
    pub fn seconds_of(&self, cost: &Cost, compute: Compute) -> f64 {
        // In f32 other work is as much slower as products are.
        let slower = match compute {
            Compute::F32 => self.product_bf16 / self.product_f32,
            _ => 1.0,
        };
        let of_fp8 = self.gpu.filter(|_| compute == Compute::Fp8).and_then(|gpu| gpu.product_fp8);
        let general_attention = self.gpu.map(|gpu| 1.0 / gpu.general_attention);
        let product_in_eight_bits = of_fp8.unwrap_or(self.product_int8);
        let seconds = |work| {
            let flops = cost.executed_flops(work) as f64;
            flops
                * match work {
                    Work::Product => slower / self.product_bf16,
                    Work::Int8 => 1.0 / product_in_eight_bits,
                    Work::OverTokens => slower / self.product_over_tokens,
                    Work::LowRank => slower / self.product_low_rank,
                    Work::Attention => slower / self.attention,
                    // In f32 inside, whatever it reads.
                    Work::GeneralAttention => general_attention.unwrap_or(slower / self.attention),
                    Work::Elementwise => 1.0 / self.elementwise,
                }
        };
        let work: f64 = Work::ALL.into_iter().map(seconds).sum();
        let fetching = cost.bytes as f64 / self.memory;
        self.overhead + if self.gpu.is_some() { work.max(fetching) } else { work + fetching }
    }

    /// FLOP/s that products would reach at best.
    pub fn ceiling(&self, compute: Compute) -> f64 {
        match compute {
            Compute::F32 => self.ceiling_f32,
            Compute::Bf16 | Compute::F16 => self.ceiling_bf16,
            Compute::Fp8 | Compute::Int8 => self.ceiling_int8,
        }
    }

    fn is_of_here(&self, threads: usize) -> bool {
        self.threads == threads
            && self.processor == machine::cpu_name()
            && self.version == env!("CARGO_PKG_VERSION")
            && self.isa == isa(&Device::cpu(1))
    }

    /// In the user's cache directory; a profile that cannot be kept is measured again.
    fn path(threads: usize) -> Option<PathBuf> {
        let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
        let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or_else(home)?;
        Some(cache.join("hone").join(format!("profile-{threads}-threads.json")))
    }

    /// In the same directory, by the GPU's name.
    fn gpu_path(name: &str) -> Option<PathBuf> {
        let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
        let name: String = name.chars().map(plain).collect();
        Some(Self::path(0)?.with_file_name(format!("profile-{name}.json")))
    }

    fn keep(&self, path: Option<PathBuf>) {
        let Some(path) = path else { return };
        let text = serde_json::to_string_pretty(self).expect("a profile can be written");
        let made = path.parent().is_some_and(|dir| std::fs::create_dir_all(dir).is_ok());
        if made {
            // Best effort: the next run measures again.
            let _ = std::fs::write(path, text);
        }
    }
}

/// When something was measured.
fn now() -> String {
    jiff::Timestamp::now().strftime("%Y-%m-%d %H:%M UTC").to_string()
}

fn isa(device: &Device) -> String {
    device.as_cpu().map_or_else(String::new, |cpu| cpu.isa().name().to_owned())
}
