//! How fast this machine is, measured: what the planner's times come from. What is published of
//! GPUs is in [`catalogue`].

pub mod catalogue;

use crate::machine;
use hone_tensor::ops;
use hone_tensor::safetensors::held_as;
use hone_tensor::{
    Arena, Category, Compute, Cost, DType, Device, Gradients, Heads, Layout, Lora, Params,
    Projection, Sequence, Span, Tape, Target, Tensor, Transfer, Var, Weight, Work, ceiling,
};
use serde::{Deserialize, Serialize};
use std::cell::RefCell;
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
    /// Operations per second of products in 8-bit integers, or of a GPU's in FP8.
    pub product_int8: f64,
    /// FLOP/s of multiply-adds in f32 on operands in the first-level cache.
    pub ceiling_f32: f64,
    /// The same in bf16.
    pub ceiling_bf16: f64,
    /// The same in 8-bit integers.
    pub ceiling_int8: f64,
    /// FLOP/s of products whose contraction goes over tokens, in bf16.
    pub product_over_tokens: f64,
    /// FLOP/s of products with a side as short as an adapter's rank, in bf16.
    pub product_thin: f64,
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
            None => Self::measure(threads),
        }
    }

    /// Measures, and keeps the result for later runs where that is possible.
    pub fn measure(threads: usize) -> Self {
        let device = Device::cpu(threads);
        let mut probes = [
            Probe::new(&device, Rate::Flops(Work::Product), product(&device, Compute::F32)),
            Probe::new(&device, Rate::Flops(Work::Product), product(&device, Compute::Bf16)),
            Probe::new(&device, Rate::Flops(Work::Int8), product(&device, Compute::Int8)),
            Probe::new(&device, Rate::Flops(Work::OverTokens), trained(&device)),
            Probe::new(&device, Rate::Flops(Work::Thin), adapted(&device)),
            Probe::new(&device, Rate::Flops(Work::Attention), attention(&device)),
            Probe::new(&device, Rate::Flops(Work::Elementwise), elementwise(&device)),
            Probe::new(&device, Rate::Bytes, memory(&device)),
        ];
        for _ in 0..WINDOWS {
            probes.iter_mut().for_each(|probe| probe.window(&device));
        }
        let [product_f32, product_bf16, product_int8, product_over_tokens, ..] = &probes;
        let [.., product_thin, attention, elementwise, memory] = &probes;
        let profile = Self {
            cpu: machine::cpu_name(),
            threads,
            isa: isa(&device),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            measured: jiff::Timestamp::now().strftime("%Y-%m-%d %H:%M UTC").to_string(),
            product_f32: product_f32.rate(),
            product_bf16: product_bf16.rate(),
            product_int8: product_int8.rate(),
            ceiling_f32: ceiling_rate(&device, DType::F32),
            ceiling_bf16: ceiling_rate(&device, DType::Bf16),
            ceiling_int8: ceiling_rate(&device, DType::Int8),
            product_over_tokens: product_over_tokens.rate(),
            product_thin: product_thin.rate(),
            attention: attention.rate(),
            elementwise: elementwise.rate(),
            memory: memory.rate(),
            overhead: overhead(&device),
            gpu: None,
        };
        profile.keep();
        profile
    }

    /// Whose rates they are.
    pub fn target(&self) -> Target {
        if self.gpu.is_some() { Target::Cuda } else { Target::Cpu }
    }

    /// Seconds that operations of these costs take, one after the other, with copies to a GPU
    /// beside them.
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
        let seconds = |work| {
            let flops = cost.done_of(work) as f64;
            flops
                * match work {
                    Work::Product => slower / self.product_bf16,
                    Work::Int8 => 1.0 / self.product_int8,
                    Work::OverTokens => slower / self.product_over_tokens,
                    Work::Thin => slower / self.product_thin,
                    Work::Attention => slower / self.attention,
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

/// Windows in which each rate is measured, one rate after the other and again: what else runs on
/// the machine for a moment slows one window, not the median of all.
const WINDOWS: usize = 5;
/// How long a window is.
const WINDOW: Duration = Duration::from_millis(20);

/// What is counted.
#[derive(Clone, Copy)]
enum Rate {
    Flops(Work),
    Bytes,
}

impl Rate {
    fn count(self, span: &Span) -> u64 {
        match self {
            Self::Flops(work) => span.cost.done_of(work),
            Self::Bytes => span.cost.bytes,
        }
    }
}

/// Operations that are run again and again, their step memory in an arena as in training.
struct Probe {
    rate: Rate,
    body: Box<dyn Fn()>,
    layout: Arc<Layout>,
    arena: Arena,
    rates: Vec<f64>,
}

impl Probe {
    fn new(device: &Device, rate: Rate, body: impl Fn() + 'static) -> Self {
        let ((), trace) = device.trace(&body);
        let layout = Arc::new(Layout::of(trace));
        let arena = Arena::new(device, layout.bytes());
        Self { rate, body: Box::new(body), layout, arena, rates: Vec::new() }
    }

    /// The rate of those operations that have any of what is counted, by their own count.
    fn window(&mut self, device: &Device) {
        device.planned(&mut self.arena, &self.layout, &self.body);
        let (mut count, mut seconds) = (0, 0.0);
        let begun = Instant::now();
        while begun.elapsed() < WINDOW {
            device.start_recording();
            device.planned(&mut self.arena, &self.layout, &self.body);
            device.mark("end");
            let spans = device.take_recording();
            for span in spans.iter().filter(|span| self.rate.count(span) > 0) {
                count += self.rate.count(span);
                seconds += span.seconds;
            }
        }
        self.rates.push(count as f64 / seconds);
    }

    fn rate(&self) -> f64 {
        let mut rates = self.rates.clone();
        rates.sort_by(f64::total_cmp);
        rates[rates.len() / 2]
    }
}

/// Operations that are run forward and backward in bf16; their gradients stay, as training's do.
struct Trained {
    device: Device,
    params: Params,
    gradients: RefCell<Gradients>,
    x: Tensor,
}

impl Trained {
    fn new(device: &Device, params: Params, input: &[usize]) -> Self {
        let gradients = RefCell::new(Gradients::zeros(device, &params));
        let x = touched(device, DType::Bf16, input);
        Self { device: device.clone(), params, gradients, x }
    }

    fn run<'a>(&'a self, operation: impl FnOnce(&mut Tape<'a>, Var) -> Var) {
        let mut tape = Tape::training(&self.device, &self.params, Compute::Bf16, None);
        let x = tape.leaf(self.x.clone(), true);
        let y = operation(&mut tape, x);
        let d_y = self.device.alloc(Category::Workspace, DType::Bf16, y.value().shape());
        drop(tape.sweep_back(y, d_y, &mut self.gradients.borrow_mut()));
    }
}

fn product(device: &Device, compute: Compute) -> impl Fn() + 'static {
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
    let (x, device) = (touched(device, compute.dtype(), &[t, k]), device.clone());
    move || {
        let mut tape = Tape::inference(&device, &params, compute);
        let x = tape.leaf(x.clone(), false);
        ops::linear(&mut tape, x, &layer, None);
    }
}

fn trained(device: &Device) -> impl Fn() + 'static {
    let (t, k, n) = (1024, 576, 960);
    let mut params = Params::default();
    let param = params.add("weight".to_owned(), touched(device, DType::F32, &[n, k]));
    let weight = Weight::Trained { param, shape: vec![n, k] };
    let layer = [Projection { weight, bias: None, lora: None }];
    let trained = Trained::new(device, params, &[t, k]);
    move || trained.run(|tape, x| ops::linear(tape, x, &layer, None))
}

/// Two adapters of one input.
fn adapted(device: &Device) -> impl Fn() + 'static {
    let (t, k, n, rank) = (1024, 576, 960, 16);
    let mut params = Params::default();
    let layer = [0, 1].map(|stream| {
        let mut add = |name: &str, shape: &[usize]| {
            params.add(format!("{name}{stream}"), touched(device, DType::F32, shape))
        };
        let (a, b) = (add("a", &[rank, k]), add("b", &[n, rank]));
        let lora = Lora { a, b, rank, scale: 1.0, dropout: 0.0, stream };
        let weight = Weight::Frozen(touched(device, DType::Bf16, &[n, k]));
        Projection { weight, bias: None, lora: Some(lora) }
    });
    let trained = Trained::new(device, params, &[t, k]);
    move || trained.run(|tape, x| ops::linear(tape, x, &layer, None))
}

fn attention(device: &Device) -> impl Fn() + 'static {
    let heads = Heads { num_heads: 8, num_kv_heads: 4, head_dim: 64, scale: 0.125, window: None };
    let sequences = [Sequence::new(0, 256), Sequence::new(256, 256)];
    let trained = Trained::new(device, Params::default(), &[512, heads.qkv_width()]);
    move || trained.run(|tape, qkv| ops::attention(tape, qkv, &heads, &sequences))
}

fn elementwise(device: &Device) -> impl Fn() + 'static {
    let trained = Trained::new(device, Params::default(), &[1024, 2 * 1024]);
    move || trained.run(ops::swiglu)
}

/// Sums of arrays that no cache holds.
fn memory(device: &Device) -> impl Fn() + 'static {
    let n = 16 << 20;
    let x = touched(device, DType::F32, &[n]);
    let (y, device) = (RefCell::new(touched(device, DType::F32, &[n])), device.clone());
    move || {
        if let Some(on) = device.begin(Cost::memory("add", 3 * x.num_bytes())) {
            on.add_assign(x.view(), y.borrow_mut().view_mut());
        }
    }
}

/// Memory that was written: reading fresh memory would read one page of zeros again and again.
fn touched(device: &Device, dtype: DType, shape: &[usize]) -> Tensor {
    let mut tensor = device.persistent(Category::Workspace, dtype, shape);
    if let Some(on) = device.processor() {
        on.zero(tensor.view_mut());
    }
    tensor
}

fn ceiling_rate(device: &Device, compute: DType) -> f64 {
    device.as_cpu().map_or(f64::NAN, |cpu| ceiling::product_rate(cpu, compute, 4 * WINDOW))
}

/// The least that a small operation takes.
fn overhead(device: &Device) -> f64 {
    let n = 20_000;
    let (x, mut y) = (touched(device, DType::F32, &[n]), touched(device, DType::F32, &[n]));
    let Some(on) = device.processor() else { return 0.0 };
    let begun = Instant::now();
    let mut least = f64::INFINITY;
    while begun.elapsed() < WINDOW {
        let start = Instant::now();
        on.add_assign(x.view(), y.view_mut());
        least = least.min(start.elapsed().as_secs_f64());
    }
    least
}
