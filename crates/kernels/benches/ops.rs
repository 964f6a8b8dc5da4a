//! The rate of each operation at the sizes of a 135-million-parameter Llama with 1,024 tokens,
//! beside what the machine could do. Prints rows of a Markdown table; `cargo xtask bench ops`
//! makes a page of them.
//!
//! Arguments: names of operations; without any, all are run.

use hone_kernels::activation::Activation;
use hone_kernels::attention::{self, Heads, Inputs, Sequence};
use hone_kernels::ceiling::{Operands, Products};
use hone_kernels::element::Floats;
use hone_kernels::format::{FORMATS, Packed};
use hone_kernels::gated_delta_rule::{self as delta, DeltaHeads};
use hone_kernels::gemm::{
    self, Epilogue, Matrix, OutputRegion, Product, Term, WeightGradient, gemm,
};
use hone_kernels::rope::Direction;
use hone_kernels::{
    Cpu, DType, Isa, Processor, Target, View, ViewMut, adamw, bf16, ceiling, glu, head, memory,
    rms_norm, rope, short_conv, vector,
};
use std::time::{Duration, Instant};

const TOKENS: usize = 1024;
const HIDDEN: usize = 576;
const INTERMEDIATE: usize = 1536;
const VOCAB: usize = 49_152;
const RANK: usize = 16;
const HEADS: Heads = Heads {
    num_heads: 9,
    num_kv_heads: 3,
    head_dim: 64,
    scale: 0.125,
    window: None,
    ahead: 0,
    softcap: None,
};

/// Linear attention of a model of that size.
const DELTA: DeltaHeads =
    DeltaHeads { num_key_heads: 4, num_value_heads: 8, key_dim: 128, value_dim: 128 };

/// Windows in which a figure is measured.
const WINDOWS: usize = 7;
/// How long a window is, unless one run takes longer.
const WINDOW: Duration = Duration::from_millis(40);

fn main() {
    // `cargo bench` adds arguments of its own.
    let names: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    for threads in [1, threads] {
        let cpu = Cpu::new(threads);
        let vectors = (cpu.isa() == Isa::Amx).then(|| Cpu::with_isa(threads, Isa::Avx512Bf16));
        let bench = Bench { cpu, vectors, threads, names: &names };
        for dtype in [DType::Bf16, DType::F32] {
            bench.products(dtype);
            bench.weight_gradient(dtype);
        }
        bench.formats();
        bench.attention();
        bench.gated_delta_rule();
        bench.short_conv();
        bench.head();
        bench.rows();
        bench.rope();
        if threads == 1 && bench.cpu.isa().name() == "scalar" {
            return;
        }
    }
}

struct Bench<'a> {
    cpu: Cpu,
    /// The same machine without its matrix unit, if it has one.
    vectors: Option<Cpu>,
    threads: usize,
    names: &'a [String],
}

/// A product `[m, k] · [k, n]` and how its operands lie.
struct Shape {
    name: &'static str,
    m: usize,
    n: usize,
    k: usize,
    lie: Lie,
}

enum Lie {
    /// `x Wᵀ`
    Forward,
    /// `dy W`
    Input,
    /// `dyᵀ x`
    Weight,
}

const PRODUCTS: [Shape; 8] = [
    Shape { name: "gate_up", m: TOKENS, n: 2 * INTERMEDIATE, k: HIDDEN, lie: Lie::Forward },
    Shape { name: "down", m: TOKENS, n: HIDDEN, k: INTERMEDIATE, lie: Lie::Forward },
    Shape { name: "o", m: TOKENS, n: HIDDEN, k: HIDDEN, lie: Lie::Forward },
    Shape { name: "d_gate_up", m: TOKENS, n: HIDDEN, k: 2 * INTERMEDIATE, lie: Lie::Input },
    Shape { name: "d_down", m: TOKENS, n: INTERMEDIATE, k: HIDDEN, lie: Lie::Input },
    Shape { name: "lora_down", m: TOKENS, n: RANK, k: HIDDEN, lie: Lie::Forward },
    Shape { name: "d_lora_a", m: RANK, n: HIDDEN, k: TOKENS, lie: Lie::Weight },
    Shape { name: "one token", m: 1, n: HIDDEN, k: HIDDEN, lie: Lie::Forward },
];

impl Bench<'_> {
    fn wants(&self, name: &str) -> bool {
        self.names.is_empty() || self.names.iter().any(|wanted| wanted == name)
    }

    /// Prints the row of an operation: medians of windows, which take turns with windows of the
    /// ceiling, as what the machine can do changes within seconds with what its neighbours do.
    fn time(&self, name: &str, work: Work, mut body: impl FnMut()) {
        body();
        let (mut seconds, mut shares) = (Vec::new(), Vec::new());
        for _ in 0..WINDOWS {
            let taken = window(&mut body);
            seconds.push(taken);
            if let Work::Flops(dtype, flops) = work {
                let ceiling = self.ceiling(dtype);
                shares.push((flops / taken / ceiling, ceiling));
            }
        }
        shares.sort_by(|(a, _), (b, _)| a.total_cmp(b));
        let median = median(seconds);
        let (rate, unit) = match work {
            Work::Flops(_, flops) => (flops / median / 1e9, "GFLOP/s"),
            Work::Bytes(bytes) => (bytes / median / 1e9, "GB/s"),
        };
        let share = shares.get(WINDOWS / 2).map_or(String::new(), |(share, ceiling)| {
            format!("{:.0} % of {:.0}", 100.0 * share, ceiling / 1e9)
        });
        let (threads, ms) = (self.threads, median * 1e3);
        println!("| {name} | {threads} | {ms:.3} | {rate:.1} {unit} | {share} |");
    }

    /// [`Bench::time`]; where there is a matrix unit, also how many times as fast it is as vectors
    /// are, in windows that take turns.
    fn time_with_vectors(&self, name: &str, work: Work, mut body: impl FnMut(&Cpu)) {
        self.time(name, work, || body(&self.cpu));
        let Some(vectors) = &self.vectors else { return };
        let (mut seconds, mut ratios) = (Vec::new(), Vec::new());
        for _ in 0..WINDOWS {
            let [own, taken] = [&self.cpu, vectors].map(|cpu| window(&mut || body(cpu)));
            seconds.push(taken);
            ratios.push(taken / own);
        }
        let (threads, ms, ratio) = (self.threads, median(seconds) * 1e3, median(ratios));
        let set = vectors.isa().name();
        println!("| {name}, `{set}` | {threads} | {ms:.3} | {ratio:.2} times as long | |");
    }

    fn ceiling(&self, dtype: DType) -> f64 {
        let products = Products::Floats(dtype);
        let rate = ceiling::rate(&self.cpu, products, Operands::InCache, WINDOW / 4);
        rate.unwrap_or(f64::NAN)
    }

    fn products(&self, dtype: DType) {
        for &Shape { name, m, n, k, ref lie } in &PRODUCTS {
            if !self.wants(name) {
                continue;
            }
            let (a, b) = (numbers(m * k, dtype), numbers(k * n, dtype));
            let (a, b) = (a.view(), b.view());
            let a = match lie {
                Lie::Weight => Matrix::rows(a, m).transposed(),
                _ => Matrix::rows(a, k),
            };
            let b = match lie {
                Lie::Forward => Matrix::rows(b, k).transposed(),
                _ => Matrix::rows(b, n),
            };
            let mut out =
                numbers(m * n, if matches!(lie, Lie::Weight) { DType::F32 } else { dtype });
            let product = Product {
                terms: &[Term::new(a, b, k)],
                epilogue: Epilogue::default(),
                output: OutputRegion::whole(m, n),
            };
            let work = Work::Flops(dtype, (2 * m * n * k) as f64);
            let name = format!("{name}, {}: {m} × {n} × {k}", dtype.name());
            self.time(&name, work, || gemm(&self.cpu, dtype, &[product], out.view_mut()));
        }
    }

    /// Products with weights in each format, in turn with those in bf16: a projection of a model
    /// with 1.1 billion parameters.
    fn formats(&self) {
        let (t, n, k) = (2048, 2048, 5632);
        let x = numbers(t * n.max(k), DType::Bf16);
        let (weight, mut out) = (numbers(n * k, DType::Bf16), numbers(t * k, DType::Bf16));
        for format in FORMATS.into_iter().filter(|format| self.wants(format.name)) {
            let len = (format.num_bytes)([n, k]);
            let mut words = vec![0f32; len.div_ceil(4)];
            let bytes = &mut memory::bytes_of_mut(&mut words)[..len];
            match format.pack {
                Some(pack) => pack(&self.cpu, Floats::Bf16(weight.bf16()), k, bytes),
                // Below the bytes of numbers that are not finite.
                None => bytes.iter_mut().enumerate().for_each(|(i, x)| *x = (i * 37 % 101) as u8),
            }
            let packed = View::Packed(Packed::new(bytes, format, (n * k, k)).expect("whole"));
            for (name, lie) in [("x Wᵀ", Lie::Forward), ("dy W", Lie::Input)] {
                let mut run = |weight| {
                    let b = Matrix::rows(weight, k);
                    let (b, [n, k]) = match lie {
                        Lie::Forward => (b.transposed(), [n, k]),
                        _ => (b, [k, n]),
                    };
                    let a = Matrix::rows(x.view(), k);
                    let (terms, output) = ([Term::new(a, b, k)], OutputRegion::whole(t, n));
                    let product = Product { terms: &terms, epilogue: Epilogue::default(), output };
                    let start = Instant::now();
                    gemm(&self.cpu, DType::Bf16, &[product], out.view_mut());
                    start.elapsed().as_secs_f64()
                };
                let mut best = [f64::INFINITY; 2];
                for _ in 0..3 {
                    for (best, view) in best.iter_mut().zip([weight.view(), packed]) {
                        *best = best.min(run(view));
                    }
                }
                let ([bf16, own], name, threads) =
                    (best, format!("{}, {name}", format.name), self.threads);
                println!("| {name} | {threads} | {:.3} | {:.2} of bf16 | |", own * 1e3, bf16 / own);
            }
        }
    }

    fn weight_gradient(&self, dtype: DType) {
        if !self.wants("d_weight") {
            return;
        }
        let (t, m, n) = (TOKENS, HIDDEN, INTERMEDIATE);
        let (d_y, x) = (numbers(t * m, dtype), numbers(t * n, dtype));
        let (d_y, x) = (Matrix::rows(d_y.view(), m), Matrix::rows(x.view(), n));
        let gradient = WeightGradient { t, m, n, d_y, x };
        let (mut d_w, len) = (vec![0.0; m * n], gemm::weight_workspace_len(Target::Cpu, t, n));
        let (mut workspace, cpu) = (vec![0.0; len], &self.cpu);
        let work = Work::Flops(dtype, (2 * t * m * n) as f64);
        let name = format!("d_weight of down, {}: {m} × {n} × {t}", dtype.name());
        self.time(&name, work, || {
            gemm::add_weight_gradient(cpu, dtype, gradient, &mut workspace, &mut d_w);
        });
    }

    fn attention(&self) {
        for len in [256, TOKENS] {
            if !self.wants("attention") {
                return;
            }
            let sequences: Vec<_> =
                (0..TOKENS / len).map(|i| Sequence::new(i * len, len)).collect();
            let qkv = numbers(TOKENS * HEADS.qkv_width(), DType::Bf16);
            let d_out = numbers(TOKENS * HEADS.out_width(), DType::Bf16);
            let mut out = numbers(TOKENS * HEADS.out_width(), DType::Bf16);
            let mut d_qkv = numbers(TOKENS * HEADS.qkv_width(), DType::Bf16);
            let mut lse = vec![0.0; TOKENS * HEADS.num_heads];
            let mut workspace = vec![0.0; attention::workspace_len(Target::Cpu, &HEADS, TOKENS)];
            let pairs: usize = sequences.iter().map(|s| s.num_pairs(&HEADS)).sum();
            let flops = |products: usize| {
                Work::Flops(DType::Bf16, (2 * products * pairs * HEADS.out_width()) as f64)
            };
            let inputs = Inputs::packed(qkv.view(), &HEADS);
            self.time_with_vectors(&format!("attention, sequences of {len}"), flops(2), |cpu| {
                let out = out.view_mut();
                attention::forward(cpu, inputs, &HEADS, &sequences, out, &mut lse);
            });
            self.time_with_vectors(&format!("d_attention, sequences of {len}"), flops(5), |cpu| {
                let (qkv, out, lse) = (qkv.view(), out.view(), View::F32(&lse));
                let saved = attention::Saved { qkv, out, lse };
                let gradients = attention::Gradients { d_qkv: d_qkv.view_mut(), sinks: None };
                let (d_out, workspace) = (d_out.view(), &mut workspace);
                attention::backward(cpu, saved, &HEADS, &sequences, d_out, gradients, workspace);
            });
        }
    }

    fn gated_delta_rule(&self) {
        for (dtype, len) in [(DType::Bf16, 128), (DType::Bf16, TOKENS), (DType::F32, TOKENS)] {
            if !self.wants("delta") {
                return;
            }
            let on = Processor::Cpu(Cpu::new(self.threads));
            let sequences: Vec<_> =
                (0..TOKENS / len).map(|i| Sequence::new(i * len, len)).collect();
            let qkv = numbers(TOKENS * DELTA.qkv_width(), dtype);
            let d_out = numbers(TOKENS * DELTA.out_width(), dtype);
            let mut out = numbers(TOKENS * DELTA.out_width(), dtype);
            let mut written = numbers(TOKENS * DELTA.out_width(), dtype);
            let mut d_qkv = numbers(TOKENS * DELTA.qkv_width(), dtype);
            let num = 2 * DELTA.num_value_heads;
            let gates: Vec<f32> =
                (0..TOKENS * num).map(|i| if i % num < num / 2 { 0.5 } else { -0.1 }).collect();
            let mut d_gates = gates.clone();
            let num_states = delta::num_kept_states(Target::Cpu, TOKENS);
            let mut states = vec![0.0; num_states * DELTA.state_len()];
            let inputs = delta::Inputs { qkv: qkv.view(), gates: View::F32(&gates) };
            // Products with states and half of those with the chunk's tokens.
            let (dk, dv) = (DELTA.key_dim, DELTA.value_dim);
            let flops = |with_state: usize, with_tokens: usize| {
                let of_pairs = with_tokens * DELTA.num_value_heads + 2 * dk * DELTA.num_key_heads;
                let of_states = with_state * dk * dv * DELTA.num_value_heads;
                Work::Flops(dtype, (2 * TOKENS * (of_states + delta::CHUNK / 2 * of_pairs)) as f64)
            };
            let name = format!("delta rule, {}, sequences of {len}", dtype.name());
            self.time(&name, flops(3, 2 * dv), || {
                let (written, states) = (written.view_mut(), ViewMut::F32(&mut states));
                let kept = Some(delta::Kept { written, states });
                on.gated_delta_rule(inputs, &DELTA, &sequences, (kept, None), out.view_mut());
            });
            self.time(&format!("d_{name}"), flops(7, 4 * dv + 4 * dk), || {
                let saved = delta::Saved { written: written.view(), states: View::F32(&states) };
                let d = (d_qkv.view_mut(), ViewMut::F32(&mut d_gates));
                let (of, d_out) = ((inputs, saved), d_out.view());
                let workspace = ViewMut::F32(&mut []);
                on.gated_delta_rule_backward(of, &DELTA, &sequences, d_out, d, workspace);
            });
        }
    }

    fn short_conv(&self) {
        if !self.wants("short_conv") {
            return;
        }
        let (on, n) = (Processor::Cpu(Cpu::new(self.threads)), DELTA.qkv_width());
        let [x, d_y] = [0; 2].map(|_| numbers(TOKENS * n, DType::Bf16));
        let [mut y, mut d_x] = [0; 2].map(|_| numbers(TOKENS * n, DType::Bf16));
        let weight = vec![0.5; 4 * n];
        let inputs = short_conv::Inputs {
            x: vector::Columns { x: x.view(), width: n, col: 0 },
            weight: View::F32(&weight),
            bias: None,
            channels: n,
        };
        let sequences = [Sequence::new(0, TOKENS)];
        let bytes = (2 * TOKENS * n) as f64;
        self.time("short_conv", Work::Bytes(2.0 * bytes), || {
            on.short_conv(inputs, &sequences, None, y.view_mut());
        });
        self.time("d_short_conv", Work::Bytes(4.0 * bytes), || {
            let d_x = Some(d_x.view_mut());
            let gradients = short_conv::Gradients { d_x, d_weight: None, d_bias: None };
            on.short_conv_backward(inputs, &sequences, d_y.view(), gradients);
        });
    }

    fn head(&self) {
        if !self.wants("log_probs") {
            return;
        }
        let (x, weight) =
            (numbers(TOKENS * HIDDEN, DType::Bf16), numbers(VOCAB * HIDDEN, DType::Bf16));
        let targets: Vec<u32> = (0..TOKENS as u32).collect();
        let (dtype, rows, hidden_size, vocab_size) = (DType::Bf16, TOKENS, HIDDEN, VOCAB);
        let sizes = head::Sizes { rows, hidden_size, vocab_size, dtype };
        let mut workspace = vec![0.0; head::workspace_len(Target::Cpu, sizes, true)];
        let (mut log_probs, mut lse) = (vec![0.0; TOKENS], vec![0.0; TOKENS]);
        let mut direction = numbers(TOKENS * HIDDEN, DType::Bf16);
        let flops = (4 * TOKENS * HIDDEN * VOCAB) as f64;
        self.time("log_probs with gradient", Work::Flops(DType::Bf16, flops), || {
            let inputs = head::Inputs {
                x: x.view(),
                weight: weight.view(),
                targets: &targets,
                hidden_size: HIDDEN,
                int8: false,
                logits: head::Logits::PLAIN,
                bias: None,
            };
            let direction = Some(direction.view_mut());
            let (log_probs, lse) = (ViewMut::F32(&mut log_probs), ViewMut::F32(&mut lse));
            let outputs = head::Outputs { log_probs, lse, direction };
            head::forward(&self.cpu, inputs, &mut workspace, outputs);
        });
    }

    fn rope(&self) {
        if !self.wants("rope") {
            return;
        }
        let (t, width, half) = (TOKENS, HEADS.qkv_width(), HEADS.head_dim / 2);
        let mut qkv = numbers(t * width, DType::Bf16);
        let (cos, sin) = (vec![0.8; t * half], vec![0.6; t * half]);
        let rotation = rope::Rotation {
            rotated: rope::Rotated { dim: HEADS.head_dim, interleaved: false },
            first_head: 0,
            num_heads: HEADS.num_heads + HEADS.num_kv_heads,
            head_dim: HEADS.head_dim,
            cos: View::F32(&cos),
            sin: View::F32(&sin),
            direction: Direction::Forward,
        };
        let bytes = 4 * t * rotation.num_heads * rotation.head_dim;
        self.time("rope", Work::Bytes(bytes as f64), || {
            rope::rotate(&self.cpu, qkv.view_mut(), width, rotation);
        });
    }

    /// Memory-bound operations.
    fn rows(&self) {
        let (t, h, i, cpu) = (TOKENS, HIDDEN, INTERMEDIATE, &self.cpu);
        let bytes = |elements: usize, size: usize| (elements * size) as f64;
        let (x, w) = (vec![0.5f32; t * h], vec![1.0f32; h]);
        let mut y = numbers(t * h, DType::Bf16);
        let (mut rstd, mut d_x) = (vec![0.0; t], vec![0.0; t * h]);
        let norm = rms_norm::RmsNorm { eps: 1e-5, plus_one: false };
        let rows = rms_norm::Rows::whole(h);
        if self.wants("rms_norm") {
            self.time("rms_norm", Work::Bytes(bytes(t * h, 6)), || {
                let (x, weight) = (View::F32(&x), View::F32(&w));
                let inputs = rms_norm::Inputs { x, weight, residual: None, rows };
                rms_norm::forward(cpu, norm, inputs, y.view_mut(), &mut rstd);
            });
            self.time("d_rms_norm", Work::Bytes(bytes(t * h, 10)), || {
                let (x, weight, rstd) = (View::F32(&x), View::F32(&w), View::F32(&rstd));
                let saved = rms_norm::Saved { x, weight, rstd, rows };
                let d_x = ViewMut::F32(&mut d_x);
                rms_norm::backward(cpu, norm, saved, y.view(), false, d_x);
            });
        }
        if self.wants("glu") {
            let gate_up = numbers(2 * t * i, DType::Bf16);
            let (mut y, mut d) = (numbers(t * i, DType::Bf16), numbers(2 * t * i, DType::Bf16));
            self.time("glu", Work::Bytes(bytes(t * i, 6)), || {
                glu::forward(cpu, Activation::Silu, gate_up.view(), i, y.view_mut());
            });
            self.time("d_glu", Work::Bytes(bytes(t * i, 10)), || {
                glu::backward(cpu, Activation::Silu, gate_up.view(), i, y.view(), d.view_mut());
            });
        }
        if self.wants("add") {
            self.time("add", Work::Bytes(bytes(t * h, 12)), || {
                vector::add_assign(cpu, View::F32(&x), ViewMut::F32(&mut d_x));
            });
        }
        if self.wants("adamw") {
            let n = 4 << 20;
            let (mut p, g, mut m, mut v) = (vec![0.5; n], vec![0.1; n], vec![0.0; n], vec![0.0; n]);
            let update = adamw::Update {
                learning_rate: 1e-4,
                beta1: 0.9,
                beta2: 0.999,
                epsilon: 1e-8,
                weight_decay: 0.0,
                step: 1,
                gradient_scale: 1.0,
            };
            self.time("adamw, 4 million parameters", Work::Bytes(bytes(n, 28)), || {
                let [value, m, v] = [&mut p, &mut m, &mut v].map(|x| ViewMut::F32(x));
                let gradient = View::F32(&g);
                adamw::step(cpu, &update, vec![adamw::Parameter { value, gradient, m, v }]);
            });
        }
    }
}

/// Seconds that the operation takes, within a window.
fn window(body: &mut dyn FnMut()) -> f64 {
    let (begun, mut runs) = (Instant::now(), 0);
    while begun.elapsed() < WINDOW || runs == 0 {
        body();
        runs += 1;
    }
    begun.elapsed().as_secs_f64() / f64::from(runs)
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

/// What an operation does, in the unit that bounds it.
enum Work {
    Flops(DType, f64),
    Bytes(f64),
}

/// Numbers of either type.
enum Numbers {
    F32(Vec<f32>),
    Bf16(Vec<bf16>),
}

fn numbers(len: usize, dtype: DType) -> Numbers {
    let values = (0..len).map(|i| ((i * 37 % 101) as f32 - 50.0) / 100.0);
    match dtype {
        DType::F32 => Numbers::F32(values.collect()),
        _ => Numbers::Bf16(values.map(bf16::from_f32).collect()),
    }
}

impl Numbers {
    fn bf16(&self) -> &[bf16] {
        match self {
            Numbers::F32(_) => panic!("bf16 was asked for"),
            Numbers::Bf16(x) => x,
        }
    }

    fn view(&self) -> View<'_> {
        match self {
            Numbers::F32(x) => View::F32(x),
            Numbers::Bf16(x) => View::Bf16(x),
        }
    }

    fn view_mut(&mut self) -> ViewMut<'_> {
        match self {
            Numbers::F32(x) => ViewMut::F32(x),
            Numbers::Bf16(x) => ViewMut::Bf16(x),
        }
    }
}
