//! `hone compress`

use super::export::card::{self, Card};
use super::export::{gguf, refuse_packed, rows, whole};
use super::{Opened, check_parent};
use crate::args::{CompressArgs, FallbackArg};
use crate::failure::Failure;
use crate::output;
use hone_compress::{Choice, Facts, Fallback, Mix, Stored, choose};
use hone_model::{Comparison, Fidelity, FormTensor, LoadOptions, is_gguf};
use hone_tensor::{DType, Storage};
use hone_train::{Code, TrainError};
use serde_json::json;
use std::path::Path;

/// Writes the smaller model, reads it back, compares, and only then gives it its name.
pub fn run(args: &CompressArgs) -> Result<(), Failure> {
    let mix = check(args)?;
    let opened = super::describe(&args.model, super::Purpose::Export)?;
    if let (Some(held), false) = (packed_in(&opened.model), args.requantise) {
        return Err(Failure::Usage(format!(
            "{}: the model is quantised already (weights in {held}), and quantising it again adds \
             to its errors; give the model that it was made of, or --requantise",
            opened.dir.display()
        )));
    }
    let opened = opened.load()?;
    let card = Card::of(&args.model, &opened, (&args.out, false));
    let mut form = gguf::form(&opened, &card)?;
    let fallback = match args.fallback {
        FallbackArg::Refuse => Fallback::Refuse,
        FallbackArg::LlamaCpp => Fallback::LlamaCpp,
    };
    let config = &opened.model.decoder.config;
    let facts = Facts::of(config, form.architecture(), false);
    let stored: Vec<Stored<'_>> = form.tensors().iter().map(Stored::from).collect();
    let choices = choose(mix, &facts, &stored, fallback)
        .map_err(|error| Failure::Usage(error.to_string()))?;
    if choices.iter().all(|choice| choice.instead_of.is_none()) {
        form.set_file_type(mix.file_type);
    }
    let storages: Vec<Storage> = choices.iter().map(|choice| choice.storage).collect();
    let fidelity = whole(&args.out, |partial| {
        gguf::write(&opened, &form, &storages, partial)?;
        compare(&opened, args.max_kl, partial)
    })?;
    card.write(&args.out, &card::figures(&fidelity))?;
    let bytes = args.out.metadata().map_err(TrainError::io(&args.out))?.len();
    let num_parameters = opened.model.decoder.config.num_parameters();
    report(args, form.tensors(), &choices, &fidelity, (bytes, num_parameters));
    Ok(())
}

/// Refuses what can be seen to be wrong before anything is read.
fn check(args: &CompressArgs) -> Result<Mix, Failure> {
    let out = args.out.display();
    if args.out.exists() {
        return Err(Failure::Usage(format!("--out {out} already exists; choose another file")));
    }
    check_parent("--out", &args.out)?;
    card::check_place(&args.out)?;
    refuse_packed(&args.model)?;
    if !is_gguf(&args.out) {
        return Err(Failure::Usage(format!("--out {out}: end the name of a GGUF file in .gguf")));
    }
    if let Some(max_kl) = args.max_kl.filter(|kl| !(kl.is_finite() && *kl > 0.0)) {
        return Err(Failure::Usage(format!("--max-kl {max_kl}: must be a number above 0")));
    }
    Mix::named(&args.mix).ok_or_else(|| {
        let names: Vec<&str> = Mix::names().collect();
        let (mix, names) = (&args.mix, names.join(", "));
        Failure::Usage(format!("--type {mix}: is not known; known: {names}"))
    })
}

/// The packed format that most weights are held in.
fn packed_in(model: &hone_model::Model) -> Option<&'static str> {
    let packed = model.storages().into_iter().find(|storage| storage.float().is_none());
    packed.map(Storage::name)
}

/// Reads the file back, and compares it with the model in memory.
fn compare(opened: &Opened, max_kl: Option<f64>, path: &Path) -> Result<Fidelity, Failure> {
    let Opened { device, model, .. } = opened;
    let written = &hone_model::load(path, device, LoadOptions::INFERENCE)?;
    let models = Comparison { device, base: None, intended: model, written };
    let failed = |message: String| Failure::from(TrainError::Usage(Code::ExportFailed, message));
    let Some(fidelity) = Fidelity::measure(models, &rows(opened)?)? else {
        return Err(failed(
            "the model, or the file written of it, computes values that are not finite; nothing \
             was written. A weight must be far too large, or not a number"
                .to_owned(),
        ));
    };
    match max_kl.filter(|max_kl| fidelity.kl > *max_kl) {
        Some(max_kl) => Err(failed(format!(
            "the mean KL divergence from the model is {:.4} nats per token, above --max-kl \
             {max_kl}; nothing was written. Choose a larger type",
            fidelity.kl
        ))),
        None => Ok(fidelity),
    }
}

fn report(
    args: &CompressArgs,
    tensors: &[FormTensor],
    choices: &[Choice],
    fidelity: &Fidelity,
    (bytes, num_parameters): (u64, usize),
) {
    let stored = |(tensor, choice): (&FormTensor, &Choice)| {
        let storage = if tensor.is_matrix() { choice.storage } else { DType::F32.into() };
        (storage.name(), storage.num_bytes(&tensor.shape))
    };
    let bits = 8.0 * bytes as f64 / num_parameters as f64;
    let all = || tensors.iter().zip(choices);
    if args.json {
        let tensor = |(tensor, choice): (&FormTensor, &Choice)| {
            let (kind, bytes) = stored((tensor, choice));
            json!({ "name": tensor.name, "type": kind, "bytes": bytes })
        };
        output::json(&json!({
            "out": args.out,
            "bytes": bytes,
            "bits_per_weight": bits,
            "kl": fidelity.kl,
            "same_top": fidelity.top1_agreement,
            "tensors": all().map(tensor).collect::<Vec<_>>(),
        }));
        return;
    }
    let mut kinds: Vec<(&str, usize, usize)> = Vec::new();
    for (kind, bytes) in all().map(stored) {
        match kinds.iter_mut().find(|(other, ..)| *other == kind) {
            Some((_, count, sum)) => (*count, *sum) = (*count + 1, *sum + bytes),
            None => kinds.push((kind, 1, bytes)),
        }
    }
    kinds.sort_by_key(|(.., bytes)| std::cmp::Reverse(*bytes));
    let megabytes = |bytes: f64| format!("{:.1} MB", bytes / 1e6);
    let kinds = kinds
        .into_iter()
        .map(|(kind, count, bytes)| format!("{count} in {kind} ({})", megabytes(bytes as f64)));
    let mut lines = vec![
        ("written", args.out.display().to_string()),
        ("size", format!("{}, {bits:.2} bits per weight", megabytes(bytes as f64))),
        ("tensors", kinds.collect::<Vec<_>>().join(", ")),
        (
            "compared",
            format!(
                "{:.4} nats of KL divergence per token on four short texts; the most likely token \
                 is the same for {:.1} %",
                fidelity.kl,
                100.0 * fidelity.top1_agreement
            ),
        ),
    ];
    let replaced: Vec<String> = all()
        .filter_map(|(tensor, choice)| {
            let wanted = choice.instead_of?.name();
            Some(format!("{} ({} for {wanted})", tensor.name, choice.storage.name()))
        })
        .collect();
    if let Some(first) = replaced.first() {
        let count = replaced.len();
        lines.push(("replaced", format!("in {count} of {}: {first}, …", tensors.len())));
    }
    output::table(&lines);
}
