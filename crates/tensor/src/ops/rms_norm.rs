//! Root-mean-square normalisation: of the residual stream, of what is added to it, of heads.

use super::{copy, rows_cols};
use crate::tape::Sweep;
use crate::{Cost, DType, Heads, Params, Tape, Tensor, Var, Weight};
use hone_kernels::rms_norm::{Inputs, RmsNorm, Rows, Saved};

/// `x [t, h]` f32, `weight [h]` → `[t, h]` in the tape's compute type.
pub fn rms_norm<'a>(tape: &mut Tape<'a>, x: &Var, weight: &'a Weight, norm: RmsNorm) -> Var {
    let dtype = tape.dtype();
    rms_norm_into(tape, x, weight, norm, dtype)
}

/// The same in f32, for sums of what is normalised.
pub fn rms_norm_in_f32<'a>(tape: &mut Tape<'a>, x: &Var, weight: &'a Weight, norm: RmsNorm) -> Var {
    rms_norm_into(tape, x, weight, norm, DType::F32)
}

fn rms_norm_into<'a>(
    tape: &mut Tape<'a>,
    x: &Var,
    weight: &'a Weight,
    norm: RmsNorm,
    dtype: DType,
) -> Var {
    let (t, h) = rows_cols(x.value().shape());
    let mut y = tape.activation(dtype, &[t, h]);
    let mut rstd = tape.activation(DType::F32, &[t]);
    let rows = Rows::whole(h);
    forward(tape, Forward { norm, rows, weight, x: x.value() }, None, &mut y, &mut rstd);
    let requires_grad = x.requires_grad() || weight.param().is_some();
    if !(tape.is_recording() && requires_grad) {
        return tape.push(y, requires_grad, |_, _| {});
    }
    let x = x.clone();
    tape.push(y, requires_grad, move |sweep, d_y| {
        let backward = Backward { of: Forward { norm, rows, weight, x: x.value() }, rstd: &rstd };
        backward.add_weight_gradient(sweep, &d_y);
        if x.requires_grad() {
            // Accumulates into the gradient known so far, usually that of the residual stream.
            let sum = sweep.take(x.id());
            let adds = sum.is_some();
            let mut d_x = sum.unwrap_or_else(|| sweep.activation(DType::F32, &[t, h]));
            backward.input_gradient(sweep, &d_y, adds, &mut d_x);
            drop(d_y);
            sweep.add(x.id(), d_x);
        }
    })
}

/// `x [t, h]` in the compute type or in f32, normalised in rows as long as the weight, added to
/// `residual [t, h]` f32 → `[t, h]` f32.
pub fn add_rms_norm<'a>(
    tape: &mut Tape<'a>,
    x: Var,
    weight: &'a Weight,
    norm: RmsNorm,
    residual: &Var,
) -> Var {
    let (t, h) = rows_cols(x.value().shape());
    let rows = Rows { stride: h, offset: 0, count: h / weight.shape()[0] };
    let mut y = tape.activation(DType::F32, &[t, h]);
    let mut rstd = tape.activation(DType::F32, &[t, rows.count]);
    let of = Forward { norm, rows, weight, x: x.value() };
    forward(tape, of, Some(residual.value()), &mut y, &mut rstd);
    let inner_grad = x.requires_grad() || weight.param().is_some();
    let requires_grad = inner_grad || residual.requires_grad();
    if !(tape.is_recording() && requires_grad) {
        return tape.push(y, requires_grad, |_, _| {});
    }
    let (residual, residual_grad) = (residual.id(), residual.requires_grad());
    tape.push(y, requires_grad, move |sweep, d_y| {
        let backward = Backward { of: Forward { norm, rows, weight, x: x.value() }, rstd: &rstd };
        backward.add_weight_gradient(sweep, &d_y);
        if x.requires_grad() {
            let mut d_x = sweep.activation(x.value().dtype(), &[t, h]);
            backward.input_gradient(sweep, &d_y, false, &mut d_x);
            sweep.add(x.id(), d_x);
        }
        if residual_grad {
            sweep.add(residual, d_y);
        }
    })
}

/// Weights of the norms of queries, keys and values: `[head_dim]`, to normalise each head by
/// itself, or of all heads together.
#[derive(Clone, Copy)]
pub struct HeadNorms<'a> {
    /// Weight of the queries' norm.
    pub q: &'a Weight,
    /// Weight of the keys' norm, if there are keys.
    pub k: Option<&'a Weight>,
    /// Weight of the values' norm, if they have one.
    pub v: Option<&'a Weight>,
}

/// `qkv [t, qkv_width]` with queries and perhaps keys and values normalised, in rows as long as the
/// weights.
pub fn norm_heads<'a>(
    tape: &mut Tape<'a>,
    qkv: Var,
    heads: &Heads,
    weights: HeadNorms<'a>,
    norm: RmsNorm,
) -> Var {
    let (t, width) = rows_cols(qkv.value().shape());
    let part = |weight: &'a Weight, first: usize, num_heads: usize| {
        let (offset, len) = (first * heads.head_dim, num_heads * heads.head_dim);
        (weight, Rows { stride: width, offset, count: len / weight.shape()[0] })
    };
    let (num_heads, num_kv_heads) = (heads.num_heads, heads.num_kv_heads);
    let of_values = weights.v.map(|v| part(v, num_heads + num_kv_heads, num_kv_heads));
    let of_keys = weights.k.map(|k| part(k, num_heads, num_kv_heads));
    let of_queries = [part(weights.q, 0, num_heads)].into_iter();
    let parts: Vec<(&'a Weight, Rows)> = of_queries.chain(of_keys).chain(of_values).collect();
    let mut y = tape.activation(qkv.value().dtype(), &[t, width]);
    copy(tape.device(), qkv.value(), &mut y);
    let rstd = |&(weight, rows): &(&'a Weight, Rows)| {
        let mut rstd = tape.activation(DType::F32, &[t, rows.count]);
        forward(tape, Forward { norm, rows, weight, x: qkv.value() }, None, &mut y, &mut rstd);
        rstd
    };
    let rstds: Vec<Tensor> = parts.iter().map(rstd).collect();
    let is_trained = parts.iter().any(|(weight, _)| weight.param().is_some());
    let requires_grad = qkv.requires_grad() || is_trained;
    if !(tape.is_recording() && requires_grad) {
        return tape.push(y, requires_grad, |_, _| {});
    }
    tape.push(y, requires_grad, move |sweep, d_y| {
        let backward = parts.iter().zip(&rstds).map(|(&(weight, rows), rstd)| {
            let of = Forward { norm, rows, weight, x: qkv.value() };
            Backward { of, rstd }
        });
        let backward: Vec<Backward<'_>> = backward.collect();
        backward.iter().for_each(|part| part.add_weight_gradient(sweep, &d_y));
        if qkv.requires_grad() {
            let mut d_x = sweep.activation(d_y.dtype(), &[t, width]);
            copy(sweep.device, &d_y, &mut d_x);
            backward.iter().for_each(|part| part.input_gradient(sweep, &d_y, false, &mut d_x));
            drop(d_y);
            sweep.add(qkv.id(), d_x);
        }
    })
}

/// A normalisation of `x`.
#[derive(Clone, Copy)]
struct Forward<'s> {
    norm: RmsNorm,
    rows: Rows,
    weight: &'s Weight,
    x: &'s Tensor,
}

fn forward(
    tape: &Tape<'_>,
    of: Forward<'_>,
    residual: Option<&Tensor>,
    y: &mut Tensor,
    rstd: &mut Tensor,
) {
    let Forward { norm, rows, weight, x } = of;
    let bytes = x.num_bytes() + y.num_bytes() + residual.map_or(0, Tensor::num_bytes);
    if let Some(on) = tape.device().begin(Cost::memory_bound("rms_norm", bytes)) {
        let (x, weight) = (x.view(), tape.params().resolve(weight).view());
        let inputs = Inputs { x, weight, residual: residual.map(Tensor::view), rows };
        on.rms_norm(norm, inputs, y.view_mut(), rstd.view_mut());
    }
}

/// The backward pass of a normalisation.
struct Backward<'s> {
    of: Forward<'s>,
    rstd: &'s Tensor,
}

impl Backward<'_> {
    /// Adds to the weight's gradient, if it is trained.
    fn add_weight_gradient(&self, sweep: &mut Sweep<'_, '_>, d_y: &Tensor) {
        let Some(param) = self.of.weight.param() else { return };
        let bytes = 2 * self.of.x.num_bytes() + d_y.num_bytes();
        if let Some(on) = sweep.device.begin(Cost::memory_bound("d_rms_norm_weight", bytes)) {
            let saved = self.saved(sweep.params);
            let d_w = sweep.gradients.get_mut(param).view_mut();
            on.rms_norm_backward_weight(saved, d_y.view(), d_w);
        }
    }

    fn input_gradient(&self, sweep: &Sweep<'_, '_>, d_y: &Tensor, adds: bool, d_x: &mut Tensor) {
        let bytes = 2 * self.of.x.num_bytes() + d_y.num_bytes();
        let bytes = bytes + if adds { d_x.num_bytes() } else { 0 };
        if let Some(on) = sweep.device.begin(Cost::memory_bound("d_rms_norm", bytes)) {
            let saved = self.saved(sweep.params);
            on.rms_norm_backward(self.of.norm, saved, d_y.view(), adds, d_x.view_mut());
        }
    }

    fn saved<'v>(&'v self, params: &'v Params) -> Saved<'v> {
        let Forward { rows, weight, x, .. } = self.of;
        let weight = params.resolve(weight).view();
        Saved { x: x.view(), weight, rstd: self.rstd.view(), rows }
    }
}
