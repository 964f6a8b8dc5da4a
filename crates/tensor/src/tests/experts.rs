//! Routers, the linear layers of experts, and how their outputs are combined, in their reference
//! forms, and the cases they are checked in.

use super::check_op::{
    Found, Kind, Operands, Operation, STEP, Tolerance, check_op, check_op_in, check_op_on_gpu,
    devices, f64s, normals, rounded, tensor_of,
};
use super::linear::factors;
use crate::ops::{self, Groups, Router, RouterLoad, Routers, Routing, RowOrder, Scoring};
use crate::{
    AdapterId, AdapterRows, Category, Compute, DType, Device, Gradients, Lora, Params, Projection,
    StepKey, Storage, Tape, Target, Tensor, Var, Weight,
};
use hone_kernels::cuda::Gpu;
use hone_kernels::gemm::reference::{gemm, transpose};
use hone_kernels::{combine, lock, router, testing};
use std::sync::{Arc, Mutex};

const PLAIN: Router = Router {
    num_experts: 8,
    top_k: 2,
    scoring: Scoring::Softmax,
    normalise: true,
    scale: 1.0,
    groups: None,
};

fn routers() -> Vec<Router> {
    let groups = Some(Groups { count: 4, kept: 2 });
    vec![
        PLAIN,
        Router { normalise: false, ..PLAIN },
        Router { num_experts: 130, top_k: 9, scale: 2.5, ..PLAIN },
        Router { num_experts: 5, top_k: 5, normalise: false, ..PLAIN },
        Router { num_experts: 1, top_k: 1, scoring: Scoring::Sigmoid, normalise: false, ..PLAIN },
        Router { scoring: Scoring::Sigmoid, scale: 1.5, ..PLAIN },
        Router { scoring: Scoring::Sigmoid, num_experts: 24, top_k: 3, groups, ..PLAIN },
    ]
}

struct Route {
    given: Operands,
    router: Router,
    bias: Option<Weight>,
}

impl Route {
    fn new(router: Router, tokens: usize, biased: bool) -> Self {
        let mut given = Operands::default();
        given.add(Kind::Activation, &[tokens, router.num_experts]);
        let bias = biased.then(|| {
            let bias = given.add(Kind::Frozen(DType::F32.into()), &[router.num_experts]);
            given.weight(bias)
        });
        Self { given, router, bias }
    }
}

impl Operation for Route {
    fn operands(&self) -> &Operands {
        &self.given
    }
    fn weights_mut(&mut self) -> Vec<&mut Weight> {
        self.bias.iter_mut().collect()
    }
    fn run<'a>(&'a self, tape: &mut Tape<'a>, mut leaves: Vec<Var>) -> Var {
        ops::route(tape, leaves.remove(0), &self.router, self.bias.as_ref()).0
    }
    fn forward(&self, x: &[Vec<f64>]) -> Vec<f64> {
        router::reference::forward(&self.router, &x[0], x.get(1).map(|bias| &bias[..])).1
    }
    fn backward(&self, x: &[Vec<f64>], d_y: &[f64]) -> Vec<Vec<f64>> {
        let bias = x.get(1).map(|bias| &bias[..]);
        let (chosen, _) = router::reference::forward(&self.router, &x[0], bias);
        let d_logits = router::reference::backward(&self.router, &x[0], &chosen, d_y, None);
        std::iter::once(d_logits).chain(self.bias.iter().map(|_| vec![])).collect()
    }
}

#[test]
fn route_passes() {
    for (i, router) in routers().into_iter().enumerate() {
        for (j, (tokens, biased)) in [(1, false), (37, false), (37, true)].into_iter().enumerate() {
            if !testing::is_sampled(i + j, 2) {
                continue;
            }
            let name = format!("{router:?}, {tokens} tokens, biased: {biased}");
            check_op(&name, &mut Route::new(router, tokens, biased));
        }
    }
}

/// The loss of transformers' `load_balancing_loss_func` by its definition, its gradient, and what
/// is noted of the load: of the rows that are not padding.
#[test]
fn loads_are_balanced_by_the_rows_that_are_no_padding() {
    let (tokens, num_rows) = (41, 33);
    for router in routers().into_iter().filter(|router| router.num_experts > 1) {
        let n = router.num_experts;
        let logits = normals(4, tokens * n);
        let exact = f64s(&logits);
        let (chosen, _) = router::reference::forward(&router, &exact, None);
        let mut counts = vec![0; n];
        chosen[..num_rows * router.top_k].iter().for_each(|&e| counts[e as usize] += 1);
        let loss = |logits: &[f64]| -> f64 {
            let rows = logits.chunks(n).take(num_rows).map(router::reference::softmax);
            let mut sums = vec![0.0; n];
            rows.for_each(|p| sums.iter_mut().zip(p).for_each(|(sum, p)| *sum += p));
            let load = RouterLoad {
                counts: counts.clone(),
                probability_sums: sums,
                num_tokens: num_rows as u64,
            };
            load.balancing_loss()
        };
        let load = RouterLoad {
            counts: counts.clone(),
            num_tokens: num_rows as u64,
            ..RouterLoad::default()
        };
        let balance = load.balancing_gradient();
        let d_weights = normals(6, tokens * router.top_k);
        let reference = |balance: Option<(&[f64], usize)>| {
            router::reference::backward(&router, &exact, &chosen, &f64s(&d_weights), balance)
        };
        let d_p: Vec<f64> = balance.iter().map(|&d| f64::from(d)).collect();
        let (with, without) = (reference(Some((&d_p, num_rows))), reference(None));
        for (i, direction) in [(0, 1.0), (n * 20 + n / 2, -1.0), (n * (num_rows + 1), 1.0)] {
            let at = |h: f64| {
                let mut x = exact.clone();
                x[i] += h * direction;
                loss(&x)
            };
            let difference = (at(1e-4) - at(-1e-4)) / 2e-4 * direction;
            let found = with[i] - without[i];
            assert!((found - difference).abs() < 1e-6, "{router:?}: {found}, not {difference}");
        }
        let gpu = Gpu::for_tests().map(Device::cuda);
        for device in devices().into_iter().chain(gpu) {
            let loads = Arc::new(Mutex::new(Vec::new()));
            let (params, mut gradients) = (Params::default(), Gradients::default());
            let mut tape = Tape::training(&device, &params, Compute::F32, None);
            tape.set_routers(Routers {
                num_rows: Some(num_rows),
                balance: Some(balance.clone().into()),
                loads: Some(Arc::clone(&loads)),
                sums_probabilities: true,
            });
            let hold = |x: &[f32], shape: &[usize]| {
                device.upload(Category::Activations, &Tensor::from_f32(x, shape)).unwrap()
            };
            let leaf = tape.leaf(hold(&logits, &[tokens, n]), true);
            let (weights, _) = ops::route(&mut tape, leaf.clone(), &router, None);
            let d_weights = hold(&d_weights, &[tokens, router.top_k]);
            let leaves = tape.backward(weights, d_weights, &mut gradients);
            let d_logits = leaves.get(&leaf).expect("logits have a gradient").to_vec_f32();
            Tolerance::of(Compute::F32).compare("balanced", &d_logits, &with);
            let loads = lock(&loads);
            assert_eq!(loads.len(), 1);
            assert!(loads[0].counts == counts && loads[0].num_tokens == num_rows as u64);
            let found = loads[0].balancing_loss();
            assert!((found / loss(&exact) - 1.0).abs() < 1e-6, "{found}");
        }
    }
}

struct Combine {
    given: Operands,
    routing: Routing,
    slots: Vec<u32>,
    residual: bool,
}

impl Combine {
    fn new((tokens, h): (usize, usize), routing: Routing, residual: bool) -> Self {
        let mut given = Operands::default();
        given.add(Kind::Activation, &[routing.num_rows(), h]);
        given.add(Kind::Stream, &[tokens, routing.top_k()]);
        if residual {
            given.add(Kind::Stream, &[tokens, h]);
        }
        let slots = routing.rows().to_vec();
        Self { given, routing, slots, residual }
    }

    fn width(&self, x: &[Vec<f64>]) -> usize {
        x[0].len() / self.routing.num_rows()
    }
}

impl Operation for Combine {
    fn operands(&self) -> &Operands {
        &self.given
    }
    fn run<'a>(&'a self, tape: &mut Tape<'a>, leaves: Vec<Var>) -> Var {
        let mut leaves = leaves.into_iter();
        let (x, weights) = (leaves.next().expect("rows"), leaves.next().expect("weights"));
        ops::combine(tape, x, weights, &self.routing, leaves.next())
    }
    fn forward(&self, x: &[Vec<f64>]) -> Vec<f64> {
        let (h, k) = (self.width(x), self.routing.top_k());
        let mut y = combine::reference::forward(&x[0], h, k, &self.slots, &x[1]);
        if self.residual {
            y.iter_mut().zip(&x[2]).for_each(|(y, x)| *y += x);
        }
        y
    }
    fn backward(&self, x: &[Vec<f64>], d_y: &[f64]) -> Vec<Vec<f64>> {
        let sizes = (self.width(x), self.routing.top_k());
        let (d_x, d_weights) = combine::reference::backward(&x[0], sizes, &self.slots, &x[1], d_y);
        let residual = self.residual.then(|| d_y.to_vec());
        [d_x, d_weights].into_iter().chain(residual).collect()
    }
}

/// Some experts have no rows, one has a row of every token.
pub(super) fn uneven(num_experts: usize, top_k: usize, tokens: usize) -> Vec<u32> {
    let choice = |i: usize| {
        let (token, j) = (i / top_k, i % top_k);
        if j == 0 { 1 } else { (2 + (token * token + 2 * j) % (num_experts - 3)) as u32 }
    };
    (0..tokens * top_k).map(choice).collect()
}

#[test]
fn combine_passes() {
    for (tokens, h, num_experts, top_k) in [(1, 1, 4, 2), (7, 33, 9, 3), (65, 40, 5, 2)] {
        for residual in [false, true] {
            let routing = Routing::new(num_experts, top_k, &uneven(num_experts, top_k, tokens));
            let case = format!("combine [{tokens}, {h}] of {top_k}, residual: {residual}");
            check_op(&case, &mut Combine::new((tokens, h), routing, residual));
        }
    }
}

#[test]
fn rows_are_sorted_by_expert_and_token() {
    let chosen = [2, 0, 1, 2, 0, 2, 2, 1];
    let routing = Routing::new(4, 2, &chosen);
    assert_eq!(routing.tokens(), [0, 2, 1, 3, 0, 1, 2, 3]);
    assert_eq!(routing.rows(), [4, 0, 2, 5, 1, 6, 7, 3]);
    let rows: Vec<_> = (0..4).map(|expert| routing.rows_of(expert)).collect();
    assert_eq!(rows, [0..2, 2..4, 4..8, 8..8]);
}

/// Which operands a projection of an expert consists of.
struct Parts {
    weight: usize,
    bias: Option<usize>,
    adapters: Vec<(usize, usize)>,
}

struct Experts {
    given: Operands,
    routing: Routing,
    chosen: Vec<u32>,
    order: RowOrder,
    parts: Vec<Vec<Parts>>,
    experts: Vec<Vec<Projection>>,
    adapter_rows: Vec<AdapterRows>,
}

#[derive(Clone, Debug)]
struct Options {
    tokens: usize,
    inputs: usize,
    outputs: Vec<usize>,
    num_experts: usize,
    top_k: usize,
    order: RowOrder,
    frozen: Option<Storage>,
    bias: bool,
    /// Of the adapters of each projection in turn; empty: no adapters.
    dropout: &'static [f32],
    /// Whether there are two adapters, each for some of the tokens.
    two: bool,
}

impl Experts {
    fn new(options: &Options) -> Self {
        let Options { tokens, inputs, num_experts, top_k, order, .. } = *options;
        let chosen = uneven(num_experts, top_k, tokens);
        let routing = Routing::new(num_experts, top_k, &chosen);
        let mut given = Operands::default();
        let rows = if order == RowOrder::Tokens { tokens } else { routing.num_rows() };
        given.add(Kind::Activation, &[rows, inputs]);
        let mut row_ranges = vec![1..5, 5..tokens];
        if !options.two {
            row_ranges = std::iter::once(0..usize::MAX).collect();
        }
        let row_ranges = if options.dropout.is_empty() { vec![] } else { row_ranges };
        let (mut parts, mut experts, mut stream) = (Vec::new(), Vec::new(), 7);
        for _ in 0..num_experts {
            let (mut of_expert, mut projections) = (Vec::new(), Vec::new());
            for (i, &n) in options.outputs.iter().enumerate() {
                let kind = options.frozen.map_or(Kind::Trained, Kind::Frozen);
                let weight = given.add(kind, &[n, inputs]);
                let bias = options.bias.then(|| given.add(Kind::Trained, &[n]));
                let (mut adapters, mut loras) = (Vec::new(), Vec::new());
                for id in 0..row_ranges.len() {
                    let rank = 2 + 3 * id;
                    let a = given.add(Kind::Trained, &[rank, inputs]);
                    let b = given.add(Kind::Trained, &[n, rank]);
                    adapters.push((a, b));
                    let dropout = options.dropout[(i + id) % options.dropout.len()];
                    let (a, b, id) = (given.param(a), given.param(b), AdapterId(id as u32));
                    loras.push(Lora { id, a, b, rank, scale: 0.75, dropout, stream });
                    stream += 1;
                }
                let (of_weight, of_bias) =
                    (given.weight(weight), bias.map(|bias| given.weight(bias)));
                projections.push(Projection { weight: of_weight, bias: of_bias, adapters: loras });
                of_expert.push(Parts { weight, bias, adapters });
            }
            parts.push(of_expert);
            experts.push(projections);
        }
        let of = |(i, rows)| AdapterRows {
            rows,
            adapter: AdapterId(i),
            dropout: Some(StepKey { micro_batch: STEP.micro_batch + i, ..STEP }),
        };
        let adapter_rows = (0..).zip(row_ranges).map(of).collect();
        Self { given, routing, chosen, order, parts, experts, adapter_rows }
    }

    fn width(&self) -> usize {
        self.experts[0].iter().map(Projection::out_features).sum()
    }

    /// The rows of an expert in the input, and in the output.
    fn rows_of(&self, expert: usize) -> Vec<(usize, usize)> {
        let of_expert = self.routing.rows_of(expert);
        let source = |row: usize| match self.order {
            RowOrder::Tokens => self.routing.tokens()[row] as usize,
            RowOrder::Experts => row,
        };
        of_expert.map(|row| (source(row), row)).collect()
    }

    /// Runs `body` on each adapter's part of an expert's projection: its operands, itself, its rows
    /// in input and output, and the factors of its dropout.
    fn over_adapters(
        &self,
        (expert, i): (usize, usize),
        inputs: usize,
        mut body: impl FnMut((usize, usize), &Lora, &[(usize, usize)], &[f64]),
    ) {
        let (parts, projection) = (&self.parts[expert][i], &self.experts[expert][i]);
        let pairs = parts.adapters.iter().zip(&projection.adapters).zip(&self.adapter_rows);
        for ((&operands, lora), AdapterRows { rows, dropout, .. }) in pairs {
            let has =
                |&(_, row): &(usize, usize)| rows.contains(&(self.routing.tokens()[row] as usize));
            let rows: Vec<_> = self.rows_of(expert).into_iter().filter(has).collect();
            let factors = factors(lora, dropout.expect("given"), rows.len() * inputs);
            body(operands, lora, &rows, &factors);
        }
    }
}

fn row(x: &[f64], width: usize, row: usize) -> &[f64] {
    &x[row * width..][..width]
}

fn add_to_row(x: &mut [f64], width: usize, (row, col): (usize, usize), y: &[f64]) {
    let start = row * width + col;
    x[start..start + y.len()].iter_mut().zip(y).for_each(|(x, y)| *x += y);
}

fn times(x: &[f64], y: &[f64]) -> Vec<f64> {
    x.iter().zip(y).map(|(x, y)| x * y).collect()
}

fn scaled(x: Vec<f64>, by: f32) -> Vec<f64> {
    x.into_iter().map(|x| x * f64::from(by)).collect()
}

impl Operation for Experts {
    fn operands(&self) -> &Operands {
        &self.given
    }

    fn weights_mut(&mut self) -> Vec<&mut Weight> {
        let mut weights = Vec::new();
        for Projection { weight, bias, .. } in self.experts.iter_mut().flatten() {
            weights.push(weight);
            weights.extend(bias);
        }
        weights
    }

    fn run<'a>(&'a self, tape: &mut Tape<'a>, mut leaves: Vec<Var>) -> Var {
        // The dry device assumes a balanced choice, which must not change its memory.
        let is_dry = tape.device().is_dry();
        let (n, k) = (self.routing.num_experts(), self.routing.top_k());
        let balanced: Vec<u32> = (0..self.chosen.len()).map(|i| (i % n) as u32).collect();
        let dry = is_dry.then(|| Routing::new(n, k, &balanced));
        tape.set_adapter_rows(&self.adapter_rows);
        let routing = dry.as_ref().unwrap_or(&self.routing);
        ops::expert_linear(tape, leaves.remove(0), self.order, &self.experts, routing)
    }

    fn is_integer_in(&self, compute: Compute, target: Target) -> bool {
        let in_fours = |p: &Projection| p.weight.shape().iter().all(|n| n.is_multiple_of(4));
        compute == Compute::Int8 && target == Target::Cpu && self.experts[0].iter().any(in_fours)
    }

    fn forward(&self, x: &[Vec<f64>]) -> Vec<f64> {
        let (width, k) = (self.width(), self.experts[0][0].in_features());
        let mut y = vec![0.0; self.routing.num_rows() * width];
        for (expert, parts) in self.parts.iter().enumerate() {
            let mut col = 0;
            for (i, Parts { weight, bias, .. }) in parts.iter().enumerate() {
                let n = self.experts[expert][i].out_features();
                let w = transpose(n, k, &x[*weight]);
                for (from, to) in self.rows_of(expert) {
                    let own = gemm(1, n, k, row(&x[0], k, from), &w);
                    add_to_row(&mut y, width, (to, col), &own);
                    if let Some(bias) = bias {
                        add_to_row(&mut y, width, (to, col), &x[*bias]);
                    }
                }
                self.over_adapters((expert, i), k, |(a, b), lora, rows, factors| {
                    let r = lora.rank;
                    let (a, b) = (transpose(r, k, &x[a]), transpose(n, r, &x[b]));
                    for (at, &(from, to)) in rows.iter().enumerate() {
                        let dropped = times(row(&x[0], k, from), row(factors, k, at));
                        let u = scaled(gemm(1, r, k, &dropped, &a), lora.scale);
                        add_to_row(&mut y, width, (to, col), &gemm(1, n, r, &u, &b));
                    }
                });
                col += n;
            }
        }
        y
    }

    fn backward(&self, x: &[Vec<f64>], d_y: &[f64]) -> Vec<Vec<f64>> {
        let (width, k) = (self.width(), self.experts[0][0].in_features());
        let mut d: Vec<Vec<f64>> = x.iter().map(|x| vec![0.0; x.len()]).collect();
        for (expert, parts) in self.parts.iter().enumerate() {
            let mut col = 0;
            for (i, Parts { weight, bias, .. }) in parts.iter().enumerate() {
                let n = self.experts[expert][i].out_features();
                let d_y = |to: usize| &row(d_y, width, to)[col..col + n];
                for (from, to) in self.rows_of(expert) {
                    let d_x = gemm(1, k, n, d_y(to), &x[*weight]);
                    add_to_row(&mut d[0], k, (from, 0), &d_x);
                    let d_w = gemm(n, k, 1, d_y(to), row(&x[0], k, from));
                    add_to_row(&mut d[*weight], n * k, (0, 0), &d_w);
                    if let Some(bias) = bias {
                        add_to_row(&mut d[*bias], n, (0, 0), d_y(to));
                    }
                }
                self.over_adapters((expert, i), k, |(a, b), lora, rows, factors| {
                    let r = lora.rank;
                    let a_t = transpose(r, k, &x[a]);
                    for (at, &(from, to)) in rows.iter().enumerate() {
                        let factors = row(factors, k, at);
                        let dropped = times(row(&x[0], k, from), factors);
                        let u = scaled(gemm(1, r, k, &dropped, &a_t), lora.scale);
                        let d_u = scaled(gemm(1, r, n, d_y(to), &x[b]), lora.scale);
                        add_to_row(&mut d[b], n * r, (0, 0), &gemm(n, r, 1, d_y(to), &u));
                        add_to_row(&mut d[a], r * k, (0, 0), &gemm(r, k, 1, &d_u, &dropped));
                        let d_x = times(&gemm(1, k, r, &d_u, &x[a]), factors);
                        add_to_row(&mut d[0], k, (from, 0), &d_x);
                    }
                });
                col += n;
            }
        }
        for (of_expert, projections) in self.parts.iter().zip(&self.experts) {
            for (Parts { weight, .. }, projection) in of_expert.iter().zip(projections) {
                if projection.weight.param().is_none() {
                    d[*weight].clear();
                }
            }
        }
        d
    }
}

const OPTIONS: Options = Options {
    tokens: 11,
    inputs: 13,
    outputs: vec![],
    num_experts: 5,
    top_k: 2,
    order: RowOrder::Tokens,
    frozen: None,
    bias: false,
    dropout: &[],
    two: false,
};

#[test]
fn expert_linear_passes_in_every_combination() {
    let storages = [None, Some(DType::Bf16.into()), Some(Storage::INT8)];
    for (i, frozen) in storages.into_iter().enumerate() {
        for dropout in [&[][..], &[0.0], &[0.3], &[0.3, 0.0]] {
            for order in [RowOrder::Tokens, RowOrder::Experts] {
                if order == RowOrder::Experts && i > 0 && dropout != [0.3] {
                    continue;
                }
                let (two, bias) = (dropout.len() == 1 && i % 2 == 0, dropout.is_empty());
                let outputs = if order == RowOrder::Tokens { vec![4, 9] } else { vec![7] };
                let options =
                    Options { outputs, order, frozen, bias, dropout, two, ..OPTIONS.clone() };
                check_op(&format!("{options:?}"), &mut Experts::new(&options));
            }
        }
    }
}

#[test]
fn expert_linear_passes_with_rows_of_many_tiles() {
    let options = Options {
        tokens: 100,
        inputs: 34,
        outputs: vec![50, 3],
        num_experts: 4,
        frozen: Some(DType::Bf16.into()),
        dropout: &[0.0],
        ..OPTIONS
    };
    check_op(&format!("{options:?}"), &mut Experts::new(&options));
}

#[test]
fn expert_linear_passes_in_integers() {
    for (inputs, outputs) in [(32, vec![16, 16]), (64, vec![20]), (13, vec![6])] {
        for dropout in [&[][..], &[0.0]] {
            let frozen = Some(Storage::INT8);
            let outputs = outputs.clone();
            let options = Options { inputs, outputs, frozen, dropout, ..OPTIONS };
            let (name, mut op) = (format!("{options:?}"), Experts::new(&options));
            check_op_in(&[Compute::Int8], &name, &op);
            check_op_on_gpu(Compute::Int8, &name, &mut op);
        }
    }
}

/// A token's outputs have the same bits alone as in company, and so have its gradients.
#[test]
fn company_of_other_tokens_changes_no_bit() {
    let options = Options {
        tokens: 97,
        inputs: 32,
        outputs: vec![24, 24],
        num_experts: 7,
        top_k: 3,
        frozen: Some(DType::Bf16.into()),
        dropout: &[0.0],
        ..OPTIONS
    };
    let op = Experts::new(&options);
    let (k, h) = (options.inputs, op.width());
    for compute in [Compute::F32, Compute::Bf16] {
        // The weights as they are combined later: one for each token and choice.
        let pass = |device: &Device, first: usize, end: usize| {
            let rows = |stream, width: usize, dtype| {
                let values = rounded(&normals(stream, options.tokens * width), dtype);
                tensor_of(&values[first * width..end * width], dtype, &[end - first, width])
            };
            let params = op.given.params(device);
            let mut tape = Tape::training(device, &params, compute, None);
            let routing = Routing::new(7, 3, &op.chosen[first * 3..end * 3]);
            let x = tape.leaf(rows(1, k, compute.dtype()), true);
            let weights = tape.leaf(rows(2, 3, DType::F32), true);
            let experts = &op.experts;
            let y = ops::expert_linear(&mut tape, x.clone(), RowOrder::Tokens, experts, &routing);
            let y = ops::combine(&mut tape, y, weights.clone(), &routing, None);
            let output = Found::new(device, y.value());
            let d_y = rows(3, h, compute.dtype());
            let mut gradients = Gradients::zeros(device, &params).unwrap();
            let leaves = tape.backward(y, d_y, &mut gradients);
            let gradient = |leaf| Found::new(device, leaves.get(leaf).expect("a gradient"));
            [output, gradient(&x), gradient(&weights)]
        };
        let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        for (threads, (first, end)) in [(1, (0, 1)), (2, (5, 40)), (3, (40, 97))] {
            let [alone, together] =
                [pass(&Device::cpu(threads), first, end), pass(&Device::cpu(2), 0, 97)];
            for (alone, together) in alone.iter().zip(&together) {
                let width = together.values.len() / options.tokens;
                let part = &together.values[first * width..end * width];
                assert!(bits(&alone.values) == bits(part), "{compute:?}, rows {first}..{end}");
            }
        }
    }
}
