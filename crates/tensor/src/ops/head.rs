//! Output head: log-probabilities of target tokens, without the logits of a whole batch.

use super::{quantised, rows_cols};
use crate::{Category, Cost, DType, Device, Tape, Tensor, Var, Weight, Work};
use hone_kernels::gemm::{Epilogue, Matrix, OutputRegion, Product, Term};
use hone_kernels::head::Logits;
use hone_kernels::{Processor, head as kernel};
use std::collections::HashSet;
use std::ops::Range;

/// Weights of an output head, and how products with them become logits.
#[derive(Clone, Copy, Debug)]
pub struct OutputHead<'a> {
    /// `[v, h]`.
    pub weight: &'a Weight,
    /// `[v]`; trained if the weight is.
    pub bias: Option<&'a Weight>,
    /// What is done to products.
    pub logits: Logits,
}

/// `x [t, h]`, `weight [v, h]` → log-probabilities `[t]` f32: entry `i` is
/// `log softmax(logits(x[rows[i]] Wᵀ) + bias)[targets[i]]` for `i < rows.len()`, and zero after
/// that. Rows must be distinct, and sorted on the CPU.
///
/// Memory is allocated for `t` rows however many have a target, so that one plan fits every batch.
pub fn log_probs<'a>(
    tape: &mut Tape<'a>,
    x: Var,
    of: OutputHead<'a>,
    rows: &'a [u32],
    targets: &'a [u32],
) -> Var {
    let OutputHead { weight, bias, logits } = of;
    let (t, h) = rows_cols(x.value().shape());
    assert!(rows.len() == targets.len() && rows.len() <= t);
    assert!(rows.is_sorted() || !kernel::needs_sorted_rows(tape.device().target()));
    debug_assert!(rows.iter().collect::<HashSet<_>>().len() == rows.len(), "duplicate rows");
    let requires_grad = x.requires_grad() || weight.param().is_some();
    let records = tape.is_recording() && requires_grad;
    let weight_value = tape.params().resolve(weight);
    let int8 = tape.compute().is_integer_for(tape.device(), weight_value, &[h]);
    let bias_value = bias.map(|bias| tape.params().resolve(bias));
    let of_head = (weight_value, bias_value, logits);
    let head = Head::new(x.value(), of_head, (rows, targets), int8);
    let mut log_probs = tape.activation(DType::F32, &[t]);
    let mut lse = tape.activation(DType::F32, &[t]);
    // The input's gradient up to a factor per row: it costs one product in the forward pass, but
    // would cost two in the backward pass.
    let mut direction =
        (records && x.requires_grad()).then(|| tape.activation(x.value().dtype(), &[t, h]));
    head.forward(tape.device(), &mut log_probs, &mut lse, direction.as_mut());
    if !records {
        return tape.push(log_probs, requires_grad, |_, _| {});
    }
    let (input, dtype) = (x.id(), x.value().dtype());
    let saved = weight.param().map(|_| (x.into_value(), log_probs.clone(), lse));
    tape.push(log_probs, requires_grad, move |sweep, d_log_probs| {
        if let (Some(param), Some((x, log_probs, lse))) = (weight.param(), &saved) {
            let bias_value = bias.map(|bias| sweep.params.resolve(bias));
            let of_head = (sweep.params.resolve(weight), bias_value, logits);
            let head = Head::new(x, of_head, (rows, targets), int8);
            let params = [Some(param), bias.and_then(Weight::param)];
            let gradients = sweep.gradients.each_mut(params);
            head.weight_gradient(sweep.device, [log_probs, lse], &d_log_probs, gradients);
        }
        drop(saved);
        if let Some(direction) = direction {
            let mut d_x = sweep.activation(dtype, &[t, h]);
            let bytes = direction.num_bytes() + d_x.num_bytes();
            if let Some(on) = sweep.device.begin(Cost::memory_bound("d_log_probs", bytes)) {
                let d = d_log_probs.view().part(0, rows.len());
                on.log_probs_backward(direction.view(), rows, d, h, d_x.view_mut());
            }
            drop((direction, d_log_probs));
            sweep.add(input, d_x);
        }
    })
}

/// `x [t, h]` → all logits `[t, v]` f32. Inference only, for few rows: generation
/// and comparisons.
///
/// # Panics
/// If the tape records.
pub fn logits(tape: &mut Tape<'_>, x: &Tensor, of: OutputHead<'_>) -> Tensor {
    let OutputHead { weight, bias, logits } = of;
    assert!(!tape.is_recording(), "logits have no backward pass; see `log_probs`");
    let ((t, h), v) = (rows_cols(x.shape()), weight.shape()[0]);
    let (weight, bias) =
        (tape.params().resolve(weight), bias.map(|bias| tape.params().resolve(bias)));
    let mut y = tape.device().alloc(Category::Head, DType::F32, &[t, v]);
    let int8 = tape.compute().is_integer_for(tape.device(), weight, &[h]);
    let quantised_x = int8.then(|| quantised(tape.device(), x, (0, h), None));
    let x = quantised_x.as_ref().unwrap_or(x);
    let target = tape.device().target();
    let width = kernel::logit_columns(target, weight.storage(), tape.dtype(), v);
    let cost = Cost::memory_bound("logits", weight.num_bytes() + y.num_bytes())
        .with(product_work(int8), 2 * t * v * h);
    let Some(on) = tape.device().begin(cost) else { return y };
    for first in (0..v).step_by(width) {
        on.begin();
        let w = Matrix { offset: first * h, ..Matrix::rows(weight.view(), h) }.transposed();
        let terms = [Term::new(Matrix::rows(x.view(), h), w, h)];
        let output = OutputRegion::columns(t, width.min(v - first), v, first);
        let bias = bias.map(|bias| bias.view().part(first, width.min(v - first)));
        let product =
            Product { terms: &terms, epilogue: Epilogue { bias, ..Default::default() }, output };
        on.gemm(tape.dtype(), &[product], y.view_mut());
    }
    on.logits(logits, v, y.view_mut());
    y
}

/// Gathers `rows` of `x [t, h]`. Inference only.
///
/// # Panics
/// If the tape records, or a row does not exist.
pub fn take_rows(tape: &mut Tape<'_>, x: Var, rows: &[u32]) -> Var {
    assert!(!tape.is_recording(), "taking rows has no backward pass");
    let (t, h) = rows_cols(x.value().shape());
    assert!(rows.iter().all(|&row| (row as usize) < t));
    let mut y = tape.activation(x.value().dtype(), &[rows.len(), h]);
    if let Some(on) = tape.device().begin(Cost::memory_bound("take_rows", 2 * y.num_bytes())) {
        on.gather_rows(x.value().view(), h, rows, y.view_mut());
    }
    tape.push(y, false, |_, _| {})
}

struct Head<'a> {
    x: &'a Tensor,
    weight: &'a Tensor,
    bias: Option<&'a Tensor>,
    rows: &'a [u32],
    targets: &'a [u32],
    /// Whether products are int8.
    int8: bool,
    /// How products become logits.
    logits: Logits,
}

impl<'a> Head<'a> {
    fn new(
        x: &'a Tensor,
        (weight, bias, logits): (&'a Tensor, Option<&'a Tensor>, Logits),
        (rows, targets): (&'a [u32], &'a [u32]),
        int8: bool,
    ) -> Self {
        Self { x, weight, bias, rows, targets, int8, logits }
    }

    fn forward(
        &self,
        device: &Device,
        log_probs: &mut Tensor,
        lse: &mut Tensor,
        mut direction: Option<&mut Tensor>,
    ) {
        if let Some(on) = device.begin(Cost::memory_bound("zero", log_probs.num_bytes())) {
            on.zero(log_probs.view_mut());
        }
        let with_direction = direction.is_some();
        let kernel::Sizes { rows: c, hidden_size: h, .. } = self.sizes(device);
        let mut x = device.alloc(Category::Head, self.x.dtype(), &[c, h]);
        let len = kernel::workspace_len(device.target(), self.sizes(device), with_direction);
        let mut workspace = device.alloc(Category::Head, DType::F32, &[len]);
        let weight_bytes = self.weight.num_bytes() * (1 + usize::from(with_direction));
        let mut cost = Cost::memory_bound("log_probs", self.bytes(c, weight_bytes))
            .with_scratch(self.panel_bytes(device))
            .with(product_work(self.int8), self.product_flops());
        if with_direction {
            // The mean under the softmax is never quantised.
            cost = cost.with(Work::Product, self.product_flops());
        }
        let Some(on) = device.begin(cost) else { return };
        for start in (0..self.rows.len()).step_by(c) {
            let n = c.min(self.rows.len() - start);
            let inputs = self.inputs(on, start..start + n, &mut x);
            let direction = direction.as_mut();
            let outputs = kernel::Outputs {
                log_probs: log_probs.view_mut().part(start, n),
                lse: lse.view_mut().part(start, n),
                direction: direction.map(|tensor| tensor.view_mut().part(start * h, n * h)),
            };
            on.log_probs(inputs, workspace.view_mut(), outputs);
        }
    }

    /// `d_W += d_logitsᵀ x` and `d_bias += Σ d_logits`, recomputing the logits.
    fn weight_gradient(
        &self,
        device: &Device,
        [log_probs, lse]: [&Tensor; 2],
        d_log_probs: &Tensor,
        [d_w, mut d_bias]: [Option<&mut Tensor>; 2],
    ) {
        let d_w = d_w.expect("a trained weight");
        let kernel::Sizes { rows: c, hidden_size: h, .. } = self.sizes(device);
        let mut x = device.alloc(Category::Head, self.x.dtype(), &[c, h]);
        let len = kernel::weight_workspace_len(device.target(), self.sizes(device));
        let mut workspace = device.alloc(Category::Head, DType::F32, &[len]);
        let bytes = self.bytes(c, self.weight.num_bytes() + 2 * d_w.num_bytes());
        let cost = Cost::memory_bound("d_log_probs_weight", bytes)
            .with_scratch(self.panel_bytes(device))
            .with(Work::Product, self.product_flops())
            .with(Work::OverTokens, self.product_flops());
        let Some(on) = device.begin(cost) else { return };
        for start in (0..self.rows.len()).step_by(c) {
            let n = c.min(self.rows.len() - start);
            let inputs = self.inputs(on, start..start + n, &mut x);
            let [log_probs, lse, d] =
                [log_probs, lse, d_log_probs].map(|x| x.view().part(start, n));
            let saved = kernel::Saved { log_probs, lse };
            let d_bias = d_bias.as_mut().map(|d_bias| d_bias.view_mut());
            let gradients = (d_w.view_mut(), d_bias);
            on.log_probs_backward_weight(inputs, saved, d, workspace.view_mut(), gradients);
        }
    }

    /// Rows `range` of those with a target, gathered in `x`.
    fn inputs<'s>(
        &'s self,
        on: &Processor,
        range: Range<usize>,
        x: &'s mut Tensor,
    ) -> kernel::Inputs<'s> {
        let (_, hidden_size) = rows_cols(self.x.shape());
        let rows = &self.rows[range.clone()];
        // The scratch memory of the previous chunk is no longer needed.
        on.begin();
        on.gather_rows(self.x.view(), hidden_size, rows, x.view_mut());
        let (weight, targets) = (self.weight.view(), &self.targets[range]);
        let Self { int8, logits, .. } = *self;
        let bias = self.bias.map(Tensor::view);
        kernel::Inputs { x: x.view(), weight, targets, hidden_size, int8, logits, bias }
    }

    /// Sizes of a chunk of rows.
    fn sizes(&self, device: &Device) -> kernel::Sizes {
        let (vocab_size, hidden_size) = rows_cols(self.weight.shape());
        let rows = kernel::max_rows(device.target()).min(self.x.shape()[0]);
        kernel::Sizes { rows, hidden_size, vocab_size, dtype: self.x.dtype() }
    }

    /// Scratch bytes for converting a part of the weight at a time.
    fn panel_bytes(&self, device: &Device) -> usize {
        kernel::panel_bytes(device.target(), self.weight.storage(), self.sizes(device))
    }

    /// Bytes that an operation reads and writes, with `weight_bytes` per chunk of rows for the
    /// weight and its gradient.
    fn bytes(&self, chunk_rows: usize, weight_bytes: usize) -> usize {
        self.rows.len().div_ceil(chunk_rows) * weight_bytes + 2 * self.x.num_bytes()
    }

    /// Floating-point operations of one product of hidden states and the weight.
    fn product_flops(&self) -> usize {
        2 * self.rows.len() * self.weight.len()
    }
}

/// Kind of work of a product with the weight.
fn product_work(int8: bool) -> Work {
    if int8 { Work::Int8 } else { Work::Product }
}
