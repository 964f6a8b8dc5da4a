//! The low-rank terms of linear layers, and the gradients of their matrices.

use super::Context;
use crate::ops::rows_cols;
use crate::tape::Sweep;
use crate::{
    Category, Cost, DType, Device, Lora, Philox, Projection, StepKey, Tape, Tensor, View, Work,
};
use hone_kernels::dropout::Mask;
use hone_kernels::gemm::{Epilogue, Matrix, Place, Product, Term};
use std::iter::Peekable;

/// The adapter of one of several projections that stand side by side.
#[derive(Clone, Copy)]
pub(super) struct LowRank<'p> {
    pub(super) lora: &'p Lora,
    /// Which of the projections is adapted.
    projection: usize,
    /// First column of the projection in the output.
    out_col: usize,
    /// Columns of the projection.
    out_features: usize,
    /// First of its columns among the down-projections of all.
    down_col: usize,
}

/// The adapters of projections that stand side by side.
pub(super) struct LowRanks<'p> {
    pub(super) all: Vec<LowRank<'p>>,
    /// Sum of their ranks.
    pub(super) rank: usize,
}

impl<'p> LowRanks<'p> {
    pub(super) fn of(projections: &'p [Projection]) -> Self {
        let (mut all, mut out_col, mut rank) = (Vec::new(), 0, 0);
        for (projection, described) in projections.iter().enumerate() {
            let out_features = described.out_features();
            if let Some(lora) = &described.lora {
                all.push(LowRank { lora, projection, out_col, out_features, down_col: rank });
                rank += lora.rank;
            }
            out_col += out_features;
        }
        Self { all, rank }
    }

    /// Whether none of them drops elements of its input in this step.
    pub(super) fn keep_all(&self, step: Option<StepKey>) -> bool {
        self.all.iter().all(|adapter| adapter.mask(step).is_none())
    }

    /// Floating-point operations of the up-projections of `t` rows.
    pub(super) fn up_flops(&self, t: usize) -> usize {
        self.all.iter().map(|a| 2 * t * a.out_features * a.lora.rank).sum()
    }

    /// `scale · A` of all adapters, one below the other: `[Σ rank, k]` in the compute type.
    pub(super) fn stacked_a(&self, context: Context<'_>, k: usize) -> Tensor {
        let Context { device, params, dtype, rounded } = context;
        if let Some(rounded) = rounded.of(self.all[0].lora.a) {
            return rounded.a.clone();
        }
        let mut a = device.alloc(Category::Workspace, dtype, &[self.rank, k]);
        let bytes = a.num_bytes() + 4 * a.len();
        if let Some(on) = device.begin(Cost::memory("lora_a", bytes)) {
            for LowRank { lora, down_col, .. } in &self.all {
                let rows = a.view_mut().part(down_col * k, lora.rank * k);
                on.scale(params.value(lora.a).view(), lora.scale, rows);
            }
        }
        a
    }

    /// Those of the adapters' `B` that a GPU converts for each product.
    pub(super) fn unrounded_b<'s>(&self, context: Context<'s>) -> Vec<&'s Tensor> {
        match self.all.first().and_then(|first| context.rounded.of(first.lora.a)) {
            Some(_) => Vec::new(),
            None => self.all.iter().map(|adapter| context.params.value(adapter.lora.b)).collect(),
        }
    }

    /// Each adapter's `B [n, rank]`, row-major.
    fn with_b<'s>(&self, context: Context<'s>) -> impl Iterator<Item = (LowRank<'p>, View<'s>)> {
        let rounded = self.all.first().and_then(|first| context.rounded.of(first.lora.a));
        let mut start = 0;
        self.all.iter().map(move |&adapter| {
            let len = adapter.out_features * adapter.lora.rank;
            start += len;
            let b = match rounded {
                Some(rounded) => rounded.b.view().part(start - len, len),
                None => context.params.value(adapter.lora.b).view(),
            };
            (adapter, b)
        })
    }

    /// The term that each adapter adds to the product of its projection, from the down-projections
    /// `[t, Σ rank]` of all; with the number of the projection, in order.
    pub(super) fn up_projections<'s>(
        &self,
        context: Context<'s>,
        down: Option<&'s Tensor>,
    ) -> Peekable<impl Iterator<Item = (usize, Term<'s>)>> {
        let term = move |(adapter, b): (LowRank<'p>, View<'s>)| {
            let (down, k) = (down.expect("made for these adapters"), adapter.lora.rank);
            let a = Matrix::rows(down.view(), self.rank).from_col(adapter.down_col);
            (adapter.projection, Term { a, b: Matrix::rows(b, k).transposed(), k })
        };
        self.with_b(context).map(term).peekable()
    }
}

impl LowRank<'_> {
    /// Which elements of its input are dropped; `None`: none are.
    pub(super) fn mask(&self, step: Option<StepKey>) -> Option<Mask> {
        let Lora { dropout, stream, .. } = *self.lora;
        let step = step.filter(|_| dropout > 0.0)?;
        let random = Philox::of_dropout(step.seed, step.step, step.micro_batch, stream);
        Some(Mask { random, probability: dropout })
    }

    /// Its input after dropout; `None` where that is the input itself.
    fn dropped(&self, device: &Device, x: &Tensor, step: Option<StepKey>) -> Option<Tensor> {
        let mask = self.mask(step)?;
        let mut y = device.alloc(Category::Workspace, x.dtype(), x.shape());
        let cost = Cost::memory("dropout", 2 * x.num_bytes());
        if let Some(on) = device.begin(cost.with(Work::Elementwise, DROPOUT_FLOPS * x.len())) {
            on.dropout(mask, x.view(), y.view_mut());
        }
        Some(y)
    }
}

/// Operations for an element, nearly all of them the random number's.
const DROPOUT_FLOPS: usize = 60;

/// `scale · dropout(x) Aᵀ` of all adapters side by side, `[t, Σ rank]` in the compute type.
pub(super) fn down_projections(
    tape: &Tape<'_>,
    x: &Tensor,
    projections: &[Projection],
) -> Option<Tensor> {
    let (adapters, (t, k)) = (LowRanks::of(projections), rows_cols(x.shape()));
    if adapters.all.is_empty() {
        return None;
    }
    let (device, compute, step) = (tape.device(), tape.dtype(), tape.step());
    let mut u = tape.activation(compute, &[t, adapters.rank]);
    let a = adapters.stacked_a(Context::of_tape(tape), k);
    let mut project = |x: &Tensor, first_col: usize, rank: usize| {
        let bytes = x.num_bytes() + u.num_bytes();
        let cost = Cost::memory("lora_down", bytes).with(Work::Thin, 2 * t * rank * k);
        if let Some(on) = device.begin(cost) {
            let b = Matrix { offset: first_col * k, ..Matrix::rows(a.view(), k) }.transposed();
            let terms = [Term { a: Matrix::rows(x.view(), k), b, k }];
            let target = Place::columns(t, rank, adapters.rank, first_col);
            let product = Product { terms: &terms, epilogue: Epilogue::default(), target };
            on.gemm(compute, &[product], u.view_mut());
        }
    };
    // Adapters of one input share a product, unless each drops other elements of it.
    if adapters.keep_all(step) {
        project(x, 0, adapters.rank);
    } else {
        for adapter in &adapters.all {
            let dropped = adapter.dropped(device, x, step);
            project(dropped.as_ref().unwrap_or(x), adapter.down_col, adapter.lora.rank);
        }
    }
    Some(u)
}

/// `d_B += d_yᵀ u`, `d_A += scale · d_uᵀ dropout(x)`; returns `d_u = d_y B [t, Σ rank]`, the
/// gradient of the scaled down-projection.
pub(super) fn gradients(
    sweep: &mut Sweep<'_, '_>,
    adapters: &LowRanks<'_>,
    x: &Tensor,
    u: Tensor,
    d_y: &Tensor,
    step: Option<StepKey>,
) -> Tensor {
    let ((t, _), (_, width)) = (rows_cols(x.shape()), rows_cols(d_y.shape()));
    let (rank, compute) = (adapters.rank, sweep.dtype());
    let mut d_u = sweep.workspace(compute, &[t, rank]);
    let bytes = d_y.num_bytes() + d_u.num_bytes();
    let cost = |name| Cost::memory(name, bytes).with(Work::Thin, adapters.up_flops(t));
    if let Some(on) = sweep.device.begin(cost("d_lora_u")) {
        let term = |(adapter, b): (LowRank<'_>, _)| {
            let (rank, k) = (adapter.lora.rank, adapter.out_features);
            let a = Matrix::rows(d_y.view(), width).from_col(adapter.out_col);
            [Term { a, b: Matrix::rows(b, rank), k }]
        };
        let terms: Vec<_> = adapters.with_b(Context::of_sweep(sweep)).map(term).collect();
        let products = adapters.all.iter().zip(&terms).map(|(adapter, terms)| {
            let target = Place::columns(t, adapter.lora.rank, rank, adapter.down_col);
            Product { terms, epilogue: Epilogue::default(), target }
        });
        on.gemm(compute, &products.collect::<Vec<_>>(), d_u.view_mut());
    }
    if let Some(on) = sweep.device.begin(cost("d_lora_b")) {
        for &LowRank { lora, out_col, out_features, down_col, .. } in &adapters.all {
            // As `d_Bᵀ = uᵀ d_y`: `d_y` is read along its rows, `u` is the one to transpose.
            let a = Matrix::rows(u.view(), rank).from_col(down_col).transposed();
            let terms = [Term { a, b: Matrix::rows(d_y.view(), width).from_col(out_col), k: t }];
            let epilogue = Epilogue { accumulate: true, ..Epilogue::default() };
            let target = Place::whole(out_features, lora.rank).transposed();
            let product = Product { terms: &terms, epilogue, target };
            on.gemm(compute, &[product], sweep.gradients.get_mut(lora.b).view_mut());
        }
    }
    drop(u);
    // Adapters of one input share a product, unless each dropped other elements of it.
    if adapters.keep_all(step) {
        down_gradients(sweep, &adapters.all, x, &d_u);
    } else {
        for adapter in &adapters.all {
            let dropped = adapter.dropped(sweep.device, x, step);
            let x = dropped.as_ref().unwrap_or(x);
            down_gradients(sweep, std::slice::from_ref(adapter), x, &d_u);
        }
    }
    d_u
}

/// `d_A += scale · d_uᵀ x` for adapters that stand side by side in `d_u`.
fn down_gradients(sweep: &mut Sweep<'_, '_>, adapters: &[LowRank<'_>], x: &Tensor, d_u: &Tensor) {
    let ((t, k), (_, width)) = (rows_cols(x.shape()), rows_cols(d_u.shape()));
    let (first_col, rank) = (adapters[0].down_col, adapters.iter().map(|a| a.lora.rank).sum());
    let mut d_a = sweep.workspace(DType::F32, &[rank, k]);
    let bytes = x.num_bytes() + t * rank * d_u.dtype().size() + d_a.num_bytes();
    let cost = Cost::memory("d_lora_a", bytes).with(Work::Thin, 2 * rank * k * t);
    if let Some(on) = sweep.device.begin(cost) {
        let a = Matrix::rows(d_u.view(), width).from_col(first_col).transposed();
        let terms = [Term { a, b: Matrix::rows(x.view(), k), k: t }];
        let target = Place::whole(rank, k);
        let product = Product { terms: &terms, epilogue: Epilogue::default(), target };
        on.gemm(sweep.dtype(), &[product], d_a.view_mut());
        for LowRank { lora, down_col, .. } in adapters {
            let rows = d_a.view().part((down_col - first_col) * k, lora.rank * k);
            on.add_scaled(rows, lora.scale, sweep.gradients.get_mut(lora.a).view_mut());
        }
    }
}

/// `d_x += mask · scale · (d_u A)` for each adapter whose input was dropped.
pub(super) fn add_dropped_gradients(
    sweep: &Sweep<'_, '_>,
    adapters: &LowRanks<'_>,
    d_u: &Tensor,
    d_x: &mut Tensor,
    step: Option<StepKey>,
) {
    let (t, k) = rows_cols(d_x.shape());
    for adapter in &adapters.all {
        let (LowRank { lora, down_col, .. }, Some(mask)) = (*adapter, adapter.mask(step)) else {
            continue;
        };
        let mut d_dropped = sweep.workspace(DType::F32, &[t, k]);
        let bytes = d_dropped.num_bytes() + d_x.num_bytes();
        // Rounded, with its scale, or as it is.
        let rounded = sweep.adapters.of(adapters.all[0].lora.a);
        let rounded = rounded.map(|rounded| (&rounded.a, down_col * k, 1.0));
        let (a, offset, scale) = rounded.unwrap_or((sweep.params.value(lora.a), 0, lora.scale));
        let cost = Cost::memory("d_dropout", bytes)
            .with_scratch(super::converted_bytes(sweep.device, sweep.dtype(), [a]))
            .with(Work::Thin, 2 * t * k * lora.rank)
            .with(Work::Elementwise, DROPOUT_FLOPS * t * k);
        let Some(on) = sweep.device.begin(cost) else { continue };
        let b = Matrix { offset, ..Matrix::rows(a.view(), k) };
        let a = Matrix::rows(d_u.view(), adapters.rank).from_col(down_col);
        let product = Product {
            terms: &[Term { a, b, k: lora.rank }],
            epilogue: Epilogue { scale, ..Epilogue::default() },
            target: Place::whole(t, k),
        };
        on.gemm(sweep.dtype(), &[product], d_dropped.view_mut());
        on.add_masked(mask, d_dropped.view(), d_x.view_mut());
    }
}
