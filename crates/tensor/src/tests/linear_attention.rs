//! Operations of linear attention: the short convolution and the gates before it, the gated norm
//! after it.

use super::check_op::{
    Found, Kind, Operands, Operation, Recomputed, check_op, normals, rounded, tensor_of,
};
use crate::ops::{self, ConvState, DeltaGates, DeltaHeads, DeltaState, Part, ShortConv};
use crate::{
    Category, Compute, DType, Device, Gradients, Params, Sequence, Tape, Tensor, Var, Weight,
};
use hone_kernels::cuda::Gpu;
use hone_kernels::{
    delta_columns, delta_gates, gated_delta_rule, gated_rms_norm, short_conv, testing,
};
use std::ops::Range;

const FROZEN: Kind = Kind::Frozen(crate::Storage::Float(DType::F32));

/// One and two threads, whose instruction set is like the others by `check_op`, and a GPU.
fn some_devices() -> Vec<Device> {
    [1, 2].map(Device::cpu).into_iter().chain(Gpu::for_tests().map(Device::cuda)).collect()
}

/// Columns `part` of rows of `width`.
fn columns(x: &[f64], width: usize, part: &Range<usize>) -> Vec<f64> {
    x.chunks(width).flat_map(|row| &row[part.clone()]).copied().collect()
}

/// Rows of `width` that are zero but for `part`.
fn in_columns(x: &[f64], width: usize, part: &Range<usize>) -> Vec<f64> {
    let row = |x: &[f64]| {
        let mut row = vec![0.0; width];
        row[part.clone()].copy_from_slice(x);
        row
    };
    x.chunks(part.len()).flat_map(row).collect()
}

struct Conv {
    given: Operands,
    weight: Weight,
    bias: Option<Weight>,
    /// Columns of the input that are convolved.
    part: Range<usize>,
    width: usize,
    sequences: Vec<Sequence>,
}

impl Conv {
    /// `[tokens, width]`, of which `part` is convolved with `taps` weights.
    fn new(
        kind: Kind,
        (tokens, width): (usize, usize),
        part: Range<usize>,
        taps: usize,
        cu_seqlens: &[u32],
    ) -> Self {
        let mut given = Operands::default();
        given.add(Kind::Activation, &[tokens, width]);
        let weight = given.add(kind, &[part.len(), taps]);
        let weight = given.weight(weight);
        // Every second width has a bias.
        let bias = taps.is_multiple_of(2).then(|| given.add(kind, &[part.len()]));
        let bias = bias.map(|bias| given.weight(bias));
        Self { given, weight, bias, part, width, sequences: Sequence::packed(cu_seqlens) }
    }

    fn bias(&self, x: &[Vec<f64>]) -> Vec<f64> {
        x.get(2).cloned().unwrap_or_else(|| vec![0.0; self.part.len()])
    }
}

impl Operation for Conv {
    fn operands(&self) -> &Operands {
        &self.given
    }
    fn weights_mut(&mut self) -> Vec<&mut Weight> {
        [&mut self.weight].into_iter().chain(&mut self.bias).collect()
    }
    fn run<'a>(&'a self, tape: &mut Tape<'a>, mut leaves: Vec<Var>) -> Var {
        let x = Part { of: leaves.remove(0), first: self.part.start, count: self.part.len() };
        let conv = ShortConv { weight: &self.weight, bias: self.bias.as_ref() };
        ops::short_conv(tape, x, conv, &self.sequences)
    }
    fn forward(&self, x: &[Vec<f64>]) -> Vec<f64> {
        let part = columns(&x[0], self.width, &self.part);
        short_conv::reference::forward(&part, &x[1], &self.bias(x), &self.sequences)
    }
    fn backward(&self, x: &[Vec<f64>], d_y: &[f64]) -> Vec<Vec<f64>> {
        let (part, bias) = (columns(&x[0], self.width, &self.part), self.bias(x));
        let [d_x, d_weight, d_bias] =
            short_conv::reference::backward(&part, &x[1], &bias, &self.sequences, d_y);
        let mut d = vec![in_columns(&d_x, self.width, &self.part), d_weight];
        d.extend(self.bias.is_some().then_some(d_bias));
        d
    }
}

#[test]
fn short_conv_passes() {
    for kind in [FROZEN, Kind::Trained] {
        for (shape, part, taps, cu_seqlens) in [
            ((1, 1), 0..1, 2, &[0, 1][..]),
            ((9, 5), 1..4, 3, &[0, 1, 3, 8]),
            ((40, 200), 7..190, 4, &[0, 5, 6, 38]),
            ((30, 70), 0..70, 8, &[0, 7, 7, 30]),
        ] {
            let mut conv = Conv::new(kind, shape, part, taps, cu_seqlens);
            check_op(&format!("convolution of {taps}, {cu_seqlens:?}"), &mut conv);
        }
    }
    let conv = Conv::new(FROZEN, (12, 20), 2..19, 4, &[0, 9, 11]);
    check_op("recomputed convolution", &mut Recomputed(conv));
}

struct GatedNorm {
    given: Operands,
    weight: Weight,
    /// Columns of the gates.
    gates: Range<usize>,
    width: usize,
}

const EPS: f32 = 1e-6;

impl Operation for GatedNorm {
    fn operands(&self) -> &Operands {
        &self.given
    }
    fn weights_mut(&mut self) -> Vec<&mut Weight> {
        vec![&mut self.weight]
    }
    fn run<'a>(&'a self, tape: &mut Tape<'a>, mut leaves: Vec<Var>) -> Var {
        let x = leaves.remove(0);
        let z = Part { of: leaves.remove(0), first: self.gates.start, count: self.gates.len() };
        ops::gated_rms_norm(tape, x, z, &self.weight, EPS)
    }
    fn forward(&self, x: &[Vec<f64>]) -> Vec<f64> {
        let z = columns(&x[1], self.width, &self.gates);
        gated_rms_norm::reference::forward(&x[0], &z, &x[2], f64::from(EPS))
    }
    fn backward(&self, x: &[Vec<f64>], d_y: &[f64]) -> Vec<Vec<f64>> {
        let z = columns(&x[1], self.width, &self.gates);
        let eps = f64::from(EPS);
        let [d_x, d_z, d_w] = gated_rms_norm::reference::backward(&x[0], &z, &x[2], eps, d_y);
        vec![d_x, in_columns(&d_z, self.width, &self.gates), d_w]
    }
}

#[test]
fn gated_rms_norm_passes() {
    for (t, heads, h, first, width) in
        [(1, 1, 16, 0, 16), (9, 3, 7, 2, 30), (130, 2, 40, 5, 90), (2, 4, 128, 0, 512)]
    {
        for (kind, constant) in [(FROZEN, false), (Kind::Trained, false), (Kind::Trained, true)] {
            let mut given = Operands::default();
            let gates = first..first + heads * h;
            match constant {
                false => [gates.len(), width].map(|n| given.add(Kind::Activation, &[t, n])),
                true => [gates.len(), width].map(|n| given.add_constant(Kind::Activation, &[t, n])),
            };
            let weight = given.add(kind, &[h]);
            let weight = given.weight(weight);
            let case = format!("gated norm of {heads} heads of {h}, {t} tokens");
            check_op(&case, &mut GatedNorm { given, weight, gates, width });
        }
    }
}

struct Gates {
    given: Operands,
    a_log: Weight,
    dt_bias: Weight,
    part: Range<usize>,
    width: usize,
}

impl Operation for Gates {
    fn operands(&self) -> &Operands {
        &self.given
    }
    fn weights_mut(&mut self) -> Vec<&mut Weight> {
        vec![&mut self.a_log, &mut self.dt_bias]
    }
    fn run<'a>(&'a self, tape: &mut Tape<'a>, mut leaves: Vec<Var>) -> Var {
        let b_a = Part { of: leaves.remove(0), first: self.part.start, count: self.part.len() };
        let of = DeltaGates { a_log: &self.a_log, dt_bias: &self.dt_bias };
        ops::delta_gates(tape, b_a, of)
    }
    fn forward(&self, x: &[Vec<f64>]) -> Vec<f64> {
        delta_gates::reference::forward(&columns(&x[0], self.width, &self.part), &x[1], &x[2])
    }
    fn backward(&self, x: &[Vec<f64>], d_y: &[f64]) -> Vec<Vec<f64>> {
        let b_a = columns(&x[0], self.width, &self.part);
        let [d_b_a, d_a_log, d_dt_bias] = delta_gates::reference::backward(&b_a, &x[1], &x[2], d_y);
        vec![in_columns(&d_b_a, self.width, &self.part), d_a_log, d_dt_bias]
    }
}

#[test]
fn delta_gates_passes() {
    for (t, heads, first, width) in [(1, 1, 0, 2), (7, 3, 2, 11), (600, 5, 0, 10)] {
        for (kind, constant) in [(FROZEN, false), (Kind::Trained, false), (Kind::Trained, true)] {
            let mut given = Operands::default();
            match constant {
                false => given.add(Kind::Activation, &[t, width]),
                true => given.add_constant(Kind::Activation, &[t, width]),
            };
            let [a_log, dt_bias] = [0, 1].map(|_| given.add(kind, &[heads]));
            let [a_log, dt_bias] = [a_log, dt_bias].map(|weight| given.weight(weight));
            let part = first..first + 2 * heads;
            let case = format!("gates of {heads} heads, {t} tokens");
            check_op(&case, &mut Gates { given, a_log, dt_bias, part, width });
        }
    }
}

struct Columns {
    given: Operands,
    heads: DeltaHeads,
}

impl Operation for Columns {
    fn operands(&self) -> &Operands {
        &self.given
    }
    fn run<'a>(&'a self, tape: &mut Tape<'a>, mut leaves: Vec<Var>) -> Var {
        ops::delta_columns(tape, leaves.remove(0), &self.heads)
    }
    fn forward(&self, x: &[Vec<f64>]) -> Vec<f64> {
        delta_columns::reference::forward(&self.heads, &x[0])
    }
    fn backward(&self, _: &[Vec<f64>], d_y: &[f64]) -> Vec<Vec<f64>> {
        vec![delta_columns::reference::backward(&self.heads, d_y)]
    }
}

#[test]
fn delta_columns_pass() {
    for (t, heads) in [(1, delta_heads(1, 1, 1, 1)), (9, delta_heads(3, 6, 4, 5))] {
        let mut given = Operands::default();
        given.add(Kind::Activation, &[t, delta_columns::width(&heads)]);
        check_op(&format!("columns of {heads:?}, {t} tokens"), &mut Columns { given, heads });
    }
    // Two key heads, of one dimension, with two value heads of one dimension each.
    let heads = delta_heads(2, 4, 1, 1);
    let row: Vec<f64> = (0..20).map(f64::from).collect();
    let expected = [0, 6, 1, 7, 2, 3, 8, 9, 4, 5, 10, 11, 12, 13, 16, 17, 14, 15, 18, 19];
    assert_eq!(delta_columns::reference::forward(&heads, &row), expected.map(f64::from));
}

struct DeltaRule {
    given: Operands,
    a_log: Weight,
    dt_bias: Weight,
    heads: DeltaHeads,
    sequences: Vec<Sequence>,
}

/// Key heads, value heads, and their dimensions.
fn delta_heads(keys: usize, values: usize, key_dim: usize, value_dim: usize) -> DeltaHeads {
    DeltaHeads { num_key_heads: keys, num_value_heads: values, key_dim, value_dim }
}

impl DeltaRule {
    fn new(heads: DeltaHeads, cu_seqlens: &[u32], padding: usize) -> Self {
        let sequences = Sequence::packed(cu_seqlens);
        let tokens = cu_seqlens[cu_seqlens.len() - 1] as usize + padding;
        let mut given = Operands::default();
        given.add(Kind::Activation, &[tokens, heads.qkv_width()]);
        given.add(Kind::Activation, &[tokens, 2 * heads.num_value_heads]);
        let num = heads.num_value_heads;
        // Rates from 0.01 to 16, as models begin with.
        let rate = |h: usize| 0.01 * 1600f32.powf((h + 1) as f32 / (num + 1) as f32);
        let a_log = given.add_with(FROZEN, &[num], |h, _| rate(h).ln());
        let dt_bias = given.add_with(FROZEN, &[num], |_, x| x - 3.0);
        let [a_log, dt_bias] = [a_log, dt_bias].map(|weight| given.weight(weight));
        Self { given, a_log, dt_bias, heads, sequences }
    }
}

/// With gates from their own operation: numbers of a normal distribution are none.
impl Operation for DeltaRule {
    fn operands(&self) -> &Operands {
        &self.given
    }
    fn weights_mut(&mut self) -> Vec<&mut Weight> {
        vec![&mut self.a_log, &mut self.dt_bias]
    }
    fn run<'a>(&'a self, tape: &mut Tape<'a>, mut leaves: Vec<Var>) -> Var {
        let qkv = leaves.remove(0);
        let of = DeltaGates { a_log: &self.a_log, dt_bias: &self.dt_bias };
        let gates = ops::delta_gates(tape, Part::whole(leaves.remove(0)), of);
        ops::gated_delta_rule(tape, qkv, gates, &self.heads, &self.sequences)
    }
    fn forward(&self, x: &[Vec<f64>]) -> Vec<f64> {
        let gates = delta_gates::reference::forward(&x[1], &x[2], &x[3]);
        gated_delta_rule::reference::forward(&x[0], &gates, &self.heads, &self.sequences)
    }
    fn backward(&self, x: &[Vec<f64>], d_y: &[f64]) -> Vec<Vec<f64>> {
        let gates = delta_gates::reference::forward(&x[1], &x[2], &x[3]);
        let [d_qkv, d_gates] =
            gated_delta_rule::reference::backward(&x[0], &gates, &self.heads, &self.sequences, d_y);
        let [d_b_a, ..] = delta_gates::reference::backward(&x[1], &x[2], &x[3], &d_gates);
        vec![d_qkv, d_b_a, vec![], vec![]]
    }
}

#[test]
fn gated_delta_rule_passes() {
    for (heads, cu_seqlens, padding) in [
        (delta_heads(2, 4, 32, 40), &[0, 1][..], 0),
        (delta_heads(1, 2, 6, 3), &[0, 63], 0),
        (delta_heads(1, 1, 16, 24), &[0, 64], 2),
        (delta_heads(1, 2, 128, 128), &[0, 3], 0),
        (delta_heads(2, 2, 5, 7), &[0, 1, 66], 0),
        (delta_heads(2, 4, 8, 16), &[0, 200, 263, 264], 3),
        (delta_heads(1, 2, 8, 4), &[0, 577], 0),
    ] {
        let case = format!("{heads:?}, {cu_seqlens:?} + {padding}");
        check_op(&case, &mut DeltaRule::new(heads, cu_seqlens, padding));
    }
}

/// Standard normal rows of one sequence.
fn rows_of(sequence: usize, dtype: DType, width: usize, range: Range<usize>) -> Vec<f32> {
    let values = rounded(&normals(30 + sequence as u64, 600 * width), dtype);
    values[range.start * width..range.end * width].to_vec()
}

/// The next rows of some sequences, which `done` says how many of went before; with rows of none.
struct Pass {
    sequences: Vec<Sequence>,
    slots: Vec<u32>,
    /// The rows of each sequence.
    ranges: Vec<(usize, Range<usize>)>,
}

impl Pass {
    fn new(done: &mut [usize], pieces: &[usize]) -> Self {
        let mut pass = Self { sequences: vec![], slots: vec![], ranges: vec![] };
        let mut q_start = 0;
        for (i, &q_len) in pieces.iter().enumerate().filter(|(_, piece)| **piece > 0) {
            let (k_start, k_len) = (q_start, done[i] + q_len);
            pass.sequences.push(Sequence { q_start, q_len, k_start, k_len });
            // Another order than that of the sequences.
            pass.slots.push((pieces.len() - 1 - i) as u32);
            pass.ranges.push((i, done[i]..done[i] + q_len));
            q_start += q_len;
            done[i] += q_len;
        }
        pass
    }

    /// The rows in this pass of what has `width` columns, and two more.
    fn rows(&self, device: &Device, dtype: DType, width: usize) -> Tensor {
        let rows = |(i, range): &(usize, Range<usize>)| rows_of(*i, dtype, width, range.clone());
        let mut values: Vec<f32> = self.ranges.iter().flat_map(rows).collect();
        values.extend(vec![0.5; 2 * width]);
        let values = tensor_of(&values, dtype, &[values.len() / width, width]);
        device.upload(Category::Activations, &values).unwrap()
    }

    /// Hands the rows of `y` to their sequences.
    fn hand_out(&self, device: &Device, y: &Tensor, found: &mut [Vec<f32>]) {
        let width = y.shape()[1];
        let mut y = Found::new(device, y).values;
        for (i, range) in &self.ranges {
            found[*i].extend(y.drain(..range.len() * width));
        }
        assert!(y.iter().all(|&x| x == 0.0), "padding gives zeros");
    }
}

/// In three sequences: one by one, in pieces, and one that begins late; across ends of chunks.
const STEPS: [[usize; 3]; 8] =
    [[1, 0, 70], [1, 63, 0], [1, 1, 57], [2, 1, 1], [61, 0, 1], [1, 3, 0], [0, 60, 70], [1, 1, 1]];

#[test]
fn a_convolution_that_goes_on_gives_the_bits_of_the_whole() {
    for (device, taps) in some_devices().iter().flat_map(|d| [2, 4].map(|taps| (d, taps))) {
        for compute in [Compute::F32, Compute::Bf16] {
            let (channels, params, dtype) = (70, Params::default(), compute.dtype());
            let hold = |stream, shape: &[usize]| {
                let values = normals(stream, shape.iter().product());
                let held = tensor_of(&values, DType::F32, shape);
                Weight::Frozen(device.upload(Category::Weights, &held).unwrap())
            };
            let (weight, bias) = (hold(1, &[channels, taps]), hold(2, &[channels]));
            let conv = ShortConv { weight: &weight, bias: Some(&bias) };
            let mut state = ConvState::new(device, dtype, conv, 3).unwrap();
            let (mut done, mut found) = ([0; 3], vec![vec![]; 3]);
            for pieces in STEPS {
                let pass = Pass::new(&mut done, &pieces);
                let mut tape = Tape::inference(device, &params, compute);
                let x = tape.leaf(pass.rows(device, dtype, channels), false);
                let of = (&pass.sequences[..], &pass.slots[..]);
                let y = ops::short_conv_step(&mut tape, Part::whole(x), conv, of, &mut state);
                pass.hand_out(device, y.value(), &mut found);
            }
            // All at once, packed.
            let whole = Pass::new(&mut [0; 3], &done);
            let mut tape = Tape::inference(device, &params, compute);
            let x = tape.leaf(whole.rows(device, dtype, channels), false);
            let y = ops::short_conv(&mut tape, Part::whole(x), conv, &whole.sequences);
            let mut expected = vec![vec![]; 3];
            whole.hand_out(device, y.value(), &mut expected);
            assert!(found == expected, "{taps} in {compute:?}");
        }
    }
}

#[test]
fn a_delta_rule_that_goes_on_gives_the_bits_of_the_whole() {
    let heads = delta_heads(2, 4, 10, 7);
    let (params, num) = (Params::default(), heads.num_value_heads);
    let [a, b, c] = std::array::from_fn(|i| STEPS.iter().map(|pieces| pieces[i]).sum::<usize>());
    // Packed, and alone.
    let wholes =
        [[a, b, c], [a, 0, 0], [0, b, 0], [0, 0, c]].map(|pieces| Pass::new(&mut [0; 3], &pieces));
    for (device, compute) in
        some_devices().iter().flat_map(|d| [Compute::F32, Compute::Bf16].map(|c| (d, c)))
    {
        let dtype = compute.dtype();
        let hold = |shift: f32| {
            let values: Vec<f32> = (0..num).map(|h| shift - h as f32).collect();
            let held = tensor_of(&values, DType::F32, &[num]);
            Weight::Frozen(device.upload(Category::Weights, &held).unwrap())
        };
        let (a_log, dt_bias) = (hold(1.0), hold(-1.0));
        let of = DeltaGates { a_log: &a_log, dt_bias: &dt_bias };
        let inputs = |pass: &Pass| {
            let mut tape = Tape::inference(device, &params, compute);
            let qkv = tape.leaf(pass.rows(device, dtype, heads.qkv_width()), false);
            let b_a = tape.leaf(pass.rows(device, dtype, 2 * num), false);
            let gates = ops::delta_gates(&mut tape, Part::whole(b_a), of);
            (tape, qkv, gates)
        };
        let mut state = DeltaState::new(device, dtype, &heads, 3).unwrap();
        let (mut done, mut found) = ([0; 3], vec![vec![]; 3]);
        for pieces in STEPS {
            let pass = Pass::new(&mut done, &pieces);
            let (mut tape, qkv, gates) = inputs(&pass);
            let of = (&pass.sequences[..], &pass.slots[..]);
            let y = ops::gated_delta_rule_step(&mut tape, qkv, gates, &heads, of, &mut state);
            pass.hand_out(device, y.value(), &mut found);
        }
        for whole in &wholes {
            let (mut tape, qkv, gates) = inputs(whole);
            let y = ops::gated_delta_rule(&mut tape, qkv, gates, &heads, &whole.sequences);
            let mut expected = vec![vec![]; 3];
            whole.hand_out(device, y.value(), &mut expected);
            for (found, expected) in found.iter().zip(expected).filter(|(_, x)| !x.is_empty()) {
                assert!(*found == expected, "{compute:?} in {:?}", whole.sequences);
            }
        }
    }
}

/// Gradients of the rows of `pass`, through convolution, gates and delta rule, which the backward
/// pass may run again.
fn gradients_of(device: &Device, pass: &Pass, compute: Compute, again: bool) -> Vec<Vec<f32>> {
    let (heads, params, dtype) = (delta_heads(2, 4, 10, 7), Params::default(), compute.dtype());
    let (width, num) = (heads.qkv_width(), heads.num_value_heads);
    let hold = |stream, shape: &[usize]| {
        let values = normals(stream, shape.iter().product());
        let held = tensor_of(&values, DType::F32, shape);
        Weight::Frozen(device.upload(Category::Weights, &held).unwrap())
    };
    let (weight, a_log, dt_bias) = (hold(1, &[width, 4]), hold(2, &[num]), hold(3, &[num]));
    let conv = ShortConv { weight: &weight, bias: None };
    let of = DeltaGates { a_log: &a_log, dt_bias: &dt_bias };
    let mut tape = Tape::training(device, &params, compute, None);
    // One projection has all of them.
    let x = tape.leaf(pass.rows(device, dtype, width + 2 * num), true);
    let y = match again {
        true => {
            tape.recompute(x.clone(), move |tape, x| delta_block(tape, x, conv, of, &heads, pass))
        }
        false => delta_block(&mut tape, x.clone(), conv, of, &heads, pass),
    };
    let d_y = pass.rows(device, dtype, heads.out_width());
    let leaves = tape.backward(y, d_y, &mut Gradients::default());
    let mut found = vec![vec![]; 3];
    pass.hand_out(device, leaves.get(&x).expect("x requires a gradient"), &mut found);
    found
}

fn delta_block<'a>(
    tape: &mut Tape<'a>,
    x: Var,
    conv: ShortConv<'a>,
    of: DeltaGates<'a>,
    heads: &DeltaHeads,
    pass: &'a Pass,
) -> Var {
    let (width, num) = (heads.qkv_width(), heads.num_value_heads);
    let qkv = Part { of: x.clone(), first: 0, count: width };
    let qkv = ops::short_conv(tape, qkv, conv, &pass.sequences);
    let gates = ops::delta_gates(tape, Part { of: x, first: width, count: 2 * num }, of);
    ops::gated_delta_rule(tape, qkv, gates, heads, &pass.sequences)
}

#[test]
fn rows_have_the_same_gradients_in_any_company_and_if_recomputed() {
    // The last is longer than the chunks whose states are computed together.
    let lengths = testing::cases(&[65, 130, 600], &[65, 577]);
    let none = || vec![0; lengths.len()];
    for (device, compute) in
        some_devices().iter().flat_map(|d| [Compute::F32, Compute::Bf16].map(|c| (d, c)))
    {
        let packed = gradients_of(device, &Pass::new(&mut none(), lengths), compute, true);
        for (i, &length) in lengths.iter().enumerate() {
            let mut alone = none();
            alone[i] = length;
            let found = gradients_of(device, &Pass::new(&mut none(), &alone), compute, false);
            assert!(found[i] == packed[i], "{compute:?}: a row of {length}");
        }
    }
}
