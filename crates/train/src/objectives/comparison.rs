//! How a model ranks the answers of preference records, without learning from them.

use super::{Metrics, Objective, RowSpan, Statistics, TokenScores};
use hone_data::{Dataset, Label, RecordKind};

/// Terms are target tokens, as of a likelihood. The metrics are, by label, the mean loss of a token
/// and the mean log-probability of an answer; of pairs the share in which the chosen answer is the
/// likelier one, and by how many nats.
pub struct Comparison {
    /// The records.
    pub records: RecordKind,
    /// With a reference: the objective whose metrics (rewards, accuracies, margins) are added.
    pub rewards: Option<Box<dyn Objective>>,
}

impl Objective for Comparison {
    fn records(&self) -> RecordKind {
        self.records
    }

    fn needs_reference(&self) -> bool {
        self.rewards.is_some()
    }

    fn num_terms(&self, rows: &[RowSpan]) -> usize {
        rows.iter().map(|row| row.targets.len()).sum()
    }

    fn probes(&self, dataset: &Dataset, rows: &[u32], max_len: usize) -> Option<Dataset> {
        self.rewards.as_ref()?.probes(dataset, rows, max_len)
    }

    fn statistics(&self, probes: &[TokenScores<'_>]) -> Statistics {
        self.rewards.as_ref().map_or_else(Statistics::default, |of| of.statistics(probes))
    }

    fn loss(
        &self,
        scores: &TokenScores<'_>,
        statistics: &Statistics,
        d_log_probs: &mut [f32],
        metrics: &mut Metrics,
    ) -> f64 {
        if let Some(rewards) = &self.rewards {
            rewards.loss(scores, statistics, d_log_probs, metrics);
        }
        let log_probs = |row: &RowSpan| scores.log_probs[row.targets.clone()].iter();
        let log_prob = |row: &RowSpan| log_probs(row).map(|&x| f64::from(x)).sum::<f64>();
        for row in scores.rows {
            let (of_tokens, of_answers) = match row.label {
                Label::Chosen | Label::Desirable => ("loss/chosen", "logps/chosen"),
                _ => ("loss/rejected", "logps/rejected"),
            };
            log_probs(row).for_each(|&x| metrics.add(of_tokens, -f64::from(x)));
            metrics.add(of_answers, log_prob(row));
        }
        if self.records == RecordKind::Pairs {
            for pair in scores.rows.chunks_exact(2) {
                let margin = log_prob(&pair[0]) - log_prob(&pair[1]);
                metrics.add("accuracy", f64::from(margin > 0.0));
                metrics.add("margin", margin);
            }
        }
        -scores.rows.iter().map(log_prob).sum::<f64>()
    }
}
