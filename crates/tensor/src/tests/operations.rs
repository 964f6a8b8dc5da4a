//! Every coarse operation but `linear` in its reference form, and the cases it is checked in.

use super::check_op::{Kind, Operands, Operation, Recomputed, check_op, f64s, normals};
use super::head::LogProbs;
use super::linear::{Linear, Options};
use crate::ops::{self, Angles, RmsNorm, Rotated, Softcap};
use crate::{
    Category, Compute, DType, Device, Heads, Params, Sequence, Storage, Tape, Tensor, Var, Weight,
};
use hone_kernels::cuda::Gpu;
use hone_kernels::format::FORMATS;
use hone_kernels::output_gate::GatedRows;
use hone_kernels::rms_norm::{self, Rows};
use hone_kernels::rope::Direction;
use hone_kernels::{attention, embedding, output_gate, rope, testing};
use std::panic::{AssertUnwindSafe, catch_unwind};

pub(super) const WEIGHT_KINDS: [Kind; 5] = [
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

/// Formats of files, as projections, tables and heads.
#[test]
fn weights_of_files_pass() {
    for format in FORMATS.into_iter().filter(|format| testing::is_of_files(format)) {
        let (frozen, h) = (Storage::Packed(format), 33usize.next_multiple_of(format.block));
        let name = format.name;
        let mut given = Operands::default();
        let (table, norm) =
            (given.add(Kind::Frozen(frozen), &[9, h]), given.add(Kind::Trained, &[h]));
        let (table, norm) = (given.weight(table), given.weight(norm));
        let mut op = FrozenEmbedding { given, table, norm, ids: vec![8, 0, 2, 2] };
        check_op(&format!("embedding in {name}"), &mut op);
        // The wider one's last panel has vectors without a line.
        for h in [h, 128usize.next_multiple_of(format.block)] {
            let mut op = LogProbs::new(Kind::Frozen(frozen), (5, h, 70), 3, true);
            check_op(&format!("log_probs in {name}"), &mut op);
        }
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
