//! What is published of NVIDIA's GPUs: rates to plan with where none is at hand, and until they are
//! measured on one.
//!
//! Peaks are those of dense products (tables often give twice that, for sparse ones) with sums in
//! f32, from NVIDIA's data sheets as ml-engineering (S. Bekman) and torchtitan tabulate them,
//! checked against multiprocessors × clock × operations per clock. `reached` is the share that
//! large products of cuBLASLt reach, as ml-engineering's table of achievable FLOP/s and public
//! benchmarks of PyTorch have it. The other shares are assumptions until Hone has been measured on
//! a GPU: see the fields.

use super::{DeviceProfile, GpuFigures};
use hone_tensor::cuda::Info;

/// One GPU.
struct Gpu {
    /// Its name on the command line.
    key: &'static str,
    /// Words of the name that the driver gives it.
    words: &'static [&'static str],
    /// Compute capability.
    capability: (u32, u32),
    /// Bytes that CUDA reports, error correction on.
    memory_bytes: u64,
    /// TFLOP/s of products in bf16, at the peak; on a T4, which has none, in f16.
    bf16: f64,
    /// The share of it that large products reach.
    reached: f64,
    /// TFLOP/s in f32 without tensor cores.
    f32: f64,
    /// Dense operations in int8, in units of 10^12 a second.
    int8: f64,
    /// GB/s of its memory.
    bandwidth: f64,
    /// GB/s from page-locked memory of the CPU: what is usually measured of PCIe 3.0, 4.0 and 5.0
    /// with 16 lanes, 12.5, 25 and 54.
    link: f64,
}

#[rustfmt::skip] // a table
const GPUS: [Gpu; 9] = [
    Gpu { key: "t4", words: &["T4"], capability: (7, 5),
          memory_bytes: 15_843_721_216,
          bf16: 65.0, reached: 0.65, f32: 8.1, int8: 130.0, bandwidth: 320.0, link: 12.5 },
    // Not an A10: 80 multiprocessors, half of the rate where sums are in f32.
    Gpu { key: "a10g", words: &["A10G"], capability: (8, 6),
          memory_bytes: 23_684_186_112,
          bf16: 70.0, reached: 0.90, f32: 35.0, int8: 140.0, bandwidth: 600.0, link: 25.0 },
    // 72 W hold it down: 70 TFLOP/s in bursts, 55 for long.
    Gpu { key: "l4", words: &["L4"], capability: (8, 9),
          memory_bytes: 23_612_293_120,
          bf16: 121.0, reached: 0.46, f32: 30.3, int8: 242.0, bandwidth: 300.0, link: 25.0 },
    Gpu { key: "l40s", words: &["L40S"], capability: (8, 9),
          memory_bytes: 47_576_711_168,
          bf16: 362.0, reached: 0.73, f32: 91.6, int8: 733.0, bandwidth: 864.0, link: 25.0 },
    Gpu { key: "a100-40g", words: &["A100", "40GB"], capability: (8, 0),
          memory_bytes: 42_298_834_944,
          bf16: 312.0, reached: 0.79, f32: 19.5, int8: 624.0, bandwidth: 1555.0, link: 25.0 },
    Gpu { key: "a100-80g", words: &["A100", "80GB"], capability: (8, 0),
          memory_bytes: 84_987_740_160,
          bf16: 312.0, reached: 0.83, f32: 19.5, int8: 624.0, bandwidth: 2039.0, link: 25.0 },
    Gpu { key: "h100-80g", words: &["H100"], capability: (9, 0),
          memory_bytes: 85_030_000_000,
          bf16: 989.0, reached: 0.75, f32: 67.0, int8: 1979.0, bandwidth: 3350.0, link: 54.0 },
    Gpu { key: "h200", words: &["H200"], capability: (9, 0),
          memory_bytes: 150_110_000_000,
          bf16: 989.0, reached: 0.78, f32: 67.0, int8: 1979.0, bandwidth: 4800.0, link: 54.0 },
    Gpu { key: "b200", words: &["B200"], capability: (10, 0),
          memory_bytes: 191_510_000_000,
          bf16: 2250.0, reached: 0.73, f32: 75.0, int8: 4500.0, bandwidth: 7670.0, link: 54.0 },
];

/// Names of all GPUs.
pub fn keys() -> Vec<&'static str> {
    GPUS.iter().map(|gpu| gpu.key).collect()
}

/// The compute capability of the GPU of that name, and what is published of it.
pub fn named(key: &str) -> Option<((u32, u32), DeviceProfile)> {
    let gpu = GPUS.iter().find(|gpu| gpu.key == key)?;
    Some((gpu.capability, gpu.profile(gpu.key, "published figures", gpu.memory_bytes)))
}

/// What is published of the GPU that `info` describes, with its own memory; an estimate from the
/// number of its multiprocessors where it is in no table.
pub fn of(info: &Info, free_bytes: Option<u64>) -> DeviceProfile {
    let words: Vec<&str> = info.name.split(|c: char| !c.is_alphanumeric()).collect();
    let is_it = |gpu: &&Gpu| gpu.words.iter().all(|word| words.contains(word));
    let profile = match GPUS.iter().find(is_it) {
        Some(gpu) => gpu.profile(&info.name, "published figures", info.memory_bytes),
        None => estimate(info).profile(&info.name, "an estimate", info.memory_bytes),
    };
    DeviceProfile { gpu: profile.gpu.map(|gpu| GpuFigures { free_bytes, ..gpu }), ..profile }
}

/// Dense 16-bit operations per clock and multiprocessor, with sums in f32, by generation, at 1.6
/// GHz, and memory as fast in proportion as that of those in the table. 10 is the data centres'
/// Blackwell, 12 the desktops'.
fn estimate(info: &Info) -> Gpu {
    let per_clock = match info.compute_capability {
        (10 | 11, _) => 8192.0,
        (9, _) => 4096.0,
        (8, 0) => 2048.0,
        (8, 9) | (12.., _) => 1024.0,
        _ => 512.0,
    };
    let bf16 = f64::from(info.num_multiprocessors) * 1.6e9 * per_clock / 1e12;
    Gpu {
        key: "unknown",
        words: &[],
        capability: info.compute_capability,
        memory_bytes: info.memory_bytes,
        bf16,
        reached: 0.7,
        f32: bf16 / 8.0,
        int8: 2.0 * bf16,
        bandwidth: 3.0 * bf16,
        link: if info.compute_capability.0 >= 9 { 54.0 } else { 25.0 },
    }
}

impl Gpu {
    fn profile(&self, name: &str, source: &str, memory_bytes: u64) -> DeviceProfile {
        let (tera, giga) = (1e12, 1e9);
        let product_bf16 = self.bf16 * self.reached * tera;
        // By multiply-adds on operands in shared memory.
        let general_attention = 0.25 * self.f32 * tera;
        DeviceProfile {
            processor: name.to_owned(),
            threads: 0,
            isa: String::new(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            measured: source.to_owned(),
            product_f32: 0.85 * self.f32 * tera,
            product_bf16,
            // Operands are converted, and sums of integers pass through memory.
            product_int8: 0.7 * self.int8 * self.reached * tera,
            ceiling_f32: self.f32 * tera,
            ceiling_bf16: self.bf16 * tera,
            ceiling_int8: self.int8 * tera,
            product_over_tokens: 0.9 * product_bf16,
            // Bound by the memory that the long side takes.
            product_low_rank: 0.2 * product_bf16,
            attention: match self.capability {
                // Without the tensor cores' newer words.
                (..8, _) => general_attention,
                // FlashAttention-2 reaches a third to a half of what products do, on all of these.
                _ => 0.4 * product_bf16,
            },
            elementwise: 0.5 * self.f32 * tera,
            memory: 0.85 * self.bandwidth * giga,
            // A launch.
            overhead: 4e-6,
            gpu: Some(GpuFigures {
                memory_bytes,
                free_bytes: None,
                link: self.link * giga,
                general_attention,
                // As fast as int8 where there is any; operands are converted.
                product_fp8: (self.capability >= (8, 9))
                    .then_some(0.9 * self.int8 * self.reached * tera),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(name: &str, capability: (u32, u32), num_multiprocessors: u32) -> Info {
        let memory_bytes = 24 << 30;
        Info {
            name: name.into(),
            compute_capability: capability,
            memory_bytes,
            num_multiprocessors,
            shared_bytes: Info::shared_bytes_of(capability),
            libraries: String::new(),
        }
    }

    #[test]
    fn devices_are_found_by_the_names_that_drivers_give() {
        for (name, key) in [
            ("Tesla T4", "t4"),
            ("NVIDIA A10G", "a10g"),
            ("NVIDIA L4", "l4"),
            ("NVIDIA L40S", "l40s"),
            ("NVIDIA A100-PCIE-40GB", "a100-40g"),
            ("NVIDIA A100-SXM4-80GB", "a100-80g"),
            ("NVIDIA H100 80GB HBM3", "h100-80g"),
            ("NVIDIA H200", "h200"),
            ("NVIDIA B200", "b200"),
        ] {
            let (found, named) = (of(&info(name, (8, 0), 1), None), named(key).unwrap().1);
            assert_eq!(found.product_bf16, named.product_bf16, "{name}");
            assert_eq!(found.gpu.unwrap().memory_bytes, 24 << 30, "its own memory");
        }
        assert_eq!(keys().len(), GPUS.len());
    }

    /// An H100's multiprocessors give what is published of an H100, within its clock's range.
    #[test]
    fn an_unknown_device_is_estimated() {
        let estimate = of(&info("NVIDIA XYZ", (9, 0), 132), Some(1));
        let published = named("h100-80g").unwrap().1;
        let ratio = estimate.ceiling_bf16 / published.ceiling_bf16;
        assert!((0.8..1.25).contains(&ratio), "{ratio}");
        let free_bytes = estimate.gpu.unwrap().free_bytes;
        assert_eq!((estimate.measured.as_str(), free_bytes), ("an estimate", Some(1)));
    }
}
