//! Planning: one step on the dry device tells memory and work before anything runs.
//!
//! The policies (units per micro-batch × recomputation) are tried in turn and the one with the
//! least work that fits the budget is taken. The arena of the real run is laid out from the very
//! trace that was planned.

use crate::engine::{Engine, StepContext};
use crate::error::TrainError;
use crate::loading::{self, Held};
use crate::machine;
use crate::objectives::Metrics;
use crate::profile::{DeviceProfile, GpuFigures};
use crate::run_file;
use crate::scoring::{LabelledBatch, Packing, log_probs};
use crate::setup::Setup;
use hone_data::{Dataset, MicroBatch, Unit};
use hone_model::{Batch, Recompute};
use hone_tensor::{
    Category, Cost, Device, Layout, OFFLOAD_SLOTS, StepKey, Storage, Target, Transfer, ops,
};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

mod memory;
mod scoring;
mod suggestions;

pub use memory::MemoryUse;

/// What a run will take.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Plan {
    /// Most bytes of memory that the process will occupy; on a GPU, of the GPU's memory.
    pub peak_bytes: u64,
    /// Bytes of the step memory, part of `peak_bytes`.
    pub arena_bytes: u64,
    /// Bytes by use; they add up to `peak_bytes`.
    pub memory: MemoryUse,
    /// Bytes the process may take: `budget.memory`, or three quarters of the machine's memory; what
    /// is free now where a plan within that needs more than is free.
    pub budget_bytes: Option<u64>,
    /// Whether what training needs is within the budget. Preparing the data is over by then.
    pub fits: bool,
    /// Floating-point operations of an optimizer step.
    pub flops_per_step: u64,
    /// Seconds of an optimizer step.
    pub step_seconds: f64,
    /// FLOP/s that products would reach on this machine if memory cost nothing.
    pub ceiling_flops: f64,
    /// When the speed of this machine was measured; of a GPU, where its speed is known from.
    pub speed_measured: String,
    /// The GPU that the plan is for; `None`: the CPU.
    pub gpu: Option<String>,
    /// Optimizer steps.
    pub num_steps: u64,
    /// Seconds of all steps; loading, evaluation and export come on top.
    pub total_seconds: f64,
    /// Numbers that are trained.
    pub trainable_parameters: u64,
    /// Slots of a micro-batch.
    pub micro_batch_tokens: usize,
    /// Micro-batches of a full optimizer step.
    pub micro_batches_per_step: usize,
    /// What products are computed in.
    pub compute: String,
    /// How frozen matrices are held; of a model that is trained in full none are frozen.
    pub base_precision: String,
    /// What the backward pass computes again.
    #[serde(with = "RecomputeName")]
    pub recompute: Recompute,
    /// Blocks whose frozen weights stay in the CPU's memory and visit the GPU.
    pub offloaded_blocks: usize,
    /// Bytes of the CPU's memory that those take.
    pub offloaded_bytes: u64,
    /// Bytes that are copied to the GPU for them in a step.
    pub copied_bytes_per_step: u64,
    /// Bytes of the CPU's memory for the copy that a GPU's checkpoint is written from.
    pub checkpoint_bytes: u64,
    /// Bytes of the CPU's memory that can be taken, where a GPU's run keeps more there.
    pub host_free_bytes: Option<u64>,
    /// When it does not fit: what would.
    pub suggestions: Vec<String>,
}

/// A plan and the layouts that carry it out.
pub struct Planned {
    /// Figures.
    pub plan: Plan,
    /// What the times in it come from.
    pub profile: DeviceProfile,
    /// Policy.
    pub policy: Policy,
    /// Memory of a training micro-batch.
    pub train_layout: Arc<Layout>,
    /// Memory of a micro-batch that is only scored.
    pub eval_layout: Arc<Layout>,
    /// Memory of one that the reference scores, for objectives that need it.
    pub reference_layout: Option<Arc<Layout>>,
    /// Most bytes that a GPU takes inside an operation.
    pub scratch_bytes: u64,
    /// Bytes that it takes for lists of a micro-batch.
    pub list_bytes: u64,
}

/// What the planner chooses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Units of a micro-batch.
    pub units: usize,
    /// What the backward pass computes again.
    pub recompute: Recompute,
}

impl Plan {
    /// Bytes that training needs, whatever preparing the data took before.
    pub fn needed_bytes(&self) -> u64 {
        self.memory.total() - self.memory.preparation
    }

    /// The policy that this plan is of.
    pub fn policy(&self, unit_tokens: usize) -> Policy {
        let units = (self.micro_batch_tokens / unit_tokens).max(1);
        Policy { units, recompute: self.recompute }
    }

    /// Bytes of the CPU's memory that a GPU's run keeps.
    pub fn host_bytes(&self) -> u64 {
        self.offloaded_bytes + self.checkpoint_bytes
    }

    /// Where less memory is free than training needs: says so in the plan, and returns what is
    /// free.
    fn refuse_without_room(&mut self, host: Host) -> Option<u64> {
        let free = host.free.filter(|&free| free < self.needed_bytes())?;
        (self.fits, self.budget_bytes) = (false, Some(free));
        let free_now = crate::report::format_bytes(free);
        self.suggestions = vec![format!("free some memory: {free_now} can be taken now")];
        Some(free)
    }

    /// Where what a GPU's run keeps in the CPU's memory has no room there: says so in the plan.
    fn refuse_without_host_memory(&mut self, setup: &Setup, host: Host) {
        let free = machine::available_memory().filter(|_| host.gpu_is_here());
        let Some(free) = free.filter(|&free| self.fits && self.host_bytes() > free) else {
            return;
        };
        (self.fits, self.host_free_bytes) = (false, Some(free));
        let free = crate::report::format_bytes(free);
        self.suggestions = vec![format!("free some of the CPU's memory: {free} can be taken now")];
        if self.offloaded_blocks > 0 && setup.base_precision != Some(Storage::INT8) {
            self.suggestions.push("model.base_precision = \"int8\"".to_owned());
        }
    }
}

impl Policy {
    /// How rows become micro-batches of a run with this policy.
    pub fn packing(self, setup: &Setup) -> Packing {
        let (max_seq_len, unit_tokens) = (setup.max_seq_len, setup.unit_tokens());
        Packing { max_seq_len, unit_tokens, units_per_batch: self.units }
    }
}

/// Names of [`Recompute`] in plans, as in run files.
#[derive(Serialize, Deserialize)]
#[serde(remote = "Recompute", rename_all = "lowercase")]
enum RecomputeName {
    None,
    Block,
}

/// Bytes of the program that only training touches: its code, stacks of threads, small buffers.
/// Measured: 2.2 MiB, whatever the model.
const UNTOUCHED: u64 = 9 << 18;

/// What CUDA takes of a GPU's memory for itself, code and stacks of kernels, and cuBLASLt's
/// workspace: as others report it, not measured.
const CUDA_CONTEXT: u64 = 640 << 20;

/// The memory that a run has to keep to, and what of it is in use before anything is loaded for
/// training: by program, tokenizer and data, or by the GPU's driver.
#[derive(Clone, Copy)]
struct Host {
    target: Target,
    /// Bytes in use now.
    bytes: u64,
    /// The most so far; reading and tokenising data may have taken more than a step will.
    peak_bytes: u64,
    /// Bytes there are.
    total: Option<u64>,
    /// Bytes that can be taken now, those in use included; `None`: the machine is not at hand.
    free: Option<u64>,
}

impl Host {
    fn of(profile: &DeviceProfile) -> Self {
        let target = profile.target();
        if let Some(GpuFigures { memory_bytes: total, free_bytes, .. }) = profile.gpu {
            let bytes = CUDA_CONTEXT;
            // What is free is so beside the driver's own, which is there already.
            let free = free_bytes.map(|free| (free + bytes).min(total));
            return Self { target, bytes, peak_bytes: 0, total: Some(total), free };
        }
        hone_tensor::release_free_memory();
        let bytes = machine::resident_bytes().unwrap_or(0) + UNTOUCHED;
        Self {
            target,
            bytes,
            peak_bytes: machine::peak_resident_bytes().unwrap_or(bytes),
            total: machine::total_memory(),
            free: machine::available_memory().map(|free| free + bytes),
        }
    }

    /// `budget.memory`, or three quarters of what the machine has; of a GPU, whose memory is there
    /// for nothing else and cannot be exceeded, at most all but a thirty-second. Not what is free:
    /// that differs from hour to hour, and the policy must not.
    fn budget(&self, setup: &Setup) -> Option<u64> {
        let (asked, total) = (setup.run.budget.memory.map(|memory| memory.0), self.total);
        match self.target {
            Target::Cpu => asked.or(total.map(|total| total / 4 * 3)),
            Target::Cuda => asked.into_iter().chain(total.map(|total| total - total / 32)).min(),
        }
    }

    /// Whether this is a GPU's, and the GPU is in this machine.
    fn gpu_is_here(&self) -> bool {
        self.target == Target::Cuda && self.free.is_some()
    }

    /// Whether the budget holds so much.
    fn fits(&self, setup: &Setup, needed_bytes: u64) -> bool {
        self.budget(setup).is_none_or(|budget| needed_bytes <= budget)
    }
}

/// Plans a run: the policy with the least work that fits, or the leanest one when none does.
///
/// # Errors
/// If model or adapter cannot be loaded.
pub fn plan(setup: &Setup, profile: &DeviceProfile) -> Result<Planned, TrainError> {
    let host = Host::of(profile);
    check_offload(setup, host)?;
    let mut planned = plan_among(setup, profile, host, &candidates(setup))?;
    let plan = &mut planned.plan;
    if !plan.fits {
        plan.suggestions = suggestions::suggestions(setup, host, plan.needed_bytes())?;
    } else if let Some(free) = plan.refuse_without_room(host) {
        let leaner = format!("budget.memory = \"{}MiB\", to have it planned leaner", free >> 20);
        plan.suggestions.push(leaner);
    }
    plan.refuse_without_host_memory(setup, host);
    Ok(planned)
}

/// A CPU reads weights where they are.
fn check_offload(setup: &Setup, host: Host) -> Result<(), TrainError> {
    match (setup.run.budget.offload, host.target) {
        (run_file::Offload::All, Target::Cpu) => Err(TrainError::Usage(
            "budget.offload = \"all\" is for GPUs, and this run computes on the CPU, which reads \
             weights where they are; leave it out"
                .to_owned(),
        )),
        _ => Ok(()),
    }
}

/// Plans a run with a policy that is already settled, as a resumed run must.
///
/// # Errors
/// If model or adapter cannot be loaded.
pub fn plan_with(
    setup: &Setup,
    profile: &DeviceProfile,
    policy: Policy,
) -> Result<Planned, TrainError> {
    let host = Host::of(profile);
    check_offload(setup, host)?;
    let mut planned = plan_among(setup, profile, host, &[policy])?;
    let plan = &mut planned.plan;
    if !plan.fits {
        let needed = crate::report::format_bytes(plan.needed_bytes());
        plan.suggestions = vec![
            format!("at least {needed} of memory; a resumed run keeps its micro-batches"),
            "a new run in another output.dir, whose micro-batches the planner can choose".into(),
        ];
        if host.target == Target::Cuda && setup.run.budget.offload == run_file::Offload::None {
            plan.suggestions
                .insert(0, "leave budget.offload out, which a resumed run may".to_owned());
        }
    } else {
        plan.refuse_without_room(host);
    }
    plan.refuse_without_host_memory(setup, host);
    Ok(planned)
}

fn plan_among(
    setup: &Setup,
    profile: &DeviceProfile,
    host: Host,
    candidates: &[Policy],
) -> Result<Planned, TrainError> {
    let with = |offloaded_blocks| DryRun::new(setup, host, Held::of(setup, offloaded_blocks));
    let mut dry = with(0)?;
    let mut best: Option<Planned> = None;
    for &policy in candidates {
        let mut planned = dry.plan(profile, policy)?;
        while let Some(blocks) = dry.blocks_to_offload(&planned.plan) {
            planned = with(blocks)?.plan(profile, policy)?;
        }
        let better = best.as_ref().is_none_or(|best| is_better(&planned, best));
        if better {
            best = Some(planned);
        }
    }
    Ok(best.expect("there is at least one policy"))
}

/// Fitting beats not fitting; then copying the fewest weights, since links are slow; then computing
/// nothing twice wins, then fewer micro-batches; of two that do not fit, the leaner. Measured speed
/// has no say: the choice decides how sums are rounded, and the same run must give the same bits on
/// a machine that is busier today.
fn is_better(new: &Planned, old: &Planned) -> bool {
    let work = |planned: &Planned| {
        let plan = &planned.plan;
        let recomputes = planned.policy.recompute == Recompute::Block;
        (plan.copied_bytes_per_step, recomputes, plan.micro_batches_per_step)
    };
    match (new.plan.fits, old.plan.fits) {
        (true, true) => work(new) < work(old),
        (false, false) => new.plan.arena_bytes < old.plan.arena_bytes,
        (fits, _) => fits,
    }
}

/// Tokens of a micro-batch beyond which products gain no more speed.
const ENOUGH_TOKENS: usize = 4096;

/// The policies that the run file leaves open, larger micro-batches first.
fn candidates(setup: &Setup) -> Vec<Policy> {
    let all = setup.first_step.len();
    let most = all.min(ENOUGH_TOKENS / setup.unit_tokens()).max(1);
    let units: Vec<usize> = match setup.run.budget.micro_batch_tokens {
        Some(tokens) => vec![(tokens / setup.unit_tokens()).max(1)],
        None => {
            let halvings = std::iter::successors(Some(most), |&n| (n > 1).then(|| n.div_ceil(2)));
            // As many micro-batches, as equal as can be: the last one's padding costs time as well.
            halvings.map(|units| all.div_ceil(all.div_ceil(units))).collect()
        }
    };
    let recompute: &[Recompute] = match setup.run.budget.recompute {
        run_file::Recompute::Auto => &[Recompute::None, Recompute::Block],
        run_file::Recompute::None => &[Recompute::None],
        run_file::Recompute::Block => &[Recompute::Block],
    };
    let with = |&units: &usize| recompute.iter().map(move |&recompute| Policy { units, recompute });
    units.iter().flat_map(with).collect()
}

/// A run's engine on the dry device.
struct DryRun<'a> {
    setup: &'a Setup,
    engine: Engine,
    host: Host,
    offloaded_blocks: usize,
}

impl<'a> DryRun<'a> {
    fn new(setup: &'a Setup, host: Host, held: Held<'_>) -> Result<Self, TrainError> {
        let device = Device::dry_as(host.target);
        let engine = loading::engine(setup, &device, held)?;
        Ok(Self { setup, engine, host, offloaded_blocks: held.offloaded_blocks })
    }

    /// How many blocks to keep in the CPU's memory; `None`: as many as `plan` does.
    fn blocks_to_offload(&self, plan: &Plan) -> Option<usize> {
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

    fn plan(&mut self, profile: &DeviceProfile, policy: Policy) -> Result<Planned, TrainError> {
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
        let train_layout = Arc::new(Layout::of(trace));
        let micro_batch = device.take_costs();
        let update = self.update_costs();
        let scoring = self.scoring(policy)?;
        let micro_batches = self.setup.first_step.len().div_ceil(policy.units);
        let ahead = scoring.ahead_of_step(micro_batches);
        let compute = self.engine.compute;
        let held_as = self.setup.base_precision.unwrap_or(self.setup.file_dtype.into());
        let step_seconds = micro_batches as f64 * profile.seconds(&micro_batch, compute)
            + profile.seconds(&ahead, compute)
            + profile.seconds(&update, compute);
        let flops_per_step = flops(&micro_batch) * micro_batches as u64 + flops(&ahead);
        let copied = copied_bytes(&micro_batch) * micro_batches as u64 + copied_bytes(&ahead);
        let num_tokens = policy.packing(self.setup).batch_tokens();
        let scratch = scratch_bytes(&micro_batch).max(scratch_bytes(&ahead));
        let of_batch = self.of_batch(num_tokens);
        let largest = scoring.largest(&train_layout);
        let mut memory = self.memory(&largest, scratch + of_batch);
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
            step_seconds,
            ceiling_flops: profile.ceiling(compute),
            speed_measured: profile.measured.clone(),
            gpu: profile.gpu.as_ref().map(|_| profile.cpu.clone()),
            num_steps: self.setup.num_steps,
            total_seconds: step_seconds * self.setup.num_steps as f64,
            trainable_parameters: self.engine.model.params.num_elements() as u64,
            micro_batch_tokens: num_tokens,
            micro_batches_per_step: micro_batches,
            compute: compute.name().to_owned(),
            base_precision: held_as.name().to_owned(),
            recompute: policy.recompute,
            offloaded_blocks: self.offloaded_blocks,
            offloaded_bytes: device.persistent_bytes(Category::Offloaded),
            copied_bytes_per_step: copied,
            checkpoint_bytes: self.checkpoint_bytes(),
            host_free_bytes: None,
            suggestions: Vec::new(),
        };
        let (scratch_bytes, list_bytes) = (scratch, list_bytes(num_tokens));
        Ok(Planned {
            plan,
            profile: profile.clone(),
            policy,
            train_layout,
            eval_layout: scoring.layout,
            reference_layout: scoring.reference,
            scratch_bytes,
            list_bytes,
        })
    }

    fn batch(&self, dataset: &Dataset, units: &[Unit], policy: Policy) -> LabelledBatch {
        let units = &units[..policy.units.min(units.len())];
        let packed =
            MicroBatch::assemble(dataset, units, policy.packing(self.setup).batch_tokens());
        LabelledBatch::new(&self.setup.config, &packed, self.engine.device.target())
    }

    fn forward_backward(&mut self, batch: &LabelledBatch, key: StepKey, recompute: Recompute) {
        let step = StepContext { num_terms: 1, statistics: &Vec::new(), recompute };
        self.engine.forward_backward(batch, step, key, &mut Metrics::default());
    }

    fn update_costs(&mut self) -> Vec<Cost> {
        let device = self.engine.device.clone();
        device.take_costs();
        self.engine.gradients.clear(&device);
        let norm = self.engine.grad_norm();
        self.engine.update(0.0, norm);
        device.take_costs()
    }

    /// Bytes of the copy of parameters and moments that a GPU's checkpoint is written from.
    fn checkpoint_bytes(&self) -> u64 {
        let kept = |category| self.engine.device.persistent_bytes(category);
        match self.host.target {
            Target::Cpu => 0,
            Target::Cuda => kept(Category::Parameters) + kept(Category::Optimizer),
        }
    }

    /// Bytes of what a GPU is given with a micro-batch: lists, and angles of the rotary embedding.
    fn of_batch(&self, num_tokens: usize) -> u64 {
        let angles = self.setup.config.angle_bytes(num_tokens) as u64;
        match self.host.target {
            Target::Cpu => 0,
            Target::Cuda => angles + list_bytes(num_tokens),
        }
    }

    /// Bytes by use; `scratch` are those of a GPU beside tensors.
    fn memory(&self, largest: &Layout, scratch: u64) -> MemoryUse {
        let of_step = |category| largest.at_peak().get(&category).copied().unwrap_or(0) as u64;
        let kept = |category| self.engine.device.persistent_bytes(category);
        let (adapters, parameters) = match self.engine.lora {
            Some(_) => (kept(Category::Parameters), 0),
            None => (0, kept(Category::Parameters)),
        };
        let live: u64 = largest.at_peak().values().map(|&bytes| bytes as u64).sum();
        let config = &self.setup.config;
        let of_heads = |heads| ops::scratch_bytes_per_thread(heads, config.hidden_size);
        let of_thread = config.heads().map(of_heads).max().unwrap_or(0);
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
            workspace: of_step(Category::Workspace) + scratch,
            gaps: largest.bytes() as u64 - live,
            program_and_data,
            driver,
            preparation: 0,
        }
    }

    /// Bytes that the leanest policy needs, one row of `num_tokens` at a time.
    fn leanest(&mut self, num_tokens: usize) -> u64 {
        let batch = Batch::of_sequence(&self.setup.config, &vec![0; num_tokens]);
        let batch = LabelledBatch::unlabelled(batch);
        let device = self.engine.device.clone();
        let key = StepKey::default();
        let (_, trace) = device.trace(|| self.forward_backward(&batch, key, Recompute::Block));
        let (_, eval) = device.trace(|| log_probs(self.engine.pass(), &batch.batch));
        let scratch = scratch_bytes(&device.take_costs()) + self.of_batch(num_tokens);
        let (train, eval) = (Layout::of(trace), Layout::of(eval));
        let largest = if train.bytes() >= eval.bytes() { train } else { eval };
        self.memory(&largest, scratch).total()
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

/// Bytes of the lists that a pass reads: of tokens, and of sequences, of which few are shorter than
/// eight tokens.
fn list_bytes(num_tokens: usize) -> u64 {
    (64 << 10) + 32 * num_tokens as u64
}

/// Bytes of weights that these operations copy to a GPU.
fn copied_bytes(costs: &[Cost]) -> u64 {
    let bytes = |cost: &Cost| match cost.transfer {
        Transfer::Start(bytes) => bytes,
        _ => 0,
    };
    costs.iter().map(bytes).sum()
}
