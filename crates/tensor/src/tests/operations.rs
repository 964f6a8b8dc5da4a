//! Every coarse operation but `linear` in its reference form, and the cases it is checked in.

use super::check_op::{
    Kind, Operands, Operation, Recomputed, check_op, check_op_in, check_op_on_gpu, devices, f64s,
    normals, tensor_of,
};
use super::linear::{Linear, Options};
use crate::ops::{self, Angles, Logits, OutputHead, RmsNorm, Rotated, Softcap};
use crate::{
    Category, Compute, DType, Device, Gradients, Heads, Params, Sequence, Storage, Tape, Target,
    Tensor, Var, Weight,
};
use hone_kernels::cuda::Gpu;
use hone_kernels::format::FORMATS;
use hone_kernels::gemm::reference::{gemm, transpose};
use hone_kernels::output_gate::GatedRows;
use hone_kernels::rms_norm::{self, Rows};
use hone_kernels::rope::Direction;
use hone_kernels::{attention, embedding, head, output_gate, rope, testing};
use std::panic::{AssertUnwindSafe, catch_unwind};

const WEIGHT_KINDS: [Kind; 5] = [
    Kind::Frozen(Storage::Float(DType::F32)),
    Kind::Frozen(Storage::Float(DType::Bf16)),
    Kind::Frozen(Storage::Float(DType::F16)),
    Kind::Frozen(Storage::INT8),
    Kind::Trained,
];

/// A frozen table needs something trained after it before a gradient exists at all.
struct FrozenEmbedding {
    given: Operands,
    table: Weight,
    norm: Weight,
    ids: Vec<u32>,
}

impl Operation for FrozenEmbedding {
    fn operands(&self) -> &Operands {
        &self.given
    }
    fn weights_mut(&mut self) -> Vec<&mut Weight> {
        vec![&mut self.table, &mut self.norm]
    }
    fn run<'a>(&'a self, tape: &mut Tape<'a>, _: Vec<Var>) -> Var {
        let x = ops::embedding(tape, &self.table, &self.ids, 1.0);
        ops::rms_norm(tape, &x, &self.norm, NORM)
    }
    fn forward(&self, x: &[Vec<f64>]) -> Vec<f64> {
        let h = self.table.shape()[1];
        let rows = embedding::reference::forward(&x[0], h, &self.ids, 1.0);
        rms_norm::reference::forward(NORM, Rows::whole(h), &rows, &x[1])
    }
    fn backward(&self, x: &[Vec<f64>], d_y: &[f64]) -> Vec<Vec<f64>> {
        let h = self.table.shape()[1];
        let rows = embedding::reference::forward(&x[0], h, &self.ids, 1.0);
        vec![vec![], rms_norm::reference::backward(NORM, Rows::whole(h), &rows, &x[1], d_y).1]
    }
}

#[test]
fn frozen_embedding_passes() {
    for kind in &WEIGHT_KINDS[..4] {
        let mut given = Operands::default();
        let (table, norm) = (given.add(*kind, &[9, 33]), given.add(Kind::Trained, &[33]));
        let (table, norm) = (given.weight(table), given.weight(norm));
        let mut op = FrozenEmbedding { given, table, norm, ids: vec![8, 0, 2, 2] };
        check_op("frozen embedding", &mut op);
    }
}

/// Formats that are only read, as projections, tables and heads.
#[test]
fn weights_of_files_pass() {
    for format in FORMATS.into_iter().filter(|format| format.pack.is_none()) {
        let (frozen, h) = (Storage::Packed(format), 33usize.next_multiple_of(format.block));
        let name = format.name;
        let mut given = Operands::default();
        let (table, norm) =
            (given.add(Kind::Frozen(frozen), &[9, h]), given.add(Kind::Trained, &[h]));
        let (table, norm) = (given.weight(table), given.weight(norm));
        let mut op = FrozenEmbedding { given, table, norm, ids: vec![8, 0, 2, 2] };
        check_op(&format!("embedding in {name}"), &mut op);
        let mut op = LogProbs::new(Kind::Frozen(frozen), (5, h, 70), 3, true);
        check_op(&format!("log_probs in {name}"), &mut op);
        let options = Options {
            tokens: 6,
            inputs: h,
            outputs: vec![5, 2],
            frozen: Some(frozen),
            bias: None,
            dropout: &[0.0],
            adapters: vec![(0..6, 3)],
            residual: false,
            input_grad: true,
        };
        check_op(&format!("linear in {name}"), &mut Linear::new(&options));
    }
}

const NORM: RmsNorm = RmsNorm { eps: 1e-5, plus_one: false };

struct Rope {
    given: Operands,
    heads: Heads,
    angles: Angles,
    /// Factors of queries.
    factors: Vec<f32>,
    /// Whether something else holds the input, so that it must be copied.
    shared: bool,
}

impl Rope {
    fn new(tokens: usize, heads: Heads, rotated: Rotated, shared: bool) -> Self {
        let mut given = Operands::default();
        given.add(Kind::Activation, &[tokens, heads.qkv_width()]);
        let angles = normals(9, tokens * rotated.dim / 2);
        // Scaled, as yarn scales them.
        let cos = angles.iter().map(|a| 1.2 * a.cos()).collect();
        let sin = angles.iter().map(|a| 1.2 * a.sin()).collect();
        let angles = Angles::new(rotated, cos, sin);
        // Some queries have factors of their own, which needs all of a head to be rotated.
        let grow = rotated.dim == heads.head_dim && heads.num_kv_heads == 1;
        let by = if grow { 0.1 } else { 0.0 };
        let factors: Vec<f32> = (0..tokens).map(|t| 1.0 + by * t as f32).collect();
        let angles = if grow { angles.with_query_factors(&factors) } else { angles };
        Self { given, heads, angles, factors, shared }
    }

    fn rotate(&self, x: &[f64], direction: Direction) -> Vec<f64> {
        let Heads { num_heads, num_kv_heads, head_dim, .. } = self.heads;
        let (cos, sin) = (f64s(&self.angles.cos), f64s(&self.angles.sin));
        let (rotated, width) = (self.angles.rotated, self.heads.qkv_width());
        let times = |of: &[f64]| -> Vec<f64> {
            let half = rotated.dim / 2;
            of.iter().enumerate().map(|(i, x)| x * f64::from(self.factors[i / half])).collect()
        };
        let queries = (&times(&cos)[..], &times(&sin)[..]);
        let (of_queries, of_keys) = (0..num_heads, num_heads..num_heads + num_kv_heads);
        let rotate = |x: &[f64], heads, angles| {
            rope::reference::rotate(x, width, (heads, head_dim), rotated, angles, direction)
        };
        rotate(&rotate(x, of_queries, queries), of_keys, (&cos, &sin))
    }
}

impl Operation for Rope {
    fn operands(&self) -> &Operands {
        &self.given
    }
    fn run<'a>(&'a self, tape: &mut Tape<'a>, mut leaves: Vec<Var>) -> Var {
        let qkv = leaves.remove(0);
        let other = self.shared.then(|| qkv.clone());
        let y = ops::rope(tape, qkv, &self.heads, &self.angles);
        drop(other);
        y
    }
    fn forward(&self, x: &[Vec<f64>]) -> Vec<f64> {
        self.rotate(&x[0], Direction::Forward)
    }
    fn backward(&self, _: &[Vec<f64>], d_y: &[f64]) -> Vec<Vec<f64>> {
        vec![self.rotate(d_y, Direction::Backward)]
    }
}

fn heads(num_heads: usize, num_kv_heads: usize, head_dim: usize) -> Heads {
    Heads {
        num_heads,
        num_kv_heads,
        head_dim,
        scale: 1.0 / (head_dim as f32).sqrt(),
        window: None,
        ahead: 0,
        softcap: None,
    }
}

#[test]
fn rope_passes() {
    for (tokens, heads, dim) in [
        (1, heads(1, 1, 2), 2),
        (5, heads(3, 1, 6), 6),
        (150, heads(4, 2, 18), 18),
        (2, heads(2, 2, 64), 64),
        (7, heads(2, 1, 32), 16),
        (3, heads(2, 1, 10), 6),
    ] {
        for (shared, interleaved) in [(false, false), (true, false), (false, true)] {
            let rotated = Rotated { dim, interleaved };
            let case = format!("rope {heads:?}, {rotated:?}");
            check_op(&case, &mut Rope::new(tokens, heads, rotated, shared));
        }
    }
}

/// Uploads of a pass that panicked may not have happened.
#[test]
fn angles_of_a_pass_that_panics_are_uploaded_again() {
    let Some(gpu) = Gpu::for_tests() else { return };
    let (device, params) = (Device::cuda(gpu.clone()), Params::default());
    let rotated = Rotated { dim: 6, interleaved: false };
    let rope = Rope::new(5, heads(3, 1, 6), rotated, false);
    let values = normals(1, 5 * rope.heads.qkv_width());
    let qkv = Tensor::from_f32(&values, &[5, rope.heads.qkv_width()]);
    let qkv = device.upload(Category::Activations, &qkv).unwrap();
    let rotated = || {
        let mut tape = Tape::inference(&device, &params, Compute::F32);
        let qkv = tape.leaf(qkv.clone(), false);
        ops::rope(&mut tape, qkv, &rope.heads, &rope.angles).value().clone()
    };
    let pass = || {
        gpu.pass(|| {
            drop(rotated());
            panic!("as it may");
        });
    };
    assert!(catch_unwind(AssertUnwindSafe(pass)).is_err());
    let expected = rope.rotate(&f64s(&values), Direction::Forward);
    for (found, expected) in rotated().to_vec_f32().into_iter().zip(expected) {
        assert!((f64::from(found) - expected).abs() < 1e-5, "{found}, not {expected}");
    }
}

struct Attention {
    given: Operands,
    heads: Heads,
    sinks: Option<Weight>,
    sequences: Vec<Sequence>,
}

impl Operation for Attention {
    fn operands(&self) -> &Operands {
        &self.given
    }
    fn run<'a>(&'a self, tape: &mut Tape<'a>, mut leaves: Vec<Var>) -> Var {
        let (heads, sinks) = (&self.heads, self.sinks.as_ref());
        ops::attention_with_sinks(tape, leaves.remove(0), heads, sinks, &self.sequences)
    }
    fn forward(&self, x: &[Vec<f64>]) -> Vec<f64> {
        let sinks = x.get(1).map_or(&[][..], |sinks| sinks);
        attention::reference::forward(&x[0], &self.heads, sinks, &self.sequences)
    }
    fn backward(&self, x: &[Vec<f64>], d_y: &[f64]) -> Vec<Vec<f64>> {
        let sinks = x.get(1).map_or(&[][..], |sinks| sinks);
        let (heads, sequences) = (&self.heads, &self.sequences);
        let (d, d_sinks) = attention::reference::backward(&x[0], heads, sinks, sequences, d_y);
        [d, d_sinks].into_iter().take(x.len()).collect()
    }
}

#[test]
fn attention_passes() {
    // Bounds of the sequences, and rows after the last that belong to none.
    let cases = [
        (heads(1, 1, 1), vec![0, 1], 0),
        (heads(1, 1, 8), vec![0, 1, 2, 3], 2),
        (heads(4, 2, 6), vec![0, 5, 6, 40], 3),
        (heads(3, 1, 10), vec![0, 33, 33, 98], 1),
        (heads(2, 2, 36), vec![0, 64, 129], 0),
        (heads(6, 3, 4), vec![0, 31, 95, 96, 130], 7),
        (heads(2, 1, 16), vec![0, 150], 0),
        (heads(3, 1, 64), vec![0, 1, 290], 1),
        (heads(2, 1, 96), vec![0, 7, 80], 3),
        (heads(2, 2, 128), vec![0, 70], 0),
        (heads(2, 1, 320), vec![0, 3, 20], 1),
        (Heads { window: Some(9), ..heads(2, 1, 128) }, vec![0, 1, 40], 1),
        (heads(2, 1, 4), vec![0, 600], 0),
        (Heads { window: Some(1), ..heads(2, 1, 4) }, vec![0, 70], 0),
        (Heads { window: Some(20), ..heads(2, 2, 8) }, vec![0, 15, 560], 2),
        (Heads { window: Some(150), ..heads(4, 2, 6) }, vec![0, 300, 310], 0),
        (Heads { window: Some(257), ..heads(1, 1, 4) }, vec![0, 580], 0),
        (Heads { softcap: Some(Softcap(0.7)), ..heads(4, 2, 6) }, vec![0, 5, 300], 1),
        (Heads { softcap: Some(Softcap(2.0)), ..heads(1, 1, 128) }, vec![0, 70], 0),
        (heads(2, 1, 64).two_sided(None), vec![0, 1, 40], 3),
        (heads(2, 2, 4).two_sided(Some(0)), vec![0, 20], 0),
        (heads(2, 1, 6).two_sided(Some(30)), vec![0, 290, 300], 2),
    ];
    for (i, (heads, cu_seqlens, padding)) in cases.into_iter().enumerate() {
        // The longest are among the others.
        if !testing::is_sampled(i + 1, 2) {
            continue;
        }
        let sequences = Sequence::packed(&cu_seqlens);
        let tokens = *cu_seqlens.last().expect("bounds") as usize + padding;
        let mut given = Operands::default();
        given.add(Kind::Activation, &[tokens, heads.qkv_width()]);
        let name = format!("attention {heads:?}, {cu_seqlens:?} + {padding}");
        check_op(&name, &mut Attention { given, heads, sinks: None, sequences });
    }
}

#[test]
fn attention_with_sinks_passes() {
    let windowed = Heads { window: Some(20), ..heads(2, 2, 8) };
    for (heads, cu_seqlens) in [
        (heads(4, 2, 6), vec![0, 1, 40, 41]),
        (windowed, vec![0, 15, 120]),
        (heads(2, 1, 64), vec![0, 7, 80]),
        (heads(2, 1, 6).two_sided(Some(5)), vec![0, 30]),
    ] {
        let mut given = Operands::default();
        given.add(Kind::Activation, &[cu_seqlens[cu_seqlens.len() - 1] + 2, heads.qkv_width()]);
        let sinks = given.add(Kind::Trained, &[heads.num_heads]);
        let (sinks, bounds) = (Some(given.weight(sinks)), cu_seqlens.iter().map(|&at| at as u32));
        let sequences = Sequence::packed(&bounds.collect::<Vec<_>>());
        let name = format!("attention with sinks {heads:?}, {cu_seqlens:?}");
        check_op(&name, &mut Attention { given, heads, sinks, sequences });
    }
}

/// Attention's output times the gates that came with its queries, and what it attends to.
struct OutputGate {
    given: Operands,
    heads: Heads,
}

impl OutputGate {
    fn rows(&self) -> GatedRows {
        let Heads { num_heads, num_kv_heads, head_dim, .. } = self.heads;
        GatedRows { num_heads, head_dim, rest: 2 * num_kv_heads * head_dim }
    }

    /// The queries without gates stand for what attention gives.
    fn queries(&self, x: &[f64]) -> Vec<f64> {
        let (rows, qkv) = (self.rows(), output_gate::reference::without_gates(self.rows(), x));
        let queries = qkv.chunks(rows.ungated_width()).flat_map(|row| &row[..rows.queries()]);
        queries.copied().collect()
    }
}

impl Operation for OutputGate {
    fn operands(&self) -> &Operands {
        &self.given
    }
    fn run<'a>(&'a self, tape: &mut Tape<'a>, mut leaves: Vec<Var>) -> Var {
        let x = leaves.remove(0);
        let queries = ops::without_gates(tape, &x, &self.heads);
        ops::gate_output(tape, queries, x, &self.heads)
    }
    fn forward(&self, x: &[Vec<f64>]) -> Vec<f64> {
        output_gate::reference::gate(self.rows(), &self.queries(&x[0]), &x[0])
    }
    fn backward(&self, x: &[Vec<f64>], d_y: &[f64]) -> Vec<Vec<f64>> {
        let (rows, queries) = (self.rows(), self.queries(&x[0]));
        let (d_queries, d_gates) =
            output_gate::reference::gate_backward(rows, &queries, &x[0], d_y);
        let d_x = output_gate::reference::without_gates_backward(rows, &d_queries);
        vec![d_x.iter().zip(d_gates).map(|(a, b)| a + b).collect()]
    }
}

#[test]
fn output_gates_pass() {
    for (t, num_heads, head_dim) in [(1, 1, 2), (5, 3, 6), (40, 2, 32), (150, 4, 20)] {
        // Without keys and values what attention gives is as wide as what it reads.
        let heads = Heads { num_kv_heads: 0, ..heads(num_heads, 1, head_dim) };
        let mut given = Operands::default();
        given.add(Kind::Activation, &[t, 2 * num_heads * head_dim]);
        check_op(&format!("output gate {heads:?}"), &mut OutputGate { given, heads });
    }
}

#[test]
fn keys_and_values_follow_queries_without_gates() {
    let heads = heads(2, 1, 2);
    let (device, params) = (Device::cpu(1), Params::default());
    let mut tape = Tape::inference(&device, &params, Compute::F32);
    let row: Vec<f32> = (0..12).map(|i| i as f32).collect();
    let x = tape.leaf(Tensor::from_f32(&row, &[1, 12]), false);
    let y = ops::without_gates(&mut tape, &x, &heads);
    assert_eq!(y.value().to_vec_f32(), [0.0, 1.0, 4.0, 5.0, 8.0, 9.0, 10.0, 11.0]);
}

struct LogProbs {
    given: Operands,
    weight: Weight,
    bias: Option<Weight>,
    tokens: usize,
    rows: Vec<u32>,
    targets: Vec<u32>,
    logits: Logits,
}

impl LogProbs {
    /// Every row but each `skip`-th has a target.
    fn new(kind: Kind, (tokens, h, v): (usize, usize, usize), skip: u32, input_grad: bool) -> Self {
        let mut given = Operands::default();
        match input_grad {
            true => given.add(Kind::Activation, &[tokens, h]),
            false => given.add_constant(Kind::Activation, &[tokens, h]),
        };
        let weight = given.add(kind, &[v, h]);
        let weight = given.weight(weight);
        let rows: Vec<u32> = (0..tokens as u32).filter(|t| (t + 1) % skip != 0).collect();
        // Both ends of the vocabulary, and both sides of a tile's edge, if there is one at `v - 5`.
        let edges = [0, v - 1, v / 2, v.saturating_sub(6)];
        let target = |t: &u32| (edges[*t as usize % 4] + *t as usize / 4) % v;
        let targets = rows.iter().map(|t| target(t) as u32).collect();
        Self { given, weight, bias: None, tokens, rows, targets, logits: Logits::PLAIN }
    }

    fn with_bias(mut self, kind: Kind) -> Self {
        let bias = self.given.add(kind, &[self.weight.shape()[0]]);
        self.bias = Some(self.given.weight(bias));
        self
    }

    fn head(&self) -> OutputHead<'_> {
        OutputHead { weight: &self.weight, bias: self.bias.as_ref(), logits: self.logits }
    }

    /// Rows with a target and all their logits.
    fn logits(&self, x: &[Vec<f64>]) -> (Vec<f64>, Vec<f64>) {
        let (v, h) = (self.weight.shape()[0], self.weight.shape()[1]);
        let rows = embedding::reference::forward(&x[0], h, &self.rows, 1.0);
        let products = gemm(self.rows.len(), v, h, &rows, &transpose(v, h, &x[1]));
        let mut logits = head::reference::logits(self.logits, &products);
        if let Some(bias) = x.get(2) {
            let rows = logits.chunks_mut(v);
            rows.for_each(|row| row.iter_mut().zip(bias).for_each(|(x, b)| *x += b));
        }
        (rows, logits)
    }
}

impl Operation for LogProbs {
    fn operands(&self) -> &Operands {
        &self.given
    }
    fn weights_mut(&mut self) -> Vec<&mut Weight> {
        [&mut self.weight].into_iter().chain(&mut self.bias).collect()
    }
    fn is_integer_in(&self, compute: Compute, target: Target) -> bool {
        let is_multiple = self.weight.shape()[1].is_multiple_of(4);
        compute == Compute::Int8 && target == Target::Cpu && is_multiple
    }
    fn run<'a>(&'a self, tape: &mut Tape<'a>, mut leaves: Vec<Var>) -> Var {
        let x = leaves.remove(0);
        ops::log_probs(tape, x, self.head(), &self.rows, &self.targets)
    }
    fn forward(&self, x: &[Vec<f64>]) -> Vec<f64> {
        let (_, logits) = self.logits(x);
        let mut y = head::reference::log_probs(&logits, self.weight.shape()[0], &self.targets);
        y.resize(self.tokens, 0.0);
        y
    }
    fn backward(&self, x: &[Vec<f64>], d_y: &[f64]) -> Vec<Vec<f64>> {
        let (v, h, n) = (self.weight.shape()[0], self.weight.shape()[1], self.rows.len());
        let (rows, logits) = self.logits(x);
        let mut d_logits = head::reference::d_logits(&logits, v, &self.targets, &d_y[..n]);
        let d_bias = self.bias.as_ref().map(|bias| match bias.param() {
            Some(_) => (0..v).map(|j| d_logits.iter().skip(j).step_by(v).sum()).collect(),
            None => vec![],
        });
        head::reference::d_products(self.logits, &logits, &mut d_logits);
        let d_rows = gemm(n, h, v, &d_logits, &x[1]);
        let mut d_x = vec![0.0; x[0].len()];
        for (d_row, &row) in d_rows.chunks(h).zip(&self.rows) {
            d_x[row as usize * h..][..h].copy_from_slice(d_row);
        }
        let d_w = match self.weight.param() {
            Some(_) => gemm(v, h, n, &transpose(n, v, &d_logits), &rows),
            None => vec![],
        };
        [d_x, d_w].into_iter().chain(d_bias).collect()
    }
}

fn plain(weight: &Weight) -> OutputHead<'_> {
    OutputHead { weight, bias: None, logits: Logits::PLAIN }
}

#[test]
fn log_probs_passes() {
    for kind in WEIGHT_KINDS {
        for (size, skip) in [((1, 1, 1), 2), ((9, 5, 13), 3), ((9, 6, 389), 3), ((5, 100, 98), 3)] {
            check_op(&format!("log_probs {size:?}"), &mut LogProbs::new(kind, size, skip, true));
        }
        let mut no_targets = LogProbs::new(kind, (4, 3, 5), 1, true);
        assert!(no_targets.rows.is_empty());
        check_op("log_probs of nothing", &mut no_targets);
    }
    for (scale, softcap) in [(0.5, None), (1.0, Some(Softcap(2.0))), (3.0, Some(Softcap(5.0)))] {
        let mut bounded = LogProbs::new(Kind::Trained, (9, 6, 389), 3, true);
        bounded.logits = Logits { scale, softcap };
        check_op(&format!("log_probs, {:?}", bounded.logits), &mut bounded);
    }
    for kind in [Kind::Frozen(DType::F32.into()), Kind::Trained] {
        for size in [(9, 5, 13), (9, 6, 389)] {
            let mut biased = LogProbs::new(kind, size, 3, true).with_bias(kind);
            check_op(&format!("log_probs with a bias {size:?}"), &mut biased);
        }
    }
    check_op("log_probs, weight only", &mut LogProbs::new(Kind::Trained, (9, 5, 13), 3, false));
}

/// A vocabulary of more than one of a GPU's panels.
#[test]
fn log_probs_passes_with_a_large_vocabulary() {
    for kind in WEIGHT_KINDS {
        check_op("log_probs in panels", &mut LogProbs::new(kind, (7, 16, 17_000), 3, true));
    }
}

/// Where a target's probability `p` is nearly one, `log p` and `1 - p` are as exact as elsewhere.
/// The other logits are zero; the second element of the hidden state's gradient is `1 - p`, and so
/// is the first of the weight's gradient for the target.
#[test]
fn what_nearly_certain_targets_lack_is_exact() {
    let devices: Vec<Device> =
        devices().into_iter().chain(Gpu::for_tests().map(Device::cuda)).collect();
    for (v, lacks) in [67, 25_000]
        .into_iter()
        .flat_map(|v| [1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-9].map(|lacks| (v, lacks)))
    {
        let (others, target) = ((v - 1) as f64, v - 2);
        let logit = (others * (1.0 - lacks) / lacks).ln() as f32;
        let mut w = vec![0.0; 2 * v];
        w[2 * target..].copy_from_slice(&[&[logit, 1.0][..], &[0.0, 0.0]].concat());
        let own = f64::from(logit).exp();
        let expected = [-(others / own).ln_1p(), others / (own + others)];
        for device in &devices {
            let hold = |x: &[f32], shape: &[usize]| {
                device.upload(Category::Activations, &Tensor::from_f32(x, shape)).unwrap()
            };
            let mut params = Params::default();
            let param = params.add("weight".into(), hold(&w, &[v, 2]));
            let weight = Weight::Trained { param, shape: vec![v, 2] };
            let mut gradients = Gradients::zeros(device, &params).unwrap();
            let targets = [target as u32];
            let mut tape = Tape::training(device, &params, Compute::F32, None);
            let x = tape.leaf(hold(&[1.0, 0.0], &[1, 2]), true);
            let y = ops::log_probs(&mut tape, x.clone(), plain(&weight), &[0], &targets);
            let log_prob = y.value().to_vec_f32()[0];
            let leaves = tape.backward(y, hold(&[1.0], &[1]), &mut gradients);
            let d_x = leaves.get(&x).expect("x requires a gradient").to_vec_f32();
            let d_w = gradients.get(param).to_vec_f32();
            let found = [log_prob, d_x[1], d_w[2 * target]];
            for (found, exact) in found.into_iter().zip([expected[0], expected[1], expected[1]]) {
                let error = (f64::from(found) / exact - 1.0).abs();
                assert!(error < 1e-5, "{v}, {lacks:e}: {found:e}, not {exact:e}");
            }
        }
    }
}

/// Logits of a vocabulary of more than one panel, which a GPU converts one at a time.
#[test]
fn logits_are_the_same_on_a_gpu() {
    let Some(gpu) = Gpu::for_tests().map(Device::cuda) else { return };
    let (t, h, v) = (3, 16, 17_000);
    let (x, w) = (normals(1, t * h), normals(2, v * h));
    for held in [DType::F32.into(), DType::Bf16.into(), DType::F16.into(), Storage::INT8] {
        let weight = tensor_of(&w, held, &[v, h]);
        let on = |device: &Device| {
            let params = Params::default();
            let mut tape = Tape::inference(device, &params, Compute::F32);
            let held = |x: &Tensor| device.upload(Category::Activations, x).unwrap();
            let (x, weight) = (held(&Tensor::from_f32(&x, &[t, h])), held(&weight));
            ops::logits(&mut tape, &x, plain(&Weight::Frozen(weight))).to_vec_f32()
        };
        let (found, expected) = (on(&gpu), on(&Device::cpu(2)));
        for (found, expected) in found.iter().zip(&expected) {
            assert!((found - expected).abs() < 1e-4, "{held:?}: {found}, on the CPU {expected}");
        }
    }
}

/// In integers; a length that is no multiple of four falls back to floats.
#[test]
fn log_probs_passes_in_integers() {
    for (size, skip) in [((9, 64, 205), 3), ((40, 32, 12_500), 5), ((7, 13, 300), 3)] {
        let mut op = LogProbs::new(Kind::Frozen(Storage::INT8), size, skip, true);
        check_op_in(&[Compute::Int8], &format!("log_probs {size:?}"), &op);
        check_op_on_gpu(Compute::Int8, &format!("log_probs {size:?}"), &mut op);
    }
}

#[test]
fn log_probs_passes_with_more_rows_than_one_chunk() {
    for kind in [Kind::Frozen(Storage::Float(DType::Bf16)), Kind::Trained] {
        check_op("log_probs in chunks", &mut LogProbs::new(kind, (4500, 5, 37), 9, true));
    }
}

#[test]
fn recomputation_passes() {
    let options = Options {
        tokens: 9,
        inputs: 14,
        outputs: vec![3, 8],
        frozen: Some(DType::Bf16.into()),
        bias: Some(true),
        dropout: &[0.4],
        adapters: vec![(0..usize::MAX, 3)],
        residual: false,
        input_grad: true,
    };
    check_op("recomputed linear", &mut Recomputed(Linear::new(&options)));
    let constant = Linear::new(&Options { input_grad: false, ..options });
    check_op("recomputed linear over a constant", &mut Recomputed(constant));
    let rotated = Rotated { dim: 6, interleaved: false };
    check_op("recomputed rope", &mut Recomputed(Rope::new(5, heads(2, 1, 6), rotated, false)));
}
