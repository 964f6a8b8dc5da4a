//! The definition, with all logits at once.

use super::Logits;

/// Products to logits.
pub fn logits(logits: Logits, products: &[f64]) -> Vec<f64> {
    let scaled = products.iter().map(|x| x * f64::from(logits.scale));
    let bounded = |x: f64| match logits.softcap {
        None => x,
        Some(cap) => f64::from(cap.0) * (x / f64::from(cap.0)).tanh(),
    };
    scaled.map(bounded).collect()
}

/// Gradients of logits to gradients of products.
pub fn d_products(shape: Logits, logits: &[f64], d: &mut [f64]) {
    for (d, x) in d.iter_mut().zip(logits) {
        let share = shape.softcap.map_or(0.0, |cap| x / f64::from(cap.0));
        *d *= f64::from(shape.scale) * (1.0 - share * share);
    }
}

/// `logits [t, v]`, `targets [t]` → `log p(target) [t]`.
pub fn log_probs(logits: &[f64], v: usize, targets: &[u32]) -> Vec<f64> {
    let row = |(logits, &target): (&[f64], &u32)| log_prob(logits, target as usize);
    logits.chunks(v).zip(targets).map(row).collect()
}

/// `d_logits [t, v]` for `d_log_probs [t]`.
pub fn d_logits(logits: &[f64], v: usize, targets: &[u32], d_log_probs: &[f64]) -> Vec<f64> {
    let mut d = Vec::with_capacity(logits.len());
    for ((logits, &target), &d_log_prob) in logits.chunks(v).zip(targets).zip(d_log_probs) {
        let lse = log_sum_exp(logits);
        let complement = -log_prob(logits, target as usize).exp_m1();
        for (i, x) in logits.iter().enumerate() {
            d.push(d_log_prob * if i == target as usize { complement } else { -(x - lse).exp() });
        }
    }
    d
}

/// Log-probability of a row's target, computed from its logit and the log-sum-exp of all others, so
/// that it is accurate even where it is nearly zero.
fn log_prob(logits: &[f64], target: usize) -> f64 {
    let (before, after) = (&logits[..target], &logits[target + 1..]);
    let above = log_sum_exp(before.iter().chain(after)) - logits[target];
    -(above.max(0.0) + (-above.abs()).exp().ln_1p())
}

fn log_sum_exp<'a>(x: impl IntoIterator<Item = &'a f64> + Clone) -> f64 {
    let max = x.clone().into_iter().copied().fold(f64::NEG_INFINITY, f64::max);
    max + x.into_iter().map(|x| (x - max).exp()).sum::<f64>().ln()
}
