//! How long a command will take, and how much memory: said before it takes long.

use super::super::Opened;
use super::calibration::{IMPORTANCE_WINDOWS, finds_importance, has_importance};
use super::rounding::{CHOOSING_WINDOWS, FEEDBACK_WINDOWS, Used, kept_in, schedule};
use super::types::{self, Wanted};
use super::work::{COSTS, IMPORTANCE, Stage, Work};
use super::{back, comparison, gguf};
use crate::args::CompressArgs;
use crate::failure::Failure;
use crate::output;
use hone_compress::{
    Corpus, Goal, Kept, Samples, Schedule, TRIALS, Window, feedback_bytes, learning_bytes, near,
};
use hone_model::GgufForm;
use hone_tensor::Storage;
use hone_train::machine::resident_bytes;
use hone_train::report::{format_bytes, format_seconds};
use serde::Serialize;

/// What is expected of the rest of a command.
#[derive(Serialize)]
pub(super) struct Estimate {
    pub(super) seconds: f64,
    /// Most bytes of the CPU's memory.
    pub(super) memory_bytes: u64,
    /// Those that are left.
    pub(super) stages: Vec<Stage>,
}

/// Products and sums that take so little time that samples of them would take a part of it.
const FEW: f64 = 2e10;
/// Seconds that are not spoken of.
const SHORT: f64 = 10.0;

/// What is known before anything is computed.
#[derive(Clone, Copy)]
pub(super) struct Known<'a> {
    pub(super) args: &'a CompressArgs,
    pub(super) wanted: Wanted,
    pub(super) opened: &'a Opened,
    pub(super) form: &'a GgufForm<'a>,
    pub(super) corpus: &'a Corpus,
    /// What roundings go through.
    pub(super) used: Used,
    pub(super) work: &'a Work,
}

/// What the rest of a command takes, from short samples of its stages; `None` where that is too
/// little for samples. Says so if it is long.
///
/// # Errors
/// If the device failed.
pub(super) fn estimate(known: Known<'_>) -> Result<Option<Estimate>, Failure> {
    if known.operations() < FEW {
        return Ok(None);
    }
    let resident = resident_bytes().unwrap_or(0);
    let (stages, more) = known.stages()?;
    let seconds = stages.iter().map(|stage| stage.seconds).sum();
    let estimate = Estimate { seconds, memory_bytes: resident + more, stages };
    if seconds >= SHORT {
        output::note(&estimate.words());
    }
    Ok(Some(estimate))
}

impl Known<'_> {
    fn finds_importance(&self) -> bool {
        let is_kept = self.work.path(IMPORTANCE).exists();
        !is_kept && finds_importance(self.args, self.corpus)
    }

    /// The goal of types that are to be chosen.
    fn goal(&self) -> Option<Goal> {
        self.wanted.goal(self.opened).filter(|_| types::kept(self.work, self.form).is_none())
    }

    /// About the products and sums of all stages.
    fn operations(&self) -> f64 {
        let Self { args, corpus, used, .. } = *self;
        let windows = corpus.calibration.len();
        let mut passes = 3 * corpus.held_out.len();
        if self.finds_importance() {
            passes += windows.min(IMPORTANCE_WINDOWS);
        }
        if used.feedback {
            passes += 4 * windows.min(FEEDBACK_WINDOWS);
        }
        let mut of_weight = 2 * passes * corpus.calibration.first().map_or(0, Window::num_tokens);
        if used.learning {
            let Schedule { steps, tokens_per_step } = schedule(args);
            of_weight += 8 * steps * tokens_per_step;
        }
        // Searches for scales, in one type or in all.
        of_weight += if self.goal().is_some() { 2000 } else { 100 };
        of_weight as f64 * self.opened.model.decoder.config.num_parameters() as f64
    }

    /// Seconds of the stages that are left, and the most bytes that one of them takes.
    fn stages(&self) -> Result<(Vec<Stage>, u64), Failure> {
        let Self { args, opened, form, corpus, used, work, .. } = *self;
        let is_written = work.has_written(form);
        let compared = comparison::windows(opened, corpus)?;
        let window = corpus.calibration.first().unwrap_or(&compared[0]);
        let samples = Samples::new(opened.pass(), form, (window, work.room()))?;
        let (windows, mut stages) = (corpus.calibration.len(), Vec::new());
        let mut add = |name, seconds| stages.push(Stage { name, seconds });
        let mut bytes = samples.forward_bytes(windows.min(IMPORTANCE_WINDOWS));
        if self.finds_importance() {
            add("importance", samples.importance(windows.min(IMPORTANCE_WINDOWS))?);
        }
        let storages = self.storages()?;
        let packing = match is_written {
            true => 0.0,
            false => samples.packing(&storages, has_importance(args, corpus))?,
        };
        let feedback = |kept: Kept<'_>| {
            let count = windows.min(FEEDBACK_WINDOWS);
            samples.feedback(&storages, count, kept).map_err(back)
        };
        if let Some(goal) = self.goal() {
            let counts = types::windows(goal, corpus).map(|of| of.len());
            let costs: Vec<u64> = work.json(COSTS).unwrap_or_default();
            let (num_trials, trials) = match goal {
                Goal::Kl(_) if used.feedback => (TRIALS, TRIALS as f64 * feedback(&|_, _| None)?),
                _ => (0, 0.0),
            };
            let seconds = samples.types(goal, counts, (costs.len(), num_trials));
            add("types", trials + seconds.map_err(|error| types::failure(args, error))?);
            bytes = bytes.max(samples.types_bytes(counts[0]));
        }
        let packed =
            if used.any() { form.num_bytes(&storages).map_err(gguf::failure)? } else { 0 };
        let deciding = samples.comparing(corpus.choosing.len().min(CHOOSING_WINDOWS), 2);
        if used.feedback {
            let files = work.matrices();
            let kept = |tensor, part| kept_in(&files, tensor, part);
            let windows = corpus.some(FEEDBACK_WINDOWS);
            add("feedback", packing + feedback(&kept)? + deciding);
            bytes = bytes.max(packed + feedback_bytes(&opened.model, &windows));
        }
        if used.learning {
            let done = work.learned().map_or(0, |whole| whole.step as usize);
            let schedule = schedule(args);
            let seconds = samples.learning(schedule, windows, done)?;
            let packing = if used.feedback { 0.0 } else { packing };
            add("roundings", packing + seconds + deciding);
            let learning = learning_bytes(&opened.model, &corpus.calibration, schedule);
            bytes = bytes.max(2 * packed + learning);
        }
        // What was rounded is copied, which takes next to nothing.
        if !is_written && !used.any() {
            add("file", packing);
        }
        add("comparison", samples.comparing(compared.len(), 1));
        Ok((stages, bytes))
    }

    /// The types of tensors, or such as they may become.
    fn storages(&self) -> Result<Vec<Storage>, Failure> {
        let Self { args, wanted, opened, form, corpus, work, .. } = *self;
        if let Some(types) = types::kept(work, form) {
            return Ok(types.storages());
        }
        match wanted {
            Wanted::Mix(mix) => {
                let types = types::of_mix(args, opened, (mix, form), has_importance(args, corpus))?;
                Ok(types.storages())
            }
            Wanted::Bits(_) | Wanted::Bytes(_) | Wanted::Kl(_) => {
                Ok(near(opened.pass(), form, wanted.bits(opened)))
            }
        }
    }
}

impl Estimate {
    fn words(&self) -> String {
        let stage = |stage: &Stage| format!("{} {}", stage.name, format_seconds(stage.seconds));
        let stages: Vec<String> = self.stages.iter().map(stage).collect();
        format!(
            "about {}: {}; memory {}",
            format_seconds(self.seconds),
            stages.join(", "),
            format_bytes(self.memory_bytes)
        )
    }
}
