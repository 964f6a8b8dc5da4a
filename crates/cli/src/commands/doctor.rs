//! `hone doctor`

use crate::args::DoctorArgs;
use crate::failure::Failure;
use crate::output;
use hone_model::hub::HubSettings;
use hone_tensor::cuda::{CudaError, Gpu, num_devices};
use hone_tensor::{Isa, MissingAmx};
use hone_train::machine;
use hone_train::profile::{DeviceProfile, SetRates, measure_sets};
use hone_train::report::format_bytes;
use serde_json::{Value, json};

/// Measures this machine and prints its hardware and speed.
pub fn run(args: &DoctorArgs) -> Result<(), Failure> {
    let threads = super::num_threads(args.threads);
    let (profile, sets) = (DeviceProfile::measure(threads), measure_sets(threads));
    let (total, free) = (machine::total_memory(), machine::available_memory());
    let hub = HubSettings::from_env();
    let gpus = gpus();
    if args.json {
        output::json(&json!({
            "version": profile.version,
            "profile": profile,
            "instruction_sets": sets,
            "amx_problem": Isa::missing_amx().map(|reason| reason.to_string()),
            "memory_bytes": total,
            "available_bytes": free,
            "gpus": gpus.iter().flatten().map(facts).collect::<Vec<_>>(),
            "gpu_problem": gpus.iter().find_map(|gpu| gpu.as_ref().err()).map(ToString::to_string),
            "hub_cache": hub.cache_dir,
            "hub_offline": hub.offline,
        }));
        return Ok(());
    }
    let bytes = |bytes: Option<u64>| bytes.map_or("unknown".to_owned(), format_bytes);
    let rate = |flops: f64| format!("{:.0} GFLOP/s", flops / 1e9);
    let of_ceiling = |flops: f64, ceiling: f64| {
        format!("{}, {:.0} % of its multiply-adds with loads", rate(flops), 100.0 * flops / ceiling)
    };
    let mut rows = vec![
        ("hone", profile.version.clone()),
        ("processor", profile.processor.clone()),
        ("threads", profile.threads.to_string()),
        ("instruction set", profile.isa.clone()),
        ("memory", format!("{}, {} free", bytes(total), bytes(free))),
        ("matmul f32", of_ceiling(profile.product_f32, profile.ceiling_f32)),
        ("matmul bf16", of_ceiling(profile.product_bf16, profile.ceiling_bf16)),
        ("matmul int8", of_ceiling(profile.product_int8, profile.ceiling_int8)),
        ("attention", rate(profile.attention)),
        ("memory bandwidth", format!("{:.1} GB/s", profile.memory / 1e9)),
        ("GPU", described(&gpus)),
        ("model cache", hub_cache(&hub)),
    ];
    // That most processors have none is no news.
    if let Some(reason) = Isa::missing_amx().filter(|reason| *reason != MissingAmx::Processor) {
        let at = 1 + rows.iter().position(|(name, _)| *name == "instruction set").unwrap_or(0);
        rows.insert(at, ("AMX", format!("not used: {reason}")));
    }
    output::table(&rows);
    output::line("\nProducts by instruction set, GFLOP/s from registers and with loads:\n");
    let rows: Vec<_> = sets.chunk_by(|a, b| a.isa == b.isa).map(described_set).collect();
    output::table(&rows);
    let held: Vec<_> = sets.iter().filter(|set| set.is_held_by_loads()).map(name_of).collect();
    if !held.is_empty() {
        output::line(&format!(
            "\nLoads hold {} to less than half of what the instruction can do: plans count on the \
             rate with loads, and a neighbour on the same core may change it within seconds.",
            held.join(", ")
        ));
    }
    Ok(())
}

/// The rates of an instruction set, one type after the other.
fn described_set(set: &[SetRates]) -> (&'static str, String) {
    let giga = |rate: f64| format!("{:.0}", rate / 1e9);
    let one = |rates: &SetRates| {
        let registers = rates.registers.map_or("–".to_owned(), giga);
        format!("{} {registers:>5} {:>5}", rates.compute, giga(rates.loads))
    };
    (set[0].isa, set.iter().map(one).collect::<Vec<_>>().join("   "))
}

/// The type of an instruction set that rates are of.
fn name_of(rates: &SetRates) -> String {
    format!("{} of {}", rates.compute, rates.isa)
}

/// A GPU and its measured speed.
type Measured = (Gpu, DeviceProfile);

/// Every GPU of this machine, or why it cannot be used.
fn gpus() -> Vec<Result<Measured, CudaError>> {
    let measured = |gpu: Gpu| {
        let profile = DeviceProfile::measure_gpu(&gpu);
        (gpu, profile)
    };
    match num_devices() {
        Ok(count) => (0..count).map(|i| Gpu::open(i).map(measured)).collect(),
        Err(problem) => vec![Err(problem)],
    }
}

fn facts((gpu, profile): &Measured) -> Value {
    let (info, (major, minor)) = (gpu.info(), gpu.info().compute_capability);
    json!({
        "name": info.name,
        "compute_capability": format!("{major}.{minor}"),
        "memory_bytes": info.memory_bytes,
        "free_bytes": gpu.free_bytes(),
        "num_multiprocessors": info.num_multiprocessors,
        "profile": profile,
    })
}

fn described(gpus: &[Result<Measured, CudaError>]) -> String {
    let one = |(i, gpu): (usize, &Result<Measured, CudaError>)| match gpu {
        Ok((gpu, profile)) => {
            let (info, (major, minor)) = (gpu.info(), gpu.info().compute_capability);
            let (all, free) = (format_bytes(info.memory_bytes), format_bytes(gpu.free_bytes()));
            format!(
                "cuda:{i}: {}, {all}, {free} free, capability {major}.{minor}, {}",
                info.name,
                rates(profile)
            )
        }
        Err(problem) => format!("cuda:{i} cannot be used: {problem}"),
    };
    match gpus {
        [] => "none".to_owned(),
        [Err(problem)] => format!("none usable: {problem}"),
        gpus => gpus.iter().enumerate().map(one).collect::<Vec<_>>().join("; "),
    }
}

/// The rates that determine most of a step's time.
fn rates(profile: &DeviceProfile) -> String {
    let (tera, giga) = (1e12, 1e9);
    format!(
        "matmul {:.0} TFLOP/s in 16 bits and {:.0} in f32, attention {:.0}, memory {:.0} GB/s, \
         copies from the host {:.0} GB/s",
        profile.product_bf16 / tera,
        profile.product_f32 / tera,
        profile.attention / tera,
        profile.memory / giga,
        profile.gpu.map_or(f64::NAN, |gpu| gpu.link) / giga
    )
}

fn hub_cache(hub: &HubSettings) -> String {
    let state = if hub.offline { " (offline: HF_HUB_OFFLINE is set)" } else { "" };
    format!("{}{state}", hub.cache_dir.display())
}
