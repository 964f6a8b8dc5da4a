//! Objectives: from per-token log-probabilities to a loss and its derivative.
//!
//! A new objective is one function of this shape. Which tokens are targets is the data's business.

/// Mean negative log-likelihood over the target tokens of a whole optimizer step.
///
/// `log_probs [n]` are those of one micro-batch; `num_step_targets` counts the targets of all
/// micro-batches of the step, so that accumulated micro-batches add up to the loss of one large
/// batch. Writes the derivative `d_log_probs [n]` and returns this micro-batch's part of the loss.
pub fn negative_log_likelihood(
    log_probs: &[f32],
    num_step_targets: usize,
    d_log_probs: &mut [f32],
) -> f64 {
    let weight = 1.0 / num_step_targets as f64;
    d_log_probs.fill(-weight as f32);
    -log_probs.iter().map(|&x| f64::from(x)).sum::<f64>() * weight
}
