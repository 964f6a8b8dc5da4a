//! The low-rank terms of linear layers, and the gradients of their matrices.

use super::Context;
use crate::ops::{converted_bytes, rows_cols};
use crate::tape::Sweep;
use crate::{
    AdapterRows, Category, Cost, DType, Device, Lora, Philox, Projection, StepKey, Tape, Tensor,
    View, Work,
};
use hone_kernels::dropout::Mask;
use hone_kernels::gemm::{Epilogue, Matrix, OutputRegion, Product, Rows, Term};
use std::ops::Range;

/// An adapter's part in one of several projections of one input.
#[derive(Clone, Copy)]
struct LowRank<'p> {
    lora: &'p Lora,
    /// Index of the adapted projection.
    projection: usize,
    /// First column of the projection in the output.
    out_col: usize,
    /// Columns of the projection.
    out_features: usize,
    /// First of its columns among the adapter's down-projections.
    down_col: usize,
}

/// An adapter of projections of one input, and the rows that it applies to.
pub(super) struct Adapter<'p> {
    parts: Vec<LowRank<'p>>,
    /// Sum of their ranks.
    rank: usize,
    rows: Range<usize>,
    /// Key of its dropout's random numbers.
    dropout: Option<StepKey>,
}

/// The rows of a matrix beginning with `first`.
#[derive(Clone, Copy)]
struct RowsFrom<'x> {
    x: &'x Tensor,
    first: usize,
}

impl<'x> RowsFrom<'x> {
    fn matrix(self) -> Matrix<'x> {
        let (_, width) = rows_cols(self.x.shape());
        Matrix { offset: self.first * width, ..Matrix::rows(self.x.view(), width) }
    }
}

/// The adapters with rows among `t` and parts in `projections`.
pub(super) fn adapters<'p>(
    projections: &'p [Projection],
    adapter_rows: &[AdapterRows],
    t: usize,
) -> Vec<Adapter<'p>> {
    let all = adapter_rows.iter().map(|rows| Adapter::new(projections, rows, t));
    all.filter(|adapter| !adapter.parts.is_empty() && !adapter.rows.is_empty()).collect()
}

/// Columns of down-projections: the largest rank.
fn down_width(adapters: &[Adapter<'_>]) -> usize {
    adapters.iter().map(|adapter| adapter.rank).max().unwrap_or(0)
}

impl<'p> Adapter<'p> {
    fn new(projections: &'p [Projection], adapter_rows: &AdapterRows, t: usize) -> Self {
        let (mut parts, mut out_col, mut rank) = (Vec::new(), 0, 0);
        for (projection, p) in projections.iter().enumerate() {
            let out_features = p.out_features();
            if let Some(lora) = p.adapter(adapter_rows.adapter) {
                parts.push(LowRank { lora, projection, out_col, out_features, down_col: rank });
                rank += lora.rank;
            }
            out_col += out_features;
        }
        let rows = adapter_rows.rows.start.min(t)..adapter_rows.rows.end.min(t);
        Self { parts, rank, rows, dropout: adapter_rows.dropout }
    }

    /// Whether no part has dropout in this step.
    fn has_no_dropout(&self) -> bool {
        self.undropped_rank() == self.rank
    }

    /// Sum of the ranks of parts without dropout in this step.
    pub(super) fn undropped_rank(&self) -> usize {
        self.undropped().map(|part| part.lora.rank).sum()
    }

    fn undropped(&self) -> impl Iterator<Item = &LowRank<'p>> {
        self.parts.iter().filter(|part| self.mask(part).is_none())
    }

    /// Dropout mask of a part's input; `None` without dropout.
    fn mask(&self, part: &LowRank<'_>) -> Option<Mask> {
        let Lora { dropout, stream, .. } = *part.lora;
        let step = self.dropout.filter(|_| dropout > 0.0)?;
        let random = Philox::for_dropout(step.seed, step.step, step.micro_batch, stream);
        Some(Mask { random, probability: dropout })
    }

    /// The adapter's rows of `x [t, k]` after a part's dropout; `None` without dropout.
    fn dropped(&self, device: &Device, x: &Tensor, part: &LowRank<'_>) -> Option<Tensor> {
        let (mask, k) = (self.mask(part)?, x.shape()[1]);
        let mut y = device.alloc(Category::Workspace, x.dtype(), &[self.rows.len(), k]);
        let cost = Cost::memory_bound("dropout", 2 * y.num_bytes());
        if let Some(on) = device.begin(cost.with(Work::Elementwise, DROPOUT_FLOPS * y.len())) {
            on.dropout(mask, x.view().part(self.rows.start * k, y.len()), y.view_mut());
        }
        Some(y)
    }

    /// The adapter's rows of a row-major matrix.
    fn rows_of<'x>(&self, x: &'x Tensor) -> Matrix<'x> {
        RowsFrom { x, first: self.rows.start }.matrix()
    }

    /// The adapter's rows of the input; `dropped` are these rows after dropout, if there is any.
    fn input<'x>(&self, x: &'x Tensor, dropped: Option<&'x Tensor>) -> RowsFrom<'x> {
        dropped.map_or(RowsFrom { x, first: self.rows.start }, |x| RowsFrom { x, first: 0 })
    }

    /// `cols` columns, beginning at `col`, of the adapter's rows of a matrix with `width` columns.
    fn region(&self, cols: usize, width: usize, col: usize) -> OutputRegion {
        let region = OutputRegion::columns(self.rows.len(), cols, width, col);
        OutputRegion { offset: self.rows.start * width + col, ..region }
    }

    /// Floating-point operations of the up-projections.
    pub(super) fn up_flops(&self) -> usize {
        self.parts.iter().map(|part| 2 * self.rows.len() * part.out_features * part.lora.rank).sum()
    }

    /// Floating-point operations of [`Adapter::input_gradients`] with `k` columns.
    pub(super) fn undropped_flops(&self, k: usize) -> usize {
        2 * self.rows.len() * k * self.undropped_rank()
    }

    /// `scale · A` of all parts, stacked: `[Σ rank, k]` in the compute type.
    pub(super) fn stacked_a(&self, context: Context<'_>, k: usize) -> Tensor {
        let Context { device, params, dtype, rounded } = context;
        if let Some(rounded) = rounded.of(self.parts[0].lora.a) {
            return rounded.a.clone();
        }
        let mut a = device.alloc(Category::Workspace, dtype, &[self.rank, k]);
        let bytes = a.num_bytes() + 4 * a.len();
        if let Some(on) = device.begin(Cost::memory_bound("lora_a", bytes)) {
            for LowRank { lora, down_col, .. } in &self.parts {
                let rows = a.view_mut().part(down_col * k, lora.rank * k);
                on.scale(params.value(lora.a).view(), lora.scale, rows);
            }
        }
        a
    }

    /// The `B` of parts that a GPU converts for each product.
    pub(super) fn unrounded_b<'s>(&self, context: Context<'s>) -> Vec<&'s Tensor> {
        match context.rounded.of(self.parts[0].lora.a) {
            Some(_) => Vec::new(),
            None => self.parts.iter().map(|part| context.params.value(part.lora.b)).collect(),
        }
    }

    /// Each part with its `B [n, rank]`, row-major.
    fn with_b<'s>(&self, context: Context<'s>) -> impl Iterator<Item = (LowRank<'p>, View<'s>)> {
        let rounded = context.rounded.of(self.parts[0].lora.a);
        let mut start = 0;
        self.parts.iter().map(move |&part| {
            let len = part.out_features * part.lora.rank;
            start += len;
            let b = match rounded {
                Some(rounded) => rounded.b.view().part(start - len, len),
                None => context.params.value(part.lora.b).view(),
            };
            (part, b)
        })
    }

    /// Terms that the adapter adds to projections, with the index of the projection, given the
    /// down-projections of all rows.
    pub(super) fn up_projections<'s>(
        &self,
        context: Context<'s>,
        down: &'s Tensor,
    ) -> impl Iterator<Item = (usize, Term<'s>)> {
        let down = Matrix::rows(down.view(), down.shape()[1]);
        self.with_b(context).map(move |(part, b)| {
            let b = Matrix::rows(b, part.lora.rank).transposed();
            let term = Term::new(down.from_col(part.down_col), b, part.lora.rank);
            (part.projection, Term { rows: self.term_rows(), ..term })
        })
    }

    /// Terms that parts without dropout add to the input's gradient, given the gradient of all
    /// rows' down-projections and the adapter's own `scale · A`: one term if no part has dropout,
    /// otherwise one per part.
    pub(super) fn input_gradients<'s>(&self, d_down: &'s Tensor, a: &'s Tensor) -> Vec<Term<'s>> {
        let d_down = Matrix::rows(d_down.view(), d_down.shape()[1]);
        let (a, k) = (Matrix::rows(a.view(), a.shape()[1]), a.shape()[1]);
        let term = |(first, rank): (usize, usize)| {
            let a = Matrix { offset: first * k, ..a };
            Term { rows: self.term_rows(), ..Term::new(d_down.from_col(first), a, rank) }
        };
        if self.has_no_dropout() {
            return vec![term((0, self.rank))];
        }
        self.undropped().map(|part| term((part.down_col, part.lora.rank))).collect()
    }

    fn term_rows(&self) -> Rows {
        Rows { first: self.rows.start, end: self.rows.end }
    }
}

/// Floating-point operations per element, nearly all of them for the random number.
const DROPOUT_FLOPS: usize = 60;

/// `scale · dropout(x) Aᵀ` of each adapter's rows, with its parts concatenated: `[t, largest rank]`
/// in the compute type. `None` without adapters.
pub(super) fn down_projections(
    tape: &Tape<'_>,
    x: &Tensor,
    adapters: &[Adapter<'_>],
) -> Option<Tensor> {
    if adapters.is_empty() {
        return None;
    }
    let ((t, k), compute, device) = (rows_cols(x.shape()), tape.dtype(), tape.device());
    let width = down_width(adapters);
    let mut u = tape.activation(compute, &[t, width]);
    for adapter in adapters {
        let a = adapter.stacked_a(Context::of_tape(tape), k);
        let mut project = |x: RowsFrom<'_>, first_col: usize, rank: usize| {
            let rows = adapter.rows.len();
            let bytes = rows * k * x.x.dtype().size() + rows * width * compute.size();
            let cost =
                Cost::memory_bound("lora_down", bytes).with(Work::LowRank, 2 * rows * rank * k);
            if let Some(on) = device.begin(cost) {
                let b = Matrix { offset: first_col * k, ..Matrix::rows(a.view(), k) }.transposed();
                let (terms, epilogue) = ([Term::new(x.matrix(), b, k)], Epilogue::default());
                let output = adapter.region(rank, width, first_col);
                on.gemm(compute, &[Product { terms: &terms, epilogue, output }], u.view_mut());
            }
        };
        // Parts share a product, unless each has its own dropout.
        if adapter.has_no_dropout() {
            project(adapter.input(x, None), 0, adapter.rank);
            continue;
        }
        for part in &adapter.parts {
            let dropped = adapter.dropped(device, x, part);
            project(adapter.input(x, dropped.as_ref()), part.down_col, part.lora.rank);
        }
    }
    Some(u)
}

/// `d_B += d_yᵀ u`, `d_A += scale · d_uᵀ dropout(x)` over each adapter's rows; returns
/// `d_u = d_y B [t, largest rank]`, the gradient of the scaled down-projections `u`.
pub(super) fn gradients(
    sweep: &mut Sweep<'_, '_>,
    adapters: &[Adapter<'_>],
    x: &Tensor,
    u: Tensor,
    d_y: &Tensor,
) -> Tensor {
    let d_u = down_projection_gradients(sweep, adapters, d_y, &u);
    for adapter in adapters {
        up_gradients(sweep, adapter, &u, d_y);
    }
    drop(u);
    for adapter in adapters {
        // Parts share a product, unless each has its own dropout.
        if adapter.has_no_dropout() {
            down_gradients(sweep, adapter, &adapter.parts, adapter.input(x, None), &d_u);
            continue;
        }
        for part in &adapter.parts {
            let dropped = adapter.dropped(sweep.device, x, part);
            let (part, rows) = (std::slice::from_ref(part), adapter.input(x, dropped.as_ref()));
            down_gradients(sweep, adapter, part, rows, &d_u);
        }
    }
    d_u
}

/// Cost of products of `d_y`, down-projections `u`, and each adapter's `B` or its gradient.
fn up_cost(name: &'static str, adapters: &[Adapter<'_>], d_y: &Tensor, u: &Tensor) -> Cost {
    let row_bytes = d_y.shape()[1] * d_y.dtype().size() + u.shape()[1] * u.dtype().size();
    let rows: usize = adapters.iter().map(|adapter| adapter.rows.len()).sum();
    let flops = adapters.iter().map(Adapter::up_flops).sum();
    Cost::memory_bound(name, rows * row_bytes).with(Work::LowRank, flops)
}

/// `d_u = d_y B`, as wide as `u`.
fn down_projection_gradients(
    sweep: &Sweep<'_, '_>,
    adapters: &[Adapter<'_>],
    d_y: &Tensor,
    u: &Tensor,
) -> Tensor {
    let mut d_u = sweep.workspace(sweep.dtype(), u.shape());
    let cost = up_cost("d_lora_u", adapters, d_y, u);
    let Some(on) = sweep.device.begin(cost) else { return d_u };
    let context = Context::of_sweep(sweep);
    let mut terms_and_outputs = Vec::new();
    for adapter in adapters {
        terms_and_outputs.extend(adapter.with_b(context).map(|(part, b)| {
            let d_y = adapter.rows_of(d_y).from_col(part.out_col);
            let b = Matrix::rows(b, part.lora.rank);
            let output = adapter.region(part.lora.rank, u.shape()[1], part.down_col);
            ([Term::new(d_y, b, part.out_features)], output)
        }));
    }
    let product = |(terms, output)| Product { terms, epilogue: Epilogue::default(), output };
    let products: Vec<Product<'_>> =
        terms_and_outputs.iter().map(|(terms, output)| product((&terms[..], *output))).collect();
    on.gemm(sweep.dtype(), &products, d_u.view_mut());
    d_u
}

/// `d_B += d_yᵀ u` over an adapter's rows.
fn up_gradients(sweep: &mut Sweep<'_, '_>, adapter: &Adapter<'_>, u: &Tensor, d_y: &Tensor) {
    let cost = up_cost("d_lora_b", std::slice::from_ref(adapter), d_y, u);
    let Some(on) = sweep.device.begin(cost) else { return };
    for &LowRank { lora, out_col, out_features, down_col, .. } in &adapter.parts {
        // As `d_Bᵀ = uᵀ d_y`, so that `d_y` is read along its rows and the smaller `u` is
        // transposed.
        let a = adapter.rows_of(u).from_col(down_col).transposed();
        let terms = [Term::new(a, adapter.rows_of(d_y).from_col(out_col), adapter.rows.len())];
        let epilogue = Epilogue { accumulate: true, ..Epilogue::default() };
        let output = OutputRegion::whole(out_features, lora.rank).transposed();
        let product = Product { terms: &terms, epilogue, output };
        on.gemm(sweep.dtype(), &[product], sweep.gradients.get_mut(lora.b).view_mut());
    }
}

/// `d_A += scale · d_uᵀ x` over an adapter's rows, `x`, for consecutive parts in `d_u`.
fn down_gradients(
    sweep: &mut Sweep<'_, '_>,
    adapter: &Adapter<'_>,
    parts: &[LowRank<'_>],
    x: RowsFrom<'_>,
    d_u: &Tensor,
) {
    let (t, k) = (adapter.rows.len(), x.x.shape()[1]);
    let (first_col, rank) = (parts[0].down_col, parts.iter().map(|part| part.lora.rank).sum());
    let mut d_a = sweep.workspace(DType::F32, &[rank, k]);
    let bytes = t * k * x.x.dtype().size() + t * rank * d_u.dtype().size() + d_a.num_bytes();
    let cost = Cost::memory_bound("d_lora_a", bytes).with(Work::LowRank, 2 * rank * k * t);
    if let Some(on) = sweep.device.begin(cost) {
        let a = adapter.rows_of(d_u).from_col(first_col).transposed();
        let (terms, epilogue) = ([Term::new(a, x.matrix(), t)], Epilogue::default());
        let product = Product { terms: &terms, epilogue, output: OutputRegion::whole(rank, k) };
        on.gemm(sweep.dtype(), &[product], d_a.view_mut());
        for LowRank { lora, down_col, .. } in parts {
            let rows = d_a.view().part((down_col - first_col) * k, lora.rank * k);
            on.add_scaled(rows, lora.scale, sweep.gradients.get_mut(lora.a).view_mut());
        }
    }
}

/// `d_x += mask · scale · (d_u A)` for each part with dropout.
pub(super) fn add_dropped_gradients(
    sweep: &Sweep<'_, '_>,
    adapters: &[Adapter<'_>],
    d_u: &Tensor,
    d_x: &mut Tensor,
) {
    for adapter in adapters {
        for part in &adapter.parts {
            if let Some(mask) = adapter.mask(part) {
                add_dropped_gradient(sweep, adapter, part, mask, d_u, d_x);
            }
        }
    }
}

fn add_dropped_gradient(
    sweep: &Sweep<'_, '_>,
    adapter: &Adapter<'_>,
    part: &LowRank<'_>,
    mask: Mask,
    d_u: &Tensor,
    d_x: &mut Tensor,
) {
    let (t, k) = (adapter.rows.len(), d_x.shape()[1]);
    let mut d_dropped = sweep.workspace(DType::F32, &[t, k]);
    let bytes = d_dropped.num_bytes() + t * k * d_x.dtype().size();
    // Rounded and scaled already, or as trained.
    let LowRank { lora, down_col, .. } = *part;
    let rounded = sweep.adapters.of(adapter.parts[0].lora.a);
    let rounded = rounded.map(|rounded| (&rounded.a, down_col * k, 1.0));
    let (a, offset, scale) = rounded.unwrap_or((sweep.params.value(lora.a), 0, lora.scale));
    let cost = Cost::memory_bound("d_dropout", bytes)
        .with_scratch(converted_bytes(sweep.device, sweep.dtype(), [a]))
        .with(Work::LowRank, 2 * t * k * lora.rank)
        .with(Work::Elementwise, DROPOUT_FLOPS * t * k);
    if let Some(on) = sweep.device.begin(cost) {
        let b = Matrix { offset, ..Matrix::rows(a.view(), k) };
        let product = Product {
            terms: &[Term::new(adapter.rows_of(d_u).from_col(down_col), b, lora.rank)],
            epilogue: Epilogue { scale, ..Epilogue::default() },
            output: OutputRegion::whole(t, k),
        };
        on.gemm(sweep.dtype(), &[product], d_dropped.view_mut());
        let rows = d_x.view_mut().part(adapter.rows.start * k, t * k);
        on.add_masked(mask, d_dropped.view(), rows);
    }
}
