//! Roundings beyond the nearest value.

use super::super::Opened;
use super::back;
use super::work::{GAIN, LEARNED, Pending, Work, name_of};
use crate::args::{CompressArgs, EffortArg, TechniqueArg};
use crate::failure::Failure;
use crate::{output, progress};
use hone_compress::{
    Begun, Columns, Corpus, Done, Meter, Schedule, Snapshot, Window, fed_back, feedback_bytes,
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
/// Windows of held-out text that decide whether learning gained anything.
const HELD_OUT_WINDOWS: usize = 16;
/// Windows that the curvature is taken from.
const FEEDBACK_WINDOWS: usize = 32;

const ROUNDED: &str = "blocks, forward and back, and rounded";

/// Refuses what can be seen to be wrong before anything is read.
pub(super) fn check(args: &CompressArgs) -> Result<(), Failure> {
    if args.effort == EffortArg::Best && args.calibration.is_empty() {
        return Err(Failure::Usage(
            "--effort best: roundings are learned from text; give some with --calibration"
                .to_owned(),
        ));
    }
    if args.effort == EffortArg::Plain && !args.without.is_empty() {
        return Err(Failure::Usage(
            "--without: --effort plain uses no technique that could be left out".to_owned(),
        ));
    }
    Ok(())
}

/// The model in these types, with roundings as good as the effort makes them; `None` if each weight
/// takes the nearest value.
pub(super) fn rounded(
    args: &CompressArgs,
    opened: &Opened,
    (form, corpus): (&GgufForm<'_>, &Corpus),
    types: (&[Storage], &Columns),
    work: &Work,
) -> Result<Option<Model>, Failure> {
    if args.effort == EffortArg::Plain || corpus.calibration.is_empty() {
        return Ok(None);
    }
    let is_used = |technique| !args.without.contains(&technique);
    let windows = corpus.some(FEEDBACK_WINDOWS);
    let needed = feedback_bytes(&opened.model, &windows);
    let mut model = match is_used(TechniqueArg::Feedback)
        && has_memory(work, needed, "feed errors back")
    {
        true => with_feedback(opened, (form, &windows), types, work)?,
        false => packed(opened.pass(), form, types, &|_, _| None)?,
    };
    let gain: Option<[u64; 2]> = work.json(GAIN);
    let is_worse = gain.map(|gain| gains_nothing(gain.map(f64::from_bits)));
    let needed = learning_bytes(&opened.model);
    if is_used(TechniqueArg::Learning)
        && is_worse != Some(true)
        && has_memory(work, needed, "learn roundings")
    {
        let steps = STEPS[usize::from(args.effort == EffortArg::Best)];
        let learned = learned(opened, (form, corpus), (&model, steps), work)?;
        model = match is_worse {
            None => better(opened, corpus, [model, learned], work)?,
            Some(_) => learned,
        };
    }
    Ok(Some(model))
}

/// The model in these types, rounded by error feedback. Matrices are kept.
fn with_feedback(
    opened: &Opened,
    (form, windows): (&GgufForm<'_>, &[Window]),
    types: (&[Storage], &Columns),
    work: &Work,
) -> Result<Model, Failure> {
    let files = work.matrices();
    let kept = &|tensor, part| {
        let name = name_of(tensor, part);
        files.iter().find_map(|file| file.raw(&name)).map(|raw| raw.bytes)
    };
    let mut pending = Pending::after(work, files.len());
    let model = packed(opened.pass(), form, types, kept)?;
    let bar = progress::bar(2 * opened.model.decoder.config.num_hidden_layers(), ROUNDED);
    let mut done = |done: Done<'_>| match done {
        Done::Forward | Done::Back => bar.inc(1),
        Done::Matrix(place, matrix) => pending.add(place, matrix),
    };
    let text = (windows, work.room());
    let model = fed_back(opened.pass(), form, &model, text, kept, &mut done).map_err(back)?;
    bar.finish_and_clear();
    Ok(model)
}

/// The model with roundings learned in so many updates, of which some are kept.
fn learned(
    opened: &Opened,
    (form, corpus): (&GgufForm<'_>, &Corpus),
    (model, steps): (&Model, usize),
    work: &Work,
) -> Result<Model, DeviceError> {
    let root = work.path(LEARNED);
    let begun = newest_whole(&root).ok().and_then(|(whole, _)| read(&whole?));
    let schedule = Schedule { steps, tokens_per_step: TOKENS_PER_STEP };
    let bar = progress::bar(steps, "updates of roundings");
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

/// The one that is closer to the model on text that neither was made with; the second if there is
/// none.
fn better(
    opened: &Opened,
    corpus: &Corpus,
    [first, second]: [Model; 2],
    work: &Work,
) -> Result<Model, DeviceError> {
    let held_out = &corpus.held_out[..corpus.held_out.len().min(HELD_OUT_WINDOWS)];
    let meter = Meter::new(opened.pass(), held_out)?;
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
             on held-out text), and are not used"
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
