//! Roundings beyond the nearest value.

use super::super::Opened;
use super::back;
use super::work::{GAIN, LEARNED, Pending, Work, name_of};
use crate::args::{CompressArgs, EffortArg, TechniqueArg};
use crate::failure::Failure;
use crate::{output, progress};
use hone_compress::{
    Begun, Columns, Corpus, Done, Meter, Schedule, Snapshot, fed_back, feedback_bytes,
    learning_bytes, packed, tune,
};
use hone_model::{GgufForm, Model};
use hone_tensor::safetensors::{Lazy, SafeTensorsFile, write};
use hone_tensor::{DeviceError, Storage};
use hone_train::checkpoint::{self, Whole, newest_whole};
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
    if args.effort == EffortArg::Plain && !args.without.is_empty() {
        return Err(Failure::Usage(
            "--without: --effort plain uses no technique that could be left out".to_owned(),
        ));
    }
    Ok(())
}

/// Whether the options ask for more than the nearest values.
fn is_rounded(args: &CompressArgs) -> bool {
    args.effort != EffortArg::Plain && !args.calibration.is_empty()
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
    /// Whether matrices are rounded before the file is written.
    pub(super) fn any(self) -> bool {
        self.feedback || self.learning
    }
}

/// The techniques of this effort that there is text and memory for; says which memory is missing.
pub(super) fn used(args: &CompressArgs, opened: &Opened, corpus: &Corpus, work: &Work) -> Used {
    if args.effort == EffortArg::Plain || corpus.calibration.is_empty() {
        return Used::default();
    }
    let is_used = |technique| !args.without.contains(&technique);
    let of_feedback = feedback_bytes(&opened.model, &corpus.some(FEEDBACK_WINDOWS));
    let feedback = is_used(TechniqueArg::Feedback);
    let learning = is_used(TechniqueArg::Learning);
    let of_learning = learning_bytes(&opened.model);
    Used {
        feedback: feedback && has_memory(work, of_feedback, "feed errors back"),
        learning: learning && has_memory(work, of_learning, "learn roundings"),
    }
}

/// How long roundings are learned.
pub(super) fn schedule(args: &CompressArgs) -> Schedule {
    let steps = STEPS[usize::from(args.effort == EffortArg::Best)];
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
    let mut model = match used.feedback {
        true => work.timed("feedback", || with_feedback(opened, (form, corpus), types, work))?,
        false => work.timed("roundings", || packed(opened.pass(), form, types, &|_, _| None))?,
    };
    if used.learning {
        let of = (model, schedule);
        model = work.timed("roundings", || with_learning(opened, (form, corpus), of, work))?;
    }
    Ok(Some(model))
}

/// The model, or that with learned roundings if it is better.
fn with_learning(
    opened: &Opened,
    of: (&GgufForm<'_>, &Corpus),
    (model, schedule): (Model, Schedule),
    work: &Work,
) -> Result<Model, Failure> {
    let gain: Option<[u64; 2]> = work.json(GAIN);
    match gain.map(|gain| gains_nothing(gain.map(f64::from_bits))) {
        Some(true) => Ok(model),
        Some(false) => Ok(learned(opened, of, (&model, schedule), work)?),
        None => {
            let learned = learned(opened, of, (&model, schedule), work)?;
            Ok(better(opened, of.1, [model, learned], work)?)
        }
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
    (form, corpus): (&GgufForm<'_>, &Corpus),
    types: (&[Storage], &Columns),
    work: &Work,
) -> Result<Model, Failure> {
    let files = work.matrices();
    let kept = &|tensor, part| kept_in(&files, tensor, part);
    let mut pending = Pending::after(work, files.len());
    let model = packed(opened.pass(), form, types, kept)?;
    let bar = progress::bar(2 * opened.model.decoder.config.num_hidden_layers(), ROUNDED);
    let mut done = |done: Done<'_>| match done {
        Done::Forward | Done::Back => bar.inc(1),
        Done::Matrix(place, matrix) => pending.add(place, matrix),
    };
    let windows = corpus.some(FEEDBACK_WINDOWS);
    let text = (&windows[..], work.room());
    let model = fed_back(opened.pass(), form, &model, text, kept, &mut done).map_err(back)?;
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
    let begun = newest_whole(&root).ok().and_then(|(whole, _)| read(&whole?));
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

/// Updates that another process had done.
pub(super) fn steps_done(work: &Work) -> usize {
    let newest = newest_whole(&work.path(LEARNED)).ok().and_then(|(whole, _)| whole);
    newest.map_or(0, |whole| whole.step as usize)
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

/// The one that is closer to the model on text that neither was made with; the second if there is
/// none.
fn better(
    opened: &Opened,
    corpus: &Corpus,
    [first, second]: [Model; 2],
    work: &Work,
) -> Result<Model, DeviceError> {
    let windows = &corpus.choosing[..corpus.choosing.len().min(CHOOSING_WINDOWS)];
    if windows.is_empty() {
        return Ok(second);
    }
    let meter = Meter::new(opened.pass(), windows)?;
    let gain = [meter.measure(&first)?.kl, meter.measure(&second)?.kl];
    work.keep_json(GAIN, &gain.map(f64::to_bits));
    Ok(if gains_nothing(gain) { first } else { second })
}

/// Whether learned roundings are no better on held-out text, where divergences are so much without
/// and with them; says so if they are not.
fn gains_nothing([before, after]: [f64; 2]) -> bool {
    if before < after {
        output::note(&format!(
            "note: learned roundings were no better ({after:.4} nats per token against {before:.4} \
             on text that they were not learned from), and are not used"
        ));
    }
    before < after
}

/// Whether there is so much memory for what is to be done; says so if there is not.
fn has_memory(work: &Work, needed: u64, what: &str) -> bool {
    let Some(free) = work.memory() else { return true };
    if needed > free {
        let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
        output::note(&format!(
            "note: to {what} takes about {:.1} GiB of memory, and {:.1} GiB are free; it is left \
             out",
            gib(needed),
            gib(free)
        ));
    }
    needed <= free
}
