//! Text for calibration, and what is known of columns from it or from a file.

use super::super::{Described, Opened, check_parent, named_by_flags, num_threads};
use super::work::{IMPORTANCE, Work};
use crate::args::{CompressArgs, EffortArg, TechniqueArg};
use crate::failure::Failure;
use crate::{output, progress};
use hone_compress::{Columns, Corpus, Imatrix, ImatrixError, Window, importance, importance_steps};
use hone_data::{Format, OnError, Overlong, RecordKind, RecordSpec, Setting, pack_in_order};
use hone_model::GgufForm;
use hone_train::TrainError;
use hone_train::checkpoint::{publish_file, write_file_whole};
use hone_train::run_dir::RunDir;
use hone_train::run_file::{ObjectiveSection, RunFile};
use hone_train::setup::check_tokens;
use std::path::{Path, PathBuf};

/// Tokens of a window, as llama.cpp's programs have it.
const WINDOW: usize = 512;

/// Windows that importance is taken from: with more it hardly changes.
pub(super) const IMPORTANCE_WINDOWS: usize = 64;

/// Tokens of the text that are used where nothing is said.
const TOKENS: usize = 131_072;

/// The options with the text to calibrate on: that which is named, or that of the run file which is
/// named, or of the run that the model or its adapter is the result of.
pub(super) fn resolved(args: &CompressArgs) -> Result<CompressArgs, Failure> {
    let mut args = args.clone();
    match (&args.calibration[..], &args.imatrix) {
        ([named], _) if named.ends_with(".toml") => {
            let run = RunFile::load(Path::new(named), &[]).map_err(TrainError::from)?;
            if !is_plain(&run) {
                return Err(Failure::Usage(format!(
                    "--calibration {named}: is of a training on other rows than text, \
                     conversations, or prompts with completions; give a file of those"
                )));
            }
            args.calibration = run.data.train.paths();
            args.data = Some(run.data);
        }
        ([], None) => of_run(&mut args),
        _ => {}
    }
    Ok(args)
}

/// Sets the text to the training data of the run that the model or its adapter is the result of,
/// if there is one; says so.
fn of_run(args: &mut CompressArgs) {
    let result = args.model.adapter.as_deref().unwrap_or(Path::new(&args.model.model));
    let dir = result.canonicalize().ok().and_then(|of| of.parent().map(RunDir::new));
    // A run file that a user wrote beside a model says nothing of the model.
    let Some(dir) = dir.filter(RunDir::holds_run) else { return };
    let file = dir.join("run.toml");
    // What cannot be read is none.
    let Some(run) = RunFile::load(&file, &[]).ok().filter(is_plain) else { return };
    let named = file.display();
    let paths = run.data.train.paths();
    let is_there = |path: &String| Path::new(path).exists() || path.contains(['*', '?', '[']);
    match paths.iter().find(|path| !is_there(path)) {
        Some(path) => output::note(&format!(
            "note: {path}, the training data of {named}, is not there; without text to calibrate \
             on (--calibration) more is lost"
        )),
        None => {
            output::note(&format!("note: calibrated on the training data of {named}"));
            args.calibration = paths;
            args.data = Some(run.data);
        }
    }
}

/// Whether a run learns from rows that stand for themselves, each of which is a text.
fn is_plain(run: &RunFile) -> bool {
    matches!(run.objective, ObjectiveSection::Sft | ObjectiveSection::Pretrain)
}

/// Refuses options for which there is no text.
fn check_text(args: &CompressArgs) -> Result<(), Failure> {
    if !args.calibration.is_empty() {
        return Ok(());
    }
    let of_text = [
        ("--target-bpw", args.target_bpw.is_some()),
        ("--target-size", args.target_size.is_some()),
        ("--calibration-tokens", args.calibration_tokens.is_some()),
        ("--save-imatrix", args.save_imatrix.is_some()),
        ("--without", !args.without.is_empty()),
        ("--effort best", args.effort() == EffortArg::Best),
    ];
    match of_text.into_iter().find(|(_, is_given)| *is_given) {
        Some((flag, _)) => Err(Failure::Usage(format!(
            "{flag}: takes text like that which the model is for, such as what it was trained on; \
             give some with --calibration FILE"
        ))),
        None => Ok(()),
    }
}

/// Refuses what can be seen to be wrong before anything is read.
pub(super) fn check(args: &CompressArgs) -> Result<(), Failure> {
    check_text(args)?;
    let Some(path) = &args.save_imatrix else { return Ok(()) };
    if args.without.contains(&TechniqueArg::Importance) {
        return Err(Failure::Usage(
            "--save-imatrix: with --without importance there is none to save; omit one of them"
                .to_owned(),
        ));
    }
    check_parent("--save-imatrix", path)
}

/// Refuses to write the importance of columns over another file than the one that this command has
/// written before it was killed.
pub(super) fn check_saved(args: &CompressArgs, work: &Work) -> Result<(), Failure> {
    let Some(path) = args.save_imatrix.as_ref().filter(|path| path.exists()) else {
        return Ok(());
    };
    let (saved, kept) = (std::fs::read(path), std::fs::read(work.path(IMPORTANCE)));
    if saved.is_ok_and(|saved| kept.is_ok_and(|kept| saved == kept)) {
        return Ok(());
    }
    Err(Failure::Usage(format!(
        "--save-imatrix {} already exists; choose another file",
        path.display()
    )))
}

/// The calibration text in windows, and its files; none if none was given.
pub(super) fn corpus(
    args: &CompressArgs,
    described: &Described,
) -> Result<(Corpus, Vec<PathBuf>), Failure> {
    if args.calibration.is_empty() {
        return Ok((Corpus::default(), Vec::new()));
    }
    let config = described.config();
    let window = config.max_position_embeddings.min(WINDOW);
    let mut spec = RecordSpec {
        format: Format::Auto,
        max_seq_len: window,
        model_max_len: config.longest(),
        overlong: Overlong::Truncate,
        on_error: OnError::Fail,
        append_eos: false,
        kind: RecordKind::Plain,
        ..RecordSpec::default()
    };
    if let Some(data) = &args.data {
        spec.format = data.format;
        spec.prompt_field.clone_from(&data.prompt_field);
        spec.completion_field.clone_from(&data.completion_field);
        spec.on_error = data.on_error;
        spec.append_eos = data.append_eos;
    }
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
    let files = dataset.report().files.iter().map(|of| PathBuf::from(&of.file)).collect();
    let tokens = args.calibration_tokens.unwrap_or(TOKENS);
    let corpus = Corpus::of(windows.collect(), tokens);
    let named = args.calibration.join(" ");
    match (corpus.num_repeated, corpus.held_out.is_empty()) {
        (0, _) => {}
        (_, true) => {
            return Err(Failure::Usage(format!(
                "--calibration {named}: rows repeat, so that all that would be measured on is also \
                 calibrated on; give each row once, or more text"
            )));
        }
        (count, false) => output::note(&format!(
            "note: nothing is measured on rows of {named} that repeat others ({count})"
        )),
    }
    Ok((corpus, files))
}

/// Whether it is known how much columns count.
pub(super) fn has_importance(args: &CompressArgs, corpus: &Corpus) -> bool {
    args.imatrix.is_some() || finds_importance(args, corpus)
}

/// Whether text is to show it.
pub(super) fn finds_importance(args: &CompressArgs, corpus: &Corpus) -> bool {
    let is_used = !args.without.contains(&TechniqueArg::Importance);
    args.imatrix.is_none() && is_used && !corpus.calibration.is_empty()
}

/// What is known of columns: nothing, what a file says, or what text shows.
pub(super) fn columns(
    args: &CompressArgs,
    opened: &Opened,
    (form, corpus): (&GgufForm<'_>, &Corpus),
    work: &Work,
) -> Result<Columns, Failure> {
    if let Some(path) = &args.imatrix {
        let imatrix = Imatrix::read(path).map_err(failure)?;
        return imatrix.columns(form.tensors(), path).map_err(failure);
    }
    if !finds_importance(args, corpus) {
        return Ok(Columns::default());
    }
    let imatrix = match Imatrix::read(&work.path(IMPORTANCE)) {
        Ok(imatrix) => imatrix,
        Err(_) => work.timed("importance", || found(args, opened, (form, corpus), work))?,
    };
    if let Some(path) = args.save_imatrix.as_ref().filter(|path| !path.exists()) {
        let kept = work.path(IMPORTANCE);
        let bytes = std::fs::read(&kept).map_err(TrainError::io(&kept))?;
        write_file_whole(path, &bytes)?;
        output::note(&format!("note: the importance of columns is in {}", path.display()));
    }
    imatrix.columns(form.tensors(), Path::new("--calibration")).map_err(failure)
}

/// What text shows, which is kept.
fn found(
    args: &CompressArgs,
    opened: &Opened,
    (form, corpus): (&GgufForm<'_>, &Corpus),
    work: &Work,
) -> Result<Imatrix, Failure> {
    let windows = corpus.some(IMPORTANCE_WINDOWS);
    let steps = importance_steps(&opened.model.decoder.config, &windows);
    let bar = progress::bar(steps, "blocks calibrated");
    let text = (&windows[..], args.calibration.clone());
    let found = importance(opened.pass(), form, text, &mut || bar.inc(1));
    bar.finish_and_clear();
    let imatrix = found?;
    let aside = work.path(".tmp-importance.gguf");
    imatrix.write(&aside).map_err(failure)?;
    publish_file(&aside, &work.path(IMPORTANCE))?;
    Ok(imatrix)
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
