//! Mean loss of a model on prepared data.

use hone_data::{Dataset, IGNORE, MicroBatch, Unit};
use hone_model::{Batch, DecoderConfig, Pass, Recompute};
use hone_tensor::{Arena, Layout, Target};
use std::sync::Arc;

/// What an evaluation found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Evaluation {
    /// Mean nats per target token.
    pub loss: f64,
    /// Tokens predicted.
    pub num_target_tokens: usize,
}

impl Evaluation {
    /// `e^loss`.
    pub fn perplexity(&self) -> f64 {
        self.loss.exp()
    }
}

/// A packed micro-batch in the form that decoders on `target` read.
pub fn to_batch(config: &DecoderConfig, packed: &MicroBatch, target: Target) -> Batch {
    let targets = (packed.targets.as_slice(), IGNORE);
    let batch = Batch::new(config, &packed.tokens, &packed.positions, &packed.cu_seqlens, targets);
    match target {
        Target::Cpu => batch,
        Target::Cuda => batch.with_rows_rounded(),
    }
}

/// Packed rows to evaluate on.
#[derive(Clone, Copy)]
pub struct EvalSet<'a> {
    /// The rows.
    pub dataset: &'a Dataset,
    /// How they are packed.
    pub units: &'a [Unit],
    /// Slots of a unit.
    pub unit_tokens: usize,
    /// Units of a micro-batch.
    pub units_per_batch: usize,
}

/// Evaluates on `set`. Memory comes from the plan where there is one.
pub fn evaluate(
    pass: Pass<'_>,
    set: EvalSet<'_>,
    mut plan: Option<(&mut Arena, &Arc<Layout>)>,
) -> Evaluation {
    let EvalSet { dataset, units, unit_tokens, units_per_batch } = set;
    let (mut sum, mut num_target_tokens) = (0.0, 0);
    for units in units.chunks(units_per_batch) {
        let packed = MicroBatch::assemble(dataset, units, units_per_batch * unit_tokens);
        let batch = to_batch(&pass.model.decoder.config, &packed, pass.device.target());
        sum += match &mut plan {
            Some((arena, layout)) => {
                pass.device.planned(arena, layout, || log_likelihood(pass, &batch))
            }
            None => log_likelihood(pass, &batch),
        };
        num_target_tokens += packed.num_target_tokens;
    }
    Evaluation { loss: -sum / num_target_tokens.max(1) as f64, num_target_tokens }
}

/// Sum of the log-probabilities of a batch's targets; zero on the dry device.
pub fn log_likelihood(pass: Pass<'_>, batch: &Batch) -> f64 {
    let mut tape = pass.inference_tape();
    let log_probs = pass.model.decoder.log_probs(&mut tape, batch, Recompute::None);
    if pass.device.is_dry() {
        return 0.0;
    }
    log_probs.value().to_vec_f32()[..batch.num_targets].iter().map(|&x| f64::from(x)).sum()
}
