//! Mean loss of a model on prepared data.

use hone_data::{Dataset, IGNORE, MicroBatch, Unit};
use hone_model::{Batch, DecoderConfig, Model, Recompute};
use hone_tensor::{Arena, Compute, Device, Layout, Tape, Target};
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

/// Evaluates `units` of `dataset`, `units_per_batch` at a time, each of `unit_tokens` slots.
/// Memory comes from the plan where there is one.
pub fn evaluate(
    (device, model, compute): (&Device, &Model, Compute),
    dataset: &Dataset,
    units: &[Unit],
    (units_per_batch, unit_tokens): (usize, usize),
    mut plan: Option<(&mut Arena, &Arc<Layout>)>,
) -> Evaluation {
    let (mut sum, mut num_target_tokens) = (0.0, 0);
    for units in units.chunks(units_per_batch) {
        let packed = MicroBatch::assemble(dataset, units, units_per_batch * unit_tokens);
        let batch = to_batch(&model.decoder.config, &packed, device.target());
        sum += match &mut plan {
            Some((arena, layout)) => {
                device.planned(arena, layout, || log_likelihood(device, model, compute, &batch))
            }
            None => log_likelihood(device, model, compute, &batch),
        };
        num_target_tokens += packed.num_target_tokens;
    }
    Evaluation { loss: -sum / num_target_tokens.max(1) as f64, num_target_tokens }
}

/// Sum of the log-probabilities of a batch's targets; zero on the dry device.
pub fn log_likelihood(device: &Device, model: &Model, compute: Compute, batch: &Batch) -> f64 {
    let mut tape = Tape::inference(device, &model.params, compute);
    let log_probs = model.decoder.log_probs(&mut tape, batch, Recompute::None);
    if device.is_dry() {
        return 0.0;
    }
    log_probs.value().to_vec_f32()[..batch.num_targets].iter().map(|&x| f64::from(x)).sum()
}
