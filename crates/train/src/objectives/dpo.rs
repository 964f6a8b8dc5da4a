//! Direct preference optimisation (Rafailov et al., 2023), with the sigmoid loss.

use super::{Metrics, Objective, RowSpan, Statistics, TokenScores, sigmoid, softplus};
use hone_data::{Label, RecordKind};

/// Terms are pairs: −log σ(β · (chosen's log-ratio − rejected's)).
#[derive(Clone, Copy, Debug)]
pub struct Dpo {
    /// How strongly the reference holds.
    pub beta: f64,
}

impl Objective for Dpo {
    fn records(&self) -> RecordKind {
        RecordKind::Pairs
    }

    fn needs_reference(&self) -> bool {
        true
    }

    fn num_terms(&self, rows: &[RowSpan]) -> usize {
        rows.len() / 2
    }

    fn loss(
        &self,
        scores: &TokenScores<'_>,
        _: &Statistics,
        d_log_probs: &mut [f32],
        metrics: &mut Metrics,
    ) -> f64 {
        let mut loss = 0.0;
        for pair in scores.rows.chunks_exact(2) {
            let (chosen, rejected) = (&pair[0], &pair[1]);
            assert_eq!((chosen.label, rejected.label), (Label::Chosen, Label::Rejected));
            let [better, worse] = [chosen, rejected].map(|row| self.beta * scores.log_ratio(row));
            let margin = better - worse;
            loss += softplus(-margin);
            let slope = (self.beta * sigmoid(-margin)) as f32;
            d_log_probs[chosen.targets.clone()].fill(-slope);
            d_log_probs[rejected.targets.clone()].fill(slope);
            metrics.add("rewards/chosen", better);
            metrics.add("rewards/rejected", worse);
            metrics.add("rewards/accuracies", f64::from(better > worse));
            metrics.add("rewards/margins", margin);
        }
        loss
    }
}
