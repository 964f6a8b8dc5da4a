//! The adapters of experts: of each expert its own, for the rows of each of a pass's adapters.

use super::{Layer, region, rows_from};
use crate::ops::{converted_bytes, rows_cols};
use crate::tape::Sweep;
use crate::{
    AdapterRows, Category, Cost, DType, Device, Gradients, Lora, ParamId, Params, Philox,
    Processor, StepKey, Tape, Tensor, Work,
};
use hone_kernels::dropout::Mask;
use hone_kernels::gemm::{Epilogue, Matrix, OutputRegion, Product, Rows, Term};
use std::collections::HashMap;
use std::ops::Range;

/// Floating-point operations per element of dropout, nearly all of them for the random number.
const DROPOUT_FLOPS: usize = 60;

/// An adapter's part in one projection of an expert.
#[derive(Clone, Copy)]
struct Part<'p> {
    lora: &'p Lora,
    expert: usize,
    /// Index of the projection among the expert's.
    projection: usize,
    /// First row, in the order of the experts.
    first: usize,
    num_rows: usize,
    in_features: usize,
    /// First column of the projection in the output.
    out_col: usize,
    out_features: usize,
    /// First of its columns among the down-projections.
    down_col: usize,
    /// Key of its dropout's random numbers.
    dropout: Option<StepKey>,
}

/// The adapters of all experts of a layer.
pub(super) struct Adapters<'p> {
    /// Sorted by expert; also those without rows, since memory must not depend on the routing.
    parts: Vec<Part<'p>>,
    /// Columns of down-projections.
    width: usize,
}

impl<'p> Part<'p> {
    fn rows(&self) -> Range<usize> {
        self.first..self.first + self.num_rows
    }

    /// Dropout mask of the part's input; `None` without dropout. Elements are counted from the
    /// first of its rows.
    fn mask(&self) -> Option<Mask> {
        let step = self.dropout.filter(|_| self.lora.dropout > 0.0)?;
        let random = Philox::for_dropout(step.seed, step.step, step.micro_batch, self.lora.stream);
        Some(Mask { random, probability: self.lora.dropout })
    }

    fn flops(&self) -> usize {
        2 * self.num_rows * self.lora.rank * self.out_features
    }

    fn down_flops(&self) -> usize {
        2 * self.num_rows * self.lora.rank * self.in_features
    }

    /// Bytes of `A`, and of `B`, in f32. Experts have so few rows that their adapters are much of
    /// what is read.
    fn a_bytes(&self) -> usize {
        4 * self.lora.rank * self.in_features
    }

    fn b_bytes(&self) -> usize {
        4 * self.lora.rank * self.out_features
    }

    /// Its columns of the down-projections, or of their gradient.
    fn down_region(&self, width: usize) -> OutputRegion {
        region(&self.rows(), self.lora.rank, width, self.down_col)
    }
}

impl<'p> Adapters<'p> {
    pub(super) fn new(layer: &Layer<'p>, adapter_rows: &[AdapterRows]) -> Self {
        let (mut parts, mut width) = (Vec::new(), 0);
        let t = layer.routing.num_tokens();
        for (expert, projections) in layer.experts.iter().enumerate() {
            let rows = layer.routing.rows_of(expert);
            let tokens = &layer.routing.tokens()[rows.clone()];
            for AdapterRows { rows: of, adapter, dropout } in adapter_rows {
                if of.start >= of.end.min(t) {
                    continue;
                }
                // Tokens are ascending, so an adapter's are consecutive.
                let at = |token: usize| tokens.partition_point(|&own| (own as usize) < token);
                let (first, end) = (rows.start + at(of.start), rows.start + at(of.end));
                let (mut out_col, mut down_col) = (0, 0);
                for (projection, p) in projections.iter().enumerate() {
                    let (in_features, out_features) = (p.in_features(), p.out_features());
                    if let Some(lora) = p.adapter(*adapter) {
                        let (num_rows, dropout) = (end - first, *dropout);
                        parts.push(Part {
                            lora,
                            expert,
                            projection,
                            first,
                            num_rows,
                            in_features,
                            out_col,
                            out_features,
                            down_col,
                            dropout,
                        });
                        down_col += lora.rank;
                    }
                    out_col += out_features;
                }
                width = width.max(down_col);
            }
        }
        Self { parts, width }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    fn with_rows(&self) -> impl Iterator<Item = &Part<'p>> {
        self.parts.iter().filter(|part| part.num_rows > 0)
    }

    fn undropped(&self) -> Vec<&Part<'p>> {
        self.with_rows().filter(|part| part.mask().is_none()).collect()
    }

    fn of_experts(&self, experts: Range<usize>) -> impl Iterator<Item = &Part<'p>> {
        let before = |expert: usize| self.parts.partition_point(|part| part.expert < expert);
        self.parts[before(experts.start)..before(experts.end)].iter()
    }

    /// `cost` with the up-projections of some experts.
    pub(super) fn with_up_projections(&self, cost: Cost, experts: Range<usize>) -> Cost {
        self.of_experts(experts).fold(cost, |cost, part| {
            cost.with(Work::Product, part.flops()).with_bytes(part.b_bytes())
        })
    }

    /// `cost` with what parts without dropout add to the input's gradient.
    pub(super) fn with_input_gradients(&self, cost: Cost, experts: Range<usize>) -> Cost {
        let parts = self.of_experts(experts).filter(|part| part.mask().is_none());
        parts.fold(cost, |cost, part| {
            cost.with(Work::Product, part.down_flops()).with_bytes(part.a_bytes())
        })
    }

    /// Scratch bytes for converting both matrices of some experts.
    pub(super) fn scratch_bytes(
        &self,
        device: &Device,
        dtype: DType,
        params: &Params,
        experts: Range<usize>,
    ) -> usize {
        let matrices = self.of_experts(experts).flat_map(|part| [part.lora.a, part.lora.b]);
        converted_bytes(device, dtype, matrices.map(|param| params.value(param)))
    }

    fn all_scratch_bytes(&self, device: &Device, dtype: DType, params: &Params) -> usize {
        self.scratch_bytes(device, dtype, params, 0..usize::MAX)
    }

    /// Projections, by their index, of which some part has dropout.
    fn dropped_projections(&self) -> Vec<usize> {
        let with_dropout = self.parts.iter().filter(|part| part.mask().is_some());
        let mut projections: Vec<usize> = with_dropout.map(|part| part.projection).collect();
        projections.sort_unstable();
        projections.dedup();
        projections
    }

    /// The rows of those parts of a projection that have dropout, after it; other rows are
    /// undefined.
    fn dropped(&self, device: &Device, x: &Tensor, projection: usize) -> Tensor {
        let (_, k) = rows_cols(x.shape());
        let mut y = device.alloc(Category::Workspace, x.dtype(), x.shape());
        let cost = Cost::memory_bound("dropout", 2 * y.num_bytes());
        if let Some(on) = device.begin(cost.with(Work::Elementwise, DROPOUT_FLOPS * y.len())) {
            for (part, mask) in self.masked(projection) {
                let (start, len) = (part.first * k, part.num_rows * k);
                on.dropout(mask, x.view().part(start, len), y.view_mut().part(start, len));
            }
        }
        y
    }

    fn masked(&self, projection: usize) -> impl Iterator<Item = (&Part<'p>, Mask)> {
        let of_projection = self.with_rows().filter(move |part| part.projection == projection);
        of_projection.filter_map(|part| Some((part, part.mask()?)))
    }

    /// Runs `body` with the parts that read the same input: `x`, or what dropout left of it.
    fn by_input<'s>(
        &'s self,
        device: &Device,
        x: &Tensor,
        mut body: impl FnMut(&[&'s Part<'p>], &Tensor),
    ) {
        body(&self.undropped(), x);
        for projection in self.dropped_projections() {
            let dropped = self.dropped(device, x, projection);
            let parts: Vec<_> = self.masked(projection).map(|(part, _)| part).collect();
            body(&parts, &dropped);
        }
    }

    /// `scale · dropout(x) Aᵀ` of each part: `[rows, largest rank]` in the compute type. `None`
    /// without adapters.
    pub(super) fn down_projections(&self, tape: &Tape<'_>, x: &Tensor) -> Option<Tensor> {
        if self.is_empty() {
            return None;
        }
        let ((rows, k), device, params) = (rows_cols(x.shape()), tape.device(), tape.params());
        let (dtype, width) = (tape.dtype(), self.width);
        let mut u = tape.activation(dtype, &[rows, width]);
        self.by_input(device, x, |parts, x| {
            let flops = parts.iter().map(|part| part.down_flops()).sum();
            let adapters: usize = parts.iter().map(|part| part.a_bytes()).sum();
            let bytes = x.num_bytes() + u.num_bytes() + adapters;
            let cost = Cost::memory_bound("lora_down", bytes)
                .with_scratch(self.all_scratch_bytes(device, dtype, params))
                .with(Work::LowRank, flops);
            let Some(on) = device.begin(cost) else { return };
            let terms = |part: &&Part<'_>| {
                let a = Matrix::rows(params.value(part.lora.a).view(), k).transposed();
                [Term::new(rows_from(x, part.first), a, k)]
            };
            let terms: Vec<_> = parts.iter().map(terms).collect();
            let product = |(part, terms): (&&Part<'_>, _)| {
                let epilogue = Epilogue { scale: part.lora.scale, ..Epilogue::default() };
                Product { terms, epilogue, output: part.down_region(width) }
            };
            let pairs = parts.iter().zip(terms.iter().map(|terms| &terms[..]));
            let products: Vec<_> = pairs.map(product).collect();
            on.gemm(dtype, &products, u.view_mut());
        });
        Some(u)
    }

    /// Terms that adapters add to a projection of an expert whose rows begin with `first`.
    pub(super) fn up_terms<'s>(
        &'s self,
        params: &'s Params,
        down: Option<&'s Tensor>,
        (expert, projection): (usize, usize),
        first: usize,
    ) -> impl Iterator<Item = Term<'s>> {
        let parts = self.of_expert(expert).filter(move |part| part.projection == projection);
        parts.zip(std::iter::repeat(down)).filter_map(move |(part, down)| {
            let b = Matrix::rows(params.value(part.lora.b).view(), part.lora.rank).transposed();
            let a = rows_from(down?, first).from_col(part.down_col);
            Some(Term { rows: part.term_rows(first), ..Term::new(a, b, part.lora.rank) })
        })
    }

    /// Terms that parts without dropout add to the input's gradient, given that of the scaled
    /// down-projections.
    pub(super) fn input_terms<'s>(
        &'s self,
        params: &'s Params,
        d_down: Option<&'s Tensor>,
        expert: usize,
        first: usize,
    ) -> impl Iterator<Item = Term<'s>> {
        let parts = self.of_expert(expert).filter(|part| part.mask().is_none());
        parts.zip(std::iter::repeat(d_down)).filter_map(move |(part, d_down)| {
            let b = Matrix::rows(params.value(part.lora.a).view(), part.in_features);
            let a = rows_from(d_down?, first).from_col(part.down_col);
            Some(Term { rows: part.term_rows(first), ..Term::new(a, b, part.lora.rank) })
        })
    }

    /// The parts of an expert that have rows.
    fn of_expert(&self, expert: usize) -> impl Iterator<Item = &Part<'p>> {
        self.of_experts(expert..expert + 1).filter(|part| part.num_rows > 0)
    }

    /// `d_B += d_yᵀ u` and `d_A += d_uᵀ dropout(x)`; returns `d_u = scale · d_y B`, as wide as `u`.
    pub(super) fn gradients(
        &self,
        sweep: &mut Sweep<'_, '_>,
        x: &Tensor,
        u: Tensor,
        d_y: &Tensor,
    ) -> Tensor {
        let d_u = self.down_gradients(sweep, d_y, &u);
        let flops = self.parts.iter().map(Part::flops).sum();
        let gradients: usize = self.parts.iter().map(Part::b_bytes).sum();
        let bytes = d_y.num_bytes() + u.num_bytes() + 2 * gradients;
        let cost = Cost::memory_bound("d_lora_b", bytes).with(Work::LowRank, flops);
        if let Some(on) = sweep.device.begin(cost) {
            // As `d_yᵀ u` and not transposed: an expert has so few rows that writing `d_B` takes
            // longer than anything else, and it is written along its rows.
            let product = |part: &Part<'_>| {
                let a = rows_from(d_y, part.first).from_col(part.out_col).transposed();
                let b = rows_from(&u, part.first).from_col(part.down_col);
                let output = OutputRegion::whole(part.out_features, part.lora.rank);
                (part.lora.b, Term::new(a, b, part.num_rows), output)
            };
            let products = self.with_rows().map(product);
            add_to_gradients(on, sweep.compute.dtype(), products, sweep.gradients);
        }
        drop(u);
        let device = sweep.device;
        self.by_input(device, x, |parts, x| {
            let flops = parts.iter().map(|part| part.down_flops()).sum();
            let gradients: usize = parts.iter().map(|part| part.a_bytes()).sum();
            let bytes = x.num_bytes() + d_u.num_bytes() + 2 * gradients;
            let cost = Cost::memory_bound("d_lora_a", bytes).with(Work::LowRank, flops);
            let Some(on) = device.begin(cost) else { return };
            let product = |part: &&Part<'_>| {
                let a = rows_from(&d_u, part.first).from_col(part.down_col).transposed();
                let output = OutputRegion::whole(part.lora.rank, part.in_features);
                (part.lora.a, Term::new(a, rows_from(x, part.first), part.num_rows), output)
            };
            let products = parts.iter().map(product);
            add_to_gradients(on, sweep.compute.dtype(), products, sweep.gradients);
        });
        d_u
    }

    /// `scale · d_y B`.
    fn down_gradients(&self, sweep: &Sweep<'_, '_>, d_y: &Tensor, u: &Tensor) -> Tensor {
        let (dtype, params) = (sweep.dtype(), sweep.params);
        let mut d_u = sweep.workspace(dtype, u.shape());
        let adapters: usize = self.parts.iter().map(Part::b_bytes).sum();
        let cost = Cost::memory_bound("d_lora_u", d_y.num_bytes() + u.num_bytes() + adapters)
            .with_scratch(self.all_scratch_bytes(sweep.device, dtype, params))
            .with(Work::LowRank, self.parts.iter().map(Part::flops).sum());
        let Some(on) = sweep.device.begin(cost) else { return d_u };
        let parts: Vec<_> = self.with_rows().collect();
        let terms = |part: &&Part<'_>| {
            let a = rows_from(d_y, part.first).from_col(part.out_col);
            let b = Matrix::rows(params.value(part.lora.b).view(), part.lora.rank);
            [Term::new(a, b, part.out_features)]
        };
        let terms: Vec<_> = parts.iter().map(terms).collect();
        let product = |(part, terms): (&&Part<'_>, _)| {
            let epilogue = Epilogue { scale: part.lora.scale, ..Epilogue::default() };
            Product { terms, epilogue, output: part.down_region(u.shape()[1]) }
        };
        let pairs = parts.iter().zip(terms.iter().map(|terms| &terms[..]));
        let products: Vec<_> = pairs.map(product).collect();
        on.gemm(dtype, &products, d_u.view_mut());
        d_u
    }

    /// `d_x += mask · d_u A` for each part with dropout; rows in the order of the experts.
    pub(super) fn add_dropped_gradients(
        &self,
        sweep: &Sweep<'_, '_>,
        d_u: &Tensor,
        d_x: &mut Tensor,
    ) {
        let ((_, k), device, dtype) = (rows_cols(d_x.shape()), sweep.device, sweep.dtype());
        for projection in self.dropped_projections() {
            let mut d_dropped = sweep.workspace(DType::F32, d_x.shape());
            let bytes = d_dropped.num_bytes() + d_x.num_bytes();
            let parts: Vec<_> = self.masked(projection).collect();
            let cost = Cost::memory_bound("d_dropout", bytes)
                .with_scratch(self.all_scratch_bytes(device, dtype, sweep.params))
                .with(Work::LowRank, parts.iter().map(|(part, _)| part.down_flops()).sum())
                .with(Work::Elementwise, DROPOUT_FLOPS * d_x.len());
            let Some(on) = device.begin(cost) else { continue };
            for (part, mask) in parts {
                let a = Matrix::rows(sweep.params.value(part.lora.a).view(), k);
                let d_u = rows_from(d_u, part.first).from_col(part.down_col);
                let product = Product {
                    terms: &[Term::new(d_u, a, part.lora.rank)],
                    epilogue: Epilogue::default(),
                    output: region(&part.rows(), k, k, 0),
                };
                on.gemm(dtype, &[product], d_dropped.view_mut());
                let (start, len) = (part.first * k, part.num_rows * k);
                let d_dropped = d_dropped.view().part(start, len);
                on.add_masked(mask, d_dropped, d_x.view_mut().part(start, len));
            }
        }
    }
}

impl Part<'_> {
    /// Its rows, counted from `first`.
    fn term_rows(&self, first: usize) -> Rows {
        Rows { first: self.first - first, end: self.first - first + self.num_rows }
    }
}

/// Adds products to gradients, all at once. A parameter that occurs again, as one does of which
/// several ranges of rows are trained, waits for its product before.
fn add_to_gradients<'t>(
    on: &Processor,
    compute: DType,
    products: impl Iterator<Item = (ParamId, Term<'t>, OutputRegion)>,
    gradients: &mut Gradients,
) {
    let (mut rounds, mut times) = (Vec::new(), HashMap::new());
    for product in products {
        let round = times.entry(product.0).or_insert(0);
        if *round == rounds.len() {
            rounds.push(Vec::new());
        }
        rounds[*round].push(product);
        *round += 1;
    }
    let epilogue = Epilogue { accumulate: true, ..Epilogue::default() };
    for round in rounds {
        let ids: Vec<ParamId> = round.iter().map(|(id, ..)| *id).collect();
        let products = round.iter().map(|(_, term, output)| {
            let (terms, output) = (std::slice::from_ref(term), *output);
            Product { terms, epilogue, output }
        });
        let products: Vec<_> = products.collect();
        let outputs = gradients.list_mut(&ids).into_iter().map(Tensor::view_mut).collect();
        on.gemm_each(compute, &products, outputs);
    }
}
