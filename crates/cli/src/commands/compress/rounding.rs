//! Roundings beyond the nearest value.

use super::super::Opened;
use super::{back, room};
use crate::args::{CompressArgs, EffortArg, TechniqueArg};
use crate::failure::Failure;
use crate::{output, progress};
use hone_compress::{
    Columns, Corpus, Meter, Schedule, fed_back, feedback_bytes, learning_bytes, packed, tune,
};
use hone_model::{GgufForm, Model};
use hone_tensor::{DeviceError, Storage};
use hone_train::machine::available_memory;

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
) -> Result<Option<Model>, Failure> {
    if args.effort == EffortArg::Plain || corpus.calibration.is_empty() {
        return Ok(None);
    }
    let (pass, is_used) = (opened.pass(), |technique| !args.without.contains(&technique));
    let mut model = packed(pass, form, types)?;
    let windows = corpus.some(FEEDBACK_WINDOWS);
    let needed = feedback_bytes(&opened.model, &windows);
    if is_used(TechniqueArg::Feedback) && has_memory(needed, "feed errors back") {
        let bar = progress::bar(2 * opened.model.decoder.config.num_hidden_layers(), ROUNDED);
        let text = (&windows[..], room(args));
        model = fed_back(pass, form, &model, text, &mut || bar.inc(1)).map_err(back)?;
        bar.finish_and_clear();
    }
    let needed = learning_bytes(&opened.model);
    if is_used(TechniqueArg::Learning) && has_memory(needed, "learn roundings") {
        let steps = STEPS[usize::from(args.effort == EffortArg::Best)];
        let schedule = Schedule { steps, tokens_per_step: TOKENS_PER_STEP };
        let bar = progress::bar(steps, "updates of roundings");
        let mut done = |kl: f64| {
            bar.inc(1);
            bar.set_message(format!("updates of roundings, KL {kl:.4}"));
        };
        let learned = tune(pass, form, &model, &corpus.calibration, schedule, &mut done)?;
        bar.finish_and_clear();
        model = better(opened, corpus, [model, learned])?;
    }
    Ok(Some(model))
}

/// The one that is closer to the model on text that neither was made with; the second if there is
/// none.
fn better(
    opened: &Opened,
    corpus: &Corpus,
    [first, second]: [Model; 2],
) -> Result<Model, DeviceError> {
    let held_out = &corpus.held_out[..corpus.held_out.len().min(HELD_OUT_WINDOWS)];
    let meter = Meter::new(opened.pass(), held_out)?;
    let (before, after) = (meter.measure(&first)?.kl, meter.measure(&second)?.kl);
    if before < after {
        output::note(&format!(
            "note: learned roundings were no better ({after:.4} nats per token against {before:.4} \
             on held-out text), and are not used"
        ));
        return Ok(first);
    }
    Ok(second)
}

/// Whether there is so much memory for what is to be done; says so if there is not.
fn has_memory(needed: u64, what: &str) -> bool {
    let Some(free) = available_memory() else { return true };
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
