//! `hone compress`

mod calibration;
mod report;
mod rounding;
mod types;

use super::export::card::{self, Card};
use super::export::{gguf, refuse_packed, rows, whole};
use super::{Opened, check_parent};
use crate::args::CompressArgs;
use crate::failure::Failure;
use hone_compress::{Corpus, Measured, Meter, Window};
use hone_model::{LoadOptions, is_gguf};
use hone_tensor::Storage;
use hone_train::{Code, TrainError};
use report::Report;
use std::path::Path;
use types::Wanted;

/// Writes the smaller model, reads it back, compares, and only then gives it its name.
pub fn run(args: &CompressArgs) -> Result<(), Failure> {
    let wanted = check(args)?;
    let opened = super::describe(&args.model, super::Purpose::Export)?;
    if let (Some(held), false) = (packed_in(&opened.model), args.requantise) {
        return Err(Failure::Usage(format!(
            "{}: the model is quantised already (weights in {held}), and quantising it again adds \
             to its errors; give the model that it was made of, or --requantise",
            opened.dir.display()
        )));
    }
    let corpus = calibration::corpus(args, &opened)?;
    wanted.check(args, &corpus)?;
    let opened = opened.load()?;
    let card = Card::of(&args.model, &opened, (&args.out, false));
    let mut form = gguf::form(&opened, &card)?;
    wanted.check_rows(args, &opened, (&form, &corpus))?;
    let columns = calibration::columns(args, &opened, (&form, &corpus))?;
    let types = wanted.types(args, &opened, (&form, &corpus, &columns))?;
    if let Some(number) = types.file_type {
        form.set_file_type(number);
    }
    let storages: Vec<Storage> = types.choices.iter().map(|choice| choice.storage).collect();
    let of = (&form, &corpus);
    let rounded = rounding::rounded(args, &opened, of, (&storages, &columns))?;
    let written = form.with_model(rounded.as_ref().unwrap_or(&opened.model));
    let measured = whole(&args.out, |partial| {
        let importance = |tensor, part| columns.of(tensor, part);
        gguf::write(&opened, &written, (&storages, &importance), partial)?;
        compare(&opened, (&corpus, args.max_kl), partial)
    })?;
    card.write(&args.out, &report::figures(&measured))?;
    let bytes = args.out.metadata().map_err(TrainError::io(&args.out))?.len();
    let num_parameters = opened.model.decoder.config.num_parameters();
    Report {
        out: &args.out,
        bytes,
        bits: 8.0 * bytes as f64 / num_parameters as f64,
        tensors: form.tensors(),
        types: &types,
        measured,
        is_held_out: !corpus.held_out.is_empty(),
    }
    .print(args.json);
    Ok(())
}

/// Refuses what can be seen to be wrong before anything is read.
fn check(args: &CompressArgs) -> Result<Wanted, Failure> {
    let out = args.out.display();
    if args.out.exists() {
        return Err(Failure::Usage(format!("--out {out} already exists; choose another file")));
    }
    check_parent("--out", &args.out)?;
    card::check_place(&args.out)?;
    calibration::check(args)?;
    rounding::check(args)?;
    refuse_packed(&args.model)?;
    if !is_gguf(&args.out) {
        return Err(Failure::Usage(format!("--out {out}: end the name of a GGUF file in .gguf")));
    }
    if let Some(max_kl) = args.max_kl.filter(|kl| !(kl.is_finite() && *kl > 0.0)) {
        return Err(Failure::Usage(format!("--max-kl {max_kl}: must be a number above 0")));
    }
    Wanted::of(args)
}

/// The packed format that most weights are held in.
fn packed_in(model: &hone_model::Model) -> Option<&'static str> {
    let packed = model.storages().into_iter().find(|storage| storage.float().is_none());
    packed.map(Storage::name)
}

/// Reads the file back, and compares it with the model in memory: on held-out text, or on built-in
/// texts if there is none.
fn compare(
    opened: &Opened,
    (corpus, max_kl): (&Corpus, Option<f64>),
    path: &Path,
) -> Result<Measured, Failure> {
    let written = &hone_model::load(path, &opened.device, LoadOptions::INFERENCE)?;
    let windows = match corpus.held_out.is_empty() {
        true => rows(opened)?.into_iter().map(|row| Window { rows: vec![row] }).collect(),
        false => corpus.held_out.clone(),
    };
    let measured = Meter::new(opened.pass(), &windows)?.measure(written)?;
    let failed = |message: String| Failure::from(TrainError::Usage(Code::ExportFailed, message));
    if !measured.kl.is_finite() {
        return Err(failed(
            "the model, or the file written of it, computes values that are not finite; nothing \
             was written. A weight must be far too large, or not a number"
                .to_owned(),
        ));
    }
    match max_kl.filter(|max_kl| measured.kl > *max_kl) {
        Some(max_kl) => Err(failed(format!(
            "the mean KL divergence from the model is {:.4} nats per token, above --max-kl \
             {max_kl}; nothing was written. Choose a larger type",
            measured.kl
        ))),
        None => Ok(measured),
    }
}
