//! `linear` in its reference form, and the cases it is checked in.

use super::check_op::{
    Found, Kind, Operands, Operation, STEP, check_op, check_op_in, check_op_on_gpu, normals,
    tensor_of,
};
use crate::{
    AdapterId, AdapterRows, Category, Compute, DType, Device, Gradients, Lora, Philox, Projection,
    StepKey, Storage, Tape, Target, Var, Weight, ops,
};
use hone_kernels::cuda::Gpu;
use hone_kernels::dropout::Mask;
use hone_kernels::gemm::reference::{gemm, transpose};
use hone_kernels::testing;
use std::ops::Range;

/// Which operands a projection consists of.
struct Parts {
    weight: usize,
    bias: Option<usize>,
    /// `A` and `B` of each adapter.
    adapters: Vec<(usize, usize)>,
}

pub struct Linear {
    given: Operands,
    tokens: usize,
    residual: Option<usize>,
    parts: Vec<Parts>,
    projections: Vec<Projection>,
    adapter_rows: Vec<AdapterRows>,
}

/// What a case of [`Linear`] has.
#[derive(Clone, Debug)]
pub struct Options {
    pub tokens: usize,
    pub inputs: usize,
    pub outputs: Vec<usize>,
    pub frozen: Option<Storage>,
    /// `None`: no bias; otherwise whether it is trained.
    pub bias: Option<bool>,
    /// Of the adapters of each projection in turn; empty: no adapters.
    pub dropout: &'static [f32],
    /// Rows and rank of each adapter.
    pub adapters: Vec<(Range<usize>, usize)>,
    pub residual: bool,
    pub input_grad: bool,
}

impl Linear {
    pub fn new(options: &Options) -> Self {
        let Options { tokens, inputs, outputs, .. } = options;
        let mut given = Operands::default();
        match options.input_grad {
            true => given.add(Kind::Activation, &[*tokens, *inputs]),
            false => given.add_constant(Kind::Activation, &[*tokens, *inputs]),
        };
        let shape = [*tokens, outputs.iter().sum()];
        let residual = options.residual.then(|| given.add(Kind::Stream, &shape));
        let parts: Vec<Parts> =
            outputs.iter().map(|&n| Parts::new(&mut given, options, n)).collect();
        let projection = |(i, parts): (usize, &Parts)| parts.projection(&given, options, i);
        let projections = parts.iter().enumerate().map(projection).collect();
        let adapter_rows = adapter_rows(options);
        Self { given, tokens: *tokens, residual, parts, projections, adapter_rows }
    }

    /// A projection's adapters: each with its operands `A` and `B`, its rows and its dropout.
    fn adapters<'s>(
        &'s self,
        parts: &'s Parts,
        projection: &'s Projection,
    ) -> impl Iterator<Item = (&'s Lora, (usize, usize), Range<usize>, StepKey)> {
        let pairs = projection.adapters.iter().zip(&parts.adapters).zip(&self.adapter_rows);
        pairs.map(|((lora, &operands), AdapterRows { rows, dropout, .. })| {
            let rows = rows.start.min(self.tokens)..rows.end.min(self.tokens);
            (lora, operands, rows, dropout.expect("every case has a step"))
        })
    }
}

/// What the adapter's input is multiplied by.
pub fn factors(lora: &Lora, step: StepKey, len: usize) -> Vec<f64> {
    // Part of the file format of a run: resuming must draw the same numbers.
    let stream = step.step << 32 | u64::from(step.micro_batch) << 16 | u64::from(lora.stream);
    let mask = Mask { random: Philox::new(step.seed, stream), probability: lora.dropout };
    (0..len).map(|i| f64::from(mask.factor(i))).collect()
}

/// Dropped input `[t, k]` and `scale · dropped · Aᵀ`.
fn down(lora: &Lora, step: StepKey, t: usize, input: &[f64], a: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let k = a.len() / lora.rank;
    let dropped = product(input, &factors(lora, step, input.len()));
    let u = gemm(t, lora.rank, k, &dropped, &transpose(lora.rank, k, a));
    (dropped, u.iter().map(|u| u * f64::from(lora.scale)).collect())
}

/// Adapters in turn, each with micro-batches of its own.
fn adapter_rows(options: &Options) -> Vec<AdapterRows> {
    let of = |(i, (rows, _)): (u32, &(Range<usize>, usize))| AdapterRows {
        rows: rows.clone(),
        adapter: AdapterId(i),
        dropout: Some(StepKey { micro_batch: STEP.micro_batch + 3 * i, ..STEP }),
    };
    (0..).zip(&options.adapters).map(of).collect()
}

impl Parts {
    fn new(given: &mut Operands, options: &Options, n: usize) -> Self {
        let kind = options.frozen.map_or(Kind::Trained, Kind::Frozen);
        let weight = given.add(kind, &[n, options.inputs]);
        let bias = options.bias.map(|trained| {
            given.add(
                if trained { Kind::Trained } else { Kind::Frozen(Storage::Float(DType::F32)) },
                &[n],
            )
        });
        let mut adapter = |&(_, rank): &(Range<usize>, usize)| {
            let a = given.add(Kind::Trained, &[rank, options.inputs]);
            (a, given.add(Kind::Trained, &[n, rank]))
        };
        let described = options.adapters.iter().filter(|_| !options.dropout.is_empty());
        let adapters = described.map(&mut adapter).collect();
        Self { weight, bias, adapters }
    }

    fn projection(&self, given: &Operands, options: &Options, index: usize) -> Projection {
        let lora = |(id, (&(a, b), (_, rank))): (u32, (&(usize, usize), &(_, usize)))| Lora {
            id: AdapterId(id),
            a: given.param(a),
            b: given.param(b),
            rank: *rank,
            scale: 0.75 + id as f32,
            dropout: options.dropout[index % options.dropout.len()],
            stream: 40 + index as u32,
        };
        let adapters = (0..).zip(self.adapters.iter().zip(&options.adapters)).map(lora).collect();
        let bias = self.bias.map(|bias| given.weight(bias));
        Projection { weight: given.weight(self.weight), bias, adapters }
    }
}

/// One adapter for all rows.
fn one_adapter() -> Vec<(Range<usize>, usize)> {
    vec![(0..usize::MAX, 3)]
}

impl Operation for Linear {
    fn operands(&self) -> &Operands {
        &self.given
    }

    fn weights_mut(&mut self) -> Vec<&mut Weight> {
        let mut weights = Vec::new();
        for Projection { weight, bias, .. } in &mut self.projections {
            weights.push(weight);
            weights.extend(bias);
        }
        weights
    }

    fn run<'a>(&'a self, tape: &mut Tape<'a>, leaves: Vec<Var>) -> Var {
        tape.set_adapter_rows(&self.adapter_rows);
        ops::round_adapters(tape, std::iter::once(&self.projections[..]));
        let mut leaves = leaves.into_iter();
        let x = leaves.next().expect("the input comes first");
        ops::linear(tape, x, &self.projections, leaves.next())
    }

    fn is_integer_in(&self, compute: Compute, target: Target) -> bool {
        let all_by = |at_a_time: usize| {
            move |p: &Projection| p.weight.shape().iter().all(|n| n.is_multiple_of(at_a_time))
        };
        match (compute, target) {
            (Compute::Int8, Target::Cpu) => self.projections.iter().any(all_by(4)),
            (Compute::Int8 | Compute::Fp8, Target::Cuda) => self.projections.iter().all(all_by(16)),
            _ => false,
        }
    }

    fn forward(&self, x: &[Vec<f64>]) -> Vec<f64> {
        let (t, k) = (self.tokens, x[0].len() / self.tokens);
        let mut columns = Vec::new();
        for (parts, projection) in self.parts.iter().zip(&self.projections) {
            let n = projection.out_features();
            let mut y = gemm(t, n, k, &x[0], &transpose(n, k, &x[parts.weight]));
            if let Some(bias) = parts.bias {
                y.iter_mut().enumerate().for_each(|(i, y)| *y += x[bias][i % n]);
            }
            for (lora, (a, b), rows, step) in self.adapters(parts, projection) {
                let (t, r) = (rows.len(), lora.rank);
                let (_, u) = down(lora, step, t, &x[0][rows.start * k..rows.end * k], &x[a]);
                let part = &mut y[rows.start * n..rows.end * n];
                add(part, &gemm(t, n, r, &u, &transpose(n, r, &x[b])));
            }
            columns.push((n, y));
        }
        let mut y = side_by_side(t, &columns);
        if let Some(residual) = self.residual {
            add(&mut y, &x[residual]);
        }
        y
    }

    fn backward(&self, x: &[Vec<f64>], d_y: &[f64]) -> Vec<Vec<f64>> {
        let (t, k) = (self.tokens, x[0].len() / self.tokens);
        let mut d = vec![Vec::new(); x.len()];
        d[0] = vec![0.0; t * k];
        if let Some(residual) = self.residual {
            d[residual] = d_y.to_vec();
        }
        let mut col = 0;
        for (parts, projection) in self.parts.iter().zip(&self.projections) {
            let n = projection.out_features();
            let d_y = columns(t, d_y, col, n);
            let d_y_t = transpose(t, n, &d_y);
            col += n;
            add(&mut d[0], &gemm(t, k, n, &d_y, &x[parts.weight]));
            if projection.weight.param().is_some() {
                d[parts.weight] = gemm(n, k, t, &d_y_t, &x[0]);
            }
            if let Some(bias) = parts.bias.filter(|_| trained(&projection.bias)) {
                d[bias] = gemm(n, 1, t, &d_y_t, &vec![1.0; t]);
            }
            for (lora, (a, b), rows, step) in self.adapters(parts, projection) {
                let (t, r) = (rows.len(), lora.rank);
                let input = &x[0][rows.start * k..rows.end * k];
                let (dropped, u) = down(lora, step, t, input, &x[a]);
                let d_y = &d_y[rows.start * n..rows.end * n];
                d[b] = gemm(n, r, t, &transpose(t, n, d_y), &u);
                let d_u: Vec<f64> = gemm(t, r, n, d_y, &x[b]);
                let d_u: Vec<f64> = d_u.iter().map(|d| d * f64::from(lora.scale)).collect();
                d[a] = gemm(r, k, t, &transpose(t, r, &d_u), &dropped);
                let d_dropped = product(&gemm(t, k, r, &d_u, &x[a]), &factors(lora, step, t * k));
                add(&mut d[0][rows.start * k..rows.end * k], &d_dropped);
            }
        }
        d
    }
}

fn trained(weight: &Option<Weight>) -> bool {
    weight.as_ref().is_some_and(|w| w.param().is_some())
}

fn add(x: &mut [f64], y: &[f64]) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
}

fn product(x: &[f64], y: &[f64]) -> Vec<f64> {
    x.iter().zip(y).map(|(x, y)| x * y).collect()
}

/// Columns `col..col + n` of a matrix with `t` rows.
fn columns(t: usize, x: &[f64], col: usize, n: usize) -> Vec<f64> {
    x.chunks(x.len() / t).flat_map(|row| row[col..col + n].to_vec()).collect()
}

fn side_by_side(t: usize, parts: &[(usize, Vec<f64>)]) -> Vec<f64> {
    let row = |i: usize| parts.iter().flat_map(move |(n, y)| y[i * n..(i + 1) * n].to_vec());
    (0..t).flat_map(row).collect()
}

/// Storages whose rows may have any length; [`testing::is_of_files`] has others.
fn held_without_blocks() -> impl Iterator<Item = Option<Storage>> {
    let storages = Storage::NAMES.into_iter().map(Storage::from_name);
    storages
        .filter(|of| !matches!(of, Some(Storage::Packed(format)) if testing::is_of_files(format)))
}

#[test]
fn linear_passes_in_every_combination() {
    let storages = held_without_blocks();
    // No loop below has five cases, so that a fifth of the combinations holds every pair of them.
    let mut number = 0;
    for frozen in storages.chain([None]) {
        for bias in [None, Some(false), Some(true)] {
            for dropout in [&[][..], &[0.0], &[0.3]] {
                for (residual, input_grad) in
                    [(false, true), (true, true), (false, false), (true, false)]
                {
                    for outputs in [vec![5], vec![4, 1, 9]] {
                        let options = Options {
                            tokens: 6,
                            inputs: 13,
                            outputs,
                            frozen,
                            bias,
                            dropout,
                            adapters: one_adapter(),
                            residual,
                            input_grad,
                        };
                        number += 1;
                        if testing::is_sampled(number, 5) {
                            check_linear(&options);
                        }
                    }
                }
            }
        }
    }
}

fn check_linear(options: &Options) {
    let mut linear = Linear::new(options);
    let trained = linear.projections.iter().any(Projection::is_trained);
    // Otherwise there is no gradient at all.
    if trained || options.residual || options.input_grad {
        check_op(&format!("{options:?}"), &mut linear);
    }
}

#[test]
fn linear_passes_in_odd_sizes() {
    for (tokens, inputs, outputs) in [
        (1, 1, vec![1]),
        (1, 70, vec![33, 2]),
        (97, 65, vec![130]),
        (200, 33, vec![64, 16, 16]),
        (3, 600, vec![7]),
    ] {
        check_linear(&Options {
            tokens,
            inputs,
            outputs,
            frozen: Some(DType::Bf16.into()),
            bias: Some(true),
            dropout: &[0.1],
            adapters: one_adapter(),
            residual: tokens % 2 == 1,
            input_grad: true,
        });
    }
}

/// Int8 weights with int8 products, or FP8 on a GPU: with and without adapters, for one projection
/// and several; sizes that are not multiples of 4, or 16, fall back to floats.
#[test]
fn linear_passes_with_8_bit_operands() {
    let sizes = [
        (6, 16, vec![8]),
        (97, 64, vec![132]),
        (70, 576, vec![64, 16, 16]),
        (33, 80, vec![32, 6, 48]),
        (64, 32, vec![1280]),
        (5, 13, vec![6]),
        (8, 16, vec![6, 8]),
        (9, 4100, vec![8, 4]),
    ];
    for (i, (tokens, inputs, outputs)) in sizes.into_iter().enumerate() {
        for (j, dropout) in [&[][..], &[0.0], &[0.1]].into_iter().enumerate() {
            if !testing::is_sampled(i + j, 3) {
                continue;
            }
            let options = Options {
                tokens,
                inputs,
                outputs: outputs.clone(),
                frozen: Some(Storage::INT8),
                bias: Some(true),
                dropout,
                adapters: one_adapter(),
                residual: tokens % 2 == 1,
                input_grad: true,
            };
            let (name, mut op) = (format!("{options:?}"), Linear::new(&options));
            check_op_in(&[Compute::Int8], &name, &op);
            check_op_on_gpu(Compute::Int8, &name, &mut op);
            check_op_on_gpu(Compute::Fp8, &name, &mut op);
        }
    }
}

/// Of different ranks, one without rows, and rows without an adapter.
fn several_adapters() -> Vec<(Range<usize>, usize)> {
    vec![(0..3, 3), (3..3, 2), (5..41, 8), (41..90, 1)]
}

#[test]
fn linear_passes_with_adapters_of_some_rows() {
    for storage in held_without_blocks() {
        // Where projections drop differently, some gradients of the input are masked, others not.
        for dropout in [&[0.0][..], &[0.3], &[0.3, 0.0], &[0.3, 0.0, 0.0]] {
            if dropout.len() > 1 && storage != Some(DType::Bf16.into()) {
                continue;
            }
            check_linear(&Options {
                tokens: 97,
                inputs: 32,
                outputs: if dropout.len() > 2 { vec![16, 48, 8] } else { vec![16, 48] },
                frozen: storage,
                bias: Some(false),
                dropout,
                adapters: several_adapters(),
                residual: dropout == [0.0],
                input_grad: true,
            });
        }
    }
}

/// Adapters in one pass give the same bits as each alone, and so do rows without one.
#[test]
fn company_of_other_adapters_changes_no_bit() {
    let (some, long) = (several_adapters(), vec![(0..100, 4), (100..1290, 3)]);
    for frozen in held_without_blocks() {
        for (tokens, adapters, dropout, residual) in [
            (97, &some, &[0.0][..], false),
            (97, &some, &[0.3], true),
            (97, &some, &[0.3, 0.0], false),
            (97, &some, &[0.3, 0.0, 0.0], true),
            (1300, &long, &[0.3], true),
        ] {
            if tokens > 1000 && frozen != Some(DType::Bf16.into()) {
                continue;
            }
            check_company(&Options {
                tokens,
                inputs: 32,
                outputs: vec![16, 4, 48],
                frozen,
                bias: Some(false),
                dropout,
                adapters: adapters.clone(),
                residual,
                input_grad: true,
            });
        }
    }
}

fn check_company(options: &Options) {
    let linear = Linear::new(options);
    let integers = options.frozen.is_some_and(Storage::is_int8).then_some(Compute::Int8);
    for compute in [Compute::F32, Compute::Bf16].into_iter().chain(integers) {
        for threads in [1, 3] {
            let device = Device::cpu(threads);
            let together = linear.outcome(&device, compute, 0..options.tokens);
            let mut bounds = vec![0, options.tokens];
            bounds.extend(options.adapters.iter().flat_map(|(rows, _)| [rows.start, rows.end]));
            bounds.sort();
            for bounds in bounds.windows(2).filter(|bounds| bounds[0] < bounds[1]) {
                let rows = bounds[0]..bounds[1];
                let alone = linear.outcome(&device, compute, rows.clone());
                let name = format!("{options:?}, {compute:?}, {threads} threads, rows {rows:?}");
                alone.assert_part_of(&together, rows, &name);
            }
        }
    }
}

/// Results of a pass over some rows.
struct Outcome {
    /// Output and the input's gradient, with the number of rows of the pass.
    by_row: [Vec<f32>; 2],
    num_rows: usize,
    /// Gradients of the matrices of adapters that had rows.
    of_adapters: Vec<(AdapterId, Vec<Found>)>,
}

impl Linear {
    fn outcome(&self, device: &Device, compute: Compute, rows: Range<usize>) -> Outcome {
        let (k, n) = (self.projections[0].in_features(), self.width());
        let leaf = |stream, width: usize, dtype| {
            let values = normals(stream, self.tokens * width);
            let values = &values[rows.start * width..rows.end * width];
            tensor_of(values, dtype, &[rows.len(), width])
        };
        let shifted = |range: &Range<usize>| {
            let within = |row: usize| row.clamp(rows.start, rows.end) - rows.start;
            within(range.start)..within(range.end)
        };
        let adapter_rows: Vec<AdapterRows> = self
            .adapter_rows
            .iter()
            .map(|of| AdapterRows { rows: shifted(&of.rows), ..of.clone() })
            .collect();
        let params = self.given.params(device);
        let mut tape = Tape::training(device, &params, compute, None);
        tape.set_adapter_rows(&adapter_rows);
        let x = tape.leaf(leaf(1, k, compute.dtype()), true);
        let residual = self.residual.map(|_| leaf(2, n, DType::F32));
        let residual = residual.map(|residual| tape.leaf(residual, true));
        let y = ops::linear(&mut tape, x.clone(), &self.projections, residual);
        let output = y.value().to_vec_f32();
        let d_y = leaf(3, n, y.value().dtype());
        let mut gradients = Gradients::zeros(device, &params).unwrap();
        let leaves = tape.backward(y, d_y, &mut gradients);
        let d_x = leaves.get(&x).expect("the input has a gradient").to_vec_f32();
        let of = |AdapterRows { adapter, .. }: &AdapterRows| {
            let parts = self.projections.iter().filter_map(|p| p.adapter(*adapter));
            let params = parts.flat_map(|lora| [lora.a, lora.b]);
            let found = params.map(|param| Found::new(device, gradients.get(param)));
            (*adapter, found.collect())
        };
        let with_rows = adapter_rows.iter().filter(|of| !of.rows.is_empty());
        let of_adapters = with_rows.map(of).collect();
        Outcome { by_row: [output, d_x], num_rows: rows.len(), of_adapters }
    }

    fn width(&self) -> usize {
        self.projections.iter().map(Projection::out_features).sum()
    }
}

impl Outcome {
    fn assert_part_of(&self, whole: &Self, rows: Range<usize>, name: &str) {
        let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        for (which, (part, whole_rows)) in self.by_row.iter().zip(&whole.by_row).enumerate() {
            let width = whole_rows.len() / whole.num_rows;
            let expected = &whole_rows[rows.start * width..rows.end * width];
            assert!(bits(part) == bits(expected), "{name}: result {which}");
        }
        for (id, found) in &self.of_adapters {
            let expected = whole.of_adapters.iter().find(|(other, _)| other == id);
            let (_, expected) = expected.expect("the adapter has rows there");
            let is_same = found.iter().zip(expected).all(|(a, b)| a.is_identical(b));
            assert!(is_same, "{name}: gradients of {id:?}");
            assert!(found.iter().any(|x| x.values.iter().any(|&x| x != 0.0)), "{name}: zero");
        }
    }
}

/// Products of numbers in bf16 whose sums are not rounded to it, nor are their gradients.
#[test]
fn sums_in_f32_are_not_rounded() {
    let (t, k, n) = (5, 40, 3);
    let tensor = |seed, shape: &[usize], dtype: DType| {
        tensor_of(&normals(seed, shape.iter().product()), dtype, shape)
    };
    let weight = tensor(1, &[n, k], DType::Bf16);
    let (x, d_y) = (tensor(2, &[t, k], DType::Bf16), tensor(3, &[t, n], DType::F32));
    let [w_f64, x_f64] = [&weight, &x]
        .map(|of| -> Vec<f64> { of.to_vec_f32().into_iter().map(f64::from).collect() });
    let on_gpu = Gpu::for_tests().map(Device::cuda);
    for device in [Device::cpu(2)].into_iter().chain(on_gpu) {
        let upload = |tensor| device.upload(Category::Weights, tensor).unwrap();
        let weight = Weight::Frozen(upload(&weight));
        let projection = [Projection { weight, bias: None, adapters: Vec::new() }];
        let params = crate::Params::default();
        let mut tape = Tape::training(&device, &params, Compute::Bf16, None);
        let leaf = tape.leaf(upload(&x), true);
        let y = ops::linear_in_f32(&mut tape, leaf.clone(), &projection);
        for (i, found) in y.value().to_vec_f32().into_iter().enumerate() {
            let (row, of) = (&x_f64[i / n * k..][..k], &w_f64[i % n * k..][..k]);
            let exact: f64 = row.iter().zip(of).map(|(a, b)| a * b).sum();
            assert!((f64::from(found) - exact).abs() < 1e-5, "{found}, exactly {exact}");
        }
        let mut gradients = Gradients::zeros(&device, &params).unwrap();
        let leaves = tape.backward(y, upload(&d_y), &mut gradients);
        let d_x = leaves.get(&leaf).expect("the input has a gradient").to_vec_f32();
        let exact: f64 = (0..n).map(|i| f64::from(d_y.f32()[i]) * w_f64[i * k]).sum();
        assert!((f64::from(d_x[0]) - exact).abs() < 0.02 * exact.abs().max(1.0));
    }
}
