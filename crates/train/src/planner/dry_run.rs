//! One step on the dry device: what it takes of memory and work.

mod scoring;

use super::host::Host;
use super::memory::MemoryUse;
use super::{Plan, Planned, Policy, TimeUse, time};
use crate::engine::{Engine, StepContext};
use crate::error::TrainError;
use crate::loading::{self, Held};
use crate::masking;
use crate::objectives::Metrics;
use crate::profile::DeviceProfile;
use crate::run_file;
use crate::sample::{self, AnswerCosts};
use crate::scoring::{LabelledBatch, log_probs};
use crate::setup::Setup;
use hone_data::{Dataset, MicroBatch, Unit};
use hone_model::adapter::{Coverage, coverage};
use hone_model::{Batch, Recompute};
use hone_tensor::{
    Category, Cost, Device, DeviceError, Layout, OFFLOAD_SLOTS, StepKey, Target, Transfer, ops,
};
use scoring::Scoring;
use std::sync::Arc;

/// A run's engine on the dry device.
pub(super) struct DryRun<'a> {
    setup: &'a Setup,
    engine: Engine,
    host: Host,
    offloaded_blocks: usize,
    /// Most bytes that answering the samples takes.
    sample_bytes: u64,
    /// What answering them once takes of work.
    sample_costs: AnswerCosts,
}

impl<'a> DryRun<'a> {
    pub(super) fn new(setup: &'a Setup, host: Host, held: Held<'_>) -> Result<Self, TrainError> {
        let device = Device::dry_as(host.target);
        let engine = loading::engine(setup, &device, held)?;
        let (prompts, limit) = (sample::prompts_of(setup)?, setup.run.report.max_new_tokens);
        let sample_bytes = sample::answer_bytes(engine.pass(), &prompts, limit)?;
        let sample_costs = sample::answer_costs(engine.pass(), &prompts, limit)?;
        device.take_costs();
        let offloaded_blocks = held.offloaded_blocks;
        Ok(Self { setup, engine, host, offloaded_blocks, sample_bytes, sample_costs })
    }

    /// How many blocks to keep in the CPU's memory; `None`: as many as `plan` does.
    pub(super) fn blocks_to_offload(&self, plan: &Plan) -> Option<usize> {
        if self.host.target == Target::Cpu || self.engine.lora.is_none() {
            return None;
        }
        let (now, all) = (plan.offloaded_blocks, self.setup.config.num_hidden_layers());
        let blocks = match self.setup.run.budget.offload {
            run_file::Offload::None => 0,
            run_file::Offload::All => all,
            run_file::Offload::Auto if plan.fits => now,
            run_file::Offload::Auto => {
                let excess = plan.needed_bytes().saturating_sub(plan.budget_bytes?);
                let of_block = self.engine.model.decoder.projection_bytes() as u64;
                // The first to go need places to visit.
                let places = if now == 0 { OFFLOAD_SLOTS } else { 0 };
                (now + places + excess.div_ceil(of_block) as usize).min(all)
            }
        };
        (blocks != now).then_some(blocks)
    }

    pub(super) fn plan(
        &mut self,
        profile: &DeviceProfile,
        policy: Policy,
    ) -> Result<Planned, TrainError> {
        let device = self.engine.device.clone();
        let (train_layout, micro_batch) = self.micro_batch(policy);
        let update = self.update_costs()?;
        let scoring = self.scoring(policy)?;
        let micro_batches = self.setup.first_step.len().div_ceil(policy.units);
        let ahead = scoring.ahead_of_step(micro_batches);
        let compute = self.engine.compute;
        let held_as = self.setup.base_precision.unwrap_or(self.setup.file_dtype.into());
        let held_as = match &self.engine.model.storages()[..] {
            [] => held_as.name().to_owned(),
            found => found.iter().map(|held| held.name()).collect::<Vec<_>>().join(", "),
        };
        let seconds = |costs: &[Cost]| profile.seconds(costs, compute);
        let (of_batch, of_update) = (seconds(&micro_batch), seconds(&update));
        let seconds_of_step = |units: usize| {
            let micro_batches = units.div_ceil(policy.units);
            let ahead = seconds(&scoring.ahead_of_step(micro_batches));
            micro_batches as f64 * of_batch + ahead + of_update
        };
        let training_seconds = time::training_seconds(self.setup, seconds_of_step);
        let time = self.time(training_seconds, policy, &scoring, seconds);
        let flops_per_step = flops(&micro_batch) * micro_batches as u64 + flops(&ahead);
        let copied = copied_bytes(&micro_batch) * micro_batches as u64 + copied_bytes(&ahead);
        let num_tokens = policy.packing(self.setup).batch_tokens();
        let scratch = scratch_bytes(&micro_batch).max(scratch_bytes(&ahead));
        let largest = scoring.largest(&train_layout);
        let lists = self.list_bytes(num_tokens, micro_batches);
        let mut memory = self.memory(&largest, scratch, lists);
        let needed_bytes = memory.total();
        let preparation = self.host.peak_bytes.saturating_sub(needed_bytes);
        memory.preparation = preparation;
        let plan = Plan {
            peak_bytes: needed_bytes + preparation,
            arena_bytes: largest.bytes() as u64,
            memory,
            budget_bytes: self.host.budget(self.setup),
            fits: self.host.fits(self.setup, needed_bytes),
            flops_per_step,
            step_seconds: seconds_of_step(self.setup.first_step.len()),
            ceiling_flops: profile.ceiling(compute),
            speed_measured: profile.measured.clone(),
            gpu: profile.gpu.as_ref().map(|_| profile.processor.clone()),
            num_steps: self.setup.num_steps,
            total_seconds: time.total_seconds(),
            time,
            trainable_parameters: self.engine.model.params.num_elements() as u64,
            coverage: Vec::new(),
            micro_batch_tokens: num_tokens,
            micro_batches_per_step: micro_batches,
            compute: compute.name().to_owned(),
            base_precision: held_as,
            recompute: policy.recompute,
            offloaded_blocks: self.offloaded_blocks,
            offloaded_bytes: device.persistent_bytes(Category::Offloaded),
            copied_bytes_per_step: copied,
            checkpoint_bytes: self.checkpoint_bytes(),
            host_free_bytes: None,
            suggestions: Vec::new(),
        };
        let (scratch_bytes, upload_bytes) = (scratch, self.upload_bytes(num_tokens));
        Ok(Planned {
            plan,
            profile: profile.clone(),
            policy,
            train_layout,
            eval_layout: scoring.layout,
            reference_layout: scoring.reference,
            scratch_bytes,
            upload_bytes,
        })
    }

    /// What is trained of each kind of layer.
    pub(super) fn coverage(&self) -> Vec<Coverage> {
        coverage(&self.engine.model)
    }

    /// Memory and work of a micro-batch of training.
    fn micro_batch(&mut self, policy: Policy) -> (Arc<Layout>, Vec<Cost>) {
        let train_batch = self.batch(&self.setup.train, &self.setup.first_step, policy);
        let key = StepKey::default();
        let device = self.engine.device.clone();
        if self.offloaded_blocks > 0 {
            // A micro-batch finds the first blocks where the one before left them.
            self.forward_backward(&train_batch, key, policy.recompute);
        }
        device.take_costs();
        let ((), trace) =
            device.trace(|| self.forward_backward(&train_batch, key, policy.recompute));
        (Arc::new(Layout::of(trace)), device.take_costs())
    }

    /// Seconds of the whole run by use.
    fn time(
        &self,
        training_seconds: f64,
        policy: Policy,
        scoring: &Scoring,
        seconds: impl Fn(&[Cost]) -> f64,
    ) -> TimeUse {
        let batches = |units: usize| units.div_ceil(policy.units);
        let of_eval = batches(self.setup.eval.as_ref().map_or(0, |(_, units)| units.len()));
        let of_step = batches(self.setup.first_step.len());
        let num_evaluations = time::num_evaluations(self.setup);
        let evaluation = scoring.seconds_of_evaluation(of_eval, of_step, &seconds);
        TimeUse {
            training_seconds,
            num_evaluations,
            evaluation_seconds: num_evaluations as f64 * evaluation,
            sample_seconds: 2.0 * self.sample_costs.seconds(&seconds),
        }
    }

    fn batch(&self, dataset: &Dataset, units: &[Unit], policy: Policy) -> LabelledBatch {
        let units = &units[..policy.units.min(units.len())];
        let packed =
            MicroBatch::assemble(dataset, units, policy.packing(self.setup).batch_tokens());
        let packed = masking::masked(self.setup.masking.as_ref(), 0, packed);
        LabelledBatch::new(&self.setup.config, &packed, self.engine.device.target())
    }

    fn forward_backward(&mut self, batch: &LabelledBatch, key: StepKey, recompute: Recompute) {
        let step = StepContext { num_terms: 1, statistics: &Vec::new(), recompute };
        self.engine.forward_backward(batch, step, key, &mut Metrics::default());
    }

    fn update_costs(&mut self) -> Result<Vec<Cost>, DeviceError> {
        let device = self.engine.device.clone();
        device.take_costs();
        self.engine.gradients.clear(&device);
        let norm = self.engine.grad_norm()?.global;
        self.engine.update(0.0, norm)?;
        Ok(device.take_costs())
    }

    /// Bytes of the copy of parameters and moments that a GPU's checkpoint is written from.
    fn checkpoint_bytes(&self) -> u64 {
        let kept = |category| self.engine.device.persistent_bytes(category);
        match self.host.target {
            Target::Cpu => 0,
            Target::Cuda => kept(Category::Parameters) + kept(Category::Optimizer),
        }
    }

    /// Bytes of lists and of angles of the rotary embedding: a GPU is given those of a micro-batch,
    /// the CPU has the angles, and what encoders look up, of a step's micro-batches, and sorts rows
    /// of experts for one of them.
    fn list_bytes(&self, num_tokens: usize, micro_batches: usize) -> u64 {
        let config = &self.setup.config;
        let angles = config.angle_bytes(num_tokens) as u64;
        match self.host.target {
            Target::Cpu => {
                let of_batch = angles + config.lookup_bytes(num_tokens) as u64;
                of_batch * micro_batches as u64 + config.routing_bytes(num_tokens) as u64
            }
            Target::Cuda => angles + self.upload_bytes(num_tokens),
        }
    }

    /// Bytes of the lists that a pass reads: of tokens, of sequences, of which few are shorter than
    /// eight tokens, and of the rows of experts.
    fn upload_bytes(&self, num_tokens: usize) -> u64 {
        let routing = self.setup.config.routing_bytes(num_tokens) as u64;
        (64 << 10) + 32 * num_tokens as u64 + routing
    }

    /// Bytes by use; `scratch` is what a GPU takes within operations.
    fn memory(&self, largest: &Layout, scratch: u64, lists: u64) -> MemoryUse {
        let of_step = |category| largest.at_peak().get(&category).copied().unwrap_or(0) as u64;
        let kept = |category| self.engine.device.persistent_bytes(category);
        let (adapters, parameters) = match self.engine.lora {
            Some(_) => (kept(Category::Parameters), 0),
            None => (0, kept(Category::Parameters)),
        };
        let live: u64 = largest.at_peak().values().map(|&bytes| bytes as u64).sum();
        let config = &self.setup.config;
        let of_heads = |heads| ops::scratch_bytes_per_thread(heads, config.hidden_size);
        let deltas = config.deltas().map(|of| ops::delta_scratch_bytes_per_thread(&of.heads));
        let of_thread = config.heads().map(of_heads).chain(deltas).max().unwrap_or(0);
        let (scratch, program_and_data, driver) = match self.host.target {
            Target::Cpu => ((of_thread * self.setup.threads) as u64, self.host.bytes, 0),
            Target::Cuda => (scratch, 0, self.host.bytes),
        };
        MemoryUse {
            weights: kept(Category::Weights),
            adapters,
            parameters,
            gradients: kept(Category::Gradients),
            optimizer: kept(Category::Optimizer),
            activations: of_step(Category::Activations),
            head: of_step(Category::Head),
            workspace: of_step(Category::Workspace) + scratch + lists,
            gaps: largest.bytes() as u64 - live,
            samples: self.sample_bytes.saturating_sub(largest.bytes() as u64),
            program_and_data,
            driver,
            preparation: 0,
        }
    }

    /// Leaves the samples out.
    pub(super) fn without_samples(self) -> Self {
        Self { sample_bytes: 0, ..self }
    }

    /// Memory of the leanest policy, one row of `num_tokens` at a time.
    pub(super) fn leanest(&mut self, num_tokens: usize) -> MemoryUse {
        let batch = Batch::from_sequence(&self.setup.config, &vec![0; num_tokens]);
        let batch = LabelledBatch::unlabelled(batch);
        let device = self.engine.device.clone();
        let key = StepKey::default();
        let (_, trace) = device.trace(|| self.forward_backward(&batch, key, Recompute::Block));
        let (_, eval) = device.trace(|| log_probs(self.engine.pass(), &batch.batch));
        let scratch = scratch_bytes(&device.take_costs());
        let (train, eval) = (Layout::of(trace), Layout::of(eval));
        let largest = if train.bytes() >= eval.bytes() { train } else { eval };
        self.memory(&largest, scratch, self.list_bytes(num_tokens, 1))
    }
}

/// Floating-point operations of these.
fn flops(costs: &[Cost]) -> u64 {
    costs.iter().map(Cost::flops).sum()
}

/// Most bytes that a GPU takes inside one of these operations.
fn scratch_bytes(costs: &[Cost]) -> u64 {
    costs.iter().map(|cost| cost.scratch_bytes).max().unwrap_or(0)
}

/// Bytes of weights that these operations copy to a GPU.
fn copied_bytes(costs: &[Cost]) -> u64 {
    let bytes = |cost: &Cost| match cost.transfer {
        Transfer::Start(bytes) => bytes,
        _ => 0,
    };
    costs.iter().map(bytes).sum()
}
