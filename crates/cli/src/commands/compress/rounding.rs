//! Roundings beyond the nearest value.

use super::super::Opened;
use super::back;
use super::work::{FEEDBACK_GAIN, LEARNED, LEARNING_GAIN, Pending, Work, name_of};
use crate::args::{CompressArgs, EffortArg, TechniqueArg};
use crate::failure::Failure;
use crate::{output, progress};
use clap::ValueEnum;
use hone_compress::{
    BackError, Begun, Columns, Corpus, Done, Kept, Meter, Schedule, Snapshot, fed_back,
    feedback_bytes, learning_bytes, packed, tune,
};
use hone_model::{GgufForm, Model};
use hone_tensor::safetensors::{Lazy, SafeTensorsFile, write};
use hone_tensor::{DeviceError, Storage};
use hone_train::checkpoint::{self, Whole};
use hone_train::machine::available_memory;
use hone_train::report::format_bytes;
use std::path::Path;

/// Tokens of an update.
const TOKENS_PER_STEP: usize = 1024;
/// Updates with the default effort, and with the best.
const STEPS: [usize; 2] = [96, 768];
/// Windows that decide whether learning gained anything.
pub(super) const CHOOSING_WINDOWS: usize = 16;
/// Windows that the curvature is taken from.
pub(super) const FEEDBACK_WINDOWS: usize = 32;

const ROUNDED: &str = "blocks, forward and back, and rounded";

/// Refuses what can be seen to be wrong before anything is read.
pub(super) fn check(args: &CompressArgs) -> Result<(), Failure> {
    // Their numbers are held where the CPU reads them.
    if args.model.device.starts_with("cuda") && is_rounded(args) {
        return Err(Failure::Usage(format!(
            "--device {}: errors are fed back, and roundings learned, on the CPU; give --device \
             cpu, or --effort plain",
            args.model.device
        )));
    }
    let is_rounding = |of: &&TechniqueArg| **of != TechniqueArg::Importance;
    let unused = args.without.iter().find(is_rounding).and_then(ValueEnum::to_possible_value);
    if let (EffortArg::Plain, Some(unused)) = (args.effort(), unused) {
        return Err(Failure::Usage(format!(
            "--without {}: --effort plain does not use it; omit one of them",
            unused.get_name()
        )));
    }
    Ok(())
}

/// Whether the options ask for more than the nearest values.
fn is_rounded(args: &CompressArgs) -> bool {
    !args.calibration.is_empty() && Used::of(args).any()
}

/// Takes the CPU where it is needed and no device is named.
pub(super) fn choose_device(args: &mut CompressArgs) {
    if args.model.device == "auto" && is_rounded(args) {
        args.model.device = "cpu".to_owned();
    }
}

/// The techniques that are used.
#[derive(Clone, Copy, Default)]
pub(super) struct Used {
    pub(super) feedback: bool,
    pub(super) learning: bool,
}

impl Used {
    /// Those of the options, if there is text.
    fn of(args: &CompressArgs) -> Self {
        let is_used = |of| args.effort() != EffortArg::Plain && !args.without.contains(&of);
        Self {
            feedback: is_used(TechniqueArg::Feedback),
            learning: is_used(TechniqueArg::Learning),
        }
    }

    /// Whether matrices are rounded before the file is written.
    pub(super) fn any(self) -> bool {
        self.feedback || self.learning
    }
}

/// The techniques that there is text for, if anything is left to be rounded.
///
/// # Errors
/// If there is no memory for one of them: a file must not depend on what else a machine runs.
pub(super) fn used(
    args: &CompressArgs,
    opened: &Opened,
    (form, corpus): (&GgufForm<'_>, &Corpus),
    work: &Work,
) -> Result<Used, Failure> {
    if corpus.calibration.is_empty() || work.has_written(form) {
        return Ok(Used::default());
    }
    let used = Used::of(args);
    if used.feedback {
        let needed = feedback_bytes(&opened.model, &corpus.some(FEEDBACK_WINDOWS));
        check_memory(needed, "feed errors back", "--effort plain")?;
    }
    if used.learning {
        let needed = learning_bytes(&opened.model, &corpus.calibration, schedule(args));
        check_memory(needed, "learn roundings", "--without learning")?;
    }
    Ok(used)
}

/// How long roundings are learned.
pub(super) fn schedule(args: &CompressArgs) -> Schedule {
    let steps = STEPS[usize::from(args.effort() == EffortArg::Best)];
    Schedule { steps, tokens_per_step: TOKENS_PER_STEP }
}

/// The model in these types, with roundings as good as the techniques make them; `None` if each
/// weight takes the nearest value.
pub(super) fn rounded(
    used: Used,
    opened: &Opened,
    (form, corpus): (&GgufForm<'_>, &Corpus),
    (types, schedule): ((&[Storage], &Columns), Schedule),
    work: &Work,
) -> Result<Option<Model>, Failure> {
    if !used.any() {
        return Ok(None);
    }
    let trial = Trial::new(opened, corpus, work)?;
    let nearest = || Ok(packed(opened.pass(), form, types, &|_, _| None)?);
    let model = match used.feedback {
        true => work.timed("feedback", || {
            let fed = || with_feedback(opened, (form, corpus), types, work);
            match trial.known(&FEEDBACK) {
                Some(true) => fed(),
                Some(false) => nearest(),
                None => {
                    // One after the other, so that only one is in memory.
                    let before = trial.kl(&nearest()?)?;
                    let fed = fed()?;
                    let gains = trial.gains(&FEEDBACK, [before, trial.kl(&fed)?]);
                    if gains { Ok(fed) } else { nearest() }
                }
            }
        })?,
        false => work.timed("roundings", nearest)?,
    };
    if !used.learning || trial.known(&LEARNING) == Some(false) {
        return Ok(Some(model));
    }
    work.timed("roundings", || {
        let learned = learned(opened, (form, corpus), (&model, schedule), work)?;
        let gains = match trial.known(&LEARNING) {
            Some(gains) => gains,
            None => trial.gains(&LEARNING, [trial.kl(&model)?, trial.kl(&learned)?]),
        };
        Ok(Some(if gains { learned } else { model }))
    })
}

/// A technique that is used where it gains something.
struct Technique {
    /// Where divergences without and with it are kept.
    file: &'static str,
    /// What it gives, in the plural.
    name: &'static str,
}

const FEEDBACK: Technique = Technique { file: FEEDBACK_GAIN, name: "roundings with feedback" };
const LEARNING: Technique = Technique { file: LEARNING_GAIN, name: "learned roundings" };

/// Compares models on text that none was made with.
struct Trial<'a> {
    /// Nothing where there is no such text: what is tried is taken then.
    meter: Option<Meter<'a>>,
    work: &'a Work,
}

impl<'a> Trial<'a> {
    fn new(opened: &'a Opened, corpus: &Corpus, work: &'a Work) -> Result<Self, DeviceError> {
        let windows = &corpus.choosing[..corpus.choosing.len().min(CHOOSING_WINDOWS)];
        let meter = match windows.is_empty() {
            true => None,
            false => Some(Meter::new(opened.pass(), windows)?),
        };
        Ok(Self { meter, work })
    }

    /// How far a model is from the original.
    fn kl(&self, model: &Model) -> Result<f64, DeviceError> {
        self.meter.as_ref().map_or(Ok(0.0), |meter| Ok(meter.measure(model)?.kl))
    }

    /// What another process found of a technique.
    fn known(&self, technique: &Technique) -> Option<bool> {
        let kept: [u64; 2] = self.work.json(technique.file)?;
        let [before, after] = kept.map(f64::from_bits);
        Some(after <= before)
    }

    /// Whether a technique is no loss, where divergences are so much without and with it; keeps
    /// them, and says so if it is one.
    fn gains(&self, technique: &Technique, [before, after]: [f64; 2]) -> bool {
        self.work.keep_json(technique.file, &[before, after].map(f64::to_bits));
        if after > before {
            output::note(&format!(
                "note: {} were no better ({after:.4} nats per token against {before:.4} on text \
                 that they were not made with), and are not used",
                technique.name
            ));
        }
        after <= before
    }
}

/// The bytes of a matrix in files of them.
pub(super) fn kept_in(files: &[SafeTensorsFile], tensor: usize, part: usize) -> Option<&[u8]> {
    let name = name_of(tensor, part);
    files.iter().find_map(|file| file.raw(&name)).map(|raw| raw.bytes)
}

/// The model in these types, rounded by error feedback. Matrices are kept.
fn with_feedback(
    opened: &Opened,
    of: (&GgufForm<'_>, &Corpus),
    types: (&[Storage], &Columns),
    work: &Work,
) -> Result<Model, Failure> {
    let files = work.matrices();
    let kept = &|tensor, part| kept_in(&files, tensor, part);
    let pending = Pending::after(work, files.len());
    fed(opened, of, types, (kept, Some(pending)), work).map_err(back)
}

/// The model in types that may not stay, rounded by error feedback. Nothing is kept.
pub(super) fn trial_feedback(
    opened: &Opened,
    of: (&GgufForm<'_>, &Corpus),
    types: (&[Storage], &Columns),
    work: &Work,
) -> Result<Model, BackError> {
    fed(opened, of, types, (&|_, _| None, None), work)
}

/// The model in these types, rounded by error feedback but for what is kept; matrices are kept with
/// those that are pending, if there are such.
fn fed(
    opened: &Opened,
    (form, corpus): (&GgufForm<'_>, &Corpus),
    types: (&[Storage], &Columns),
    (kept, mut pending): (Kept<'_>, Option<Pending<'_>>),
    work: &Work,
) -> Result<Model, BackError> {
    let model = packed(opened.pass(), form, types, kept)?;
    let bar = progress::bar(2 * opened.model.decoder.config.num_hidden_layers(), ROUNDED);
    let mut done = |done: Done<'_>| match done {
        Done::Forward | Done::Back => bar.inc(1),
        Done::Matrix(place, matrix) => {
            if let Some(pending) = &mut pending {
                pending.add(place, matrix);
            }
        }
    };
    let text = (&corpus.some(FEEDBACK_WINDOWS)[..], work.room());
    let model = fed_back(opened.pass(), form, &model, text, kept, &mut done)?;
    bar.finish_and_clear();
    Ok(model)
}

/// The model with roundings learned in so many updates, of which some are kept.
fn learned(
    opened: &Opened,
    (form, corpus): (&GgufForm<'_>, &Corpus),
    (model, schedule): (&Model, Schedule),
    work: &Work,
) -> Result<Model, DeviceError> {
    let root = work.path(LEARNED);
    let begun = work.learned().and_then(|whole| read(&whole));
    let bar = progress::bar(schedule.steps, "updates of roundings");
    bar.set_position(begun.as_ref().map_or(0, |begun| begun.step as u64));
    let mut done = |snapshot: Snapshot<'_>| {
        bar.inc(1);
        bar.set_message(format!("updates of roundings, KL {:.4}", snapshot.kl));
        let numbers = snapshot.numbers();
        let bytes = numbers.iter().map(|(_, of)| of.num_bytes() as u64).sum();
        if work.is_due(bytes) {
            let fill = |dir: &Path| {
                let all = numbers.into_iter().map(|(name, of)| (name, Lazy::Ready(of.clone())));
                write(&dir.join(NUMBERS), all)
            };
            let step = snapshot.step as u64;
            work.keep(bytes, || {
                checkpoint::write(&root, step, fill)?;
                Ok(checkpoint::prune(&root, step, 1)?)
            });
        }
    };
    let text = (&corpus.calibration[..], schedule);
    let learned = tune(opened.pass(), form, model, text, begun, &mut done)?;
    bar.finish_and_clear();
    Ok(learned)
}

/// The file of a checkpoint.
const NUMBERS: &str = "numbers.safetensors";

/// What a checkpoint has; `None` if that cannot be read.
fn read(whole: &Whole) -> Option<Begun> {
    let file = SafeTensorsFile::open(&whole.dir.join(NUMBERS)).ok()?;
    let number = |name: String| {
        let tensor = file.tensor(&name).ok()??;
        Some((name, tensor))
    };
    let numbers = file.names().into_iter().map(number).collect::<Option<_>>()?;
    Some(Begun { step: whole.step as usize, numbers })
}

/// Refuses to do what there is no memory for.
fn check_memory(needed: u64, what: &str, without: &str) -> Result<(), Failure> {
    match available_memory() {
        Some(free) if needed > free => Err(Failure::Usage(format!(
            "--effort: to {what} takes about {} of memory, and {} are free; give {without}, or \
             free memory",
            format_bytes(needed),
            format_bytes(free)
        ))),
        _ => Ok(()),
    }
}
