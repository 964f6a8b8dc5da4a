//! `linear` in its reference form, and the cases it is checked in.

use super::check_op::{Kind, Operands, Operation, STEP, check_op, check_op_in, check_op_on_gpu};
use crate::{Compute, DType, Lora, Philox, Projection, Storage, Tape, Target, Var, Weight, ops};
use hone_kernels::dropout::Mask;
use hone_kernels::gemm::reference::{gemm, transpose};

/// Which operands a projection consists of.
struct Parts {
    weight: usize,
    bias: Option<usize>,
    lora: Option<(usize, usize)>,
}

pub struct Linear {
    given: Operands,
    tokens: usize,
    residual: Option<usize>,
    parts: Vec<Parts>,
    projections: Vec<Projection>,
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
    /// `None`: no adapter; otherwise its dropout.
    pub dropout: Option<f32>,
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
        Self { given, tokens: *tokens, residual, parts, projections }
    }

    /// What the adapter's input is multiplied by.
    fn factors(&self, lora: &Lora, len: usize) -> Vec<f64> {
        // Part of the file format of a run: resuming must draw the same numbers.
        let stream = STEP.step << 32 | u64::from(STEP.micro_batch) << 16 | u64::from(lora.stream);
        let mask = Mask { random: Philox::new(STEP.seed, stream), probability: lora.dropout };
        (0..len).map(|i| f64::from(mask.factor(i))).collect()
    }

    /// Dropped input and `scale · dropped · Aᵀ`.
    fn down(&self, lora: &Lora, input: &[f64], a: &[f64]) -> (Vec<f64>, Vec<f64>) {
        let (t, k) = (self.tokens, input.len() / self.tokens);
        let dropped = product(input, &self.factors(lora, input.len()));
        let u = gemm(t, lora.rank, k, &dropped, &transpose(lora.rank, k, a));
        (dropped, u.iter().map(|u| u * f64::from(lora.scale)).collect())
    }
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
        let lora = options.dropout.map(|_| {
            let a = given.add(Kind::Trained, &[RANK, options.inputs]);
            (a, given.add(Kind::Trained, &[n, RANK]))
        });
        Self { weight, bias, lora }
    }

    fn projection(&self, given: &Operands, options: &Options, index: usize) -> Projection {
        let lora = self.lora.zip(options.dropout).map(|((a, b), dropout)| Lora {
            a: given.param(a),
            b: given.param(b),
            rank: RANK,
            scale: 0.75,
            dropout,
            stream: 40 + index as u32,
        });
        let bias = self.bias.map(|bias| given.weight(bias));
        Projection { weight: given.weight(self.weight), bias, lora }
    }
}

const RANK: usize = 3;

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
            if let (Some((a, b)), Some(lora)) = (parts.lora, &projection.lora) {
                let (_, u) = self.down(lora, &x[0], &x[a]);
                add(&mut y, &gemm(t, n, RANK, &u, &transpose(n, RANK, &x[b])));
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
            if let (Some((a, b)), Some(lora)) = (parts.lora, &projection.lora) {
                let (dropped, u) = self.down(lora, &x[0], &x[a]);
                d[b] = gemm(n, RANK, t, &d_y_t, &u);
                let d_u: Vec<f64> = gemm(t, RANK, n, &d_y, &x[b]);
                let d_u: Vec<f64> = d_u.iter().map(|d| d * f64::from(lora.scale)).collect();
                d[a] = gemm(RANK, k, t, &transpose(t, RANK, &d_u), &dropped);
                let d_dropped = gemm(t, k, RANK, &d_u, &x[a]);
                add(&mut d[0], &product(&d_dropped, &self.factors(lora, t * k)));
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

#[test]
fn linear_passes_in_every_combination() {
    let storages = Storage::NAMES.map(Storage::from_name);
    for frozen in storages.into_iter().chain([None]) {
        for bias in [None, Some(false), Some(true)] {
            for dropout in [None, Some(0.0), Some(0.3)] {
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
                            residual,
                            input_grad,
                        };
                        check_linear(&options);
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
            dropout: Some(0.1),
            residual: tokens % 2 == 1,
            input_grad: true,
        });
    }
}

/// Weights in bytes, products in integers, or on a GPU in FP8 too: with adapters and without, of
/// one projection and of several; sizes that are no multiple of four, or sixteen, fall back to
/// floats.
#[test]
fn linear_passes_in_eight_bits() {
    for (tokens, inputs, outputs) in [
        (6, 16, vec![8]),
        (97, 64, vec![132]),
        (70, 576, vec![64, 16, 16]),
        (33, 80, vec![32, 6, 48]),
        (64, 32, vec![1280]),
        (5, 13, vec![6]),
        (8, 16, vec![6, 8]),
        (9, 4100, vec![8, 4]),
    ] {
        for dropout in [None, Some(0.0), Some(0.1)] {
            let options = Options {
                tokens,
                inputs,
                outputs: outputs.clone(),
                frozen: Some(Storage::INT8),
                bias: Some(true),
                dropout,
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
