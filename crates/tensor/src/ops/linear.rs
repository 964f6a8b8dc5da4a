//! Linear layers that read the same input, with their adapters.
//!
//! `y = x Wᵀ + bias + scale · (dropout(x) Aᵀ) Bᵀ (+ residual)`, several projections side by side in
//! one output row. The adapter's up-projection is `rank` more columns of the same contraction, so
//! it costs no pass over the output.

use super::rows_cols;
use crate::tape::Sweep;
use crate::{Cost, DType, Device, Lora, Philox, Projection, StepKey, Tape, Tensor, Var, Weight};
use hone_kernels::dropout::{self, Mask};
use hone_kernels::gemm::{Epilogue, Matrix, Target, Term, gemm};
use hone_kernels::vector;

/// `x [t, k]`, projections `[n_i, k]` → `[t, Σ n_i]` in the compute type, or, with a `residual`
/// `[t, Σ n_i]` f32 to add to, in f32.
pub fn linear<'a>(
    tape: &mut Tape<'a>,
    x: Var,
    projections: &'a [Projection],
    residual: Option<Var>,
) -> Var {
    let (t, k) = rows_cols(x.value().shape());
    let width: usize = projections.iter().map(Projection::out_features).sum();
    let dtype = if residual.is_some() { DType::F32 } else { tape.compute() };
    let mut y = tape.activation(dtype, &[t, width]);
    let mut saved = Vec::new();
    let mut col = 0;
    for projection in projections {
        assert_eq!(projection.in_features(), k);
        let down = projection.lora.as_ref().map(|lora| down_projection(tape, x.value(), lora));
        let add = residual.as_ref().map(Var::value);
        project(tape, x.value(), projection, down.as_ref(), add, &mut y, col);
        col += projection.out_features();
        saved.push(down);
    }
    let residual_grad = residual.as_ref().is_some_and(Var::requires_grad);
    let inner_grad = x.requires_grad() || projections.iter().any(Projection::is_trained);
    let residual = residual.map(|r| r.id());
    if !(tape.is_recording() && (inner_grad || residual_grad)) {
        return tape.push(y, inner_grad || residual_grad, |_, _| {});
    }
    let step = tape.step();
    let input = Input::kept_for(projections, x);
    tape.push(y, true, move |sweep, d_y| {
        if inner_grad {
            let id = input.id;
            if let Some(d_x) = backward(sweep, input, projections, saved, &d_y, step) {
                sweep.add(id, d_x);
            }
        }
        if let Some(residual) = residual.filter(|_| residual_grad) {
            sweep.add(residual, d_y);
        }
    })
}

/// What the backward pass needs of the input.
struct Input {
    id: usize,
    requires_grad: bool,
    dtype: DType,
    shape: [usize; 2],
    /// `None` where neither a weight nor an adapter is trained: the input's gradient does not
    /// depend on the input.
    value: Option<Tensor>,
}

impl Input {
    fn kept_for(projections: &[Projection], x: Var) -> Self {
        let needs_input = |p: &Projection| p.weight.param().is_some() || p.lora.is_some();
        let (t, k) = rows_cols(x.value().shape());
        Self {
            id: x.id(),
            requires_grad: x.requires_grad(),
            dtype: x.value().dtype(),
            shape: [t, k],
            value: projections.iter().any(needs_input).then(|| x.into_value()),
        }
    }

    fn value(&self) -> &Tensor {
        self.value.as_ref().expect("kept where a weight or an adapter is trained")
    }
}

/// The adapter's `scale · dropout(x) Aᵀ`, `[t, rank]` f32.
fn down_projection(tape: &Tape<'_>, x: &Tensor, lora: &Lora) -> Tensor {
    let (t, k) = rows_cols(x.shape());
    let mut u = tape.activation(DType::F32, &[t, lora.rank]);
    let dropped = dropped(tape.device(), x, lora, tape.step());
    let x = dropped.as_ref().unwrap_or(x);
    let cost = Cost::product("lora_down", t, lora.rank, k, x.num_bytes() + u.num_bytes());
    if let Some(cpu) = tape.device().begin(cost) {
        let a = Matrix::rows(tape.params().value(lora.a).view(), k).transposed();
        let terms = [Term { a: Matrix::rows(x.view(), k), b: a, k }];
        let epilogue = Epilogue { scale: lora.scale, ..Epilogue::default() };
        gemm(cpu, tape.compute(), &terms, epilogue, Target::whole(t, lora.rank), u.view_mut());
    }
    u
}

/// Columns `col..` of `y`: the projection of `x` and its adapter.
fn project(
    tape: &Tape<'_>,
    x: &Tensor,
    projection: &Projection,
    down: Option<&Tensor>,
    residual: Option<&Tensor>,
    y: &mut Tensor,
    col: usize,
) {
    let (t, k) = rows_cols(x.shape());
    let (n, width) = (projection.out_features(), y.shape()[1]);
    let weight = tape.params().resolve(&projection.weight);
    let rank = projection.lora.as_ref().map_or(0, |lora| lora.rank);
    let bytes = x.num_bytes() + weight.num_bytes() + t * n * y.dtype().size();
    let Some(cpu) = tape.device().begin(Cost::product("linear", t, n, k + rank, bytes)) else {
        return;
    };
    let w = Matrix::rows(weight.view(), k).transposed();
    let mut terms = vec![Term { a: Matrix::rows(x.view(), k), b: w, k }];
    if let (Some(lora), Some(u)) = (&projection.lora, down) {
        let b = Matrix::rows(tape.params().value(lora.b).view(), rank).transposed();
        terms.push(Term { a: Matrix::rows(u.view(), rank), b, k: rank });
    }
    let epilogue = Epilogue {
        bias: projection.bias.as_ref().map(|bias| tape.params().resolve(bias).f32()),
        add: residual.map(Tensor::f32),
        ..Epilogue::default()
    };
    let target = Target { m: t, n, row_stride: width, col };
    gemm(cpu, tape.compute(), &terms, epilogue, target, y.view_mut());
}

fn backward(
    sweep: &mut Sweep<'_, '_>,
    x: Input,
    projections: &[Projection],
    saved: Vec<Option<Tensor>>,
    d_y: &Tensor,
    step: Option<StepKey>,
) -> Option<Tensor> {
    let mut col = 0;
    let mut d_downs = Vec::new();
    for (projection, down) in projections.iter().zip(saved) {
        weight_gradients(sweep, projection, &x, d_y, col);
        d_downs.push(projection.lora.as_ref().zip(down).map(|(lora, u)| {
            adapter_gradients(
                sweep,
                lora,
                x.value(),
                &u,
                d_y,
                (col, projection.out_features()),
                step,
            )
        }));
        col += projection.out_features();
    }
    if !x.requires_grad {
        return None;
    }
    let (shape, dtype) = (x.shape, x.dtype);
    // The input may be released before its gradient takes its place.
    drop(x);
    let mut d_x = sweep.activation(dtype, &shape);
    input_gradient(sweep, projections, &d_downs, d_y, &mut d_x, step.is_some());
    for (projection, d_down) in projections.iter().zip(&d_downs) {
        if let (Some(lora), Some(d_u)) = (&projection.lora, d_down)
            && let Some(mask) = mask(lora, step)
        {
            add_dropped_gradient(sweep, lora, mask, d_u, &mut d_x);
        }
    }
    Some(d_x)
}

/// `d_W += d_yᵀ x` and `d_bias += Σ_t d_y`, where these are trained.
fn weight_gradients(
    sweep: &mut Sweep<'_, '_>,
    projection: &Projection,
    x: &Input,
    d_y: &Tensor,
    col: usize,
) {
    let ([t, k], (_, width)) = (x.shape, rows_cols(d_y.shape()));
    let n = projection.out_features();
    let bytes = t * n * d_y.dtype().size();
    if let Some(param) = projection.weight.param() {
        let x = x.value();
        let bytes = x.num_bytes() + bytes + 8 * n * k;
        let cost = Cost::product("d_weight", n, k, t, bytes);
        if let Some(cpu) = sweep.device.begin(cost) {
            let d_y = Matrix::rows(d_y.view(), width).from_col(col).transposed();
            let terms = [Term { a: d_y, b: Matrix::rows(x.view(), k), k: t }];
            let d_w = sweep.gradients.get_mut(param).view_mut();
            gemm(cpu, sweep.compute, &terms, ACCUMULATE, Target::whole(n, k), d_w);
        }
    }
    if let Some(param) = projection.bias.as_ref().and_then(Weight::param)
        && let Some(cpu) = sweep.device.begin(Cost::memory("d_bias", bytes))
    {
        let d_bias = sweep.gradients.get_mut(param).f32_mut();
        vector::add_column_sums(cpu, d_y.view(), width, col, d_bias);
    }
}

const ACCUMULATE: Epilogue<'static> =
    Epilogue { scale: 1.0, bias: None, add: None, accumulate: true };

/// `d_B += d_yᵀ u`, `d_A += d_uᵀ dropout(x)`; returns `d_u = scale · d_y B [t, rank]`, the gradient
/// of the unscaled down-projection.
fn adapter_gradients(
    sweep: &mut Sweep<'_, '_>,
    lora: &Lora,
    x: &Tensor,
    u: &Tensor,
    d_y: &Tensor,
    (col, n): (usize, usize),
    step: Option<StepKey>,
) -> Tensor {
    let ((t, k), (_, width)) = (rows_cols(x.shape()), rows_cols(d_y.shape()));
    let (r, compute) = (lora.rank, sweep.compute);
    let mut d_u = sweep.workspace(DType::F32, &[t, r]);
    let bytes = t * n * d_y.dtype().size() + d_u.num_bytes();
    if let Some(cpu) = sweep.device.begin(Cost::product("d_lora_up", t, 2 * n, r, bytes)) {
        let d_y = Matrix::rows(d_y.view(), width).from_col(col);
        let b = Matrix::rows(sweep.params.value(lora.b).view(), r);
        let epilogue = Epilogue { scale: lora.scale, ..Epilogue::default() };
        let terms = [Term { a: d_y, b, k: n }];
        gemm(cpu, compute, &terms, epilogue, Target::whole(t, r), d_u.view_mut());
        let terms = [Term { a: d_y.transposed(), b: Matrix::rows(u.view(), r), k: t }];
        let d_b = sweep.gradients.get_mut(lora.b).view_mut();
        gemm(cpu, compute, &terms, ACCUMULATE, Target::whole(n, r), d_b);
    }
    let dropped = dropped(sweep.device, x, lora, step);
    let x = dropped.as_ref().unwrap_or(x);
    let bytes = x.num_bytes() + d_u.num_bytes();
    if let Some(cpu) = sweep.device.begin(Cost::product("d_lora_down", r, k, t, bytes)) {
        let d_u = Matrix::rows(d_u.view(), r).transposed();
        let terms = [Term { a: d_u, b: Matrix::rows(x.view(), k), k: t }];
        let d_a = sweep.gradients.get_mut(lora.a).view_mut();
        gemm(cpu, compute, &terms, ACCUMULATE, Target::whole(r, k), d_a);
    }
    d_u
}

/// `d_x = Σ_i d_y_i W_i + d_u_i A_i`; the adapters' part only where their input was not dropped.
fn input_gradient(
    sweep: &Sweep<'_, '_>,
    projections: &[Projection],
    d_downs: &[Option<Tensor>],
    d_y: &Tensor,
    d_x: &mut Tensor,
    in_training: bool,
) {
    let ((t, k), (_, width)) = (rows_cols(d_x.shape()), rows_cols(d_y.shape()));
    let params = sweep.params;
    let weights = projections.iter().map(|p| params.resolve(&p.weight).num_bytes());
    let bytes = d_x.num_bytes() + d_y.num_bytes() + weights.sum::<usize>();
    let rank: usize = projections.iter().filter_map(|p| p.lora.as_ref()).map(|l| l.rank).sum();
    let Some(cpu) = sweep.device.begin(Cost::product("d_linear", t, k, width + rank, bytes)) else {
        return;
    };
    let mut terms = Vec::new();
    let mut col = 0;
    for (projection, d_down) in projections.iter().zip(d_downs) {
        let (n, w) = (projection.out_features(), params.resolve(&projection.weight));
        let d_y = Matrix::rows(d_y.view(), width).from_col(col);
        terms.push(Term { a: d_y, b: Matrix::rows(w.view(), k), k: n });
        if let (Some(lora), Some(d_u)) = (&projection.lora, d_down)
            && !(in_training && lora.dropout > 0.0)
        {
            let a = Matrix::rows(params.value(lora.a).view(), k);
            terms.push(Term { a: Matrix::rows(d_u.view(), lora.rank), b: a, k: lora.rank });
        }
        col += n;
    }
    gemm(cpu, sweep.compute, &terms, Epilogue::default(), Target::whole(t, k), d_x.view_mut());
}

/// `d_x += mask · (d_u A)`.
fn add_dropped_gradient(
    sweep: &Sweep<'_, '_>,
    lora: &Lora,
    mask: Mask,
    d_u: &Tensor,
    d_x: &mut Tensor,
) {
    let (t, k) = rows_cols(d_x.shape());
    let mut d_dropped = sweep.workspace(DType::F32, &[t, k]);
    let bytes = d_dropped.num_bytes() + d_x.num_bytes();
    if let Some(cpu) = sweep.device.begin(Cost::product("d_dropout", t, k, lora.rank, bytes)) {
        let a = Matrix::rows(sweep.params.value(lora.a).view(), k);
        let terms = [Term { a: Matrix::rows(d_u.view(), lora.rank), b: a, k: lora.rank }];
        let target = Target::whole(t, k);
        gemm(cpu, sweep.compute, &terms, Epilogue::default(), target, d_dropped.view_mut());
        dropout::add_masked(cpu, mask, d_dropped.f32(), d_x.view_mut());
    }
}

/// The input of an adapter after dropout; `None` where it is the input itself.
fn dropped(device: &Device, x: &Tensor, lora: &Lora, step: Option<StepKey>) -> Option<Tensor> {
    let mask = mask(lora, step)?;
    let mut y = device.alloc(crate::Category::Workspace, x.dtype(), x.shape());
    if let Some(cpu) = device.begin(Cost::memory("dropout", 2 * x.num_bytes())) {
        dropout::apply(cpu, mask, x.view(), y.view_mut());
    }
    Some(y)
}

fn mask(lora: &Lora, step: Option<StepKey>) -> Option<Mask> {
    let step = step.filter(|_| lora.dropout > 0.0)?;
    assert!(step.micro_batch < 1 << 16 && lora.stream < 1 << 16, "streams would overlap");
    // Seed, step, micro-batch and adapter name the stream; the element's index its position.
    let stream = step.step << 32 | u64::from(step.micro_batch) << 16 | u64::from(lora.stream);
    Some(Mask { random: Philox::new(step.seed, stream), probability: lora.dropout })
}
