//! A training run from beginning to end.

use crate::checkpoint::write_file_whole;
use crate::code::Code;
use crate::engine::{Engine, StepContext};
use crate::error::TrainError;
use crate::failpoint;
use crate::loading::{self, Held};
use crate::masking;
use crate::metrics::{EvalRecord, Lines, Phases, RowsRecord, StepRecord};
use crate::mixture::Starving;
use crate::objectives::{Metrics, Statistics};
use crate::optimizer::GradNorm;
use crate::planner::{self, Plan, Planned};
use crate::report;
use crate::run_dir::{Claim, RunDir};
use crate::run_file::OnNonfinite;
use crate::sample::{self, Sample};
use crate::schedule::Schedule;
use crate::scoring::{LabelledBatch, Packing, Scorer, ScoringPlan};
use crate::setup::Setup;
use crate::step_profile::StepProfile;
use hone_data::{Cursor, MicroBatch, Order};
use hone_tensor::{Arena, Device, DeviceError, StepKey, Target};
use serde::Serialize;
use std::path::PathBuf;
use std::time::Instant;

mod evaluation;
mod event;
mod result;
mod silence;
mod state;
mod waiting;
mod writer;

pub use event::Event;
use silence::Silence;
use waiting::Waiting;
use writer::Writer;

/// How to carry a run out.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Go on from the newest whole checkpoint of `output.dir`, or start where there is none yet.
    pub resume: bool,
    /// Record some steps, operation by operation.
    pub profile: bool,
}

/// Steps that a profile leaves out, because they also warm up, and steps that it records.
const PROFILE_SKIPS: u64 = 1;
const PROFILE_STEPS: u64 = 3;

/// How a run ended.
pub enum Outcome {
    /// All steps are done.
    Finished(Finished),
    /// Asked to stop; the checkpoint after this step is on disk.
    Interrupted {
        /// Steps done.
        step: u64,
    },
}

/// What a finished run leaves.
#[derive(Serialize)]
pub struct Finished {
    /// `adapter/` or `model/`.
    pub result: PathBuf,
    /// The report.
    pub report: PathBuf,
    /// The first and the last evaluation.
    pub evaluations: Vec<EvalRecord>,
    /// Answers before and after.
    pub samples: Vec<Sample>,
}

/// Trains as `setup` and `options` say in the run's directory, which is best claimed before the
/// setup takes its time: a run that is there goes on. `stop` is asked after each step.
///
/// # Errors
/// See [`TrainError`]; what is on disk stays whole.
pub fn train(
    mut claim: Claim,
    setup: &Setup,
    options: Options,
    event: &mut dyn FnMut(Event<'_>),
    stop: &dyn Fn() -> bool,
) -> Result<Outcome, TrainError> {
    event(Event::Started {
        hone_version: env!("CARGO_PKG_VERSION"),
        output_dir: &setup.run.output.dir,
        num_steps: setup.num_steps,
    });
    let outcome = train_in(&mut claim, setup, options, event, stop)
        .map_err(|error| error.with_last_good(&claim.dir().checkpoints()))?;
    // Who hears that a run has ended may start another in its directory.
    drop(claim);
    match &outcome {
        Outcome::Finished(finished) => event(Event::Finished(finished)),
        Outcome::Interrupted { step } => event(Event::Interrupted { step: *step }),
    }
    Ok(outcome)
}

fn train_in(
    claim: &mut Claim,
    setup: &Setup,
    options: Options,
    event: &mut dyn FnMut(Event<'_>),
    stop: &dyn Fn() -> bool,
) -> Result<Outcome, TrainError> {
    let begun = Instant::now();
    let resuming = claim.holds_run();
    let planned = plan(setup, claim.dir(), resuming)?;
    event(Event::Planned(&planned.plan));
    let note = sample::turn_end_note(&setup.config, &setup.tokenizer, &setup.train);
    note.into_iter().for_each(|text| event(Event::Note { text }));
    refuse_what_cannot_fit(&planned.plan)?;
    match resuming {
        true => claim.dir().update(setup, &planned.plan)?,
        false => claim.begin(setup, &planned.plan)?,
    }
    let dir = claim.dir();
    event(Event::Begun { settings: &dir.join("run.toml") });
    let device = device(setup, &planned);
    let held = Held::of(setup, planned.plan.offloaded_blocks);
    let engine = loading::engine(setup, &device, held)?;
    let mut run = Run {
        setup,
        silence: Silence::of(&engine.model.params),
        engine,
        // Texts are generated before there is one, since what they take is in no plan.
        arena: Arena::new(&device, 0)?,
        planned,
        dir,
        step: 0,
        cursor: Cursor::default(),
        order: setup.order()?,
        prepared: None,
        writer: Writer::default(),
        kept: begun,
        waiting: Waiting::start(),
        starving: Starving::default(),
    };
    if resuming {
        run.load_newest(event)?;
    }
    let mut logs = Logs::open(dir, run.step, event)?;
    let samples = run.samples_before(event)?;
    device.release_free_memory();
    run.arena = Arena::new(&device, run.planned.plan.arena_bytes as usize)?;
    (run.kept, run.waiting) = (Instant::now(), Waiting::start());
    let first_step = run.step;
    while run.step < setup.num_steps {
        // Before the first step and every so many; where that is 0, before the first only. A run
        // that was stopped here does it when it goes on, so that its checkpoint need not wait.
        if run.step.is_multiple_of(setup.run.train.eval_every_steps) {
            run.evaluate(&mut logs, event)?;
        }
        if options.profile && run.step == first_profiled(first_step, setup.num_steps) {
            device.start_recording();
        }
        let record = run.train_step(&mut logs).map_err(|error| error.in_step(run.step + 1))?;
        run.step_done(&record, event);
        run.profile_done(options, first_step, event)?;
        failpoint::hit("loop.step_done");
        let stopping = stop();
        let due = run.checkpoint_is_due();
        let last = stopping || run.step == setup.num_steps;
        if due || last {
            logs.sync()?;
            run.save_checkpoint(event)?;
        }
        run.writer.settle(last, event)?;
        if stopping && run.step < setup.num_steps {
            return Ok(Outcome::Interrupted { step: run.step });
        }
    }
    run.evaluate(&mut logs, event)?;
    run.finish(samples, begun, event).map(Outcome::Finished)
}

/// The device as the run is to find it.
fn device(setup: &Setup, planned: &Planned) -> Device {
    let device = setup.backend.device();
    device.reserve(planned.scratch_bytes, planned.upload_bytes);
    if !setup.run.run.cuda_graphs {
        device.disable_graphs();
    }
    device
}

/// The step before the first that is recorded: all are, where there are few.
fn first_profiled(first_step: u64, num_steps: u64) -> u64 {
    if num_steps - first_step > PROFILE_SKIPS { first_step + PROFILE_SKIPS } else { first_step }
}

fn plan(setup: &Setup, dir: &RunDir, resuming: bool) -> Result<Planned, TrainError> {
    let profile = setup.backend.profile();
    if resuming {
        return planner::plan_with(setup, &profile, dir.check_same(setup)?);
    }
    planner::plan(setup, &profile)
}

fn refuse_what_cannot_fit(plan: &Plan) -> Result<(), TrainError> {
    if plan.fits {
        return Ok(());
    }
    let (memory, needed, free) = match plan.host_free_bytes {
        Some(free) => ("the CPU's memory", plan.host_bytes(), free),
        None => ("memory", plan.needed_bytes(), plan.budget_bytes.unwrap_or(0)),
    };
    Err(TrainError::Usage(
        Code::MemoryDoesNotFit,
        format!(
            "this run needs {} of {memory}, and {} may be taken. What would make it fit:\n  {}",
            report::format_bytes(needed),
            report::format_bytes(free),
            plan.suggestions.join("\n  ")
        ),
    ))
}

/// The files that grow with the run.
struct Logs {
    metrics: Lines,
    evaluations: Lines,
    rows: Lines,
}

impl Logs {
    fn open(
        dir: &RunDir,
        last_step: u64,
        event: &mut dyn FnMut(Event<'_>),
    ) -> Result<Self, TrainError> {
        let logs = Self {
            metrics: Lines::open::<StepRecord>(&dir.join("metrics.jsonl"), last_step)?,
            evaluations: Lines::open::<EvalRecord>(&dir.join("eval.jsonl"), last_step)?,
            rows: Lines::open::<RowsRecord>(&dir.join("rows.jsonl"), last_step)?,
        };
        let damage = [&logs.metrics, &logs.evaluations, &logs.rows].map(Lines::damage);
        damage.into_iter().flatten().for_each(|text| event(Event::Note { text }));
        Ok(logs)
    }

    fn sync(&self) -> Result<(), TrainError> {
        self.metrics.sync()?;
        self.evaluations.sync()?;
        self.rows.sync()
    }
}

/// A run under way.
struct Run<'a> {
    setup: &'a Setup,
    engine: Engine,
    arena: Arena,
    planned: Planned,
    dir: &'a RunDir,
    /// Steps done.
    step: u64,
    cursor: Cursor,
    order: Order,
    /// Where the next step is, and its data, got ready while a GPU was busy.
    prepared: Option<(Cursor, StepData)>,
    writer: Writer,
    /// When training went on, or the last checkpoint was taken.
    kept: Instant,
    waiting: Waiting,
    starving: Starving,
    silence: Silence,
}

/// What an optimizer step learns from.
struct StepData {
    batches: Vec<LabelledBatch>,
    /// Scored before the first gradient, and not learnt from.
    probes: Vec<LabelledBatch>,
    /// Row ids of each micro-batch.
    rows: Vec<Vec<u32>>,
    num_targets: usize,
    /// Terms of the objective's loss.
    num_terms: usize,
    /// Tokens, padding not counted.
    num_tokens: u64,
}

impl Run<'_> {
    /// One optimizer step.
    fn train_step(&mut self, logs: &mut Logs) -> Result<StepRecord, TrainError> {
        let begun = Instant::now();
        self.engine.device.mark("batch");
        let prepared = self.prepared.take().map(|(_, data)| data);
        let mut step = match prepared {
            Some(prepared) => prepared,
            None => self.step_data(self.cursor, self.step)?,
        };
        let data = begun.elapsed().as_secs_f64();

        let passes = Instant::now();
        let statistics = self.score_ahead(&mut step)?;
        let (mut loss, mut metrics) = self.accumulate(&step, &statistics)?;
        if failpoint::hit_io("loop.nonfinite").is_err() {
            loss = f64::NAN;
        }
        self.prepare_next()?;
        let gradients = self.retry_overflow(&step, &statistics, (&mut loss, &mut metrics))?;
        let norm = gradients.global;
        let forward_backward = passes.elapsed().as_secs_f64();

        let updating = Instant::now();
        let learning_rate = self.schedule().learning_rate(self.step);
        let skipped = self.refuse_nonfinite(loss, norm)?;
        failpoint::hit("loop.before_update");
        if !skipped {
            self.engine.update(learning_rate, norm)?;
        }
        failpoint::hit("loop.updated");
        self.engine.device.synchronize();
        self.engine.device.settle()?;
        let optimizer = updating.elapsed().as_secs_f64();

        self.engine.device.mark("between_steps");

        self.step += 1;
        match &self.prepared {
            Some((next, _)) => self.cursor = *next,
            None => self.order.advance(&mut self.cursor),
        }
        let step_seconds = begun.elapsed().as_secs_f64();
        let record = StepRecord {
            step: self.step,
            loss: Some(loss).filter(|x| x.is_finite()),
            learning_rate,
            grad_norm: Some(norm).filter(|x| x.is_finite()),
            tokens: step.num_tokens,
            target_tokens: step.num_targets as u64,
            tokens_per_second: step.num_tokens as f64 / step_seconds,
            step_seconds,
            peak_bytes: self.setup.backend.peak_bytes(),
            phases: Phases { data, forward_backward, optimizer },
            skipped,
            metrics: metrics.means(),
            expert_load: self.engine.mixture.expert_loads(&self.setup.config),
            no_gradient: self.silence.note(&gradients.is_zero),
        };
        logs.metrics.push(&record)?;
        logs.rows.push(&RowsRecord { step: self.step, micro_batches: step.rows })?;
        Ok(record)
    }

    /// Tells of a step, and if a GPU refused to launch passes as a whole.
    fn step_done(&mut self, record: &StepRecord, event: &mut dyn FnMut(Event<'_>)) {
        event(Event::Step(record));
        let waited = self.waiting.note(self.setup.threads);
        let starved = self.starving.note(&record.expert_load);
        let notes = [waited, starved, silence::note(&record.no_gradient)];
        notes.into_iter().flatten().for_each(|text| event(Event::Note { text }));
        if let Some(why) = self.engine.device.take_graph_error() {
            let text = format!("passes are not launched as CUDA graphs: {why}");
            event(Event::Note { text });
        }
    }

    /// Writes the profile, if its last step is done.
    fn profile_done(
        &self,
        options: Options,
        first_step: u64,
        event: &mut dyn FnMut(Event<'_>),
    ) -> Result<(), TrainError> {
        let before = first_profiled(first_step, self.setup.num_steps);
        let last = (before + PROFILE_STEPS).min(self.setup.num_steps);
        if !options.profile || self.step != last {
            return Ok(());
        }
        let spans = self.engine.device.take_recording();
        let (num_steps, compute) = ((last - before) as usize, self.engine.compute);
        let profile = StepProfile::new(spans, num_steps, &self.planned.profile, compute);
        let path = self.dir.join("profile.json");
        write_file_whole(&path, profile.trace().to_string().as_bytes())?;
        event(Event::Profiled { profile: &profile, trace: &path });
        Ok(())
    }

    fn packing(&self) -> Packing {
        self.planned.policy.packing(self.setup)
    }

    /// The micro-batches of `step`, which begins at `cursor`.
    fn step_data(&mut self, cursor: Cursor, step: u64) -> Result<StepData, TrainError> {
        let (packing, dataset) = (self.packing(), &self.setup.train);
        let units = self.order.step(&cursor).chunks(packing.units_per_batch);
        let packed: Vec<MicroBatch> = units
            .map(|units| MicroBatch::assemble(dataset, units, packing.batch_tokens()))
            .map(|packed| masking::masked(self.setup.masking.as_ref(), step, packed))
            .collect();
        let rows: Vec<Vec<u32>> = packed.iter().map(|packed| packed.rows.clone()).collect();
        let objective = &*self.engine.objective;
        let probes = packing.probes(objective, dataset, &rows.concat())?;
        let target = self.engine.device.target();
        let labelled = |packed: &MicroBatch| LabelledBatch::new(&self.setup.config, packed, target);
        let used = |packed: &MicroBatch| packed.cu_seqlens.last().map_or(0, |&end| u64::from(end));
        let batches: Vec<LabelledBatch> = packed.iter().map(labelled).collect();
        Ok(StepData {
            num_terms: batches.iter().map(|batch| objective.num_terms(&batch.rows)).sum(),
            probes: probes.iter().map(labelled).collect(),
            num_targets: packed.iter().map(|packed| packed.num_target_tokens).sum(),
            num_tokens: packed.iter().map(used).sum(),
            batches,
            rows,
        })
    }

    /// Prefetches the next step's batches while the GPU is busy.
    fn prepare_next(&mut self) -> Result<(), TrainError> {
        let busy = self.engine.device.target() == Target::Cuda;
        if busy && self.step + 1 < self.setup.num_steps {
            let mut next = self.cursor;
            self.order.advance(&mut next);
            self.prepared = Some((next, self.step_data(next, self.step + 1)?));
        }
        Ok(())
    }

    /// What must be known before the first gradient: the reference's log-probabilities, and the
    /// objective's statistics.
    fn score_ahead(&mut self, step: &mut StepData) -> Result<Statistics, DeviceError> {
        let Self { engine, arena, planned, .. } = self;
        let mut scorer = scorer(engine, arena, planned);
        scorer.add_reference(&mut step.batches)?;
        let probes = std::mem::take(&mut step.probes);
        let statistics = scorer.statistics(&*engine.objective, probes)?;
        if engine.mixture.coefficient > 0.0 {
            let loads = scorer.router_loads(&step.batches)?;
            engine.mixture.balance(&loads);
        }
        Ok(statistics)
    }

    /// Gradients of the whole step, its loss and metrics.
    fn accumulate(
        &mut self,
        step: &StepData,
        statistics: &Statistics,
    ) -> Result<(f64, Metrics), DeviceError> {
        // A failure of this shows in the first pass.
        self.engine.gradients.clear(&self.engine.device);
        let device = self.engine.device.clone();
        let recompute = self.planned.policy.recompute;
        let context = StepContext { num_terms: step.num_terms, statistics, recompute };
        let (mut loss, mut metrics) = (0.0, Metrics::default());
        self.engine.mixture.clear();
        let balancing_loss = self.engine.mixture.balancing_loss();
        balancing_loss.into_iter().for_each(|loss| metrics.add("router_aux_loss", loss));
        for (i, batch) in step.batches.iter().enumerate() {
            let seed = self.setup.run.train.seed;
            let key = StepKey { seed, step: self.step, micro_batch: i as u32 };
            loss += device.planned(&mut self.arena, &self.planned.train_layout, || {
                if failpoint::hit_io("loop.out_of_memory").is_err() {
                    device.fail(DeviceError::out_of_host_memory(1 << 30));
                }
                self.engine.forward_backward(batch, context, key, &mut metrics)
            })?;
            failpoint::hit("loop.micro_batch_done");
        }
        Ok((loss, metrics))
    }

    /// The norms of the step's gradients. In f16, where they overflowed, it is taken again, as if
    /// it had begun with a smaller factor, until they do not; if none helps, the factor was not at
    /// fault and stays.
    fn retry_overflow(
        &mut self,
        step: &StepData,
        statistics: &Statistics,
        (loss, metrics): (&mut f64, &mut Metrics),
    ) -> Result<GradNorm, DeviceError> {
        let (before, mut norm) = (self.engine.loss_scale, self.engine.grad_norm()?);
        while loss.is_finite() && !norm.global.is_finite() && self.engine.loss_scale.halve() {
            (*loss, *metrics) = self.accumulate(step, statistics)?;
            norm = self.engine.grad_norm()?;
        }
        match loss.is_finite() && norm.global.is_finite() {
            true => self.engine.loss_scale.update(self.engine.compute),
            false => self.engine.loss_scale = before,
        }
        Ok(norm)
    }

    /// Whether the update must be left out; an error where the run must stop.
    fn refuse_nonfinite(&self, loss: f64, norm: f64) -> Result<bool, TrainError> {
        let what = match (loss.is_finite(), norm.is_finite()) {
            (true, true) => return Ok(false),
            (false, _) => "the loss",
            (true, false) => "the gradient",
        };
        match self.setup.run.train.on_nonfinite {
            OnNonfinite::Skip => Ok(true),
            OnNonfinite::Stop => Err(TrainError::NonFinite { step: self.step + 1, what }),
        }
    }

    fn schedule(&self) -> Schedule {
        let train = &self.setup.run.train;
        Schedule {
            kind: self.setup.run.schedule.clone(),
            peak: train.learning_rate,
            warmup_steps: train.num_warmup_steps(self.setup.num_steps),
            num_steps: self.setup.num_steps,
        }
    }
}

/// Scoring passes of a run's engine, within its plan.
fn scorer<'a>(engine: &'a Engine, arena: &'a mut Arena, planned: &'a Planned) -> Scorer<'a> {
    let layout = &planned.eval_layout;
    let reference_layout = planned.reference_layout.as_ref();
    let plan = Some(ScoringPlan { arena, layout, reference_layout });
    Scorer { pass: engine.pass(), reference: engine.reference.as_ref(), plan }
}
