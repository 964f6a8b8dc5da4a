//! How fast this machine is, measured: what the planner's times come from.

use crate::machine;
use hone_tensor::ops;
use hone_tensor::safetensors::held_as;
use hone_tensor::{
    Arena, Category, Compute, Cost, DType, Device, Gradients, Heads, Layout, Params, Projection,
    Sequence, Tape, Tensor, Var, Weight, Work, ceiling, vector,
};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Rates of a device. FLOP/s count a multiply-add as two.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeviceProfile {
    /// Processor.
    pub cpu: String,
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
    /// FLOP/s of multiply-adds in f32 on operands in the first-level cache.
    pub ceiling_f32: f64,
    /// The same in bf16.
    pub ceiling_bf16: f64,
    /// The same in 8-bit integers.
    pub ceiling_int8: f64,
    /// FLOP/s of products with a side as short as an adapter's rank, in bf16.
    pub product_thin: f64,
    /// FLOP/s of attention, forward and backward in bf16.
    pub attention: f64,
    /// FLOP/s of gated activations, forward and backward in bf16.
    pub elementwise: f64,
    /// Bytes per second read and written.
    pub memory: f64,
    /// Seconds that any operation takes at least.
    pub overhead: f64,
}

impl DeviceProfile {
    /// The profile of this machine with `threads`: the one measured before, or measured now (about
    /// half a second) and kept.
    pub fn of_this_machine(threads: usize) -> Self {
        let path = Self::path(threads);
        let kept = path.as_ref().and_then(|path| std::fs::read_to_string(path).ok());
        let kept = kept.and_then(|text| serde_json::from_str::<Self>(&text).ok());
        match kept.filter(|profile| profile.is_of_here(threads)) {
            Some(profile) => profile,
            None => Self::measure(threads),
        }
    }

    /// Measures, and keeps the result for later runs where that is possible.
    pub fn measure(threads: usize) -> Self {
        let device = Device::cpu(threads);
        let profile = Self {
            cpu: machine::cpu_name(),
            threads,
            isa: isa(&device),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            measured: jiff::Timestamp::now().strftime("%Y-%m-%d %H:%M UTC").to_string(),
            product_f32: product_rate(&device, Compute::F32),
            product_bf16: product_rate(&device, Compute::Bf16),
            product_int8: product_rate(&device, Compute::Int8),
            ceiling_f32: ceiling_rate(&device, DType::F32),
            ceiling_bf16: ceiling_rate(&device, DType::Bf16),
            ceiling_int8: ceiling_rate(&device, DType::Int8),
            product_thin: thin_rate(&device),
            attention: attention_rate(&device),
            elementwise: elementwise_rate(&device),
            memory: memory_rate(&device),
            overhead: overhead(&device),
        };
        profile.keep();
        profile
    }

    /// Seconds that operations of these costs take.
    pub fn seconds(&self, costs: &[Cost], compute: Compute) -> f64 {
        costs.iter().map(|cost| self.seconds_of(cost, compute)).sum()
    }

    /// Rates are measured on operands in the cache; the time to fetch these is added.
    fn seconds_of(&self, cost: &Cost, compute: Compute) -> f64 {
        let rate = match (cost.work, compute) {
            (Work::Product, Compute::F32) => self.product_f32,
            (Work::Product, _) => self.product_bf16,
            (Work::Int8, _) => self.product_int8,
            (Work::Thin, Compute::F32) => self.product_thin * self.product_f32 / self.product_bf16,
            (Work::Thin, _) => self.product_thin,
            (Work::Elementwise, _) => self.elementwise,
            // In f32 it is as much slower as products are.
            (Work::Attention, Compute::F32) => {
                self.attention * self.product_f32 / self.product_bf16
            }
            (Work::Attention, _) => self.attention,
            (Work::Memory, _) => f64::INFINITY,
        };
        self.overhead + cost.flops as f64 / rate + cost.bytes as f64 / self.memory
    }

    /// FLOP/s that products would reach at best.
    pub fn ceiling(&self, compute: Compute) -> f64 {
        match compute {
            Compute::F32 => self.ceiling_f32,
            Compute::Bf16 => self.ceiling_bf16,
            Compute::Int8 => self.ceiling_int8,
        }
    }

    fn is_of_here(&self, threads: usize) -> bool {
        self.threads == threads
            && self.cpu == machine::cpu_name()
            && self.version == env!("CARGO_PKG_VERSION")
            && self.isa == isa(&Device::cpu(1))
    }

    /// In the user's cache directory; a profile that cannot be kept is measured again.
    fn path(threads: usize) -> Option<PathBuf> {
        let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
        let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or_else(home)?;
        Some(cache.join("hone").join(format!("profile-{threads}-threads.json")))
    }

    fn keep(&self) {
        let Some(path) = Self::path(self.threads) else { return };
        let text = serde_json::to_string_pretty(self).expect("a profile can be written");
        let made = path.parent().is_some_and(|dir| std::fs::create_dir_all(dir).is_ok());
        if made {
            // Best effort: the next run measures again.
            let _ = std::fs::write(path, text);
        }
    }
}

fn isa(device: &Device) -> String {
    device.as_cpu().map_or_else(String::new, |cpu| cpu.isa().name().to_owned())
}

/// How long one rate is measured.
const SHORTLY: Duration = Duration::from_millis(80);

/// The best of several runs, after one to warm up.
fn best_seconds(mut body: impl FnMut()) -> f64 {
    body();
    let mut best = f64::INFINITY;
    let begun = Instant::now();
    while begun.elapsed() < SHORTLY {
        let start = Instant::now();
        body();
        best = best.min(start.elapsed().as_secs_f64());
    }
    best
}

/// FLOP/s of the operations in `body` that count any, by their own count: the best of several runs,
/// their step memory in an arena as in training.
fn best_rate(device: &Device, body: impl Fn()) -> f64 {
    let ((), trace) = device.trace(&body);
    let layout = Arc::new(Layout::of(trace));
    let mut arena = Arena::new(layout.bytes());
    let mut best = 0.0f64;
    let begun = Instant::now();
    while begun.elapsed() < SHORTLY {
        device.start_recording();
        device.planned(&mut arena, &layout, &body);
        device.mark("end");
        let spans = device.take_recording();
        let counted = || spans.iter().filter(|span| span.cost.flops > 0);
        let flops: u64 = counted().map(|span| span.cost.flops).sum();
        best = best.max(flops as f64 / counted().map(|span| span.seconds).sum::<f64>());
    }
    best
}

/// [`best_rate`] of an operation, forward and backward in bf16.
fn rate_of_both<'a>(
    device: &'a Device,
    params: &'a Params,
    x: &Tensor,
    operation: impl Fn(&mut Tape<'a>, Var) -> Var,
) -> f64 {
    best_rate(device, || {
        let mut tape = Tape::training(device, params, Compute::Bf16, None);
        let x = tape.leaf(x.clone(), true);
        let y = operation(&mut tape, x);
        let d_y = device.alloc(Category::Workspace, DType::Bf16, y.value().shape());
        drop(tape.sweep_back(y, d_y, &mut Gradients::zeros(device, params)));
    })
}

fn product_rate(device: &Device, compute: Compute) -> f64 {
    let (t, k, n) = (1024, 576, 960);
    let params = Params::default();
    let weight = match compute {
        Compute::Int8 => {
            let zeros = touched(device, DType::F32, &[n, k]);
            held_as(device, Category::Workspace, &zeros, DType::Int8)
        }
        floats => touched(device, floats.dtype(), &[n, k]),
    };
    let layer = [Projection { weight: Weight::Frozen(weight), bias: None, lora: None }];
    let x = touched(device, compute.dtype(), &[t, k]);
    best_rate(device, || {
        let mut tape = Tape::inference(device, &params, compute);
        let x = tape.leaf(x.clone(), false);
        ops::linear(&mut tape, x, &layer, None);
    })
}

/// A weight with as few rows as adapters of one input have together.
fn thin_rate(device: &Device) -> f64 {
    let (t, k, n) = (1024, 1024, 32);
    let mut params = Params::default();
    let param = params.add("thin".to_owned(), touched(device, DType::F32, &[n, k]));
    let weight = Weight::Trained { param, shape: vec![n, k] };
    let layer = [Projection { weight, bias: None, lora: None }];
    let x = touched(device, DType::Bf16, &[t, k]);
    rate_of_both(device, &params, &x, |tape, x| ops::linear(tape, x, &layer, None))
}

fn elementwise_rate(device: &Device) -> f64 {
    let gate_up = touched(device, DType::Bf16, &[1024, 2 * 1024]);
    rate_of_both(device, &Params::default(), &gate_up, ops::swiglu)
}

/// Memory that was written: reading fresh memory would read one page of zeros again and again.
fn touched(device: &Device, dtype: DType, shape: &[usize]) -> Tensor {
    let mut tensor = device.persistent(Category::Workspace, dtype, shape);
    if let Some(cpu) = device.as_cpu() {
        vector::zero(cpu, tensor.view_mut());
    }
    tensor
}

fn ceiling_rate(device: &Device, compute: DType) -> f64 {
    device.as_cpu().map_or(f64::NAN, |cpu| ceiling::product_rate(cpu, compute, SHORTLY))
}

fn attention_rate(device: &Device) -> f64 {
    let heads = Heads { num_heads: 8, num_kv_heads: 4, head_dim: 64, scale: 0.125, window: None };
    let sequences = [Sequence::new(0, 256), Sequence::new(256, 256)];
    let qkv = touched(device, DType::Bf16, &[512, heads.qkv_width()]);
    rate_of_both(device, &Params::default(), &qkv, |tape, qkv| {
        ops::attention(tape, qkv, &heads, &sequences)
    })
}

/// On arrays that no cache holds.
fn memory_rate(device: &Device) -> f64 {
    let n = 16 << 20;
    let (x, mut y) = (touched(device, DType::F32, &[n]), touched(device, DType::F32, &[n]));
    let seconds = best_seconds(|| add(device, &x, &mut y));
    (3 * x.num_bytes()) as f64 / seconds
}

fn overhead(device: &Device) -> f64 {
    let n = 20_000;
    let (x, mut y) = (touched(device, DType::F32, &[n]), touched(device, DType::F32, &[n]));
    best_seconds(|| add(device, &x, &mut y))
}

fn add(device: &Device, x: &Tensor, y: &mut Tensor) {
    if let Some(cpu) = device.as_cpu() {
        vector::add_assign(cpu, x.view(), y.view_mut());
    }
}
