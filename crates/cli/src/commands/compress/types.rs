//! The type of each tensor: as a mix has it, or chosen for a size or a divergence.

use super::super::Opened;
use super::back;
use super::calibration::has_importance;
use super::rounding::{Used, trial_feedback};
use super::work::{COSTS, TYPES, Work};
use crate::args::{CompressArgs, FallbackArg};
use crate::failure::Failure;
use crate::progress;
use hone_compress::{
    Allocation, Choice, Columns, Corpus, Facts, Fallback, Goal, Ledger, Meter, Mix, PlanError,
    Planner, Scheme, Sensitivity, Stored, Trial, Window, choose,
};
use hone_model::GgufForm;
use hone_tensor::Storage;
use hone_train::run_file::ByteSize;
use hone_train::{Code, TrainError};
use serde::{Deserialize, Serialize};

/// The mix that is taken where nothing is asked for.
const DEFAULT: &str = "q4_k_m";

/// Windows from which gradients are taken, and as many others on which choices are measured.
const WINDOWS: usize = 4;

/// What is asked for.
#[derive(Clone, Copy)]
pub(super) enum Wanted {
    Mix(Mix),
    /// Bits per weight of the whole file.
    Bits(f64),
    /// Bytes of the whole file.
    Bytes(u64),
    /// The largest divergence.
    Kl(f64),
}

/// The types of all tensors.
pub(super) struct Types {
    pub(super) choices: Vec<Choice>,
    /// Each tensor's share of the divergence, where it was predicted.
    pub(super) shares: Option<Vec<f64>>,
    /// The number of a mix that the file is in.
    pub(super) file_type: Option<u32>,
}

impl Wanted {
    /// What the flags ask for.
    pub(super) fn of(args: &CompressArgs) -> Result<Self, Failure> {
        if let Some(bits) = args.target_bpw {
            return Ok(Self::Bits(bits));
        }
        if let Some(size) = &args.target_size {
            let size = ByteSize::parse(size).ok_or_else(|| {
                let what = "is no size; give a number and a unit, such as 80MB or 1.5GiB";
                Failure::Usage(format!("--target-size {size}: {what}"))
            })?;
            return Ok(Self::Bytes(size.0));
        }
        if let (None, Some(kl), false) = (&args.mix, args.max_kl, args.calibration.is_empty()) {
            return match args.fallback {
                FallbackArg::Refuse => Ok(Self::Kl(kl)),
                FallbackArg::LlamaCpp => Err(Failure::Usage(
                    "--fallback llama.cpp: with --max-kl and text, each matrix gets a type that \
                     its rows can take; omit it, or name a --type"
                        .to_owned(),
                )),
            };
        }
        let mix = args.mix.as_deref().unwrap_or(DEFAULT);
        Mix::named(mix).map(Self::Mix).ok_or_else(|| {
            let names: Vec<&str> = Mix::names().collect();
            Failure::Usage(format!(
                "--type {mix}: is not known; known: {}; and in directories for other engines: {}",
                names.join(", "),
                Scheme::NAMES.join(", ")
            ))
        })
    }

    /// Refuses calibration text with which types cannot be chosen.
    pub(super) fn check(self, args: &CompressArgs, corpus: &Corpus) -> Result<(), Failure> {
        let needed = match self {
            Self::Mix(_) => return Ok(()),
            Self::Bits(_) | Self::Bytes(_) if corpus.held_out.is_empty() => "two, one",
            Self::Kl(_) if corpus.choosing.is_empty() => "three, one to choose on and one",
            _ => return Ok(()),
        };
        Err(Failure::Usage(format!(
            "--calibration {}: has too few windows of text that differ from each other: to choose \
             types takes {needed} to measure on; give more text",
            args.calibration.join(" ")
        )))
    }

    /// Refuses a mix that rows cannot take, before anything takes long.
    pub(super) fn check_rows(
        self,
        args: &CompressArgs,
        opened: &Opened,
        (form, corpus): (&GgufForm<'_>, &Corpus),
    ) -> Result<(), Failure> {
        let Self::Mix(mix) = self else { return Ok(()) };
        of_mix(args, opened, (mix, form), has_importance(args, corpus)).map(|_| ())
    }

    /// The types with which a model is as it is asked for.
    pub(super) fn types(
        self,
        args: &CompressArgs,
        opened: &Opened,
        (form, corpus, columns): (&GgufForm<'_>, &Corpus, &Columns),
        (used, work): (Used, &Work),
    ) -> Result<Types, Failure> {
        let goal = match (self, self.goal(opened)) {
            (Self::Mix(mix), _) => return of_mix(args, opened, (mix, form), !columns.is_empty()),
            (_, goal) => goal.expect("what is no mix has a goal"),
        };
        if let Some(types) = kept(work, form) {
            return Ok(types);
        }
        let of = (goal, corpus, used.feedback);
        let found = work.timed("types", || chosen(opened, (form, columns), of, work));
        let types = found.map_err(|error| failure(args, error))?;
        work.keep_json(TYPES, &Kept::of(&types));
        Ok(types)
    }

    /// What types are chosen for.
    pub(super) fn goal(self, opened: &Opened) -> Option<Goal> {
        let num_weights = opened.model.decoder.config.num_parameters() as f64;
        match self {
            Self::Mix(_) => None,
            Self::Bits(bits) => Some(Goal::Bytes((bits * num_weights / 8.0) as u64)),
            Self::Bytes(bytes) => Some(Goal::Bytes(bytes)),
            Self::Kl(kl) => Some(Goal::Kl(kl)),
        }
    }

    /// About the bits of a weight that it comes to, as far as that can be said.
    pub(super) fn bits(self, opened: &Opened) -> f64 {
        let num_weights = opened.model.decoder.config.num_parameters() as f64;
        match self {
            Self::Bits(bits) => bits,
            Self::Bytes(bytes) => 8.0 * bytes as f64 / num_weights,
            Self::Mix(_) | Self::Kl(_) => USUAL_BITS,
        }
    }
}

/// Bits of a weight where nothing is known.
const USUAL_BITS: f64 = 4.5;

/// Windows that gradients are taken from, and those that choices are measured on.
pub(super) fn windows(goal: Goal, corpus: &Corpus) -> [Vec<Window>; 2] {
    let both = corpus.some(2 * WINDOWS);
    // Of one window both are the same.
    let part = |first: usize| {
        both.iter().skip(first.min(both.len().saturating_sub(1))).step_by(2).cloned().collect()
    };
    match goal {
        Goal::Kl(_) => [part(0), corpus.choosing.clone()],
        Goal::Bytes(_) => [part(0), part(1)],
    }
}

/// Types that were chosen before.
pub(super) fn kept(work: &Work, form: &GgufForm<'_>) -> Option<Types> {
    let kept: Kept = work.json(TYPES)?;
    kept.types(form.tensors().len())
}

/// Why types were not chosen, in the words of flags.
pub(super) fn failure(args: &CompressArgs, error: PlanError) -> Failure {
    match error {
        PlanError::TooSmall { .. } => {
            let flag = match (args.target_bpw, &args.target_size) {
                (Some(bits), _) => format!("--target-bpw {bits}"),
                (_, Some(size)) => format!("--target-size {size}"),
                _ => unreachable!("a size was asked for"),
            };
            Failure::Usage(format!("{flag}: {error}"))
        }
        PlanError::TooExact { .. } => Failure::Usage(format!("--max-kl: {error}")),
        PlanError::NotFinite => TrainError::Usage(Code::ExportFailed, error.to_string()).into(),
        PlanError::Device(error) => error.into(),
        PlanError::Back(error) => back(error),
        PlanError::Form(error) => super::gguf::failure(error),
    }
}

/// As a mix has it.
pub(super) fn of_mix(
    args: &CompressArgs,
    opened: &Opened,
    (mix, form): (Mix, &GgufForm<'_>),
    has_importance: bool,
) -> Result<Types, Failure> {
    let fallback = match args.fallback {
        FallbackArg::Refuse => Fallback::Refuse,
        FallbackArg::LlamaCpp => Fallback::LlamaCpp,
    };
    let config = &opened.model.decoder.config;
    let facts = Facts::of(config, form.architecture(), has_importance);
    let stored: Vec<Stored<'_>> = form.tensors().iter().map(Stored::from).collect();
    let choices = choose(mix, &facts, &stored, fallback)
        .map_err(|error| Failure::Usage(error.to_string()))?;
    let is_mix = choices.iter().all(|choice| choice.instead_of.is_none());
    Ok(Types { choices, shares: None, file_type: is_mix.then_some(mix.file_type) })
}

/// As gradients on some windows and measurements on others say.
fn chosen(
    opened: &Opened,
    (form, columns): (&GgufForm<'_>, &Columns),
    (goal, corpus, feedback): (Goal, &Corpus, bool),
    work: &Work,
) -> Result<Types, PlanError> {
    let [first, other] = windows(goal, corpus);
    let known: Vec<u64> = work.json(COSTS).unwrap_or_default();
    let mut keep = |numbers: &[f64]| {
        if work.is_due(8 * numbers.len() as u64) {
            let bits: Vec<u64> = numbers.iter().map(|x| x.to_bits()).collect();
            work.keep_json(COSTS, &bits);
        }
    };
    let ledger = &mut Ledger::new(known.into_iter().map(f64::from_bits).collect(), &mut keep);
    let bar = progress::bar(form.tensors().len(), "tensors packed in all types");
    let mut measure = || {
        let steps = 2 * opened.model.decoder.config.num_hidden_layers();
        let bar = progress::bar(steps, "blocks, forward and back");
        let text = (&first[..], work.room());
        let found = Sensitivity::measure(opened.pass(), form, text, &mut || bar.inc(1));
        bar.finish_and_clear();
        found
    };
    let (model, known) = ((opened.pass(), form), (columns, work.room()));
    let mut planner = Planner::new(model, known, &mut measure, ledger, &mut || bar.inc(1))?;
    bar.finish_and_clear();
    let meter = Meter::new(opened.pass(), &other)?;
    let bar = progress::spinner("choices measured");
    let mut trial = |allocation: &Allocation| {
        let types = (&allocation.storages[..], columns);
        let fed = trial_feedback(opened, (form, corpus), types, work)?;
        Ok(meter.measure(&fed)?.kl)
    };
    let trial: Option<Trial<'_>> = if feedback { Some(&mut trial) } else { None };
    let allocation = planner.reach(goal, (&meter, trial), ledger, &mut || bar.inc(1))?;
    bar.finish_and_clear();
    Ok(Types::of(allocation.storages, allocation.shares))
}

impl Types {
    /// Types that were chosen.
    fn of(storages: Vec<Storage>, shares: Vec<f64>) -> Self {
        let choice = |storage| Choice { storage, instead_of: None };
        let choices = storages.into_iter().map(choice).collect();
        Self { choices, shares: Some(shares), file_type: None }
    }

    /// The type of each tensor.
    pub(super) fn storages(&self) -> Vec<Storage> {
        self.choices.iter().map(|choice| choice.storage).collect()
    }
}

/// Chosen types as they are kept.
#[derive(Serialize, Deserialize)]
struct Kept {
    storages: Vec<String>,
    /// The bits of shares, which other writing would round.
    shares: Vec<u64>,
}

impl Kept {
    fn of(types: &Types) -> Self {
        let name = |choice: &Choice| choice.storage.name().to_owned();
        let shares = types.shares.iter().flatten().map(|share| share.to_bits());
        Self { storages: types.choices.iter().map(name).collect(), shares: shares.collect() }
    }

    /// The types, if they are of so many tensors.
    fn types(&self, count: usize) -> Option<Types> {
        let storages = self.storages.iter().map(|name| Storage::from_name(name));
        let storages: Vec<Storage> = storages.collect::<Option<_>>()?;
        let shares: Vec<f64> = self.shares.iter().map(|bits| f64::from_bits(*bits)).collect();
        let is_whole = [storages.len(), shares.len()] == [count; 2];
        is_whole.then(|| Types::of(storages, shares))
    }
}
