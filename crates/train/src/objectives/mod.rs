//! Objectives: from log-probabilities of target tokens to a loss and its derivative.
//!
//! An objective sees one micro-batch at a time and knows nothing of how a step is cut: its loss is
//! a mean over terms (tokens, pairs, records) of the whole step, and the engine divides. What it
//! must know of the step before the first gradient, it gets as [`Statistics`].

mod comparison;
mod dpo;
mod kto;
mod likelihood;

pub use comparison::Comparison;
pub use dpo::Dpo;
pub use kto::Kto;
pub use likelihood::Likelihood;

use crate::run_file::ObjectiveSection;
use hone_data::{Dataset, Label, RecordKind};
use std::collections::BTreeMap;
use std::ops::Range;

/// What is learnt, and how it is measured.
pub trait Objective: Send + Sync {
    /// The records that it learns from.
    fn records(&self) -> RecordKind {
        RecordKind::Plain
    }

    /// Whether log-probabilities of the model that training began with are needed.
    fn needs_reference(&self) -> bool {
        false
    }

    /// Terms of the loss in these rows; the loss is the mean over those of the whole step.
    fn num_terms(&self, rows: &[RowSpan]) -> usize;

    /// Rows of at most `max_len` tokens that are scored, and not learnt from, before a step that
    /// learns from `rows` of `dataset`.
    fn probes(&self, _dataset: &Dataset, _rows: &[u32], _max_len: usize) -> Option<Dataset> {
        None
    }

    /// What all micro-batches of a step must know, from the scores of its probes.
    fn statistics(&self, _probes: &[TokenScores<'_>]) -> Statistics {
        Statistics::default()
    }

    /// The sum of the micro-batch's terms. Writes its derivative by each log-probability into
    /// `d_log_probs`, which is zero before, and adds to `metrics`.
    fn loss(
        &self,
        scores: &TokenScores<'_>,
        statistics: &Statistics,
        d_log_probs: &mut [f32],
        metrics: &mut Metrics,
    ) -> f64;

    /// Perplexity, of a loss that is the mean of negative log-likelihoods.
    fn perplexity(&self, _loss: f64) -> Option<f64> {
        None
    }
}

/// The objective that a run file asks for.
pub fn of(section: &ObjectiveSection) -> Box<dyn Objective> {
    match section {
        ObjectiveSection::Sft | ObjectiveSection::Pretrain | ObjectiveSection::Masked(_) => {
            Box::new(Likelihood)
        }
        ObjectiveSection::Dpo(dpo) => Box::new(Dpo { beta: dpo.beta }),
        ObjectiveSection::Kto(kto) => Box::new(Kto {
            beta: kto.beta,
            desirable_weight: kto.desirable_weight,
            undesirable_weight: kto.undesirable_weight,
        }),
    }
}

/// 1 / (1 + e^-x).
fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// ln(1 + e^x), which is −ln σ(−x).
fn softplus(x: f64) -> f64 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

/// Numbers of a whole step; what they mean is their objective's affair.
pub type Statistics = Vec<f64>;

/// A row in a micro-batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowSpan {
    /// Its id in the data.
    pub id: u32,
    /// What it is to the objective. The rows of a group follow one another.
    pub label: Label,
    /// Its targets among those of the micro-batch.
    pub targets: Range<usize>,
}

/// What the passes over a micro-batch gave.
#[derive(Clone, Copy, Debug)]
pub struct TokenScores<'a> {
    /// The rows, in order.
    pub rows: &'a [RowSpan],
    /// Log-probabilities of all targets under the trained model.
    pub log_probs: &'a [f32],
    /// The same under the reference; empty if the objective needs none.
    pub reference: &'a [f32],
}

impl TokenScores<'_> {
    /// By how many nats the trained model makes a row likelier than the reference.
    pub fn log_ratio(&self, row: &RowSpan) -> f64 {
        let sum = |scores: &[f32]| scores.iter().map(|&x| f64::from(x)).sum::<f64>();
        sum(&self.log_probs[row.targets.clone()]) - sum(&self.reference[row.targets.clone()])
    }
}

/// Means by name, over whatever each of them is counted by.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metrics(BTreeMap<&'static str, Sum>);

#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Sum {
    of_values: f64,
    count: u64,
}

impl Metrics {
    /// Counts one more value.
    pub fn add(&mut self, name: &'static str, value: f64) {
        let sum = self.0.entry(name).or_default();
        sum.of_values += value;
        sum.count += 1;
    }

    /// The means, as records hold them; what is not finite is left out.
    pub fn means(&self) -> BTreeMap<String, f64> {
        let mean =
            |(name, sum): (&&str, &Sum)| ((*name).to_owned(), sum.of_values / sum.count as f64);
        self.0.iter().map(mean).filter(|(_, mean)| mean.is_finite()).collect()
    }
}
