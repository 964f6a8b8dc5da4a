//! Linear layers of experts: rows sorted by (expert, token), each multiplied with the weights of
//! its expert, and with the expert's own adapters.
//!
//! No row is dropped or padded to a capacity, and no output depends on another row: the products
//! of all experts are handed to [`hone_kernels::gemm`] together, each with its expert's rows. How
//! many these are is only known once tokens are routed. The sum is: `top_k` for each token. So
//! memory is exact; a plan of time assumes that every expert has rows, the dearest case, since
//! then all weights are read.
//!
//! On a GPU experts are multiplied one by one, so that weights held in another type are converted
//! one expert at a time. There products with int8 weights are never quantised.

mod gradients;
mod low_rank;

use super::quantisation::is_integer_for;
use super::{Routing, converted_bytes, rows_cols};
use crate::{
    Category, Cost, Device, Params, Projection, Reader, Storage, Tape, Target, Tensor, Var, Work,
};
use gradients::{Backward, Input};
use hone_kernels::gemm::{Epilogue, Matrix, OutputRegion, Product, Term};
use hone_kernels::vector::Columns;
use low_rank::Adapters;
use std::ops::Range;

/// The order of an input's rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowOrder {
    /// One row for each token; experts read the rows of their tokens.
    Tokens,
    /// As the experts' outputs are: one for each token and expert.
    Experts,
}

/// `x`, rows in `order` → `[t · top_k, Σ n_i]` in the compute type: for each expert its rows, and
/// the outputs of its projections `[n_i, k]` side by side. All experts have the same shapes.
pub fn expert_linear<'a>(
    tape: &mut Tape<'a>,
    x: Var,
    order: RowOrder,
    experts: &'a [Vec<Projection>],
    routing: &Routing,
) -> Var {
    let (num_rows, k) = rows_cols(x.value().shape());
    let expected =
        if order == RowOrder::Tokens { routing.num_tokens() } else { routing.num_rows() };
    assert!(num_rows == expected && experts.len() == routing.num_experts());
    assert!(experts.iter().flatten().all(|p| p.in_features() == k));
    let layer = Layer { experts, routing: routing.clone(), order };
    let mut y = tape.activation(tape.dtype(), &[routing.num_rows(), layer.width()]);
    let sorted = layer.sorted(tape.device(), x.value());
    let rows = sorted.as_ref().unwrap_or(x.value());
    let adapters = Adapters::new(&layer, tape.adapter_rows());
    let down = adapters.down_projections(tape, rows);
    layer.project(tape, rows, (&adapters, down.as_ref()), &mut y);
    tape.observe(rows, || layer.readers());
    let observed = tape.observer().map(|observer| (observer, rows.clone()));
    drop(sorted);
    let is_trained = experts.iter().flatten().any(Projection::is_trained);
    let requires_grad = x.requires_grad() || is_trained;
    if !(tape.is_recording() && requires_grad) {
        return tape.push(y, requires_grad, |_, _| {});
    }
    let input = Input::saved_for(experts, &adapters, x);
    let backward = Backward { layer, adapters, down };
    tape.push(y, true, move |sweep, d_y| {
        if let Some((observer, rows)) = observed {
            observer.gradient(&rows, &backward.layer.readers(), &d_y);
        }
        let id = input.id();
        if let Some(d_x) = backward.run(sweep, input, &d_y) {
            sweep.add(id, d_x);
        }
    })
}

/// The experts' layer, and who computes what.
#[derive(Clone)]
struct Layer<'a> {
    experts: &'a [Vec<Projection>],
    routing: Routing,
    order: RowOrder,
}

/// Rows of a row-major matrix, beginning with `first`.
fn rows_from(x: &Tensor, first: usize) -> Matrix<'_> {
    let (_, width) = rows_cols(x.shape());
    Matrix { offset: first * width, ..Matrix::rows(x.view(), width) }
}

/// Columns `col..col + cols` of some rows of a matrix with `width` columns.
fn region(rows: &Range<usize>, cols: usize, width: usize, col: usize) -> OutputRegion {
    let region = OutputRegion::columns(rows.len(), cols, width, col);
    OutputRegion { offset: rows.start * width + col, ..region }
}

impl<'a> Layer<'a> {
    /// The projections of the first expert, which all others resemble.
    fn first(&self) -> &'a [Projection] {
        &self.experts[0]
    }

    /// Columns of the output.
    fn width(&self) -> usize {
        self.first().iter().map(Projection::out_features).sum()
    }

    /// Each expert with its rows, for those that have any.
    fn with_rows(
        &self,
        experts: Range<usize>,
    ) -> impl Iterator<Item = (&'a [Projection], Range<usize>)> {
        let of = |expert: usize| (&self.experts[expert][..], self.routing.rows_of(expert));
        experts.map(of).filter(|(_, rows)| !rows.is_empty())
    }

    /// All experts with rows, for who looks on.
    fn readers(&self) -> Vec<Reader<'a>> {
        self.with_rows(0..self.experts.len()).collect()
    }

    /// The experts that an operation multiplies at once.
    fn batches(&self, device: &Device) -> Vec<Range<usize>> {
        let len = self.experts.len();
        let size = if device.target() == Target::Cpu { len } else { 1 };
        (0..len).step_by(size).map(|first| first..first + size).collect()
    }

    /// The rows of `x` in the order of the experts; `None` if they are.
    fn sorted(&self, device: &Device, x: &Tensor) -> Option<Tensor> {
        if self.order == RowOrder::Experts {
            return None;
        }
        let (_, k) = rows_cols(x.shape());
        let mut y = device.alloc(Category::Workspace, x.dtype(), &[self.routing.num_rows(), k]);
        if let Some(on) = device.begin(Cost::memory_bound("gather", 2 * y.num_bytes())) {
            on.gather_rows(x.view(), k, self.routing.tokens(), y.view_mut());
        }
        Some(y)
    }

    /// Columns `col..col + n` of rows in the order of the experts, times the factors of each
    /// expert, quantised to int8.
    fn quantised<'f>(
        &self,
        device: &Device,
        x: &Tensor,
        (col, n): (usize, usize),
        factors: impl Fn(&'a [Projection]) -> Option<&'f [f32]>,
    ) -> Tensor {
        let (rows, width) = rows_cols(x.shape());
        let mut y = device.alloc(Category::Workspace, Storage::INT8, &[rows, n]);
        let bytes = rows * n * x.dtype().size() + y.num_bytes();
        if let Some(on) = device.begin(Cost::memory_bound("quantise", bytes)) {
            let all = y.int8_mut();
            let (mut values, mut scales) = (all.values, all.scales);
            for (projections, rows) in self.with_rows(0..self.experts.len()) {
                let own = (values.split_at_mut(rows.len() * n), scales.split_at_mut(rows.len()));
                let ((of_expert, rest), (own_scales, rest_scales)) = own;
                (values, scales) = (rest, rest_scales);
                let x = x.view().part(rows.start * width, rows.len() * width);
                let y = hone_kernels::format::Int8RowsMut { values: of_expert, scales: own_scales };
                on.quantise_rows(Columns { x, width, col }, factors(projections), y);
            }
        }
        y
    }

    /// Whether each projection is multiplied in integers; experts are stored alike.
    fn in_integers(&self, device: &Device, compute: crate::Compute, params: &Params) -> Vec<bool> {
        self.first().iter().map(|p| is_integer_for(device, compute, params, p)).collect()
    }

    /// The cost of multiplying `rows` rows with the weights of some experts.
    fn cost(
        &self,
        name: &'static str,
        (experts, rows): (Range<usize>, usize),
        row_bytes: usize,
        params: &Params,
        integers: &[bool],
    ) -> Cost {
        let weight_bytes = |p: &Projection| params.resolve(&p.weight).num_bytes();
        let with_rows = self.with_rows(experts);
        let weights: usize = with_rows.flat_map(|(of, _)| of).map(weight_bytes).sum();
        let flops = |in_integers| {
            let all = self.first().iter().zip(integers).filter(|(_, is)| **is == in_integers);
            all.map(|(p, _)| 2 * rows * p.out_features() * p.in_features()).sum::<usize>()
        };
        Cost::memory_bound(name, rows * row_bytes + weights)
            .with(Work::Product, flops(false))
            .with(Work::Int8, flops(true))
    }

    /// Number of rows of some experts.
    fn num_rows_of(&self, experts: &Range<usize>) -> usize {
        self.routing.rows_of(experts.end - 1).end - self.routing.rows_of(experts.start).start
    }

    /// Scratch bytes for converting the weights of some experts.
    fn scratch_bytes(
        &self,
        tape: (&Device, crate::DType),
        params: &Params,
        experts: Range<usize>,
    ) -> usize {
        let weights = self.experts[experts].iter().flatten().map(|p| params.resolve(&p.weight));
        converted_bytes(tape.0, tape.1, weights)
    }

    /// Computes the projections `y` of rows `x` in the order of the experts, with their adapters.
    fn project(
        &self,
        tape: &Tape<'_>,
        x: &Tensor,
        (adapters, down): (&Adapters<'_>, Option<&Tensor>),
        y: &mut Tensor,
    ) {
        let (device, params, dtype) = (tape.device(), tape.params(), tape.dtype());
        let ((_, k), (_, width)) = (rows_cols(x.shape()), rows_cols(y.shape()));
        let integers = self.in_integers(device, tape.compute(), params);
        let quantised = integers.contains(&true);
        let quantised = quantised.then(|| self.quantised(device, x, (0, k), |_| None));
        for batch in self.batches(device) {
            let rows = self.num_rows_of(&batch);
            let row_bytes = k * x.dtype().size() + width * y.dtype().size();
            let cost = self
                .cost("experts", (batch.clone(), rows), row_bytes, params, &integers)
                .with_scratch(self.scratch_bytes((device, dtype), params, batch.clone()))
                .with_scratch(adapters.scratch_bytes(device, dtype, params, batch.clone()));
            let cost = adapters.with_up_projections(cost, batch.clone());
            let Some(on) = device.begin(cost) else { continue };
            let mut terms = Vec::new();
            for expert in batch.clone() {
                let rows = self.routing.rows_of(expert);
                for (i, projection) in self.experts[expert].iter().enumerate() {
                    let w = Matrix::rows(params.resolve(&projection.weight).view(), k).transposed();
                    let x = quantised.as_ref().filter(|_| integers[i]).unwrap_or(x);
                    let own = Term::new(rows_from(x, rows.start), w, k);
                    let added = adapters.up_terms(params, down, (expert, i), rows.start);
                    terms.push(std::iter::once(own).chain(added).collect::<Vec<_>>());
                }
            }
            let mut products = Vec::new();
            let mut terms = terms.iter();
            for expert in batch {
                let (rows, mut col) = (self.routing.rows_of(expert), 0);
                for (projection, terms) in self.experts[expert].iter().zip(&mut terms) {
                    let n = projection.out_features();
                    let bias = projection.bias.as_ref().map(|bias| params.resolve(bias).view());
                    let epilogue = Epilogue { bias, ..Epilogue::default() };
                    if !rows.is_empty() {
                        let output = region(&rows, n, width, col);
                        products.push(Product { terms, epilogue, output });
                    }
                    col += n;
                }
            }
            on.gemm(dtype, &products, y.view_mut());
        }
    }
}
