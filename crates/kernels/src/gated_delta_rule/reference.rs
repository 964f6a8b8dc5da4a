//! The definition: the recurrence, token by token.

use super::{DeltaHeads, EPS};
use crate::attention::Sequence;

/// `qkv [t, qkv_width]`, `gates [t, 2 num_value_heads]` → `out [t, out_width]`.
pub fn forward(qkv: &[f64], gates: &[f64], heads: &DeltaHeads, sequences: &[Sequence]) -> Vec<f64> {
    let t = qkv.len() / heads.qkv_width();
    let mut out = vec![0.0; t * heads.out_width()];
    for (s, h) in each(heads, sequences) {
        let mut state = vec![0.0; heads.key_dim * heads.value_dim];
        for t in s.q_start..s.q_start + s.q_len {
            let row = Row::new(qkv, gates, heads, t, h);
            row.step(&mut state);
            out[t * heads.out_width() + h * heads.value_dim..][..heads.value_dim]
                .copy_from_slice(&row.read(&state, &row.q));
        }
    }
    out
}

/// Gradients of `qkv` and `gates` for `d_out`.
pub fn backward(
    qkv: &[f64],
    gates: &[f64],
    heads: &DeltaHeads,
    sequences: &[Sequence],
    d_out: &[f64],
) -> [Vec<f64>; 2] {
    let (dk, dv, width) = (heads.key_dim, heads.value_dim, heads.qkv_width());
    let (mut d_qkv, mut d_gates) = (vec![0.0; qkv.len()], vec![0.0; gates.len()]);
    for (s, h) in each(heads, sequences) {
        let (key_head, value) = (h / heads.group(), heads.v_at() + h * dv);
        let rows: Vec<Row> =
            (s.q_start..s.q_start + s.q_len).map(|t| Row::new(qkv, gates, heads, t, h)).collect();
        // Before each row, and after the last.
        let mut states = vec![vec![0.0; dk * dv]];
        for row in &rows {
            let mut state = states[states.len() - 1].clone();
            row.step(&mut state);
            states.push(state);
        }
        let mut d_state = vec![0.0; dk * dv];
        for (i, row) in rows.iter().enumerate().rev() {
            let t = s.q_start + i;
            let d_o = &d_out[t * heads.out_width() + h * dv..][..dv];
            let decayed: Vec<f64> = states[i].iter().map(|x| x * row.g.exp()).collect();
            let missing = row.missing(&decayed);
            let (mut d_q, mut d_k) = (vec![0.0; dk], vec![0.0; dk]);
            let mut d_written = vec![0.0; dv];
            for (a, c) in (0..dk).flat_map(|a| (0..dv).map(move |c| (a, c))) {
                d_q[a] += states[i + 1][a * dv + c] * d_o[c];
                d_state[a * dv + c] += row.q[a] * d_o[c];
                d_k[a] += d_state[a * dv + c] * row.beta * missing[c];
                d_written[c] += d_state[a * dv + c] * row.k[a];
            }
            for c in 0..dv {
                d_qkv[t * width + value + c] += row.beta * d_written[c];
                d_gates[t * 2 * heads.num_value_heads + h] += missing[c] * d_written[c];
            }
            let mut d_g = 0.0;
            for (a, c) in (0..dk).flat_map(|a| (0..dv).map(move |c| (a, c))) {
                d_k[a] -= decayed[a * dv + c] * row.beta * d_written[c];
                d_state[a * dv + c] -= row.k[a] * row.beta * d_written[c];
                d_g += d_state[a * dv + c] * decayed[a * dv + c];
            }
            d_gates[(2 * t + 1) * heads.num_value_heads + h] = d_g;
            d_state.iter_mut().for_each(|x| *x *= row.g.exp());
            let scale = (dk as f64).powf(-0.5);
            let keys = heads.num_key_heads * dk;
            for (at, d, scale) in [(key_head * dk, d_q, scale), (keys + key_head * dk, d_k, 1.0)] {
                let (x, at) = (&qkv[t * width + at..][..dk], t * width + at);
                let factor = 1.0 / (x.iter().map(|x| x * x).sum::<f64>() + f64::from(EPS)).sqrt();
                let along: f64 = x.iter().zip(&d).map(|(x, d)| x * d).sum();
                for a in 0..dk {
                    let across = d[a] - x[a] * factor * factor * along;
                    d_qkv[at + a] += scale * factor * across;
                }
            }
        }
    }
    [d_qkv, d_gates]
}

/// All sequences with all value heads.
fn each<'a>(
    heads: &'a DeltaHeads,
    sequences: &'a [Sequence],
) -> impl Iterator<Item = (&'a Sequence, usize)> {
    sequences.iter().flat_map(|s| (0..heads.num_value_heads).map(move |h| (s, h)))
}

/// What a value head sees of a token.
struct Row {
    /// Normalised and scaled.
    q: Vec<f64>,
    /// Normalised.
    k: Vec<f64>,
    v: Vec<f64>,
    beta: f64,
    g: f64,
}

impl Row {
    fn new(qkv: &[f64], gates: &[f64], heads: &DeltaHeads, t: usize, h: usize) -> Self {
        let (dk, dv) = (heads.key_dim, heads.value_dim);
        let part = |at: usize, len: usize| &qkv[t * heads.qkv_width() + at..][..len];
        let normal = |x: &[f64], scale: f64| -> Vec<f64> {
            let factor = scale / (x.iter().map(|x| x * x).sum::<f64>() + f64::from(EPS)).sqrt();
            x.iter().map(|x| x * factor).collect()
        };
        let key_head = h / heads.group();
        let q = normal(part(key_head * dk, dk), (dk as f64).powf(-0.5));
        let k = normal(part((heads.num_key_heads + key_head) * dk, dk), 1.0);
        let gates = &gates[2 * t * heads.num_value_heads..][..2 * heads.num_value_heads];
        let (beta, g) = (gates[h], gates[heads.num_value_heads + h]);
        Self { q, k, v: part(heads.v_at() + h * dv, dv).to_vec(), beta, g }
    }

    /// `xᵀ state`.
    fn read(&self, state: &[f64], x: &[f64]) -> Vec<f64> {
        let dv = self.v.len();
        (0..dv).map(|c| x.iter().enumerate().map(|(a, x)| x * state[a * dv + c]).sum()).collect()
    }

    /// What the value differs from what the state has for its key.
    fn missing(&self, decayed: &[f64]) -> Vec<f64> {
        let had = self.read(decayed, &self.k);
        self.v.iter().zip(had).map(|(v, had)| v - had).collect()
    }

    fn step(&self, state: &mut [f64]) {
        state.iter_mut().for_each(|x| *x *= self.g.exp());
        let missing = self.missing(state);
        for (row, k) in state.chunks_mut(self.v.len()).zip(&self.k) {
            row.iter_mut().zip(&missing).for_each(|(x, missing)| *x += k * self.beta * missing);
        }
    }
}
