//! Rates, measured by running operations of a model's kind.

use super::{DeviceProfile, GpuFigures};
use crate::backend::Backend;
use crate::run_file::Precision;
use hone_tensor::ceiling::{self, Operands, Products};
use hone_tensor::cuda::{Gpu, HostBlock, Region};
use hone_tensor::ops;
use hone_tensor::safetensors::load_as;
use hone_tensor::{
    AdapterId, Arena, Category, Compute, Cost, DType, Device, Gradients, Heads, Layout, Lora,
    Params, Projection, Sequence, Span, Storage, Tape, Target, Tensor, Var, Weight, Work,
};
use std::cell::RefCell;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How large the operations are.
#[derive(Clone, Copy)]
pub(super) struct Sizes {
    /// Tokens, inputs and outputs of products.
    product: [usize; 3],
    /// Heads of attention, and tokens of each of its two sequences.
    heads: Heads,
    sequence: usize,
    /// Tokens and width of an activation.
    activation: [usize; 2],
    /// Elements that no cache holds.
    memory: usize,
}

/// For a CPU.
const SMALL: Sizes = Sizes {
    product: [1024, 576, 960],
    heads: Heads {
        num_heads: 8,
        num_kv_heads: 4,
        head_dim: 64,
        scale: 0.125,
        window: None,
        ahead: 0,
        softcap: None,
    },
    sequence: 256,
    activation: [1024, 1024],
    memory: 16 << 20,
};

/// For a GPU.
pub(super) const LARGE: Sizes = Sizes {
    product: [4096, 4096, 8192],
    heads: Heads {
        num_heads: 32,
        num_kv_heads: 8,
        head_dim: 128,
        scale: 0.09,
        window: None,
        ahead: 0,
        softcap: None,
    },
    sequence: 2048,
    activation: [4096, 14_336],
    memory: 128 << 20,
};

/// What is measured, and how.
struct On<'a> {
    device: &'a Device,
    sizes: &'a Sizes,
    /// The 16-bit type that it computes in.
    narrow: Compute,
}

/// Rates of a CPU; what else a profile says is for the caller to fill in. `None` without memory
/// to measure in.
pub(super) fn cpu(device: &Device) -> Option<DeviceProfile> {
    let on = On { device, sizes: &SMALL, narrow: Compute::Bf16 };
    let rates = rates(&on, &[Compute::Int8]);
    let [ceiling_f32, ceiling_bf16, ceiling_int8] = rates.ceilings;
    let measured = DeviceProfile {
        ceiling_f32,
        ceiling_bf16,
        ceiling_int8,
        overhead: overhead(device),
        ..rates.put_into(DeviceProfile::default())
    };
    device.settle().ok().map(|()| measured)
}

/// The profile of a GPU with its rates measured, other figures as they are in `published`. `None`
/// where the GPU failed.
pub(super) fn gpu(gpu: &Gpu, sizes: &Sizes, published: DeviceProfile) -> Option<DeviceProfile> {
    let (device, backend) = (Device::cuda(gpu.clone()), Backend::Cuda(gpu.clone()));
    let computed = |asked| backend.compute_for(asked, DType::Bf16).ok();
    let narrow = computed(Precision::Auto).expect("every GPU computes in 16 bits");
    let on = On { device: &device, sizes, narrow };
    let quantised: Vec<Compute> =
        [Precision::Int8, Precision::Fp8].into_iter().filter_map(computed).collect();
    let rates = rates(&on, &quantised);
    let general = rates.of(Measure::GeneralAttention);
    let figures = |figures: GpuFigures| GpuFigures {
        link: link(gpu, 4 * sizes.memory).unwrap_or(figures.link),
        product_fp8: rates.of(Measure::Product(Compute::Fp8)).or(figures.product_fp8),
        general_attention: general.unwrap_or(figures.general_attention),
        ..figures
    };
    let measured = DeviceProfile {
        overhead: overhead(&device),
        gpu: published.gpu.map(figures),
        ..rates.put_into(published)
    };
    gpu.release_free_memory();
    gpu.settle().ok().map(|()| measured)
}

/// What is measured, each by a probe of its own.
#[derive(Clone, Copy, PartialEq)]
enum Measure {
    /// Products computed so.
    Product(Compute),
    OverTokens,
    LowRank,
    Attention,
    /// On a GPU only.
    GeneralAttention,
    Elementwise,
    Memory,
}

impl Measure {
    fn probe(self, on: &On<'_>) -> Probe {
        let (rate, body): (Rate, Box<dyn Fn()>) = match self {
            Self::Product(compute @ (Compute::Int8 | Compute::Fp8)) => {
                (Rate::Flops(Work::Int8), Box::new(product(on, compute)))
            }
            Self::Product(compute) => (Rate::Flops(Work::Product), Box::new(product(on, compute))),
            Self::OverTokens => (Rate::Flops(Work::OverTokens), Box::new(trained(on))),
            Self::LowRank => (Rate::Flops(Work::LowRank), Box::new(adapted(on))),
            Self::Attention => {
                (Rate::Flops(Work::Attention), Box::new(attention(on, on.sizes.heads)))
            }
            Self::GeneralAttention => {
                let heads = on.sizes.heads.two_sided(None);
                (Rate::Flops(Work::GeneralAttention), Box::new(attention(on, heads)))
            }
            Self::Elementwise => (Rate::Flops(Work::Elementwise), Box::new(elementwise(on))),
            Self::Memory => (Rate::Bytes, Box::new(memory(on))),
        };
        Probe::new(on.device, rate, body)
    }
}

/// What probes found.
struct Rates {
    narrow: Compute,
    measured: Vec<(Measure, f64)>,
    /// Of a CPU, for [`Products::ALL`].
    ceilings: [f64; 3],
}

impl Rates {
    fn of(&self, measure: Measure) -> Option<f64> {
        self.measured.iter().find(|(of, _)| *of == measure).map(|(_, rate)| *rate)
    }

    /// The profile with what was measured in it.
    fn put_into(self, profile: DeviceProfile) -> DeviceProfile {
        let rate = |measure, known: f64| self.of(measure).unwrap_or(known);
        let product = |compute, known| rate(Measure::Product(compute), known);
        DeviceProfile {
            product_f32: product(Compute::F32, profile.product_f32),
            product_bf16: product(self.narrow, profile.product_bf16),
            product_int8: product(Compute::Int8, profile.product_int8),
            product_over_tokens: rate(Measure::OverTokens, profile.product_over_tokens),
            product_low_rank: rate(Measure::LowRank, profile.product_low_rank),
            attention: rate(Measure::Attention, profile.attention),
            elementwise: rate(Measure::Elementwise, profile.elementwise),
            memory: rate(Measure::Memory, profile.memory),
            ..profile
        }
    }
}

fn rates(on: &On<'_>, quantised: &[Compute]) -> Rates {
    let floats = [Compute::F32, on.narrow];
    let products = floats.iter().chain(quantised).map(|&compute| Measure::Product(compute));
    let is_gpu = on.device.target() == Target::Cuda;
    let general = is_gpu.then_some(Measure::GeneralAttention);
    let others = [
        Measure::OverTokens,
        Measure::LowRank,
        Measure::Attention,
        Measure::Elementwise,
        Measure::Memory,
    ];
    let measures: Vec<Measure> = products.chain(others).chain(general).collect();
    let mut probes: Vec<Probe> = measures.iter().map(|measure| measure.probe(on)).collect();
    let mut ceilings = [const { Vec::new() }; 3];
    for _ in 0..WINDOWS {
        probes.iter_mut().for_each(|probe| probe.window(on.device));
        let Some(cpu) = on.device.as_cpu() else { continue };
        for (products, rates) in Products::ALL.into_iter().zip(&mut ceilings) {
            rates.extend(ceiling::rate(cpu, products, Operands::InCache, WINDOW));
        }
    }
    let measured = measures.into_iter().zip(probes.into_iter().map(|p| median(p.rates))).collect();
    Rates { narrow: on.narrow, measured, ceilings: ceilings.map(median) }
}

/// Windows in which each rate is measured, one rate after the other and again: what else runs on
/// the machine for a moment slows one window, not the median of all.
const WINDOWS: usize = 5;
/// How long a window is.
pub(super) const WINDOW: Duration = Duration::from_millis(20);

/// The rate in the middle; NaN if there is none.
pub(super) fn median(mut rates: Vec<f64>) -> f64 {
    rates.sort_by(f64::total_cmp);
    rates.get(rates.len() / 2).copied().unwrap_or(f64::NAN)
}

/// What is counted.
#[derive(Clone, Copy)]
enum Rate {
    Flops(Work),
    Bytes,
}

impl Rate {
    fn count(self, span: &Span) -> u64 {
        match self {
            Self::Flops(work) => span.cost.executed_flops(work),
            Self::Bytes => span.cost.bytes,
        }
    }
}

/// Operations that are run again and again, their step memory in an arena as in training.
struct Probe {
    rate: Rate,
    body: Box<dyn Fn()>,
    layout: Arc<Layout>,
    arena: Option<Arena>,
    rates: Vec<f64>,
}

impl Probe {
    fn new(device: &Device, rate: Rate, body: Box<dyn Fn()>) -> Self {
        let ((), trace) = device.trace(&body);
        let layout = Arc::new(Layout::of(trace));
        // Whether there was memory for it, `cpu` and `gpu` ask in the end.
        let arena = Arena::new(device, layout.bytes()).map_err(|error| device.fail(error)).ok();
        Self { rate, body, layout, arena, rates: Vec::new() }
    }

    /// The rate of those operations that have any of what is counted, by their own count.
    fn window(&mut self, device: &Device) {
        let Some(arena) = &mut self.arena else { return };
        let mut run = || {
            let planned = device.planned(arena, &self.layout, &self.body);
            planned.unwrap_or_else(|error| device.fail(error));
        };
        run();
        let (mut count, mut seconds) = (0, 0.0);
        let begun = Instant::now();
        while begun.elapsed() < WINDOW {
            device.start_recording();
            run();
            device.mark("end");
            let spans = device.take_recording();
            for span in spans.iter().filter(|span| self.rate.count(span) > 0) {
                count += self.rate.count(span);
                seconds += span.seconds;
            }
        }
        self.rates.push(count as f64 / seconds);
    }
}

/// Operations that are run forward and backward; their gradients stay, as training's do.
struct Trained {
    device: Device,
    compute: Compute,
    params: Params,
    gradients: RefCell<Gradients>,
    x: Tensor,
    d_y: Tensor,
}

impl Trained {
    /// For `[tokens, inputs, outputs]`.
    fn new(on: &On<'_>, params: Params, [t, inputs, outputs]: [usize; 3]) -> Self {
        let gradients = Gradients::zeros(on.device, &params).unwrap_or_else(|error| {
            on.device.fail(error);
            Gradients::default()
        });
        let gradients = RefCell::new(gradients);
        let [x, d_y] =
            [inputs, outputs].map(|width| numbers(on.device, on.narrow.dtype(), &[t, width]));
        Self { device: on.device.clone(), compute: on.narrow, params, gradients, x, d_y }
    }

    fn run<'a>(&'a self, operation: impl FnOnce(&mut Tape<'a>, Var) -> Var) {
        let mut tape = Tape::training(&self.device, &self.params, self.compute, None);
        let x = tape.leaf(self.x.clone(), true);
        let y = operation(&mut tape, x);
        drop(tape.backward(y, self.d_y.clone(), &mut self.gradients.borrow_mut()));
    }
}

fn product(on: &On<'_>, compute: Compute) -> impl Fn() + 'static {
    let (device, [t, k, n]) = (on.device, on.sizes.product);
    let params = Params::default();
    let storage = match compute {
        Compute::Int8 | Compute::Fp8 => Storage::INT8,
        floats => floats.dtype().into(),
    };
    let weight = numbers(device, storage, &[n, k]);
    let layer = [Projection { weight: Weight::Frozen(weight), bias: None, adapters: Vec::new() }];
    let (x, device) = (numbers(device, compute.dtype(), &[t, k]), device.clone());
    move || {
        let mut tape = Tape::inference(&device, &params, compute);
        let x = tape.leaf(x.clone(), false);
        ops::linear(&mut tape, x, &layer, None);
    }
}

fn trained(on: &On<'_>) -> impl Fn() + 'static {
    let (device, [t, k, n]) = (on.device, on.sizes.product);
    let mut params = Params::default();
    let param = params.add("weight".to_owned(), numbers(device, DType::F32, &[n, k]));
    let weight = Weight::Trained { param, shape: vec![n, k] };
    let layer = [Projection { weight, bias: None, adapters: Vec::new() }];
    let trained = Trained::new(on, params, [t, k, n]);
    move || trained.run(|tape, x| ops::linear(tape, x, &layer, None))
}

/// Two adapters of one input.
fn adapted(on: &On<'_>) -> impl Fn() + 'static {
    let (device, [t, k, n], rank) = (on.device, on.sizes.product, 16);
    let mut params = Params::default();
    let layer = [0, 1].map(|stream| {
        let mut add = |name: &str, shape: &[usize]| {
            params.add(format!("{name}{stream}"), numbers(device, DType::F32, shape))
        };
        let (a, b) = (add("a", &[rank, k]), add("b", &[n, rank]));
        let (id, scale, dropout) = (AdapterId::default(), 1.0, 0.0);
        let lora = Lora { id, a, b, rank, scale, dropout, stream };
        let weight = Weight::Frozen(numbers(device, on.narrow.dtype(), &[n, k]));
        Projection { weight, bias: None, adapters: vec![lora] }
    });
    let trained = Trained::new(on, params, [t, k, 2 * n]);
    move || {
        trained.run(|tape, x| {
            ops::round_adapters(tape, std::iter::once(&layer[..]));
            ops::linear(tape, x, &layer, None)
        });
    }
}

fn attention(on: &On<'_>, heads: Heads) -> impl Fn() + 'static {
    let len = on.sizes.sequence;
    let sequences = [Sequence::new(0, len), Sequence::new(len, len)];
    let trained =
        Trained::new(on, Params::default(), [2 * len, heads.qkv_width(), heads.out_width()]);
    move || trained.run(|tape, qkv| ops::attention(tape, qkv, &heads, &sequences))
}

fn elementwise(on: &On<'_>) -> impl Fn() + 'static {
    let [t, width] = on.sizes.activation;
    let trained = Trained::new(on, Params::default(), [t, 2 * width, width]);
    move || trained.run(|tape, x| ops::glu(tape, x, ops::Activation::Silu))
}

/// Sums of arrays that no cache holds.
fn memory(on: &On<'_>) -> impl Fn() + 'static {
    let (device, n) = (on.device, on.sizes.memory);
    let x = touched(device, DType::F32, &[n]);
    let (y, device) = (RefCell::new(touched(device, DType::F32, &[n])), device.clone());
    move || {
        if let Some(on) = device.begin(Cost::memory_bound("add", 3 * x.num_bytes())) {
            on.add_assign(x.view(), y.borrow_mut().view_mut());
        }
    }
}

/// Memory that was written: reading fresh memory would read one page of zeros again and again.
fn touched(device: &Device, dtype: DType, shape: &[usize]) -> Tensor {
    let mut tensor = device.alloc(Category::Workspace, dtype, shape);
    if let Some(on) = device.begin(Cost::memory_bound("zero", tensor.num_bytes())) {
        on.zero(tensor.view_mut());
    }
    tensor
}

/// Numbers between -½ and ½: a matrix unit multiplies zeros faster, as that takes less power.
fn numbers(device: &Device, storage: impl Into<Storage>, shape: &[usize]) -> Tensor {
    // The CPU has its threads already.
    let host = if device.target() == Target::Cpu { device } else { Device::host() };
    let mut values = host.alloc(Category::Workspace, DType::F32, shape);
    for (i, x) in values.f32_mut().iter_mut().enumerate() {
        // Multiples of the golden ratio, which never come near each other.
        *x = (i as u32).wrapping_mul(0x9E37_79B9).cast_signed() as f32 / 4_294_967_296.0;
    }
    load_as(device, Category::Workspace, &values, storage).unwrap_or_else(|error| {
        device.fail(error);
        touched(device, DType::F32, shape)
    })
}

/// The least that a small operation takes.
fn overhead(device: &Device) -> f64 {
    let n = 20_000;
    let (x, mut y) = (touched(device, DType::F32, &[n]), touched(device, DType::F32, &[n]));
    let Some(on) = device.begin(Cost::memory_bound("add", 0)) else { return 0.0 };
    let begun = Instant::now();
    let mut least = f64::INFINITY;
    while begun.elapsed() < WINDOW {
        let start = Instant::now();
        // A GPU is asked for many before it is waited for.
        let num = if device.target() == Target::Cuda { 100 } else { 1 };
        (0..num).for_each(|_| on.add_assign(x.view(), y.view_mut()));
        device.synchronize();
        least = least.min(start.elapsed().as_secs_f64() / f64::from(num));
    }
    least
}

/// Bytes per second from page-locked memory to a GPU; `None` where there is too little of either.
fn link(gpu: &Gpu, bytes: usize) -> Option<f64> {
    let (mut from, to) = (HostBlock::new(gpu, bytes).ok()?, Region::new(gpu, bytes).ok()?);
    from.write(0, &vec![0; bytes]);
    let mut least = f64::INFINITY;
    for _ in 0..WINDOWS {
        gpu.synchronize();
        let start = Instant::now();
        from.prefetch(&to);
        gpu.await_prefetches();
        gpu.synchronize();
        least = least.min(start.elapsed().as_secs_f64());
    }
    Some(bytes as f64 / least)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::catalogue;

    const TINY: Sizes = Sizes {
        product: [32, 16, 32],
        heads: Heads {
            num_heads: 2,
            num_kv_heads: 1,
            // Of which there is a kernel on tensor cores.
            head_dim: 64,
            scale: 0.125,
            window: None,
            ahead: 0,
            softcap: None,
        },
        sequence: 16,
        activation: [8, 16],
        memory: 1 << 12,
    };

    /// Every rate of a GPU comes from the probe of its kind, and what is not measured stays.
    #[test]
    fn a_gpu_is_measured() {
        let Some(device) = Gpu::for_tests() else { return };
        let published = catalogue::named("a100-80g").unwrap().1;
        let measured = gpu(&device, &TINY, published.clone()).unwrap();
        let rates = |p: &DeviceProfile| {
            [
                p.product_f32,
                p.product_bf16,
                p.product_over_tokens,
                p.product_low_rank,
                p.attention,
                p.elementwise,
                p.memory,
                p.overhead,
                p.gpu.unwrap().link,
                p.gpu.unwrap().general_attention,
            ]
        };
        for (i, (found, old)) in rates(&measured).iter().zip(rates(&published)).enumerate() {
            assert!(found.is_finite() && *found > 0.0 && *found != old, "rate {i}: {found}");
        }
        assert_eq!(measured.ceiling_bf16, published.ceiling_bf16);
        assert_eq!(measured.gpu.unwrap().memory_bytes, published.gpu.unwrap().memory_bytes);
    }
}
