//! The backward pass of linear layers.

use super::low_rank::{self, Adapter};
use super::{Adapted, Context, Input};
use crate::ops::quantisation::{Direction, GpuQuantisation, quantised_gradients};
use crate::ops::{convert, converted_bytes, rows_cols};
use crate::tape::Sweep;
use crate::{AdapterRows, Cost, DType, Projection, Tensor, View, Weight, Work};
use hone_kernels::gemm::{self, Epilogue, Matrix, OutputRegion, Product, Term, WeightGradient};
use std::sync::Arc;

/// Values saved by the forward pass, apart from its input.
pub(super) struct Backward<'a> {
    pub(super) projections: &'a [Projection],
    pub(super) adapter_rows: Arc<[AdapterRows]>,
    /// Down-projections of the adapters, if there are any.
    pub(super) down: Option<Tensor>,
}

impl Backward<'_> {
    /// Accumulates the gradients of trained parameters, and returns the input's, if it has one.
    pub(super) fn run(self, sweep: &mut Sweep<'_, '_>, x: Input, d_y: &Tensor) -> Option<Tensor> {
        let Self { projections, adapter_rows, down } = self;
        bias_gradients(sweep, projections, d_y);
        let rounded = in_compute_type(sweep, d_y);
        let d_y = rounded.as_ref().unwrap_or(d_y);
        weight_gradients(sweep, projections, &x, d_y);
        let adapters = low_rank::adapters(projections, &adapter_rows, x.shape[0]);
        let d_u = down.map(|u| low_rank::gradients(sweep, &adapters, x.value(), u, d_y));
        if !x.requires_grad {
            return None;
        }
        let (shape, dtype) = (x.shape, x.dtype);
        // Releases the input before its gradient is allocated.
        drop(x);
        let mut d_x = sweep.activation(dtype, &shape);
        input_gradient(
            sweep,
            projections,
            Adapted { adapters: &adapters, down: d_u.as_ref() },
            d_y,
            &mut d_x,
        );
        if let Some(d_u) = &d_u {
            low_rank::add_dropped_gradients(sweep, &adapters, d_u, &mut d_x);
        }
        Some(d_x)
    }
}

/// `d_y` in the compute type, since the residual stream's gradient is f32 and several products read
/// it. `None` if it has that type already.
fn in_compute_type(sweep: &Sweep<'_, '_>, d_y: &Tensor) -> Option<Tensor> {
    if d_y.dtype() == sweep.dtype() {
        return None;
    }
    let mut rounded = sweep.workspace(sweep.dtype(), d_y.shape());
    convert(sweep.device, d_y, &mut rounded);
    Some(rounded)
}

/// `d_bias += Σ_t d_y` for trained biases.
fn bias_gradients(sweep: &mut Sweep<'_, '_>, projections: &[Projection], d_y: &Tensor) {
    let (t, width) = rows_cols(d_y.shape());
    let mut col = 0;
    for projection in projections {
        let bytes = t * projection.out_features() * d_y.dtype().size();
        if let Some(param) = projection.bias.as_ref().and_then(Weight::param)
            && let Some(on) = sweep.device.begin(Cost::memory_bound("d_bias", bytes))
        {
            let d_bias = sweep.gradients.get_mut(param).view_mut();
            on.add_column_sums(d_y.view(), width, col, d_bias);
        }
        col += projection.out_features();
    }
}

/// `d_W += d_yᵀ x` for trained weights.
fn weight_gradients(
    sweep: &mut Sweep<'_, '_>,
    projections: &[Projection],
    x: &Input,
    d_y: &Tensor,
) {
    let ([t, k], (_, width), dtype) = (x.shape, rows_cols(d_y.shape()), sweep.dtype());
    let mut col = 0;
    for projection in projections {
        let n = projection.out_features();
        if let Some(param) = projection.weight.param() {
            let x = x.value();
            let len = gemm::weight_workspace_len(sweep.device.target(), t, k);
            let mut workspace = sweep.workspace(DType::F32, &[len]);
            let passes = t.div_ceil(gemm::MAX_TOKENS);
            let bytes = x.num_bytes() + t * n * d_y.dtype().size() + passes * 8 * n * k;
            let cost = Cost::memory_bound("d_weight", bytes).with(Work::OverTokens, 2 * n * k * t);
            if let Some(on) = sweep.device.begin(cost) {
                let d_y = Matrix::rows(d_y.view(), width).from_col(col);
                let x = Matrix::rows(x.view(), k);
                let gradient = WeightGradient { t, m: n, n: k, d_y, x };
                let d_w = sweep.gradients.get_mut(param).view_mut();
                on.add_weight_gradient(dtype, gradient, workspace.view_mut(), d_w);
            }
        }
        col += n;
    }
}

/// `d_x = Σ_i d_y_i W_i (+ d_u A)`, the latter for parts of adapters without dropout.
fn input_gradient(
    sweep: &Sweep<'_, '_>,
    projections: &[Projection],
    d_down: Adapted<'_, '_>,
    d_y: &Tensor,
    d_x: &mut Tensor,
) {
    let ((t, k), (_, width)) = (rows_cols(d_x.shape()), rows_cols(d_y.shape()));
    let (device, params, dtype) = (sweep.device, sweep.params, sweep.dtype());
    let undropped: Vec<_> = d_down.adapters.iter().filter(|a| a.undropped_rank() > 0).collect();
    let stacked_a = |adapter: &&Adapter<'_>| adapter.stacked_a(Context::of_sweep(sweep), k);
    let a: Vec<Tensor> = undropped.iter().map(stacked_a).collect();
    let adapter_flops: usize = undropped.iter().map(|adapter| adapter.undropped_flops(k)).sum();
    let weights = projections.iter().map(|p| params.resolve(&p.weight).num_bytes());
    let bytes = d_x.num_bytes() + d_y.num_bytes() + weights.sum::<usize>();
    let quantised = quantised_gradients(sweep, projections, d_y);
    let int8_width: usize = quantised.iter().flatten().map(|d_y| d_y.shape()[1]).sum();
    let direction = Direction::Backward;
    let quantisation = GpuQuantisation::of(device, sweep.compute, direction, params, projections);
    let quantised_width = int8_width + quantisation.width(projections);
    let converted = quantisation.unquantised(projections).map(|p| params.resolve(&p.weight));
    let scratch = converted_bytes(device, dtype, converted)
        + quantisation.scratch_bytes(projections, |p| [t, k, p.out_features()]);
    let cost = Cost::memory_bound("d_linear", bytes)
        .with_scratch(scratch)
        .with(Work::Int8, 2 * t * k * quantised_width)
        .with(Work::Product, 2 * t * k * (width - quantised_width) + adapter_flops);
    let Some(on) = device.begin(cost) else { return };
    let (mut terms, mut float_terms) = (Vec::new(), Vec::new());
    let mut col = 0;
    for (projection, quantised) in projections.iter().zip(&quantised) {
        let (n, w) = (projection.out_features(), params.resolve(&projection.weight));
        if let Some(d_y) = quantised {
            let b = Matrix::rows(View::Packed(w.view().packed().without_scales()), k);
            terms.push(Term::new(Matrix::rows(d_y.view(), n), b, n));
        } else {
            let a = Matrix::rows(d_y.view(), width).from_col(col);
            float_terms.push(Term::new(a, Matrix::rows(w.view(), k), n));
        }
        col += n;
    }
    terms.append(&mut float_terms);
    if let Some(d_u) = d_down.down {
        let with_a = undropped.iter().zip(&a);
        terms.extend(with_a.flat_map(|(adapter, a)| adapter.input_gradients(d_u, a)));
    }
    let output = OutputRegion::whole(t, k);
    let product = Product { terms: &terms, epilogue: Epilogue::default(), output };
    quantisation.gemm(on, dtype, &[product], d_x.view_mut());
}
