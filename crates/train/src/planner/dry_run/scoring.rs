//! Forward passes without gradients: those of evaluations, and those ahead of a step.

use super::{DryRun, Policy};
use crate::error::TrainError;
use crate::scoring::{log_probs, router_loads};
use hone_model::Pass;
use hone_tensor::{Cost, Layout};
use std::sync::Arc;

/// Passes without gradients over a micro-batch.
pub(super) struct Scoring {
    /// Memory of a pass of the trained model.
    pub(super) layout: Arc<Layout>,
    costs: Vec<Cost>,
    /// Memory of a pass of the reference, if there is one.
    pub(super) reference: Option<Arc<Layout>>,
    reference_costs: Vec<Cost>,
    /// Micro-batches of probes in a step.
    num_probes: usize,
    /// Of a pass over a micro-batch that finds out what routers do; none without one.
    routing_costs: Vec<Cost>,
}

impl Scoring {
    /// What a step of so many micro-batches does before its first gradient: the reference scores
    /// all of them, both models score probes, and routers are asked what they will do.
    pub(super) fn ahead_of_step(&self, micro_batches: usize) -> Vec<Cost> {
        let reference = self.reference_costs.repeat(micro_batches + self.num_probes);
        let routings = self.routing_costs.repeat(micro_batches);
        [reference, self.costs.repeat(self.num_probes), routings].concat()
    }

    /// Seconds of an evaluation of so many micro-batches, with its share of probes.
    pub(super) fn seconds_of_evaluation(
        &self,
        num_batches: usize,
        batches_of_step: usize,
        seconds: impl Fn(&[Cost]) -> f64,
    ) -> f64 {
        let (own, of_reference) = (seconds(&self.costs), seconds(&self.reference_costs));
        let probes = self.num_probes as f64 / batches_of_step.max(1) as f64;
        num_batches as f64 * (1.0 + probes) * (own + of_reference)
    }

    /// The largest of these layouts and that of training.
    pub(super) fn largest(&self, train: &Arc<Layout>) -> Arc<Layout> {
        let scoring = std::iter::once(&self.layout).chain(&self.reference);
        let larger = |largest: Arc<Layout>, other: &Arc<Layout>| {
            if other.bytes() > largest.bytes() { other.clone() } else { largest }
        };
        scoring.fold(train.clone(), larger)
    }
}

impl DryRun<'_> {
    pub(super) fn scoring(&self, policy: Policy) -> Result<Scoring, TrainError> {
        let setup = self.setup;
        let (dataset, units) = match &setup.eval {
            Some((dataset, units)) => (dataset, units),
            None => (&setup.train, &setup.first_step),
        };
        let batch = self.batch(dataset, units, policy).batch;
        let traced = |pass: Pass<'_>| {
            pass.device.take_costs();
            let (_, trace) = pass.device.trace(|| log_probs(pass, &batch));
            (Arc::new(Layout::of(trace)), pass.device.take_costs())
        };
        let pass = self.engine.pass();
        let (layout, costs) = traced(pass);
        let reference = self.engine.reference.as_ref().map(|model| traced(pass.with_model(model)));
        let (reference, reference_costs) = reference.unzip();
        let rows: Vec<u32> = setup.first_step.iter().flat_map(|unit| unit.rows.clone()).collect();
        let probes = policy.packing(setup).probes(&*self.engine.objective, &setup.train, &rows)?;
        let (reference_costs, num_probes) = (reference_costs.unwrap_or_default(), probes.len());
        let mut routing_costs = Vec::new();
        if self.engine.mixture.coefficient > 0.0 {
            router_loads(pass, &batch);
            routing_costs = pass.device.take_costs();
        }
        Ok(Scoring { layout, costs, reference, reference_costs, num_probes, routing_costs })
    }
}
