//! Text for calibration, and what is known of columns from it or from a file.

use super::super::{Described, Opened, check_parent, named_by_flags, num_threads};
use crate::args::CompressArgs;
use crate::failure::Failure;
use crate::{output, progress};
use hone_compress::{Columns, Corpus, Imatrix, ImatrixError, Window, importance, importance_steps};
use hone_data::{Format, OnError, Overlong, RecordKind, RecordSpec, Setting, pack_in_order};
use hone_model::GgufForm;
use hone_train::TrainError;
use hone_train::setup::check_tokens;
use std::path::Path;

/// Tokens of a window, as llama.cpp's programs have it.
const WINDOW: usize = 512;

/// Windows that importance is taken from: with more it hardly changes.
pub(super) const IMPORTANCE_WINDOWS: usize = 64;

/// Refuses what can be seen to be wrong before anything is read.
pub(super) fn check(args: &CompressArgs) -> Result<(), Failure> {
    let Some(path) = &args.save_imatrix else { return Ok(()) };
    if path.exists() {
        let path = path.display();
        return Err(Failure::Usage(format!(
            "--save-imatrix {path} already exists; choose another file"
        )));
    }
    check_parent("--save-imatrix", path)
}

/// The calibration text in windows; none if none was given.
pub(super) fn corpus(args: &CompressArgs, described: &Described) -> Result<Corpus, Failure> {
    if args.calibration.is_empty() {
        return Ok(Corpus::default());
    }
    described.predicts_tokens(&args.model)?;
    let config = described.config();
    let window = config.max_position_embeddings.min(WINDOW);
    let spec = RecordSpec {
        format: Format::Auto,
        max_seq_len: window,
        model_max_len: config.longest(),
        overlong: Overlong::Truncate,
        on_error: OnError::Fail,
        append_eos: false,
        kind: RecordKind::Plain,
        ..RecordSpec::default()
    };
    let threads = num_threads(args.model.threads);
    let dataset = hone_data::load(&args.calibration, &spec, &described.tokenizer, threads)
        .map_err(|error| named_by_flags(error, words))?;
    check_tokens(&dataset, config)?;
    let units = pack_in_order(&dataset, window)?;
    let all: usize = units.iter().map(|unit| unit.num_tokens).sum();
    if all < window {
        return Err(Failure::Usage(format!(
            "--calibration {}: has {all} tokens, fewer than a window of {window}; give more text",
            args.calibration.join(" ")
        )));
    }
    let row = |&id: &u32| dataset.row(id as usize).tokens.to_vec();
    let windows = units.iter().map(|unit| Window { rows: unit.rows.iter().map(row).collect() });
    Ok(Corpus::of(windows.collect(), args.calibration_tokens))
}

/// What is known of columns: nothing, what a file says, or what text shows.
pub(super) fn columns(
    args: &CompressArgs,
    opened: &Opened,
    (form, corpus): (&GgufForm<'_>, &Corpus),
) -> Result<Columns, Failure> {
    if let Some(path) = &args.imatrix {
        let imatrix = Imatrix::read(path).map_err(failure)?;
        return imatrix.columns(form.tensors(), path).map_err(failure);
    }
    if corpus.calibration.is_empty() {
        return Ok(Columns::default());
    }
    let windows = corpus.some(IMPORTANCE_WINDOWS);
    let steps = importance_steps(&opened.model.decoder.config, &windows);
    let bar = progress::bar(steps, "blocks calibrated");
    let text = (&windows[..], args.calibration.clone());
    let found = importance(opened.pass(), form, text, &mut || bar.inc(1));
    bar.finish_and_clear();
    let imatrix = found?;
    if let Some(path) = &args.save_imatrix {
        imatrix.write(path).map_err(failure)?;
        output::note(&format!("note: the importance of columns is in {}", path.display()));
    }
    imatrix.columns(form.tensors(), Path::new("--calibration")).map_err(failure)
}

fn failure(error: ImatrixError) -> Failure {
    match error {
        ImatrixError::Io { path, source } => TrainError::io(&path)(source).into(),
        ImatrixError::Device(error) => error.into(),
        error => Failure::Usage(error.to_string()),
    }
}

/// The flag for a setting that an error in data suggests to change.
fn words(setting: Setting) -> Option<String> {
    (setting == Setting::Paths).then(|| "check --calibration".to_owned())
}
