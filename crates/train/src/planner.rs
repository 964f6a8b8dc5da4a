//! Planning: one step on the dry device tells memory and work before anything runs.
//!
//! The policies (units per micro-batch × recomputation) are tried in turn and the fastest that fits
//! the budget is taken. The arena of the real run is laid out from the very trace that was planned.

use crate::engine::Engine;
use crate::error::TrainError;
use crate::evaluate::{log_likelihood, to_batch};
use crate::machine;
use crate::optimizer;
use crate::profile::DeviceProfile;
use crate::run_file;
use crate::setup::Setup;
use hone_data::{Cursor, Dataset, MicroBatch, Unit};
use hone_model::adapter::{LoraConfig, TargetModules};
use hone_model::{Batch, Recompute};
use hone_tensor::{Category, Cost, DType, Device, Layout, StepKey};
use serde::Serialize;
use serde_json::{Map, Value};
use std::sync::Arc;

/// What a run will take.
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    /// Most bytes of memory that the process will occupy.
    pub peak_bytes: u64,
    /// Bytes of the step memory, part of `peak_bytes`.
    pub arena_bytes: u64,
    /// Bytes by use; they add up to `peak_bytes`.
    pub memory: Map<String, Value>,
    /// Bytes the process may take: `budget.memory`, or what the machine has.
    pub budget_bytes: Option<u64>,
    /// Whether `peak_bytes` is within the budget.
    pub fits: bool,
    /// Floating-point operations of an optimizer step.
    pub flops_per_step: u64,
    /// Seconds of an optimizer step.
    pub step_seconds: f64,
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
    /// What the backward pass computes again: `none` or `block`.
    pub recompute: &'static str,
    /// When it does not fit: what would.
    pub mend: Vec<String>,
}

/// A plan and the layouts that carry it out.
pub struct Planned {
    /// Figures.
    pub plan: Plan,
    /// Policy.
    pub policy: Policy,
    /// Memory of a training micro-batch.
    pub train_layout: Arc<Layout>,
    /// Memory of an evaluation micro-batch.
    pub eval_layout: Arc<Layout>,
}

/// What the planner chooses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Units of a micro-batch.
    pub units: usize,
    /// What the backward pass computes again.
    pub recompute: Recompute,
}

impl Policy {
    /// The policy's name in plans and run files.
    pub fn recompute_name(self) -> &'static str {
        match self.recompute {
            Recompute::None => "none",
            Recompute::Block => "block",
        }
    }
}

/// Plans a run: the fastest policy that fits, or the leanest one when none does.
///
/// # Errors
/// If model or adapter cannot be loaded.
pub fn plan(setup: &Setup, profile: &DeviceProfile) -> Result<Planned, TrainError> {
    plan_among(setup, profile, &candidates(setup)?)
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
    plan_among(setup, profile, &[policy])
}

fn plan_among(
    setup: &Setup,
    profile: &DeviceProfile,
    candidates: &[Policy],
) -> Result<Planned, TrainError> {
    let host_bytes = machine::resident_bytes().unwrap_or(0);
    let mut dry = DryRun::new(setup, host_bytes, setup.base_precision, setup.lora.as_ref())?;
    let mut best: Option<Planned> = None;
    for &policy in candidates {
        let planned = dry.plan(profile, policy)?;
        let better = best.as_ref().is_none_or(|best| is_better(&planned.plan, &best.plan));
        if better {
            best = Some(planned);
        }
    }
    let mut planned = best.expect("there is at least one policy");
    if !planned.plan.fits {
        planned.plan.mend = mends(setup, profile, host_bytes)?;
    }
    Ok(planned)
}

/// Fitting beats not fitting; then the faster wins; of two that do not fit, the leaner.
fn is_better(new: &Plan, old: &Plan) -> bool {
    match (new.fits, old.fits) {
        (true, true) => new.total_seconds < old.total_seconds,
        (false, false) => new.peak_bytes < old.peak_bytes,
        (fits, _) => fits,
    }
}

/// The policies that the run file leaves open, larger micro-batches first.
fn candidates(setup: &Setup) -> Result<Vec<Policy>, TrainError> {
    let most = largest_step(setup)?;
    let units: Vec<usize> = match setup.run.budget.micro_batch_tokens {
        Some(tokens) => vec![tokens / setup.max_seq_len],
        None => {
            let halvings = std::iter::successors(Some(most), |&n| (n > 1).then(|| n.div_ceil(2)));
            halvings.collect()
        }
    };
    let recompute: &[Recompute] = match setup.run.budget.recompute {
        run_file::Recompute::Auto => &[Recompute::None, Recompute::Block],
        run_file::Recompute::None => &[Recompute::None],
        run_file::Recompute::Block => &[Recompute::Block],
    };
    let with = |&units: &usize| recompute.iter().map(move |&recompute| Policy { units, recompute });
    Ok(units.iter().flat_map(with).collect())
}

/// Units of the first step, which is as large as any.
fn largest_step(setup: &Setup) -> Result<usize, TrainError> {
    Ok(setup.order()?.step(&Cursor::default()).len().max(1))
}

/// A run's engine on the dry device.
struct DryRun<'a> {
    setup: &'a Setup,
    engine: Engine,
    first_step: Vec<Unit>,
    host_bytes: u64,
}

impl<'a> DryRun<'a> {
    fn new(
        setup: &'a Setup,
        host_bytes: u64,
        base_precision: Option<DType>,
        lora: Option<&LoraConfig>,
    ) -> Result<Self, TrainError> {
        let engine = Engine::with_weights(setup, &Device::dry(), base_precision, lora)?;
        let first_step = setup.order()?.step(&Cursor::default()).to_vec();
        Ok(Self { setup, engine, first_step, host_bytes })
    }

    fn plan(&mut self, profile: &DeviceProfile, policy: Policy) -> Result<Planned, TrainError> {
        let train_batch = self.batch(&self.setup.train, &self.first_step, policy);
        let key = StepKey::default();
        let device = self.engine.device.clone();
        device.take_costs();
        let ((), trace) = device.trace(|| {
            self.engine.forward_backward(&train_batch, 1, key, policy.recompute);
        });
        let train_layout = Arc::new(Layout::of(trace));
        let micro_batch = device.take_costs();
        let update = self.update_costs();
        let eval_layout = Arc::new(self.eval_layout(policy));
        let micro_batches = self.first_step.len().div_ceil(policy.units);
        let compute = self.engine.compute;
        let step_seconds = micro_batches as f64 * profile.seconds(&micro_batch, compute)
            + profile.seconds(&update, compute);
        let flops: u64 = micro_batch.iter().map(|cost| cost.flops).sum();
        let (memory, peak_bytes) = self.memory(&train_layout, &eval_layout);
        let budget_bytes = self.setup.run.budget.memory.or_else(|| self.free_memory());
        let plan = Plan {
            peak_bytes,
            arena_bytes: train_layout.bytes().max(eval_layout.bytes()) as u64,
            memory,
            budget_bytes,
            fits: budget_bytes.is_none_or(|budget| peak_bytes <= budget),
            flops_per_step: flops * micro_batches as u64,
            step_seconds,
            num_steps: self.setup.num_steps,
            total_seconds: step_seconds * self.setup.num_steps as f64,
            trainable_parameters: self.engine.model.params.num_elements() as u64,
            micro_batch_tokens: policy.units * self.setup.max_seq_len,
            micro_batches_per_step: micro_batches,
            recompute: policy.recompute_name(),
            mend: Vec::new(),
        };
        Ok(Planned { plan, policy, train_layout, eval_layout })
    }

    fn batch(&self, dataset: &Dataset, units: &[Unit], policy: Policy) -> Batch {
        let units = &units[..policy.units.min(units.len())];
        let num_tokens = policy.units * self.setup.max_seq_len;
        to_batch(&self.setup.config, &MicroBatch::assemble(dataset, units, num_tokens))
    }

    fn eval_layout(&self, policy: Policy) -> Layout {
        let (dataset, units) = match &self.setup.eval {
            Some((dataset, units)) => (dataset, units),
            None => (&self.setup.train, &self.first_step),
        };
        let batch = self.batch(dataset, units, policy);
        let Engine { device, model, compute, .. } = &self.engine;
        let (_, trace) = device.trace(|| log_likelihood(device, model, *compute, &batch));
        Layout::of(trace)
    }

    fn update_costs(&mut self) -> Vec<Cost> {
        let Engine { device, model, gradients, optimizer, .. } = &mut self.engine;
        device.take_costs();
        gradients.clear(device);
        let norm = optimizer::grad_norm(device, gradients);
        optimizer.step(device, &mut model.params, gradients, (1, 0.0, norm));
        device.take_costs()
    }

    /// Bytes by use, and their sum.
    fn memory(&self, train: &Layout, eval: &Layout) -> (Map<String, Value>, u64) {
        let larger = if train.bytes() >= eval.bytes() { train } else { eval };
        let of_step = |category| larger.at_peak().get(&category).copied().unwrap_or(0) as u64;
        let kept = |category| self.engine.device.persistent_bytes(category);
        let parameters = if self.engine.lora.is_some() { "adapters" } else { "parameters" };
        let live: u64 = larger.at_peak().values().map(|&bytes| bytes as u64).sum();
        let scratch = (hone_tensor::SCRATCH_BYTES_PER_THREAD * self.setup.threads) as u64;
        let parts = [
            ("weights", kept(Category::Weights)),
            (parameters, kept(Category::Parameters)),
            ("gradients", kept(Category::Gradients)),
            ("optimizer", kept(Category::Optimizer)),
            ("activations", of_step(Category::Activations)),
            ("head", of_step(Category::Head)),
            ("workspace", of_step(Category::Workspace) + scratch),
            ("gaps", larger.bytes() as u64 - live),
            ("program_and_data", self.host_bytes),
        ];
        let memory = parts.iter().map(|&(name, bytes)| (name.to_owned(), bytes.into()));
        (memory.collect(), parts.iter().map(|part| part.1).sum())
    }

    fn free_memory(&self) -> Option<u64> {
        Some(machine::available_memory()? + self.host_bytes)
    }
}

/// Changes, each on top of those before, until the run fits: lines for the user.
fn mends(
    setup: &Setup,
    profile: &DeviceProfile,
    host_bytes: u64,
) -> Result<Vec<String>, TrainError> {
    let (base_precision, lora) = (setup.base_precision, setup.lora.clone());
    let mut variant = Variant { setup, base_precision, lora };
    let leanest = Policy { units: 1, recompute: Recompute::Block };
    let mut changes: Vec<String> = Vec::new();
    let pinned = setup.run.budget.micro_batch_tokens.is_some()
        || setup.run.budget.recompute == run_file::Recompute::None;
    if pinned {
        changes.push("leave budget.micro_batch_tokens and budget.recompute out".to_owned());
        if let Some(lines) = variant.lines_if_fits(profile, host_bytes, leanest, &changes)? {
            return Ok(lines);
        }
    }
    if setup.lora.is_none() {
        changes
            .push("train an adapter instead of all weights: add [adapter] with rank = 16".into());
        variant.lora = Some(LoraConfig {
            rank: 16,
            alpha: 32.0,
            dropout: 0.0,
            target_modules: TargetModules::AllLinear,
            use_rslora: false,
        });
        if let Some(lines) = variant.lines_if_fits(profile, host_bytes, leanest, &changes)? {
            return Ok(lines);
        }
    }
    if setup.base_precision == Some(DType::F32) {
        changes.push("model.base_precision = \"bf16\"".to_owned());
        variant.base_precision = Some(DType::Bf16);
        if let Some(lines) = variant.lines_if_fits(profile, host_bytes, leanest, &changes)? {
            return Ok(lines);
        }
    }
    changes.push(format!(
        "data.max_seq_len = {} (now {}) with overlong = \"truncate\", or shorter",
        setup.max_seq_len / 2,
        setup.max_seq_len
    ));
    changes.push("a smaller model, or a machine with more memory".to_owned());
    Ok(changes)
}

/// The run with some settings changed.
struct Variant<'a> {
    setup: &'a Setup,
    base_precision: Option<DType>,
    lora: Option<LoraConfig>,
}

impl Variant<'_> {
    /// What to tell the user if the variant fits with `policy`.
    fn lines_if_fits(
        &self,
        profile: &DeviceProfile,
        host_bytes: u64,
        policy: Policy,
        changes: &[String],
    ) -> Result<Option<Vec<String>>, TrainError> {
        let lora = self.lora.as_ref();
        let mut dry = DryRun::new(self.setup, host_bytes, self.base_precision, lora)?;
        let planned = dry.plan(profile, policy)?;
        if !planned.plan.fits {
            return Ok(None);
        }
        let peak = crate::report::format_bytes(planned.plan.peak_bytes);
        let mut lines = changes.to_vec();
        if let Some(last) = lines.last_mut() {
            last.push_str(&format!(" (needs {peak})"));
        }
        Ok(Some(lines))
    }
}
