//! Micro-batches as objectives see them, and forward passes without gradients.

use crate::mixture::{self, Loads};
use crate::objectives::{Objective, RowSpan, Statistics, TokenScores};
use hone_data::{DataError, Dataset, IGNORE, MicroBatch, pack_in_order};
use hone_model::{Batch, DecoderConfig, Model, Pass, Recompute};
use hone_tensor::ops::RouterLoad;
use hone_tensor::{Arena, DeviceError, Layout, Target};
use std::sync::Arc;

/// A micro-batch, and what an objective needs to know about it.
#[derive(Clone, Debug)]
pub struct LabelledBatch {
    /// What the decoder reads.
    pub batch: Batch,
    /// Its rows, in order.
    pub rows: Vec<RowSpan>,
    /// Log-probabilities of its targets under the reference; empty until they are computed, and for
    /// objectives without a reference.
    pub reference: Vec<f32>,
}

impl LabelledBatch {
    /// A packed micro-batch in the form that a decoder on `target` reads.
    pub fn new(config: &DecoderConfig, packed: &MicroBatch, target: Target) -> Self {
        let MicroBatch { tokens, positions, cu_seqlens, targets, .. } = packed;
        let batch = Batch::new(config, tokens, positions, cu_seqlens, targets, IGNORE);
        let rows = packed.rows.iter().zip(&packed.labels).zip(&batch.target_ranges);
        let span = |((&id, &label), targets): (_, &std::ops::Range<usize>)| RowSpan {
            id,
            label,
            targets: targets.clone(),
        };
        let rows = rows.map(span).collect();
        let batch = match target {
            Target::Cpu => batch,
            Target::Cuda => batch.with_rows_rounded(),
        };
        Self { batch, rows, reference: Vec::new() }
    }

    /// A batch whose rows have no labels.
    pub fn unlabelled(batch: Batch) -> Self {
        Self { batch, rows: Vec::new(), reference: Vec::new() }
    }

    /// The scores of its targets, given their log-probabilities under the trained model.
    pub fn scores<'a>(&'a self, log_probs: &'a [f32]) -> TokenScores<'a> {
        TokenScores { rows: &self.rows, log_probs, reference: &self.reference }
    }
}

/// How rows become micro-batches.
#[derive(Clone, Copy, Debug)]
pub struct Packing {
    /// Longest row.
    pub max_seq_len: usize,
    /// Slots of a unit.
    pub unit_tokens: usize,
    /// Units of a micro-batch.
    pub units_per_batch: usize,
}

impl Packing {
    /// Slots of a micro-batch.
    pub fn batch_tokens(&self) -> usize {
        self.units_per_batch * self.unit_tokens
    }

    /// The probes of a step that learns from `rows`, packed.
    ///
    /// # Errors
    /// If a probe is longer than a unit, which no objective makes.
    pub fn probes(
        &self,
        objective: &dyn Objective,
        dataset: &Dataset,
        rows: &[u32],
    ) -> Result<Vec<MicroBatch>, DataError> {
        let Some(probes) = objective.probes(dataset, rows, self.max_seq_len) else {
            return Ok(Vec::new());
        };
        let units = pack_in_order(&probes, self.unit_tokens)?;
        let batches = units.chunks(self.units_per_batch);
        let assemble = |units| MicroBatch::assemble(&probes, units, self.batch_tokens());
        Ok(batches.map(assemble).collect())
    }
}

/// Planned memory for scoring passes.
pub struct ScoringPlan<'a> {
    /// The step's memory.
    pub arena: &'a mut Arena,
    /// Layout of a pass of the trained model.
    pub layout: &'a Arc<Layout>,
    /// Layout of a pass of the reference, which has no adapters.
    pub reference_layout: Option<&'a Arc<Layout>>,
}

/// Forward passes without gradients, of the trained model and of the reference.
pub struct Scorer<'a> {
    /// The trained model.
    pub pass: Pass<'a>,
    /// The model that training began with, for objectives that need it.
    pub reference: Option<&'a Model>,
    /// `None`: memory from the system.
    pub plan: Option<ScoringPlan<'a>>,
}

impl Scorer<'_> {
    /// Log-probabilities of a batch's targets under the trained model.
    ///
    /// # Errors
    /// If the device failed; so of the others.
    pub fn log_probs(&mut self, batch: &Batch) -> Result<Vec<f32>, DeviceError> {
        let pass = self.pass;
        match &mut self.plan {
            Some(plan) => pass.device.planned(plan.arena, plan.layout, || log_probs(pass, batch)),
            None => settled(pass, batch),
        }
    }

    /// Adds the log-probabilities of these batches under the reference, if there is one.
    pub fn add_reference(&mut self, batches: &mut [LabelledBatch]) -> Result<(), DeviceError> {
        let Some(reference) = self.reference else { return Ok(()) };
        let pass = self.pass.with_model(reference);
        for labelled in batches {
            let batch = &labelled.batch;
            let layout = self.plan.as_mut().map(|plan| (&mut *plan.arena, plan.reference_layout));
            labelled.reference = match layout {
                Some((arena, Some(layout))) => {
                    pass.device.planned(arena, layout, || log_probs(pass, batch))?
                }
                _ => settled(pass, batch)?,
            };
        }
        Ok(())
    }

    /// What the trained model's routers do with these batches.
    pub fn router_loads(
        &mut self,
        batches: &[LabelledBatch],
    ) -> Result<Vec<RouterLoad>, DeviceError> {
        let (pass, mut sums) = (self.pass, Vec::new());
        for LabelledBatch { batch, .. } in batches {
            let loads = match &mut self.plan {
                Some(plan) => {
                    pass.device.planned(plan.arena, plan.layout, || router_loads(pass, batch))?
                }
                None => router_loads(pass, batch),
            };
            mixture::add(&mut sums, loads);
        }
        pass.device.settle().map(|()| sums)
    }

    /// The statistics that all micro-batches of a step share, computed from its probes.
    pub fn statistics(
        &mut self,
        objective: &dyn Objective,
        mut probes: Vec<LabelledBatch>,
    ) -> Result<Statistics, DeviceError> {
        self.add_reference(&mut probes)?;
        let found = probes.iter().map(|probe| self.log_probs(&probe.batch));
        let found = found.collect::<Result<Vec<_>, _>>()?;
        let scores = probes.iter().zip(&found).map(|(probe, found)| probe.scores(found));
        Ok(objective.statistics(&scores.collect::<Vec<_>>()))
    }
}

/// Log-probabilities in a pass of their own, with memory from the system.
fn settled(pass: Pass<'_>, batch: &Batch) -> Result<Vec<f32>, DeviceError> {
    let log_probs = log_probs(pass, batch);
    pass.device.settle().map(|()| log_probs)
}

/// What the routers do with a batch. The caller ends the pass.
pub(crate) fn router_loads(pass: Pass<'_>, batch: &Batch) -> Vec<RouterLoad> {
    let mut tape = pass.inference_tape();
    let loads = Loads::of_pass(&mut tape, batch.num_tokens());
    // As in other scoring passes, whose memory is planned.
    pass.model.decoder.log_probs(&mut tape, batch, Recompute::None);
    loads.take()
}

/// Log-probabilities of a batch's targets; none on the dry device. The caller ends the pass, and
/// learns there whether the device failed.
pub fn log_probs(pass: Pass<'_>, batch: &Batch) -> Vec<f32> {
    let mut tape = pass.inference_tape();
    let log_probs = pass.model.decoder.log_probs(&mut tape, batch, Recompute::None);
    if pass.device.is_dry() {
        return Vec::new();
    }
    let mut log_probs = log_probs.value().to_vec_f32();
    log_probs.truncate(batch.num_targets);
    log_probs
}
