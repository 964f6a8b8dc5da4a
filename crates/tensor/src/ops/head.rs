//! Output head: log-probabilities of target tokens, without the logits of a whole batch.

use super::rows_cols;
use crate::tape::Sweep;
use crate::{Category, Cost, DType, Device, Tape, Tensor, Var, Weight, Work};
use hone_kernels::gemm::{Epilogue, Matrix, Product, Target, Term, gemm};
use hone_kernels::{Cpu, head as kernel, vector};

/// Rows whose logits of one tile exist at the same time.
const CHUNK: usize = 1024;

/// `x [t, h]`, `weight [v, h]` → log-probabilities `[t]` f32: entry `i` is
/// `log softmax(x[rows[i]] Wᵀ)[targets[i]]` for `i < rows.len()`, and zero after that.
///
/// Memory is that for `t` rows however many have a target, so that one plan serves every batch.
pub fn log_probs<'a>(
    tape: &mut Tape<'a>,
    x: Var,
    weight: &'a Weight,
    rows: &'a [u32],
    targets: &'a [u32],
) -> Var {
    let (t, _) = rows_cols(x.value().shape());
    assert!(rows.len() == targets.len() && rows.len() <= t);
    let head = Head { x: x.value(), weight: tape.params().resolve(weight), rows, targets };
    let mut log_probs = tape.activation(DType::F32, &[t]);
    let mut lse = tape.activation(DType::F32, &[t]);
    head.forward(tape.device(), tape.compute(), &mut log_probs, &mut lse);
    let requires_grad = x.requires_grad() || weight.param().is_some();
    if !(tape.is_recording() && requires_grad) {
        return tape.push(log_probs, requires_grad, |_, _| {});
    }
    tape.push(log_probs, requires_grad, move |sweep, d_log_probs| {
        let (input, shape, dtype) = (x.id(), x.value().shape().to_vec(), x.value().dtype());
        let mut d_x = x.requires_grad().then(|| sweep.activation(dtype, &shape));
        let head = Head { x: x.value(), weight: sweep.params.resolve(weight), rows, targets };
        head.backward(sweep, weight, &lse, &d_log_probs, d_x.as_mut());
        drop((x, lse, d_log_probs));
        if let Some(d_x) = d_x {
            sweep.add(input, d_x);
        }
    })
}

/// `x [t, h]`, `weight [v, h]` → all logits `[t, v]` f32. Inference only: generation needs them for
/// one row, comparisons for a few.
///
/// # Panics
/// If the tape records.
pub fn logits(tape: &mut Tape<'_>, x: &Tensor, weight: &Weight) -> Tensor {
    assert!(!tape.is_recording(), "logits have no backward pass; see `log_probs`");
    let ((t, h), v) = (rows_cols(x.shape()), weight.shape()[0]);
    let weight = tape.params().resolve(weight);
    let mut y = tape.device().alloc(Category::Head, DType::F32, &[t, v]);
    let cost = Cost::product("logits", t, v, h, weight.num_bytes() + y.num_bytes());
    if let Some(cpu) = tape.device().begin(cost) {
        let w = Matrix::rows(weight.view(), h).transposed();
        let terms = [Term { a: Matrix::rows(x.view(), h), b: w, k: h }];
        let target = Target::whole(t, v);
        let product = Product { terms: &terms, epilogue: Epilogue::default(), target };
        gemm(cpu, tape.compute(), &[product], y.view_mut());
    }
    y
}

/// The last row of `x [t, h]`: `[1, h]`. Inference only.
///
/// # Panics
/// If the tape records.
pub fn last_row(tape: &mut Tape<'_>, x: Var) -> Var {
    assert!(!tape.is_recording(), "taking the last row has no backward pass");
    let (t, h) = rows_cols(x.value().shape());
    let mut y = tape.activation(x.value().dtype(), &[1, h]);
    if let Some(cpu) = tape.device().begin(Cost::memory("last_row", 2 * y.num_bytes())) {
        vector::gather_rows(cpu, x.value().view(), h, &[t as u32 - 1], y.view_mut());
    }
    tape.push(y, false, |_, _| {})
}

struct Head<'a> {
    x: &'a Tensor,
    weight: &'a Tensor,
    rows: &'a [u32],
    targets: &'a [u32],
}

/// Some of the rows with a target, and one tile of their logits.
struct Chunk<'a> {
    /// Index of the first in `rows`.
    start: usize,
    rows: &'a [u32],
    targets: &'a [u32],
    /// `[rows.len(), h]` in the type of the hidden states.
    x: Tensor,
    /// `[rows.len(), kernel::TILE]` f32.
    tile: Tensor,
}

impl<'a> Head<'a> {
    fn forward(&self, device: &Device, compute: DType, log_probs: &mut Tensor, lse: &mut Tensor) {
        if let Some(cpu) = device.begin(Cost::memory("zero", log_probs.num_bytes())) {
            vector::zero(cpu, log_probs.view_mut());
        }
        let mut state = device.alloc(Category::Head, DType::F32, &[self.chunk_rows(), 3]);
        self.each_chunk(device, |cpu, chunk| {
            let n = chunk.rows.len();
            let state = &mut state.f32_mut()[..3 * n];
            self.each_tile(|first, width| {
                self.tile_logits(cpu, compute, chunk, first, width);
                let tile = &chunk.tile.f32()[..n * width];
                kernel::absorb_tile(cpu, tile, width, first, chunk.targets, state);
            });
            let range = chunk.start..chunk.start + n;
            let lse = &mut lse.f32_mut()[range.clone()];
            kernel::finish(state, &mut log_probs.f32_mut()[range], lse);
        });
        device.begin(self.cost("log_probs", 1));
    }

    fn backward(
        &self,
        sweep: &mut Sweep<'_, '_>,
        weight: &Weight,
        lse: &Tensor,
        d_log_probs: &Tensor,
        mut d_x: Option<&mut Tensor>,
    ) {
        let (_, h) = rows_cols(self.x.shape());
        let (device, compute, gradients) = (sweep.device, sweep.compute, &mut *sweep.gradients);
        let products = 1 + usize::from(d_x.is_some()) + usize::from(weight.param().is_some());
        if let Some(d_x) = &mut d_x
            && let Some(cpu) = device.begin(Cost::memory("zero", d_x.num_bytes()))
        {
            vector::zero(cpu, d_x.view_mut());
        }
        let mut d_chunk = device.alloc(Category::Head, DType::F32, &[self.chunk_rows(), h]);
        self.each_chunk(device, |cpu, chunk| {
            let (n, range) = (chunk.rows.len(), chunk.start..chunk.start + chunk.rows.len());
            let saved = (&lse.f32()[range.clone()], &d_log_probs.f32()[range]);
            self.each_tile(|first, width| {
                self.tile_logits(cpu, compute, chunk, first, width);
                let tile = &mut chunk.tile.f32_mut()[..n * width];
                kernel::tile_gradient(cpu, tile, width, first, chunk.targets, saved);
                let d_logits = Matrix::rows(hone_kernels::View::F32(tile), width);
                if d_x.is_some() {
                    let w = Matrix { offset: first * h, ..Matrix::rows(self.weight.view(), h) };
                    let terms = [Term { a: d_logits, b: w, k: width }];
                    let epilogue = Epilogue { accumulate: first > 0, ..Epilogue::default() };
                    let product = Product { terms: &terms, epilogue, target: Target::whole(n, h) };
                    gemm(cpu, compute, &[product], d_chunk.view_mut());
                }
                if let Some(param) = weight.param() {
                    let x = Matrix::rows(chunk.x.view(), h);
                    let terms = [Term { a: d_logits.transposed(), b: x, k: n }];
                    let epilogue = Epilogue { accumulate: true, ..Epilogue::default() };
                    let d_w = &mut gradients.get_mut(param).f32_mut()[first * h..];
                    let d_w = hone_kernels::ViewMut::F32(&mut d_w[..width * h]);
                    let target = Target::whole(width, h);
                    gemm(cpu, compute, &[Product { terms: &terms, epilogue, target }], d_w);
                }
            });
            if let Some(d_x) = &mut d_x {
                vector::scatter_rows(&d_chunk.f32()[..n * h], h, chunk.rows, d_x.view_mut());
            }
        });
        device.begin(self.cost("d_log_probs", products));
    }

    /// Calls `body` for each chunk of rows. On the dry device only the memory is taken.
    fn each_chunk(&self, device: &Device, mut body: impl FnMut(&Cpu, &mut Chunk<'a>)) {
        let (_, h) = rows_cols(self.x.shape());
        let c = self.chunk_rows();
        let mut chunk = Chunk {
            start: 0,
            rows: &[],
            targets: &[],
            x: device.alloc(Category::Head, self.x.dtype(), &[c, h]),
            tile: device.alloc(Category::Head, DType::F32, &[c, kernel::TILE.min(self.vocab())]),
        };
        let Some(cpu) = device.as_cpu() else { return };
        for start in (0..self.rows.len()).step_by(c) {
            let end = (start + c).min(self.rows.len());
            (chunk.start, chunk.rows) = (start, &self.rows[start..end]);
            chunk.targets = &self.targets[start..end];
            vector::gather_rows(cpu, self.x.view(), h, chunk.rows, chunk.x.view_mut());
            body(cpu, &mut chunk);
        }
    }

    fn each_tile(&self, mut body: impl FnMut(usize, usize)) {
        for first in (0..self.vocab()).step_by(kernel::TILE) {
            body(first, kernel::TILE.min(self.vocab() - first));
        }
    }

    /// `chunk.tile [rows, width] =` logits of vocabulary entries `first..first + width`.
    fn tile_logits(
        &self,
        cpu: &Cpu,
        compute: DType,
        chunk: &mut Chunk<'_>,
        first: usize,
        width: usize,
    ) {
        let (_, h) = rows_cols(self.x.shape());
        let w = Matrix { offset: first * h, ..Matrix::rows(self.weight.view(), h) };
        let terms = [Term { a: Matrix::rows(chunk.x.view(), h), b: w.transposed(), k: h }];
        let target = Target::whole(chunk.rows.len(), width);
        let product = Product { terms: &terms, epilogue: Epilogue::default(), target };
        gemm(cpu, compute, &[product], chunk.tile.view_mut());
    }

    fn vocab(&self) -> usize {
        self.weight.shape()[0]
    }

    fn chunk_rows(&self) -> usize {
        CHUNK.min(self.x.shape()[0])
    }

    fn cost(&self, name: &'static str, products: usize) -> Cost {
        let (n, (_, h)) = (self.rows.len(), rows_cols(self.x.shape()));
        let flops = 2 * products * n * h * self.vocab();
        let bytes = products * (self.weight.num_bytes() + n * self.vocab() * 4);
        Cost { name, work: Work::Product, flops: flops as u64, bytes: bytes as u64 }
    }
}
