//! Planning: one step on the dry device tells memory and work before anything runs.
//!
//! The policies (units per micro-batch × recomputation) are tried in turn and the one with the
//! least work that fits the budget is taken. The arena of the real run is laid out from the very
//! trace that was planned.

mod dry_run;
mod host;
mod memory;
mod policy;
mod suggestions;
mod time;

pub use memory::MemoryUse;
pub use policy::Policy;
pub use time::TimeUse;

use crate::code::Code;
use crate::error::TrainError;
use crate::loading::Held;
use crate::machine;
use crate::profile::DeviceProfile;
use crate::run_file;
use crate::setup::Setup;
use dry_run::DryRun;
use hone_model::Recompute;
use hone_model::adapter::Coverage;
use hone_tensor::{Layout, Storage, Target};
use host::Host;
use policy::{RecomputeName, candidates};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

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
    /// Seconds of steps, evaluations and samples; loading and export come on top.
    pub total_seconds: f64,
    /// The same by use.
    #[serde(flatten)]
    pub time: TimeUse,
    /// Numbers that are trained.
    pub trainable_parameters: u64,
    /// The same, kind of layer by kind of layer; 0.1.0 wrote none.
    #[serde(default)]
    pub coverage: Vec<Coverage>,
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
    pub upload_bytes: u64,
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
            Code::DeviceUnsupported,
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
        let of_steps = plan.needed_bytes() - plan.memory.samples;
        if host.fits(setup, of_steps) {
            let needed = crate::report::format_bytes(of_steps);
            plan.suggestions.insert(0, format!("report.samples = 0 (needs {needed})"));
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
    // The least work first.
    let mut candidates = candidates.to_vec();
    candidates.sort_by_key(|policy| {
        (policy.recompute == Recompute::Block, setup.first_step.len().div_ceil(policy.units))
    });
    for policy in candidates {
        let mut planned = dry.plan(profile, policy)?;
        while let Some(blocks) = dry.blocks_to_offload(&planned.plan) {
            planned = with(blocks)?.plan(profile, policy)?;
        }
        let better = best.as_ref().is_none_or(|best| is_better(&planned, best));
        if better {
            best = Some(planned);
        }
        // None of the others can be better.
        if best.as_ref().is_some_and(|best| best.plan.fits && best.plan.copied_bytes_per_step == 0)
        {
            break;
        }
    }
    let mut best = best.expect("there is at least one policy");
    best.plan.coverage = dry.coverage();
    Ok(best)
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
