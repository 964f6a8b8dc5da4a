//! Norms of the stream, of what is added to it, and of heads.

use super::check_op::{Kind, Operands, Operation, check_op};
use crate::ops::{self, HeadNorms, RmsNorm};
use crate::{DType, Heads, Tape, Var, Weight};
use hone_kernels::layer_norm::reference as layer_norm;
use hone_kernels::rms_norm::{Rows, reference};
use hone_kernels::testing;

struct Norm {
    given: Operands,
    weight: Weight,
    norm: RmsNorm,
}

impl Operation for Norm {
    fn operands(&self) -> &Operands {
        &self.given
    }
    fn weights_mut(&mut self) -> Vec<&mut Weight> {
        vec![&mut self.weight]
    }
    fn run<'a>(&'a self, tape: &mut Tape<'a>, leaves: Vec<Var>) -> Var {
        ops::rms_norm(tape, &leaves[0], &self.weight, self.norm)
    }
    fn forward(&self, x: &[Vec<f64>]) -> Vec<f64> {
        reference::forward(self.norm, Rows::whole(x[1].len()), &x[0], &x[1])
    }
    fn backward(&self, x: &[Vec<f64>], d_y: &[f64]) -> Vec<Vec<f64>> {
        let rows = Rows::whole(x[1].len());
        let (d_x, d_w) = reference::backward(self.norm, rows, &x[0], &x[1], d_y);
        vec![d_x, d_w]
    }
}

#[test]
fn rms_norm_passes() {
    let kinds = [
        (Kind::Frozen(DType::F32.into()), false, false),
        (Kind::Trained, false, false),
        (Kind::Trained, false, true),
        (Kind::Trained, true, false),
    ];
    for (i, (t, h)) in [(1, 1), (1, 64), (3, 17), (130, 96), (2, 1000)].into_iter().enumerate() {
        for (j, (kind, constant, plus_one)) in kinds.into_iter().enumerate() {
            if !testing::is_sampled(i + j, 2) {
                continue;
            }
            let mut given = Operands::default();
            match constant {
                false => given.add(Kind::Stream, &[t, h]),
                true => given.add_constant(Kind::Stream, &[t, h]),
            };
            let weight = given.add(kind, &[h]);
            let weight = given.weight(weight);
            // The gradient of a row of one element is nothing but its epsilon.
            let norm = RmsNorm { eps: if h == 1 { 0.5 } else { 1e-5 }, plus_one };
            check_op(&format!("{norm:?} [{t}, {h}]"), &mut Norm { given, weight, norm });
        }
    }
}

struct LayerNorm {
    given: Operands,
    weight: Weight,
    bias: Option<Weight>,
    eps: f32,
    /// Whether the result is the residual stream.
    is_stream: bool,
}

impl Operation for LayerNorm {
    fn operands(&self) -> &Operands {
        &self.given
    }
    fn weights_mut(&mut self) -> Vec<&mut Weight> {
        [&mut self.weight].into_iter().chain(&mut self.bias).collect()
    }
    fn run<'a>(&'a self, tape: &mut Tape<'a>, mut leaves: Vec<Var>) -> Var {
        let Self { weight, bias, eps, .. } = self;
        let norm = ops::LayerNorm { weight, bias: bias.as_ref(), eps: *eps };
        let dtype = if self.is_stream { DType::F32 } else { tape.dtype() };
        ops::layer_norm(tape, leaves.remove(0), norm, dtype)
    }
    fn forward(&self, x: &[Vec<f64>]) -> Vec<f64> {
        layer_norm::forward(&x[0], &x[1], x.get(2).map(Vec::as_slice), f64::from(self.eps))
    }
    fn backward(&self, x: &[Vec<f64>], d_y: &[f64]) -> Vec<Vec<f64>> {
        let (d_x, d_w, d_b) = layer_norm::backward(&x[0], &x[1], f64::from(self.eps), d_y);
        if self.weight.param().is_none() {
            return vec![d_x, vec![], vec![]];
        }
        [d_x, d_w, d_b].into_iter().take(x.len()).collect()
    }
}

#[test]
fn layer_norm_passes() {
    for (t, h) in [(1, 7), (3, 17), (40, 96)] {
        for (of, kind, has_bias) in [
            (Kind::Stream, Kind::Frozen(DType::F32.into()), true),
            (Kind::Stream, Kind::Trained, true),
            (Kind::Activation, Kind::Trained, false),
        ] {
            for is_stream in [of == Kind::Stream, false] {
                let mut given = Operands::default();
                // A mean that a variance taken as a difference of squares would suffer from.
                given.add_with(of, &[t, h], |_, x| x + 2.0);
                let weight = given.add(kind, &[h]);
                let weight = given.weight(weight);
                let bias = has_bias.then(|| given.add(kind, &[h])).map(|bias| given.weight(bias));
                let name = format!("layer_norm [{t}, {h}], bias {has_bias}, {is_stream}");
                let mut op = LayerNorm { given, weight, bias, eps: 1e-5, is_stream };
                check_op(&name, &mut op);
            }
        }
    }
}

/// What a block adds to the stream, normalised before.
struct AddNorm {
    given: Operands,
    weight: Weight,
    norm: RmsNorm,
    rows: Rows,
}

impl Operation for AddNorm {
    fn operands(&self) -> &Operands {
        &self.given
    }
    fn weights_mut(&mut self) -> Vec<&mut Weight> {
        vec![&mut self.weight]
    }
    fn run<'a>(&'a self, tape: &mut Tape<'a>, mut leaves: Vec<Var>) -> Var {
        let x = leaves.remove(0);
        ops::add_rms_norm(tape, x, &self.weight, self.norm, &leaves[0])
    }
    fn forward(&self, x: &[Vec<f64>]) -> Vec<f64> {
        let normed = reference::forward(self.norm, self.rows, &x[0], &x[2]);
        normed.iter().zip(&x[1]).map(|(normed, residual)| normed + residual).collect()
    }
    fn backward(&self, x: &[Vec<f64>], d_y: &[f64]) -> Vec<Vec<f64>> {
        let (d_x, d_w) = reference::backward(self.norm, self.rows, &x[0], &x[2], d_y);
        vec![d_x, d_y.to_vec(), d_w]
    }
}

#[test]
fn add_rms_norm_passes() {
    // The last ones are three rows of 24 elements each.
    for (t, h, len) in [(1, 64, 64), (3, 17, 17), (130, 96, 96), (9, 72, 24)] {
        for (kind, plus_one) in [(Kind::Frozen(DType::F32.into()), true), (Kind::Trained, false)] {
            let mut given = Operands::default();
            given.add(Kind::Activation, &[t, h]);
            given.add(Kind::Stream, &[t, h]);
            let weight = given.add(kind, &[len]);
            let weight = given.weight(weight);
            let norm = RmsNorm { eps: 1e-5, plus_one };
            let rows = Rows { stride: h, offset: 0, count: h / len };
            let case = format!("add {norm:?} [{t}, {h}] of {len}");
            check_op(&case, &mut AddNorm { given, weight, norm, rows });
        }
    }
}

struct NormHeads {
    given: Operands,
    heads: Heads,
    q: Weight,
    k: Weight,
    v: Option<Weight>,
    norm: RmsNorm,
}

impl NormHeads {
    /// Rows of queries, of keys and of values that are normalised.
    fn rows(&self) -> Vec<Rows> {
        let Heads { num_heads, num_kv_heads, head_dim, .. } = self.heads;
        let stride = self.heads.qkv_width();
        let q = Rows { stride, offset: 0, count: num_heads };
        let others = [num_heads, num_heads + num_kv_heads].map(|first| first * head_dim);
        let others = others.map(|offset| Rows { stride, offset, count: num_kv_heads });
        let count = if self.v.is_some() { 2 } else { 1 };
        [q].into_iter().chain(others.into_iter().take(count)).collect()
    }
}

impl Operation for NormHeads {
    fn operands(&self) -> &Operands {
        &self.given
    }
    fn weights_mut(&mut self) -> Vec<&mut Weight> {
        [&mut self.q, &mut self.k].into_iter().chain(&mut self.v).collect()
    }
    fn run<'a>(&'a self, tape: &mut Tape<'a>, mut leaves: Vec<Var>) -> Var {
        let weights = HeadNorms { q: &self.q, k: Some(&self.k), v: self.v.as_ref() };
        ops::norm_heads(tape, leaves.remove(0), &self.heads, weights, self.norm)
    }
    fn forward(&self, x: &[Vec<f64>]) -> Vec<f64> {
        let parts = self.rows().into_iter().zip(&x[1..]);
        parts.fold(x[0].clone(), |y, (rows, w)| reference::forward(self.norm, rows, &y, w))
    }
    fn backward(&self, x: &[Vec<f64>], d_y: &[f64]) -> Vec<Vec<f64>> {
        let mut gradients = vec![d_y.to_vec()];
        for (rows, w) in self.rows().into_iter().zip(&x[1..]) {
            let (d_x, d_w) = reference::backward(self.norm, rows, &x[0], w, &gradients[0]);
            gradients[0] = d_x;
            gradients.push(d_w);
        }
        gradients
    }
}

#[test]
fn norm_heads_passes() {
    for (t, num_heads, num_kv_heads, head_dim) in
        [(1, 1, 1, 64), (5, 4, 2, 18), (40, 3, 1, 16), (2, 2, 1, 256)]
    {
        for (kind, plus_one) in [(Kind::Frozen(DType::F32.into()), false), (Kind::Trained, true)] {
            let heads = Heads {
                num_heads,
                num_kv_heads,
                head_dim,
                scale: 1.0,
                window: None,
                ahead: 0,
                softcap: None,
            };
            let mut given = Operands::default();
            given.add(Kind::Activation, &[t, heads.qkv_width()]);
            let (q, k) = (given.add(kind, &[head_dim]), given.add(kind, &[head_dim]));
            let (q, k) = (given.weight(q), given.weight(k));
            let v = (num_kv_heads > 1).then(|| given.add(kind, &[head_dim]));
            let v = v.map(|v| given.weight(v));
            let norm = RmsNorm { eps: 1e-5, plus_one };
            let case = format!("{norm:?} of {heads:?}, {t} tokens");
            check_op(&case, &mut NormHeads { given, heads, q, k, v, norm });
        }
    }
}
