//! Linear layers that read the same input, with their adapters.
//!
//! `y = x Wᵀ + bias + scale · (dropout(x) Aᵀ) Bᵀ (+ residual)`, with the outputs of several
//! projections concatenated in each row. The adapter's up-projection extends the contraction by
//! `rank`, so it needs no pass of its own over the output; down-projections of one input are one
//! product.
//!
//! Different rows may have different adapters ([`crate::AdapterRows`]), or none: the product with
//! the weight covers all rows, the terms of an adapter its own. On the CPU, outputs and gradients
//! have the same bits as separate passes over each adapter's rows.

mod gradients;
mod low_rank;

use super::quantisation::{Direction, GpuQuantisation, is_integer_for};
use super::{RoundedAdapters, converted_bytes, quantised, rows_cols};
use crate::tape::Sweep;
use crate::{Cost, DType, Device, Params, Projection, Tape, Tensor, Var, Work};
use gradients::Backward;
use hone_kernels::gemm::{Epilogue, Matrix, OutputRegion, Product, Term};
use low_rank::Adapter;
use std::sync::Arc;

/// `x [t, k]`, projections `[n_i, k]` → `[t, Σ n_i]` in the compute type, or in f32 if a `residual`
/// `[t, Σ n_i]` f32 is added.
pub fn linear<'a>(
    tape: &mut Tape<'a>,
    x: Var,
    projections: &'a [Projection],
    residual: Option<Var>,
) -> Var {
    let dtype = if residual.is_some() { DType::F32 } else { tape.dtype() };
    linear_into(tape, x, projections, residual, dtype)
}

/// The same without a residual, in f32, for sums that are not to be rounded.
pub fn linear_in_f32<'a>(tape: &mut Tape<'a>, x: Var, projections: &'a [Projection]) -> Var {
    linear_into(tape, x, projections, None, DType::F32)
}

fn linear_into<'a>(
    tape: &mut Tape<'a>,
    x: Var,
    projections: &'a [Projection],
    residual: Option<Var>,
    dtype: DType,
) -> Var {
    let (t, k) = rows_cols(x.value().shape());
    assert!(projections.iter().all(|p| p.in_features() == k));
    let width: usize = projections.iter().map(Projection::out_features).sum();
    let mut y = tape.activation(dtype, &[t, width]);
    let adapters = low_rank::adapters(projections, tape.adapter_rows(), t);
    let down = low_rank::down_projections(tape, x.value(), &adapters);
    let adapted = Adapted { adapters: &adapters, down: down.as_ref() };
    project(tape, x.value(), projections, adapted, residual.as_ref(), &mut y);
    tape.observe(x.value(), || vec![(projections, 0..t)]);
    let residual_grad = residual.as_ref().is_some_and(Var::requires_grad);
    let inner_grad = x.requires_grad() || projections.iter().any(Projection::is_trained);
    let residual = residual.map(|r| r.id());
    if !(tape.is_recording() && (inner_grad || residual_grad)) {
        return tape.push(y, inner_grad || residual_grad, |_, _| {});
    }
    let observed = tape.observer().map(|observer| (observer, x.value().clone()));
    let input = Input::saved_for(projections, &adapters, x);
    let layer = Backward { projections, adapter_rows: Arc::clone(tape.adapter_rows()), down };
    tape.push(y, true, move |sweep, d_y| {
        if let Some((observer, x)) = observed {
            observer.gradient(&x, &[(projections, 0..t)], &d_y);
        }
        if inner_grad {
            let id = input.id;
            if let Some(d_x) = layer.run(sweep, input, &d_y) {
                sweep.add(id, d_x);
            }
        }
        if let Some(residual) = residual.filter(|_| residual_grad) {
            sweep.add(residual, d_y);
        }
    })
}

/// The input as the backward pass needs it.
struct Input {
    id: usize,
    requires_grad: bool,
    dtype: DType,
    shape: [usize; 2],
    /// `None` if neither a weight nor an adapter is trained, since the input's gradient does not
    /// depend on the input.
    value: Option<Tensor>,
}

impl Input {
    fn saved_for(projections: &[Projection], adapters: &[Adapter<'_>], x: Var) -> Self {
        let is_trained = |p: &Projection| p.weight.param().is_some();
        let is_needed = !adapters.is_empty() || projections.iter().any(is_trained);
        let (t, k) = rows_cols(x.value().shape());
        Self {
            id: x.id(),
            requires_grad: x.requires_grad(),
            dtype: x.value().dtype(),
            shape: [t, k],
            value: is_needed.then(|| x.into_value()),
        }
    }

    fn value(&self) -> &Tensor {
        self.value.as_ref().expect("saved if a weight or an adapter is trained")
    }
}

/// Context shared by forward and backward passes.
#[derive(Clone, Copy)]
struct Context<'s> {
    device: &'s Device,
    params: &'s Params,
    dtype: DType,
    rounded: &'s RoundedAdapters,
}

impl<'s> Context<'s> {
    fn of_tape(tape: &'s Tape<'_>) -> Self {
        let (device, params, dtype) = (tape.device(), tape.params(), tape.dtype());
        Self { device, params, dtype, rounded: tape.adapters() }
    }

    fn of_sweep(sweep: &'s Sweep<'_, '_>) -> Self {
        let (device, params, dtype) = (sweep.device, sweep.params, sweep.dtype());
        Self { device, params, dtype, rounded: &sweep.adapters }
    }
}

/// Adapters, and the down-projections of all rows or their gradient.
#[derive(Clone, Copy)]
struct Adapted<'s, 'p> {
    adapters: &'s [Adapter<'p>],
    down: Option<&'s Tensor>,
}

impl<'s> Adapted<'s, '_> {
    /// Terms that are added to projections, with the index of the projection.
    fn up_projections(self, context: Context<'s>) -> Vec<(usize, Term<'s>)> {
        let Some(down) = self.down else { return Vec::new() };
        self.adapters.iter().flat_map(|adapter| adapter.up_projections(context, down)).collect()
    }
}

/// Computes the projections `y` of `x`, with their adapters.
fn project(
    tape: &Tape<'_>,
    x: &Tensor,
    projections: &[Projection],
    adapted: Adapted<'_, '_>,
    residual: Option<&Var>,
    y: &mut Tensor,
) {
    let ((t, k), params) = (rows_cols(x.shape()), tape.params());
    let width = y.shape()[1];
    let weights: usize = projections.iter().map(|p| params.resolve(&p.weight).num_bytes()).sum();
    let in_integers = |p: &Projection| is_integer_for(tape.device(), tape.compute(), params, p);
    let int8_width: usize =
        projections.iter().filter(|p| in_integers(p)).map(Projection::out_features).sum();
    let quantised = (int8_width > 0).then(|| quantised(tape.device(), x, (0, k), None));
    let (device, direction) = (tape.device(), Direction::Forward);
    let quantisation = GpuQuantisation::of(device, tape.compute(), direction, params, projections);
    let converted = quantisation.unquantised(projections).map(|p| params.resolve(&p.weight));
    let context = Context::of_tape(tape);
    let converted =
        converted.chain(adapted.adapters.iter().flat_map(|adapter| adapter.unrounded_b(context)));
    let scratch = converted_bytes(device, tape.dtype(), converted)
        + quantisation.scratch_bytes(projections, |p| [t, p.out_features(), k]);
    let quantised_width = int8_width + quantisation.width(projections);
    let up_flops: usize = adapted.adapters.iter().map(Adapter::up_flops).sum();
    let cost = Cost::memory_bound("linear", x.num_bytes() + weights + y.num_bytes())
        .with_scratch(scratch)
        .with(Work::Int8, 2 * t * quantised_width * k)
        .with(Work::Product, 2 * t * (width - quantised_width) * k + up_flops);
    let Some(on) = device.begin(cost) else { return };
    let adapter_terms = adapted.up_projections(context);
    let mut terms = Vec::new();
    for (i, projection) in projections.iter().enumerate() {
        let w = Matrix::rows(params.resolve(&projection.weight).view(), k).transposed();
        let x = quantised.as_ref().filter(|_| in_integers(projection)).unwrap_or(x);
        let own = Term::new(Matrix::rows(x.view(), k), w, k);
        let added =
            adapter_terms.iter().filter(|(projection, _)| *projection == i).map(|(_, term)| *term);
        terms.push(std::iter::once(own).chain(added).collect::<Vec<_>>());
    }
    let add = residual.map(|residual| residual.value().view());
    let mut col = 0;
    let products = projections.iter().zip(&terms).map(|(projection, terms)| {
        let bias = projection.bias.as_ref().map(|bias| params.resolve(bias).view());
        let output = OutputRegion::columns(t, projection.out_features(), width, col);
        col += projection.out_features();
        Product { terms, epilogue: Epilogue { bias, add, ..Epilogue::default() }, output }
    });
    let products: Vec<_> = products.collect();
    quantisation.gemm(on, tape.dtype(), &products, y.view_mut());
}
