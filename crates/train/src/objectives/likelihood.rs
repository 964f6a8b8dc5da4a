//! Mean negative log-likelihood of target tokens: SFT, pre-training and masked tokens, which differ
//! only in which tokens are targets, the data's business.

use super::{Metrics, Objective, RowSpan, Statistics, TokenScores};

/// Terms are target tokens.
#[derive(Clone, Copy, Debug, Default)]
pub struct Likelihood;

impl Objective for Likelihood {
    fn num_terms(&self, rows: &[RowSpan]) -> usize {
        rows.iter().map(|row| row.targets.len()).sum()
    }

    fn loss(
        &self,
        scores: &TokenScores<'_>,
        _: &Statistics,
        d_log_probs: &mut [f32],
        _: &mut Metrics,
    ) -> f64 {
        d_log_probs.fill(-1.0);
        -scores.log_probs.iter().map(|&x| f64::from(x)).sum::<f64>()
    }

    fn perplexity(&self, loss: f64) -> Option<f64> {
        Some(loss.exp())
    }
}
