//! Linear layers that read the same input, with their adapters.
//!
//! `y = x Wᵀ + bias + scale · (dropout(x) Aᵀ) Bᵀ (+ residual)`, several projections side by side in
//! one output row. The adapter's up-projection is `rank` more columns of the same contraction, so
//! it costs no pass over the output; down-projections of one input are one product.

use super::eight_bits::{InEightBits, Pass, is_integer_for, quantised_gradients};
use super::{RoundedAdapters, converted_bytes, quantised, rows_cols};
use crate::tape::Sweep;
use crate::{
    Category, Cost, DType, Device, Lora, ParamId, Params, Philox, Projection, StepKey, Tape,
    Target, Tensor, Var, View, Weight, Work,
};
use hone_kernels::dropout::Mask;
use hone_kernels::gemm::{self, Epilogue, Matrix, Place, Product, Term};

/// `x [t, k]`, projections `[n_i, k]` → `[t, Σ n_i]` in the compute type, or, with a `residual`
/// `[t, Σ n_i]` f32 to add to, in f32.
pub fn linear<'a>(
    tape: &mut Tape<'a>,
    x: Var,
    projections: &'a [Projection],
    residual: Option<Var>,
) -> Var {
    let (t, k) = rows_cols(x.value().shape());
    assert!(projections.iter().all(|p| p.in_features() == k));
    let width: usize = projections.iter().map(Projection::out_features).sum();
    let dtype = if residual.is_some() { DType::F32 } else { tape.dtype() };
    let mut y = tape.activation(dtype, &[t, width]);
    let down = down_projections(tape, x.value(), projections);
    project(tape, x.value(), projections, down.as_ref(), residual.as_ref(), &mut y);
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
            if let Some(d_x) = backward(sweep, input, projections, down, &d_y, step) {
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

/// A projection's adapter and where its rows stand among those of its neighbours.
#[derive(Clone, Copy)]
struct Adapter<'p> {
    lora: &'p Lora,
    /// First column of the projection in the output.
    col: usize,
    /// Columns of the projection.
    n: usize,
    /// First column of its down-projection among all.
    at: usize,
}

/// The adapters of projections that stand side by side, and the sum of their ranks.
fn adapters(projections: &[Projection]) -> (Vec<Adapter<'_>>, usize) {
    let (mut all, mut col, mut at) = (Vec::new(), 0, 0);
    for projection in projections {
        let n = projection.out_features();
        if let Some(lora) = &projection.lora {
            all.push(Adapter { lora, col, n, at });
            at += lora.rank;
        }
        col += n;
    }
    (all, at)
}

/// What the passes of a tape and of a sweep have in common.
#[derive(Clone, Copy)]
struct On<'s> {
    device: &'s Device,
    params: &'s Params,
    dtype: DType,
    rounded: &'s RoundedAdapters,
}

impl<'s> On<'s> {
    fn tape(tape: &'s Tape<'_>) -> Self {
        let (device, params, dtype) = (tape.device(), tape.params(), tape.dtype());
        Self { device, params, dtype, rounded: tape.adapters() }
    }

    fn sweep(sweep: &'s Sweep<'_, '_>) -> Self {
        let (device, params, dtype) = (sweep.device, sweep.params, sweep.dtype());
        Self { device, params, dtype, rounded: &sweep.adapters }
    }

    /// `scale · A` of all adapters, one below the other: `[Σ rank, k]` in the compute type.
    fn stacked_a(self, (adapters, rank): (&[Adapter<'_>], usize), k: usize) -> Tensor {
        if let Some(rounded) = self.rounded.of(adapters[0].lora.a) {
            return rounded.a.clone();
        }
        let mut a = self.device.alloc(Category::Workspace, self.dtype, &[rank, k]);
        let bytes = a.num_bytes() + 4 * a.len();
        if let Some(on) = self.device.begin(Cost::memory("lora_a", bytes)) {
            for Adapter { lora, at, .. } in adapters {
                let rows = a.view_mut().part(at * k, lora.rank * k);
                on.scale(self.params.value(lora.a).view(), lora.scale, rows);
            }
        }
        a
    }

    /// Those of the adapters' `B` that a GPU converts for each product.
    fn unrounded_b(self, adapters: &[Adapter<'_>]) -> Vec<&'s Tensor> {
        match adapters.first().and_then(|first| self.rounded.of(first.lora.a)) {
            Some(_) => Vec::new(),
            None => adapters.iter().map(|adapter| self.params.value(adapter.lora.b)).collect(),
        }
    }

    /// `B` of each adapter: `[n, rank]`, row-major.
    fn all_b(self, adapters: &[Adapter<'_>]) -> Vec<View<'s>> {
        let Some(first) = adapters.first() else { return Vec::new() };
        let rounded = self.rounded.of(first.lora.a);
        let mut at = 0;
        let b = |adapter: &Adapter<'_>| {
            let len = adapter.n * adapter.lora.rank;
            at += len;
            match rounded {
                Some(rounded) => rounded.b.view().part(at - len, len),
                None => self.params.value(adapter.lora.b).view(),
            }
        };
        adapters.iter().map(b).collect()
    }
}

/// `scale · dropout(x) Aᵀ` of all adapters side by side, `[t, Σ rank]` in the compute type.
fn down_projections(tape: &Tape<'_>, x: &Tensor, projections: &[Projection]) -> Option<Tensor> {
    let ((adapters, width), (t, k)) = (adapters(projections), rows_cols(x.shape()));
    if adapters.is_empty() {
        return None;
    }
    let (device, compute) = (tape.device(), tape.dtype());
    let mut u = tape.activation(compute, &[t, width]);
    let a = On::tape(tape).stacked_a((&adapters, width), k);
    let mut project = |x: &Tensor, at: usize, rank: usize| {
        let bytes = x.num_bytes() + u.num_bytes();
        let cost = Cost::memory("lora_down", bytes).with(Work::Thin, 2 * t * rank * k);
        if let Some(on) = device.begin(cost) {
            let b = Matrix { offset: at * k, ..Matrix::rows(a.view(), k) }.transposed();
            let terms = [Term { a: Matrix::rows(x.view(), k), b, k }];
            let target = Place::columns(t, rank, width, at);
            let product = Product { terms: &terms, epilogue: Epilogue::default(), target };
            on.gemm(compute, &[product], u.view_mut());
        }
    };
    // Adapters of one input share a product, unless each drops other elements of it.
    if adapters.iter().all(|adapter| mask(adapter.lora, tape.step()).is_none()) {
        project(x, 0, width);
    } else {
        for Adapter { lora, at, .. } in &adapters {
            let dropped = dropped(device, x, lora, tape.step());
            project(dropped.as_ref().unwrap_or(x), *at, lora.rank);
        }
    }
    Some(u)
}

/// `y`: projections of `x`, with their adapters.
fn project(
    tape: &Tape<'_>,
    x: &Tensor,
    projections: &[Projection],
    down: Option<&Tensor>,
    residual: Option<&Var>,
    y: &mut Tensor,
) {
    let ((t, k), params) = (rows_cols(x.shape()), tape.params());
    let (width, (adapters, rank)) = (y.shape()[1], adapters(projections));
    let weights: usize = projections.iter().map(|p| params.resolve(&p.weight).num_bytes()).sum();
    let flops_of_adapters = adapters.iter().map(|a| 2 * t * a.n * a.lora.rank).sum::<usize>();
    let in_integers = |p: &Projection| is_integer_for(tape.device(), tape.compute(), params, p);
    let int8_width: usize =
        projections.iter().filter(|p| in_integers(p)).map(Projection::out_features).sum();
    let quantised = (int8_width > 0).then(|| quantised(tape.device(), x, (0, k), None));
    let pass = (tape.device(), tape.compute(), Pass::Forward);
    let in_eight_bits = InEightBits::of(pass, params, projections);
    let held = in_eight_bits.which(false, projections).map(|p| params.resolve(&p.weight));
    let on_tape = On::tape(tape);
    let held = held.chain(on_tape.unrounded_b(&adapters));
    let scratch = converted_bytes(tape.device(), tape.dtype(), held)
        + in_eight_bits.bytes(projections, |p| [t, p.out_features(), k]);
    let eight_bits = int8_width + in_eight_bits.width(projections);
    let cost = Cost::memory("linear", x.num_bytes() + weights + y.num_bytes())
        .with_scratch(scratch)
        .with(Work::Int8, 2 * t * eight_bits * k)
        .with(Work::Product, 2 * t * (width - eight_bits) * k + flops_of_adapters);
    let Some(on) = tape.device().begin(cost) else { return };
    let all_b = on_tape.all_b(&adapters);
    let mut terms = Vec::new();
    let mut col = 0;
    for projection in projections {
        let w = Matrix::rows(params.resolve(&projection.weight).view(), k).transposed();
        let x = quantised.as_ref().filter(|_| in_integers(projection)).unwrap_or(x);
        let mut of_one = vec![Term { a: Matrix::rows(x.view(), k), b: w, k }];
        let own = adapters.iter().zip(&all_b).find(|(adapter, _)| adapter.col == col);
        if let Some((Adapter { lora, at, .. }, b)) = own {
            let u = down.expect("made for these adapters");
            let b = Matrix::rows(*b, lora.rank).transposed();
            let a = Matrix::rows(u.view(), rank).from_col(*at);
            of_one.push(Term { a, b, k: lora.rank });
        }
        terms.push(of_one);
        col += projection.out_features();
    }
    let add = residual.map(|residual| residual.value().view());
    col = 0;
    let products = projections.iter().zip(&terms).map(|(projection, terms)| {
        let bias = projection.bias.as_ref().map(|bias| params.resolve(bias).view());
        let target = Place::columns(t, projection.out_features(), width, col);
        col += projection.out_features();
        Product { terms, epilogue: Epilogue { bias, add, ..Epilogue::default() }, target }
    });
    let products: Vec<_> = products.collect();
    in_eight_bits.gemm(on, tape.dtype(), &products, y.view_mut());
}

fn backward(
    sweep: &mut Sweep<'_, '_>,
    x: Input,
    projections: &[Projection],
    down: Option<Tensor>,
    d_y: &Tensor,
    step: Option<StepKey>,
) -> Option<Tensor> {
    bias_gradients(sweep, projections, d_y);
    // The residual stream is f32; products want the compute type, and read it several times.
    let rounded = (d_y.dtype() != sweep.dtype()).then(|| {
        let mut rounded = sweep.workspace(sweep.dtype(), d_y.shape());
        let cost = Cost::memory("convert", d_y.num_bytes() + rounded.num_bytes());
        if let Some(on) = sweep.device.begin(cost) {
            on.convert(d_y.view(), rounded.view_mut());
        }
        rounded
    });
    let d_y = rounded.as_ref().unwrap_or(d_y);
    weight_gradients(sweep, projections, &x, d_y);
    let d_down = down.map(|u| adapter_gradients(sweep, projections, x.value(), u, d_y, step));
    if !x.requires_grad {
        return None;
    }
    let (shape, dtype) = (x.shape, x.dtype);
    // The input may be released before its gradient takes its place.
    drop(x);
    let mut d_x = sweep.activation(dtype, &shape);
    input_gradient(sweep, projections, d_down.as_ref(), d_y, &mut d_x, step);
    let (adapters, rank) = adapters(projections);
    for adapter in &adapters {
        if let (Some(mask), Some(d_u)) = (mask(adapter.lora, step), &d_down) {
            let first = adapters[0].lora.a;
            add_dropped_gradient(sweep, (adapter, first, rank), mask, d_u, &mut d_x);
        }
    }
    Some(d_x)
}

/// `d_bias += Σ_t d_y`, where biases are trained.
fn bias_gradients(sweep: &mut Sweep<'_, '_>, projections: &[Projection], d_y: &Tensor) {
    let (t, width) = rows_cols(d_y.shape());
    let mut col = 0;
    for projection in projections {
        let bytes = t * projection.out_features() * d_y.dtype().size();
        if let Some(param) = projection.bias.as_ref().and_then(Weight::param)
            && let Some(on) = sweep.device.begin(Cost::memory("d_bias", bytes))
        {
            let d_bias = sweep.gradients.get_mut(param).view_mut();
            on.add_column_sums(d_y.view(), width, col, d_bias);
        }
        col += projection.out_features();
    }
}

/// `d_W += d_yᵀ x`, where weights are trained.
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
            let len = match sweep.device.target() {
                Target::Cpu => gemm::weight_workspace_len(t, k),
                Target::Cuda => 0,
            };
            let mut workspace = sweep.workspace(DType::F32, &[len]);
            let passes = t.div_ceil(gemm::MOST_TOKENS);
            let bytes = x.num_bytes() + t * n * d_y.dtype().size() + passes * 8 * n * k;
            let cost = Cost::memory("d_weight", bytes).with(Work::OverTokens, 2 * n * k * t);
            if let Some(on) = sweep.device.begin(cost) {
                let d_y = Matrix::rows(d_y.view(), width).from_col(col);
                let operands = (d_y, Matrix::rows(x.view(), k));
                let d_w = sweep.gradients.get_mut(param).view_mut();
                let workspace = workspace.view_mut();
                on.add_weight_gradient(dtype, (t, n, k), operands, workspace, d_w);
            }
        }
        col += n;
    }
}

/// `d_B += d_yᵀ u`, `d_A += scale · d_uᵀ dropout(x)`; returns `d_u = d_y B [t, Σ rank]`, the
/// gradient of the scaled down-projection.
fn adapter_gradients(
    sweep: &mut Sweep<'_, '_>,
    projections: &[Projection],
    x: &Tensor,
    u: Tensor,
    d_y: &Tensor,
    step: Option<StepKey>,
) -> Tensor {
    let ((t, _), (_, width)) = (rows_cols(x.shape()), rows_cols(d_y.shape()));
    let ((adapters, rank), compute) = (adapters(projections), sweep.dtype());
    let mut d_u = sweep.workspace(compute, &[t, rank]);
    let flops: usize = adapters.iter().map(|a| 2 * t * a.n * a.lora.rank).sum();
    let bytes = d_y.num_bytes() + d_u.num_bytes();
    let cost = |name| Cost::memory(name, bytes).with(Work::Thin, flops);
    if let Some(on) = sweep.device.begin(cost("d_lora_u")) {
        let mut terms = Vec::new();
        for (adapter, b) in adapters.iter().zip(On::sweep(sweep).all_b(&adapters)) {
            let a = Matrix::rows(d_y.view(), width).from_col(adapter.col);
            terms.push([Term { a, b: Matrix::rows(b, adapter.lora.rank), k: adapter.n }]);
        }
        let product = |(adapter, terms): (&Adapter<'_>, _)| {
            let target = Place::columns(t, adapter.lora.rank, rank, adapter.at);
            Product { terms, epilogue: Epilogue::default(), target }
        };
        let products: Vec<_> =
            adapters.iter().zip(&terms).map(|(a, terms)| product((a, terms))).collect();
        on.gemm(compute, &products, d_u.view_mut());
    }
    if let Some(on) = sweep.device.begin(cost("d_lora_b")) {
        for &Adapter { lora, col, n, at } in &adapters {
            // As `d_Bᵀ = uᵀ d_y`: `d_y` is read along its rows, `u` is the one to turn.
            let a = Matrix::rows(u.view(), rank).from_col(at).transposed();
            let terms = [Term { a, b: Matrix::rows(d_y.view(), width).from_col(col), k: t }];
            let epilogue = Epilogue { accumulate: true, ..Epilogue::default() };
            let target = Place::whole(n, lora.rank).transposed();
            let product = Product { terms: &terms, epilogue, target };
            on.gemm(compute, &[product], sweep.gradients.get_mut(lora.b).view_mut());
        }
    }
    drop(u);
    // Adapters of one input share a product, unless each dropped other elements of it.
    if adapters.iter().all(|adapter| mask(adapter.lora, step).is_none()) {
        down_gradients(sweep, &adapters, x, &d_u);
    } else {
        for adapter in &adapters {
            let dropped = dropped(sweep.device, x, adapter.lora, step);
            let adapter = std::slice::from_ref(adapter);
            down_gradients(sweep, adapter, dropped.as_ref().unwrap_or(x), &d_u);
        }
    }
    d_u
}

/// `d_A += scale · d_uᵀ x` for adapters that stand side by side in `d_u`.
fn down_gradients(sweep: &mut Sweep<'_, '_>, adapters: &[Adapter<'_>], x: &Tensor, d_u: &Tensor) {
    let ((t, k), (_, width)) = (rows_cols(x.shape()), rows_cols(d_u.shape()));
    let (at, rank) = (adapters[0].at, adapters.iter().map(|a| a.lora.rank).sum());
    let mut d_a = sweep.workspace(DType::F32, &[rank, k]);
    let bytes = x.num_bytes() + t * rank * d_u.dtype().size() + d_a.num_bytes();
    let cost = Cost::memory("d_lora_a", bytes).with(Work::Thin, 2 * rank * k * t);
    if let Some(on) = sweep.device.begin(cost) {
        let a = Matrix::rows(d_u.view(), width).from_col(at).transposed();
        let terms = [Term { a, b: Matrix::rows(x.view(), k), k: t }];
        let target = Place::whole(rank, k);
        let product = Product { terms: &terms, epilogue: Epilogue::default(), target };
        on.gemm(sweep.dtype(), &[product], d_a.view_mut());
        for Adapter { lora, at: row, .. } in adapters {
            let rows = d_a.view().part((row - at) * k, lora.rank * k);
            on.add_scaled(rows, lora.scale, sweep.gradients.get_mut(lora.a).view_mut());
        }
    }
}

/// `d_x = Σ_i d_y_i W_i + d_u_i A_i`; the adapters' part only where their input was not dropped.
fn input_gradient(
    sweep: &Sweep<'_, '_>,
    projections: &[Projection],
    d_down: Option<&Tensor>,
    d_y: &Tensor,
    d_x: &mut Tensor,
    step: Option<StepKey>,
) {
    let ((t, k), (_, width)) = (rows_cols(d_x.shape()), rows_cols(d_y.shape()));
    let (params, dtype) = (sweep.params, sweep.dtype());
    let (adapters, rank) = adapters(projections);
    let undropped = adapters.iter().all(|adapter| mask(adapter.lora, step).is_none());
    let d_down = d_down.filter(|_| undropped);
    let a = d_down.map(|_| On::sweep(sweep).stacked_a((&adapters, rank), k));
    let weights = projections.iter().map(|p| params.resolve(&p.weight).num_bytes());
    let bytes = d_x.num_bytes() + d_y.num_bytes() + weights.sum::<usize>();
    let quantised = quantised_gradients(sweep, projections, d_y);
    let int8_width: usize = quantised.iter().flatten().map(|d_y| d_y.shape()[1]).sum();
    let pass = (sweep.device, sweep.compute, Pass::Backward);
    let in_eight_bits = InEightBits::of(pass, params, projections);
    let eight_bits = int8_width + in_eight_bits.width(projections);
    let float_depth = width - eight_bits + if d_down.is_some() { rank } else { 0 };
    let held = in_eight_bits.which(false, projections).map(|p| params.resolve(&p.weight));
    let scratch = converted_bytes(sweep.device, dtype, held)
        + in_eight_bits.bytes(projections, |p| [t, k, p.out_features()]);
    let cost = Cost::memory("d_linear", bytes)
        .with_scratch(scratch)
        .with(Work::Int8, 2 * t * k * eight_bits)
        .with(Work::Product, 2 * t * k * float_depth);
    let Some(on) = sweep.device.begin(cost) else { return };
    let (mut terms, mut of_floats) = (Vec::new(), Vec::new());
    let mut col = 0;
    for (projection, quantised) in projections.iter().zip(&quantised) {
        let (n, w) = (projection.out_features(), params.resolve(&projection.weight));
        if let Some(d_y) = quantised {
            let b = Matrix::rows(View::Packed(w.view().packed().without_scales()), k);
            terms.push(Term { a: Matrix::rows(d_y.view(), n), b, k: n });
        } else {
            let a = Matrix::rows(d_y.view(), width).from_col(col);
            of_floats.push(Term { a, b: Matrix::rows(w.view(), k), k: n });
        }
        col += n;
    }
    terms.append(&mut of_floats);
    if let (Some(d_u), Some(a)) = (d_down, &a) {
        let (d_u, a) = (Matrix::rows(d_u.view(), rank), Matrix::rows(a.view(), k));
        terms.push(Term { a: d_u, b: a, k: rank });
    }
    let target = Place::whole(t, k);
    let product = Product { terms: &terms, epilogue: Epilogue::default(), target };
    in_eight_bits.gemm(on, dtype, &[product], d_x.view_mut());
}

/// `d_x += mask · scale · (d_u A)`.
fn add_dropped_gradient(
    sweep: &Sweep<'_, '_>,
    (adapter, first, rank): (&Adapter<'_>, ParamId, usize),
    mask: Mask,
    d_u: &Tensor,
    d_x: &mut Tensor,
) {
    let ((t, k), lora) = (rows_cols(d_x.shape()), adapter.lora);
    let mut d_dropped = sweep.workspace(DType::F32, &[t, k]);
    let bytes = d_dropped.num_bytes() + d_x.num_bytes();
    // Rounded, with its scale, or as it is.
    let rounded = sweep.adapters.of(first).map(|rounded| (&rounded.a, adapter.at * k, 1.0));
    let (a, offset, scale) = rounded.unwrap_or((sweep.params.value(lora.a), 0, lora.scale));
    let cost = Cost::memory("d_dropout", bytes)
        .with_scratch(converted_bytes(sweep.device, sweep.dtype(), [a]))
        .with(Work::Thin, 2 * t * k * lora.rank)
        .with(Work::Elementwise, DROPOUT_FLOPS * t * k);
    if let Some(on) = sweep.device.begin(cost) {
        let b = Matrix { offset, ..Matrix::rows(a.view(), k) };
        let a = Matrix::rows(d_u.view(), rank).from_col(adapter.at);
        let product = Product {
            terms: &[Term { a, b, k: lora.rank }],
            epilogue: Epilogue { scale, ..Epilogue::default() },
            target: Place::whole(t, k),
        };
        on.gemm(sweep.dtype(), &[product], d_dropped.view_mut());
        on.add_masked(mask, d_dropped.view(), d_x.view_mut());
    }
}

/// Operations for an element, nearly all of them the random number's.
const DROPOUT_FLOPS: usize = 60;

/// The input of an adapter after dropout; `None` where it is the input itself.
fn dropped(device: &Device, x: &Tensor, lora: &Lora, step: Option<StepKey>) -> Option<Tensor> {
    let mask = mask(lora, step)?;
    let mut y = device.alloc(Category::Workspace, x.dtype(), x.shape());
    let cost = Cost::memory("dropout", 2 * x.num_bytes());
    if let Some(on) = device.begin(cost.with(Work::Elementwise, DROPOUT_FLOPS * x.len())) {
        on.dropout(mask, x.view(), y.view_mut());
    }
    Some(y)
}

fn mask(lora: &Lora, step: Option<StepKey>) -> Option<Mask> {
    let step = step.filter(|_| lora.dropout > 0.0)?;
    let random = Philox::of_dropout(step.seed, step.step, step.micro_batch, lora.stream);
    Some(Mask { random, probability: lora.dropout })
}
