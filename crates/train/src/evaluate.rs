//! An objective's mean loss and metrics on prepared data.

use crate::error::TrainError;
use crate::masking::{self, EVALUATION, Masking};
use crate::objectives::{Metrics, Objective};
use crate::scoring::{LabelledBatch, Packing, Scorer};
use hone_data::{Dataset, MicroBatch, Unit};
use std::collections::BTreeMap;

/// What an evaluation found.
#[derive(Clone, Debug, PartialEq)]
pub struct Evaluation {
    /// The objective's loss: for language models mean nats per target token.
    pub loss: f64,
    /// `e^loss`, where that means something.
    pub perplexity: Option<f64>,
    /// Tokens predicted.
    pub num_target_tokens: usize,
    /// The objective's metrics.
    pub metrics: BTreeMap<String, f64>,
}

/// Packed rows to evaluate on.
#[derive(Clone, Copy)]
pub struct EvalSet<'a> {
    /// The rows.
    pub dataset: &'a Dataset,
    /// How they are packed.
    pub units: &'a [Unit],
    /// How units are.
    pub packing: Packing,
    /// How tokens are masked; `None`: they are not.
    pub masking: Option<&'a Masking>,
}

/// Evaluates on all of `set`, as if it were one step. `done` is told of the rows of each batch.
///
/// # Errors
/// If the device failed; none from data that was packed so.
pub fn evaluate(
    mut scorer: Scorer<'_>,
    objective: &dyn Objective,
    set: EvalSet<'_>,
    done: &mut dyn FnMut(usize),
) -> Result<Evaluation, TrainError> {
    let EvalSet { dataset, units, packing, masking } = set;
    let (config, target) = (&scorer.pass.model.decoder.config, scorer.pass.device.target());
    let labelled = |packed: &MicroBatch| LabelledBatch::new(config, packed, target);
    let rows: Vec<u32> = units.iter().flat_map(|unit| unit.rows.iter().copied()).collect();
    let probes = packing.probes(objective, dataset, &rows)?;
    let statistics = scorer.statistics(objective, probes.iter().map(labelled).collect())?;
    let (mut sum, mut num_terms, mut num_target_tokens) = (0.0, 0, 0);
    let mut metrics = Metrics::default();
    for units in units.chunks(packing.units_per_batch) {
        let packed = MicroBatch::assemble(dataset, units, packing.batch_tokens());
        let packed = masking::masked(masking, EVALUATION, packed);
        let mut batch = labelled(&packed);
        scorer.add_reference(std::slice::from_mut(&mut batch))?;
        let log_probs = scorer.log_probs(&batch.batch)?;
        let mut unused = vec![0.0; log_probs.len()];
        sum += objective.loss(&batch.scores(&log_probs), &statistics, &mut unused, &mut metrics);
        num_terms += objective.num_terms(&batch.rows);
        num_target_tokens += packed.num_target_tokens;
        done(packed.rows.len());
    }
    let loss = sum / num_terms.max(1) as f64;
    let (perplexity, metrics) = (objective.perplexity(loss), metrics.means());
    Ok(Evaluation { loss, perplexity, num_target_tokens, metrics })
}
