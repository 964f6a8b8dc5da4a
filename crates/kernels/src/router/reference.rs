//! The definition.

use super::{Groups, Router, Scoring};

/// `logits [t, num_experts]` → chosen experts and weights, both `[t, top_k]`.
pub fn forward(router: &Router, logits: &[f64], bias: Option<&[f64]>) -> (Vec<u32>, Vec<f64>) {
    let (mut chosen, mut weights) = (Vec::new(), Vec::new());
    for logits in logits.chunks(router.num_experts) {
        let scores = scores(router, logits);
        let mut keys = scores.clone();
        if let Some(bias) = bias {
            keys.iter_mut().zip(bias).for_each(|(key, bias)| *key += bias);
        }
        if let Some(groups) = router.groups {
            keep_groups(groups, &mut keys);
        }
        let experts = best(&keys, router.top_k);
        let sum: f64 = experts.iter().map(|&expert| scores[expert]).sum();
        let denominator = if router.normalise { sum } else { 1.0 };
        let weight = |&e: &usize| f64::from(router.scale) * scores[e] / denominator;
        weights.extend(experts.iter().map(weight));
        chosen.extend(experts.iter().map(|&expert| expert as u32));
    }
    (chosen, weights)
}

/// `d_logits [t, num_experts]` for `d_weights [t, top_k]`, and for `d_probabilities [num_experts]`,
/// the derivative of a loss by the softmax of the first `num_rows` rows.
pub fn backward(
    router: &Router,
    logits: &[f64],
    chosen: &[u32],
    d_weights: &[f64],
    balance: Option<(&[f64], usize)>,
) -> Vec<f64> {
    let (n, k) = (router.num_experts, router.top_k);
    let mut d_logits = vec![0.0; logits.len()];
    for (t, (logits, d_logits)) in logits.chunks(n).zip(d_logits.chunks_mut(n)).enumerate() {
        let scores = scores(router, logits);
        let (chosen, d_weights) = (&chosen[t * k..][..k], &d_weights[t * k..][..k]);
        let sum: f64 = chosen.iter().map(|&e| scores[e as usize]).sum();
        let pairs = || chosen.iter().map(|&e| e as usize).zip(d_weights);
        // The derivative by scores.
        let mut d_scores = vec![0.0; n];
        let along: f64 = pairs().map(|(e, d)| scores[e] * d).sum::<f64>() / (sum * sum);
        for (e, d) in pairs() {
            let d = if router.normalise { d / sum - along } else { *d };
            d_scores[e] = f64::from(router.scale) * d;
        }
        match router.scoring {
            Scoring::Softmax => add_softmax_gradient(&scores, &d_scores, d_logits),
            Scoring::Sigmoid => {
                for ((d_logit, s), d) in d_logits.iter_mut().zip(&scores).zip(&d_scores) {
                    *d_logit = d * s * (1.0 - s);
                }
            }
        }
        if let Some((d_probabilities, _)) = balance.filter(|(_, rows)| t < *rows) {
            add_softmax_gradient(&softmax(logits), d_probabilities, d_logits);
        }
    }
    d_logits
}

/// The softmax of a row of logits.
pub fn softmax(logits: &[f64]) -> Vec<f64> {
    let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = logits.iter().map(|l| (l - max).exp()).sum();
    logits.iter().map(|l| (l - max).exp() / sum).collect()
}

fn add_softmax_gradient(p: &[f64], d_p: &[f64], d_logits: &mut [f64]) {
    let dot: f64 = p.iter().zip(d_p).map(|(p, d)| p * d).sum();
    d_logits.iter_mut().zip(p.iter().zip(d_p)).for_each(|(d_l, (p, d))| *d_l += p * (d - dot));
}

fn scores(router: &Router, logits: &[f64]) -> Vec<f64> {
    match router.scoring {
        Scoring::Softmax => softmax(logits),
        Scoring::Sigmoid => logits.iter().map(|l| 1.0 / (1.0 + (-l).exp())).collect(),
    }
}

/// Leaves only the experts of the best groups in the running.
fn keep_groups(groups: Groups, keys: &mut [f64]) {
    let size = keys.len() / groups.count;
    let score = |group: &[f64]| best(group, 2.min(size)).iter().map(|&e| group[e]).sum();
    let of_groups: Vec<f64> = keys.chunks(size).map(score).collect();
    let kept = best(&of_groups, groups.kept);
    for (group, keys) in keys.chunks_mut(size).enumerate() {
        if !kept.contains(&group) {
            keys.fill(f64::NEG_INFINITY);
        }
    }
}

/// Indices of the `count` greatest, in descending order; the lower one of equals first.
fn best(x: &[f64], count: usize) -> Vec<usize> {
    let mut indices: Vec<usize> = (0..x.len()).collect();
    indices.sort_by(|&a, &b| x[b].total_cmp(&x[a]));
    indices.truncate(count);
    indices
}
