//! `hone compress`

mod calibration;
mod command;
mod comparison;
mod directory;
mod estimate;
mod report;
mod rounding;
mod types;
mod ways;
mod work;

pub(super) use report::{Part, kinds};
pub(super) use ways::Ways;

use super::export::card::{self, Card};
use super::export::{gguf, refuse_packed};
use super::{Described, Opened, check_parent};
use crate::args::CompressArgs;
use crate::failure::Failure;
use comparison::{Limit, Worst, usual_of_types};
use estimate::Known;
use hone_compress::{BackError, Columns, Corpus, Measured, Schedule, Scheme};
use hone_model::{ExportError, GgufForm, LoadOptions, Model, is_gguf};
use hone_tensor::Storage;
use hone_train::{Code, TrainError};
use report::Report;
use rounding::Used;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::time::Instant;
use types::{Types, Wanted};
use work::{MEASURED, WORST, WRITTEN, Work};

/// Writes the smaller model, reads it back, compares, and only then gives it its name.
pub fn run(args: &CompressArgs) -> Result<(), Failure> {
    let mut args = calibration::resolved(args)?;
    if let Some(scheme) = directory::scheme(&args)? {
        return directory::run(&args, scheme);
    }
    let wanted = check(&args)?;
    rounding::choose_device(&mut args);
    let args = &args;
    let work = Work::claim(&args.out)?;
    match compress(args, wanted, &work) {
        Ok(()) => work.finish(),
        Err(failure) => {
            work.leave(&failure);
            return Err(failure);
        }
    }
    Ok(())
}

fn compress(args: &CompressArgs, wanted: Wanted, work: &Work) -> Result<(), Failure> {
    let opened = super::describe(&args.model, super::Purpose::Unchanged)?;
    opened.predicts_tokens(&args.model)?;
    refuse_quantised(&opened, args)?;
    let (corpus, texts) = calibration::corpus(args, &opened)?;
    wanted.check(args, &corpus)?;
    let command = command::facts(args, &opened, &texts)?;
    let opened = opened.load()?;
    let card = Card::of(&args.model, &opened, (&args.out, false));
    let mut form = gguf::form(&opened, &card)?;
    wanted.check_rows(args, &opened, (&form, &corpus))?;
    work.begin(&command)?;
    let is_there = |_: &Kept| args.out.exists() || work.partial().exists();
    let kept = work.json(MEASURED).filter(is_there);
    if kept.is_none() {
        check_free(args)?;
        check_finite(&opened)?;
    }
    calibration::check_saved(args, work)?;
    let begun = Instant::now();
    let used = rounding::used(args, &opened, (&form, &corpus), work)?;
    let estimate = match kept {
        Some(_) => None,
        None => {
            let (opened, form, corpus) = (&opened, &form, &corpus);
            estimate::estimate(Known { args, wanted, opened, form, corpus, used, work })?
        }
    };
    let columns = calibration::columns(args, &opened, (&form, &corpus), work)?;
    let types = wanted.types(args, &opened, (&form, &corpus, &columns), (used, work))?;
    if let Some(number) = types.file_type {
        form.set_file_type(number);
    }
    let (measured, ways) = match kept {
        Some(kept) => kept.into(),
        None => made(args, used, &opened, (&form, &corpus), (&types, &columns), work)?,
    };
    if !args.out.exists() {
        work.publish_file(&args.out)?;
    }
    let is_held_out = !corpus.held_out.is_empty();
    card.write(&args.out, &report::figures(&measured, is_held_out))?;
    let bytes = args.out.metadata().map_err(TrainError::io(&args.out))?.len();
    Report {
        out: &args.out,
        base: opened.weighed(&args.model)?,
        calibration: &args.calibration,
        bytes,
        bits: 8.0 * bytes as f64 / opened.model.decoder.config.num_parameters() as f64,
        tensors: form.tensors(),
        types: &types,
        measured,
        ways,
        is_held_out,
        estimate,
        seconds: begun.elapsed().as_secs_f64(),
        stages: work.stages(),
    }
    .print(args.json);
    Ok(())
}

/// Makes the file under another name, reads it back, and compares.
fn made(
    args: &CompressArgs,
    used: Used,
    opened: &Opened,
    (form, corpus): (&GgufForm<'_>, &Corpus),
    (types, columns): (&Types, &Columns),
    work: &Work,
) -> Result<(Measured, Option<Ways>), Failure> {
    let of = (types, columns, rounding::schedule(args));
    write(used, opened, (form, corpus), of, work)?;
    let (measured, ways) = work.timed("comparison", || {
        gguf::check(opened, work.partial())?;
        let found = &hone_model::load(work.partial(), &opened.device, LoadOptions::INFERENCE)?;
        let limit = Limit::of(args, usual_of_types(form, &types.storages()));
        let advice = Worst::advice(work.json(WORST));
        let measured = comparison::measured(opened, (corpus, limit), found, &advice)?;
        let ways = Ways::measure(opened, &corpus.held_out, found)?;
        Ok::<_, Failure>((measured, ways))
    })?;
    work.keep_json(MEASURED, &Kept::of(measured, ways));
    Ok((measured, ways))
}

/// Writes the file under another name, after what is there of it.
fn write(
    used: Used,
    opened: &Opened,
    (form, corpus): (&GgufForm<'_>, &Corpus),
    (types, columns, schedule): (&Types, &Columns, Schedule),
    work: &Work,
) -> Result<(), Failure> {
    let storages = types.storages();
    let first = work.json(WRITTEN).unwrap_or(0);
    if work.has_written(form) {
        return Ok(());
    }
    let of = ((&storages[..], columns), schedule);
    let rounded = rounding::rounded(used, opened, (form, corpus), of, work)?;
    let written = form.with_model(rounded.as_ref().unwrap_or(&opened.model));
    let importance = |tensor, part| columns.of(tensor, part);
    let mut unsynced = 0;
    let mut done = |count: usize| {
        // About a byte each.
        unsynced += form.tensors()[count - 1].shape.iter().product::<usize>() as u64;
        if work.is_due(unsynced) {
            work.keep(unsynced, || {
                let file = File::open(work.partial()).and_then(|file| file.sync_all());
                Ok(file.map_err(TrainError::io(work.partial()))?)
            });
            work.keep_json(WRITTEN, &count);
            unsynced = 0;
        }
    };
    work.timed("file", || {
        let of = (work.partial(), first);
        gguf::write(opened, &written, (&storages, &importance), of, &mut done)
    })?;
    work.timed("comparison", || {
        let worst = comparison::same_weights(opened, [form, &written], types, columns, work)?;
        work.keep_json(WORST, &worst);
        Ok::<_, Failure>(())
    })?;
    work.keep_json(WRITTEN, &form.tensors().len());
    Ok(())
}

/// What was measured as it is kept: the bits of numbers, which other writing would round.
#[derive(Serialize, Deserialize)]
struct Kept {
    kl: u64,
    same_top: u64,
    num_tokens: usize,
    ways: Option<Ways>,
}

impl Kept {
    fn of(measured: Measured, ways: Option<Ways>) -> Self {
        let Measured { kl, same_top, num_tokens } = measured;
        Self { kl: kl.to_bits(), same_top: same_top.to_bits(), num_tokens, ways }
    }
}

impl From<Kept> for (Measured, Option<Ways>) {
    fn from(of: Kept) -> Self {
        let [kl, same_top] = [of.kl, of.same_top].map(f64::from_bits);
        (Measured { kl, same_top, num_tokens: of.num_tokens }, of.ways)
    }
}

/// Refuses what can be seen to be wrong before anything is read.
fn check(args: &CompressArgs) -> Result<Wanted, Failure> {
    let out = args.out.display();
    if !work::is_published(&args.out) {
        check_free(args)?;
    }
    check_parent("--out", &args.out)?;
    rounding::check(args)?;
    calibration::check(args)?;
    refuse_packed(&args.model)?;
    if !is_gguf(&args.out) {
        return Err(Failure::Usage(format!(
            "--out {out}: end the name of a GGUF file in .gguf; a directory is written for the \
             types {}",
            Scheme::NAMES.join(", ")
        )));
    }
    comparison::check(args)?;
    Wanted::of(args)
}

/// Refuses to write over another file.
fn check_free(args: &CompressArgs) -> Result<(), Failure> {
    let out = args.out.display();
    match args.out.exists() {
        true => Err(Failure::Usage(format!("--out {out} already exists; choose another file"))),
        false => card::check_place(&args.out),
    }
}

/// Refuses weights that are no numbers, which most types would make numbers of.
fn check_finite(opened: &Opened) -> Result<(), Failure> {
    match hone_model::not_finite(&opened.model, &opened.device)? {
        None => Ok(()),
        Some(tensor) => {
            let error = ExportError::NotFinite { tensor }.to_string();
            Err(TrainError::Usage(Code::ExportFailed, error).into())
        }
    }
}

/// Refuses to quantise a model again, unless that is asked for.
fn refuse_quantised(described: &Described, args: &CompressArgs) -> Result<(), Failure> {
    let remedy = match &args.model.adapter {
        None => "give the model that it was made of, or --requantise".to_owned(),
        Some(adapter) => format!(
            "ship it as it is with the adapter beside it (hone export --adapter-only), or merge \
             {} with --requantise: with --calibration that says which is better",
            adapter.display()
        ),
    };
    match packed_in(&described.model).filter(|_| !args.requantise) {
        Some(held) => Err(Failure::Usage(format!(
            "{}: the model is quantised already (weights in {held}), and quantising it again adds \
             to its errors; {remedy}",
            described.dir.display()
        ))),
        None => Ok(()),
    }
}

fn back(error: BackError) -> Failure {
    match error {
        BackError::Device(error) => error.into(),
        BackError::Io { folder, source } => TrainError::io(&folder)(source).into(),
    }
}

/// The packed format that most weights are held in.
fn packed_in(model: &Model) -> Option<&'static str> {
    let packed = model.storages().into_iter().find(|storage| storage.float().is_none());
    packed.map(Storage::name)
}
