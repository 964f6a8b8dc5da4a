//! The backward pass of experts' linear layers.

use super::low_rank::Adapters;
use super::{Layer, RowOrder, region, rows_from};
use crate::ops::rows_cols;
use crate::tape::Sweep;
use crate::{Cost, DType, Projection, Tensor, Var, View, Weight, Work};
use hone_kernels::combine::Chosen;
use hone_kernels::gemm::{self, Epilogue, Matrix, Product, Term, WeightGradient};

/// The input as the backward pass needs it.
pub(super) struct Input {
    id: usize,
    requires_grad: bool,
    dtype: DType,
    shape: [usize; 2],
    /// `None` if neither a weight nor an adapter is trained.
    value: Option<Tensor>,
}

impl Input {
    pub(super) fn saved_for(experts: &[Vec<Projection>], adapters: &Adapters<'_>, x: Var) -> Self {
        let is_trained = |p: &Projection| p.weight.param().is_some();
        let is_needed = !adapters.is_empty() || experts.iter().flatten().any(is_trained);
        let (t, k) = rows_cols(x.value().shape());
        Self {
            id: x.id(),
            requires_grad: x.requires_grad(),
            dtype: x.value().dtype(),
            shape: [t, k],
            value: is_needed.then(|| x.into_value()),
        }
    }

    pub(super) fn id(&self) -> usize {
        self.id
    }
}

/// Values saved by the forward pass, apart from its input.
pub(super) struct Backward<'a> {
    pub(super) layer: Layer<'a>,
    pub(super) adapters: Adapters<'a>,
    /// Down-projections of the adapters, if there are any.
    pub(super) down: Option<Tensor>,
}

impl Backward<'_> {
    /// Accumulates the gradients of trained parameters, and returns the input's, if it has one.
    pub(super) fn run(self, sweep: &mut Sweep<'_, '_>, x: Input, d_y: &Tensor) -> Option<Tensor> {
        let Self { layer, adapters, down } = self;
        layer.bias_gradients(sweep, d_y);
        let mut d_u = None;
        if let Some(x) = &x.value {
            let sorted = layer.sorted(sweep.device, x);
            let rows = sorted.as_ref().unwrap_or(x);
            layer.weight_gradients(sweep, rows, d_y);
            d_u = down.map(|u| adapters.gradients(sweep, rows, u, d_y));
        }
        let Input { requires_grad, dtype, shape: [t, k], value, .. } = x;
        if !requires_grad {
            return None;
        }
        // Releases the input before its gradient is allocated.
        drop(value);
        let shape = [layer.routing.num_rows(), k];
        let mut d_rows = match layer.order {
            RowOrder::Tokens => sweep.workspace(dtype, &shape),
            RowOrder::Experts => sweep.activation(dtype, &shape),
        };
        layer.input_gradient(sweep, (&adapters, d_u.as_ref()), d_y, &mut d_rows);
        if let Some(d_u) = &d_u {
            adapters.add_dropped_gradients(sweep, d_u, &mut d_rows);
        }
        if layer.order == RowOrder::Experts {
            return Some(d_rows);
        }
        let mut d_x = sweep.activation(dtype, &[t, k]);
        let bytes = d_rows.num_bytes() + d_x.num_bytes();
        if let Some(on) = sweep.device.begin(Cost::memory_bound("d_gather", bytes)) {
            let (slots, k) = (layer.routing.rows(), layer.routing.top_k());
            let chosen = Chosen { slots, k, weights: None };
            on.combine(chosen, d_rows.view(), None, d_x.view_mut());
        }
        Some(d_x)
    }
}

impl Layer<'_> {
    /// `d_bias += Σ_rows d_y` for trained biases.
    fn bias_gradients(&self, sweep: &mut Sweep<'_, '_>, d_y: &Tensor) {
        let has_trained = |p: &Projection| p.bias.as_ref().and_then(Weight::param).is_some();
        if !self.first().iter().any(has_trained) {
            return;
        }
        let (_, width) = rows_cols(d_y.shape());
        let cost = Cost::memory_bound("d_bias", d_y.num_bytes());
        let Some(on) = sweep.device.begin(cost) else { return };
        for (projections, rows) in self.with_rows(0..self.experts.len()) {
            let of_expert = d_y.view().part(rows.start * width, rows.len() * width);
            let mut col = 0;
            for projection in projections {
                if let Some(param) = projection.bias.as_ref().and_then(Weight::param) {
                    let d_bias = sweep.gradients.get_mut(param).view_mut();
                    on.add_column_sums(of_expert, width, col, d_bias);
                }
                col += projection.out_features();
            }
        }
    }

    /// `d_W += d_yᵀ x` over each expert's rows, for trained weights.
    fn weight_gradients(&self, sweep: &mut Sweep<'_, '_>, x: &Tensor, d_y: &Tensor) {
        let ((rows, k), dtype) = (rows_cols(x.shape()), sweep.dtype());
        let is_trained = |p: &&Projection| p.weight.param().is_some();
        let trained = self.first().iter().filter(is_trained);
        let n: usize = trained.map(Projection::out_features).sum();
        if n == 0 {
            return;
        }
        // At most, each token has chosen the same expert once.
        let t = self.routing.num_tokens();
        let len = gemm::weight_workspace_len(sweep.device.target(), t, k);
        let mut workspace = sweep.workspace(DType::F32, &[len]);
        let bytes = x.num_bytes() + d_y.num_bytes() + self.experts.len() * 8 * n * k;
        let cost = Cost::memory_bound("d_experts", bytes).with(Work::OverTokens, 2 * n * k * rows);
        let Some(on) = sweep.device.begin(cost) else { return };
        for (projections, rows) in self.with_rows(0..self.experts.len()) {
            let mut col = 0;
            for projection in projections {
                let n = projection.out_features();
                if let Some(param) = projection.weight.param() {
                    let d_y = rows_from(d_y, rows.start).from_col(col);
                    let x = rows_from(x, rows.start);
                    let gradient = WeightGradient { t: rows.len(), m: n, n: k, d_y, x };
                    let d_w = sweep.gradients.get_mut(param).view_mut();
                    on.add_weight_gradient(dtype, gradient, workspace.view_mut(), d_w);
                }
                col += n;
            }
        }
    }

    /// `d_x = Σ_i d_y_i W_i (+ d_u A)`, the latter for adapters without dropout; rows in the order
    /// of the experts.
    fn input_gradient(
        &self,
        sweep: &Sweep<'_, '_>,
        (adapters, d_down): (&Adapters<'_>, Option<&Tensor>),
        d_y: &Tensor,
        d_x: &mut Tensor,
    ) {
        let (device, params, dtype) = (sweep.device, sweep.params, sweep.dtype());
        let ((_, k), (_, width)) = (rows_cols(d_x.shape()), rows_cols(d_y.shape()));
        let integers = self.in_integers(device, sweep.compute, params);
        let quantised = self.quantised_gradients(sweep, &integers, d_y);
        for batch in self.batches(device) {
            let rows = self.num_rows_of(&batch);
            let row_bytes = k * d_x.dtype().size() + width * d_y.dtype().size();
            let cost = self
                .cost("d_experts_x", (batch.clone(), rows), row_bytes, params, &integers)
                .with_scratch(self.scratch_bytes((device, dtype), params, batch.clone()))
                .with_scratch(adapters.scratch_bytes(device, dtype, params, batch.clone()));
            let cost = adapters.with_input_gradients(cost, batch.clone());
            let Some(on) = device.begin(cost) else { continue };
            let terms = |expert: usize| {
                let (first, mut col) = (self.routing.rows_of(expert).start, 0);
                let (mut terms, mut float_terms) = (Vec::new(), Vec::new());
                for (projection, quantised) in self.experts[expert].iter().zip(&quantised) {
                    let (n, w) = (projection.out_features(), params.resolve(&projection.weight));
                    if let Some(d_y) = quantised {
                        let b = View::Packed(w.view().packed().without_scales());
                        let b = Matrix::rows(b, k);
                        terms.push(Term::new(rows_from(d_y, first), b, n));
                    } else {
                        let a = rows_from(d_y, first).from_col(col);
                        float_terms.push(Term::new(a, Matrix::rows(w.view(), k), n));
                    }
                    col += n;
                }
                terms.append(&mut float_terms);
                terms.extend(adapters.input_terms(params, d_down, expert, first));
                terms
            };
            let experts = batch.filter(|&expert| !self.routing.rows_of(expert).is_empty());
            let terms: Vec<_> = experts.map(|expert| (expert, terms(expert))).collect();
            let products: Vec<_> = terms
                .iter()
                .map(|(expert, terms)| Product {
                    terms,
                    epilogue: Epilogue::default(),
                    output: region(&self.routing.rows_of(*expert), k, k, 0),
                })
                .collect();
            on.gemm(dtype, &products, d_x.view_mut());
        }
    }

    /// The quantised gradients of those projections whose products are in integers. The scales of
    /// a weight's rows run along this contraction, so they are applied here.
    fn quantised_gradients(
        &self,
        sweep: &Sweep<'_, '_>,
        integers: &[bool],
        d_y: &Tensor,
    ) -> Vec<Option<Tensor>> {
        let mut col = 0;
        let gradient = |(i, projection): (usize, &Projection)| {
            let columns = (col, projection.out_features());
            col += projection.out_features();
            integers[i].then(|| {
                self.quantised(sweep.device, d_y, columns, |of| {
                    Some(sweep.params.resolve(&of[i].weight).view().packed().int8().scales)
                })
            })
        };
        self.first().iter().enumerate().map(gradient).collect()
    }
}
