//! The definition, with all logits at once.

/// `logits [t, v]`, `targets [t]` → `log p(target) [t]`.
pub fn log_probs(logits: &[f64], v: usize, targets: &[u32]) -> Vec<f64> {
    let row = |(logits, &target): (&[f64], &u32)| logits[target as usize] - log_sum_exp(logits);
    logits.chunks(v).zip(targets).map(row).collect()
}

/// `d_logits [t, v]` for `d_log_probs [t]`.
pub fn d_logits(logits: &[f64], v: usize, targets: &[u32], d_log_probs: &[f64]) -> Vec<f64> {
    let mut d = Vec::with_capacity(logits.len());
    for ((logits, &target), &d_log_prob) in logits.chunks(v).zip(targets).zip(d_log_probs) {
        let lse = log_sum_exp(logits);
        for (i, x) in logits.iter().enumerate() {
            let hit = if i == target as usize { 1.0 } else { 0.0 };
            d.push(d_log_prob * (hit - (x - lse).exp()));
        }
    }
    d
}

fn log_sum_exp(x: &[f64]) -> f64 {
    let max = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    max + x.iter().map(|x| (x - max).exp()).sum::<f64>().ln()
}
