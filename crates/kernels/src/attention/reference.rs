//! The definition, for packed rows.

use super::{Heads, Sequence};

/// `qkv [t, qkv_width]` → `out [t, out_width]`; rows of no sequence are zero. `sinks` are empty or
/// `[num_heads]`.
pub fn forward(qkv: &[f64], heads: &Heads, sinks: &[f64], sequences: &[Sequence]) -> Vec<f64> {
    let mut out = vec![0.0; qkv.len() / heads.qkv_width() * heads.out_width()];
    each_query(heads, sequences, |h, t, keys| {
        let Softmax { p, .. } = probabilities((qkv, sinks), heads, h, t, keys.clone());
        for (p, j) in p.iter().zip(keys) {
            for c in 0..heads.head_dim {
                let v = qkv[heads.v_at(j, h) + c];
                out[t * heads.out_width() + h * heads.head_dim + c] += p * v;
            }
        }
    });
    out
}

/// `d_qkv` and the gradient of sinks for `d_out`.
pub fn backward(
    qkv: &[f64],
    heads: &Heads,
    sinks: &[f64],
    sequences: &[Sequence],
    d_out: &[f64],
) -> (Vec<f64>, Vec<f64>) {
    let (d, scale) = (heads.head_dim, f64::from(heads.scale));
    let (mut d_qkv, mut d_sinks) = (vec![0.0; qkv.len()], vec![0.0; sinks.len()]);
    each_query(heads, sequences, |h, t, keys| {
        let softmax = probabilities((qkv, sinks), heads, h, t, keys.clone());
        let Softmax { scores, p, sink } = softmax;
        let d_out = &d_out[t * heads.out_width() + h * d..][..d];
        let dot = |at: usize| (0..d).map(|c| d_out[c] * qkv[at + c]).sum::<f64>();
        let d_p: Vec<f64> = keys.clone().map(|j| dot(heads.v_at(j, h))).collect();
        let mean: f64 = p.iter().zip(&d_p).map(|(p, d_p)| p * d_p).sum();
        if let Some(d_sink) = d_sinks.get_mut(h) {
            *d_sink -= sink * mean;
        }
        for (((score, p), d_p), j) in scores.iter().zip(&p).zip(&d_p).zip(keys) {
            let share = heads.softcap.map_or(0.0, |cap| score / f64::from(cap.0));
            let d_score = p * (d_p - mean) * scale * (1.0 - share * share);
            for c in 0..d {
                d_qkv[heads.q_at(t, h) + c] += d_score * qkv[heads.k_at(j, h) + c];
                d_qkv[heads.k_at(j, h) + c] += d_score * qkv[heads.q_at(t, h) + c];
                d_qkv[heads.v_at(j, h) + c] += p * d_out[c];
            }
        }
    });
    (d_qkv, d_sinks)
}

impl Heads {
    fn q_at(&self, t: usize, h: usize) -> usize {
        t * self.qkv_width() + h * self.head_dim
    }
    fn k_at(&self, t: usize, h: usize) -> usize {
        t * self.qkv_width() + (self.num_heads + h / self.group()) * self.head_dim
    }
    fn v_at(&self, t: usize, h: usize) -> usize {
        self.k_at(t, h) + self.num_kv_heads * self.head_dim
    }
}

fn each_query(
    heads: &Heads,
    sequences: &[Sequence],
    mut body: impl FnMut(usize, usize, std::ops::RangeInclusive<usize>),
) {
    for s in sequences {
        for t in s.q_start..s.q_start + s.q_len {
            let first =
                heads.window.map_or(s.k_start, |w| s.k_start.max((t + 1).saturating_sub(w)));
            let last = t.saturating_add(heads.ahead).min(s.k_start + s.k_len - 1);
            (0..heads.num_heads).for_each(|h| body(h, t, first..=last));
        }
    }
}

/// Scores, their softmax, and the sink's share of it.
struct Softmax {
    scores: Vec<f64>,
    p: Vec<f64>,
    sink: f64,
}

fn probabilities(
    (qkv, sinks): (&[f64], &[f64]),
    heads: &Heads,
    h: usize,
    t: usize,
    keys: std::ops::RangeInclusive<usize>,
) -> Softmax {
    let bounded = |score: f64| match heads.softcap {
        None => score,
        Some(cap) => f64::from(cap.0) * (score / f64::from(cap.0)).tanh(),
    };
    let score = |j: usize| {
        let (q, k) = (heads.q_at(t, h), heads.k_at(j, h));
        (0..heads.head_dim).map(|c| qkv[q + c] * qkv[k + c]).sum::<f64>() * f64::from(heads.scale)
    };
    let scores: Vec<f64> = keys.map(|key| bounded(score(key))).collect();
    let logit = sinks.get(h).copied().unwrap_or(f64::NEG_INFINITY);
    let max = scores.iter().copied().fold(logit, f64::max);
    let sum: f64 = scores.iter().map(|s| (s - max).exp()).sum::<f64>() + (logit - max).exp();
    let p = scores.iter().map(|s| (s - max).exp() / sum).collect();
    Softmax { scores, p, sink: (logit - max).exp() / sum }
}
