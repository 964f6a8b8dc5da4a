//! Kahneman–Tversky optimisation (Ethayarajh et al., 2024): answers that are rated one by one.

use super::{Metrics, Objective, RowSpan, Statistics, TokenScores, sigmoid};
use hone_data::{Dataset, Label, RecordKind, preference};

/// Terms are rated answers: weight · (1 − σ(±β · (log-ratio − KL))). The divergence is estimated
/// from the step's answers moved to other prompts, and no gradient flows through it.
#[derive(Clone, Copy, Debug)]
pub struct Kto {
    /// How strongly the reference holds.
    pub beta: f64,
    /// Weight of good answers.
    pub desirable_weight: f64,
    /// Weight of bad answers.
    pub undesirable_weight: f64,
}

impl Objective for Kto {
    fn records(&self) -> RecordKind {
        RecordKind::Rated
    }

    fn needs_reference(&self) -> bool {
        true
    }

    fn num_terms(&self, rows: &[RowSpan]) -> usize {
        rows.len()
    }

    fn probes(&self, dataset: &Dataset, rows: &[u32], max_len: usize) -> Option<Dataset> {
        Some(preference::mismatched(dataset, rows, max_len))
    }

    fn statistics(&self, probes: &[TokenScores<'_>]) -> Statistics {
        let ratios =
            probes.iter().flat_map(|scores| scores.rows.iter().map(|r| scores.log_ratio(r)));
        let (sum, n) = ratios.fold((0.0, 0), |(sum, n), ratio| (sum + ratio, n + 1));
        vec![(sum / f64::from(n.max(1))).max(0.0)]
    }

    fn loss(
        &self,
        scores: &TokenScores<'_>,
        statistics: &Statistics,
        d_log_probs: &mut [f32],
        metrics: &mut Metrics,
    ) -> f64 {
        let (mut loss, kl) = (0.0, statistics[0]);
        for row in scores.rows {
            let ratio = scores.log_ratio(row);
            let (sign, weight, reward) = match row.label {
                Label::Desirable => (1.0, self.desirable_weight, "rewards/chosen"),
                Label::Undesirable => (-1.0, self.undesirable_weight, "rewards/rejected"),
                other => unreachable!("rated rows are not {other:?}"),
            };
            let value = sigmoid(sign * self.beta * (ratio - kl));
            loss += weight * (1.0 - value);
            let slope = -sign * weight * self.beta * value * (1.0 - value);
            d_log_probs[row.targets.clone()].fill(slope as f32);
            metrics.add(reward, self.beta * ratio);
            metrics.add("kl", kl);
        }
        loss
    }
}
