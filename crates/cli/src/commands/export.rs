//! `hone export`

mod adapter;
pub(super) mod card;
pub(super) mod gguf;

use super::{Opened, check_parent};
use crate::args::{ExportArgs, ExportFormat, ModelArgs, PrecisionArg};
use crate::failure::Failure;
use crate::output;
use card::Card;
use hone_compress::{Columns, Mix};
use hone_model::{
    Comparison, ExportError, ExportOptions, Fidelity, LoadOptions, Model, check_written, export_hf,
    is_gguf,
};
use hone_tensor::DType;
use hone_train::checkpoint::{publish, publish_file};
use hone_train::{Code, TrainError};
use serde_json::json;
use std::io::ErrorKind;
use std::path::Path;

/// Writes the model, reads it back, compares, and only then moves it into place.
pub fn run(args: &ExportArgs) -> Result<(), Failure> {
    if args.out.exists() {
        return Err(Failure::Usage(format!(
            "--out {} already exists; choose another directory",
            args.out.display()
        )));
    }
    check_parent("--out", &args.out)?;
    card::check_place(&args.out)?;
    if matches!(args.format, ExportFormat::Gguf) != is_gguf(&args.out) {
        let out = args.out.display();
        return Err(Failure::Usage(match args.format {
            ExportFormat::Gguf => format!("--out {out}: end the name of a GGUF file in .gguf"),
            ExportFormat::Hf => format!("--out {out}: add --format gguf, or name a directory"),
        }));
    }
    if args.adapter_only {
        adapter::check(args)?;
    }
    refuse_packed(&args.model)?;
    let opened = super::describe(&args.model, super::Purpose::Unchanged)?.load()?;
    let dtype = match args.adapter_only {
        true => DType::F32,
        false => args.dtype.map_or(opened.model.file_dtype, DType::from),
    };
    let card = Card::of(&args.model, &opened, (&args.out, args.adapter_only));
    let fidelity = whole(&args.out, |partial| {
        let fidelity = match args.adapter_only {
            true => {
                adapter::write(&opened, args.format, &card, partial)?;
                adapter::compare(&opened, partial)?
            }
            false => {
                write(&opened, args, &card, dtype, partial)?;
                compare(&opened, dtype, partial)?
            }
        };
        if !is_gguf(partial) {
            card.write(partial, &card::figures(&fidelity))?;
        }
        Ok(fidelity)
    })?;
    if is_gguf(&args.out) {
        card.write(&args.out, &card::figures(&fidelity))?;
    }
    report(args, dtype, &fidelity);
    Ok(())
}

/// Refuses to hold weights with rounding errors that would be written.
pub(super) fn refuse_packed(args: &ModelArgs) -> Result<(), Failure> {
    let held = args.base_precision;
    let packed = match args.compute {
        PrecisionArg::Int8 => Some("--compute int8".to_owned()),
        PrecisionArg::Fp8 => Some("--compute fp8".to_owned()),
        _ => held.is_packed().then(|| format!("--base-precision {}", <&str>::from(held))),
    };
    match packed {
        None => Ok(()),
        Some(flag) => Err(Failure::Usage(format!(
            "{flag}: an export needs no compute precision, and packed weights would be written \
             with their rounding errors; omit it"
        ))),
    }
}

/// Lets `fill` write and check what is to become the file or directory `out`, under another name,
/// and only then gives it its own. Nothing half-written is left.
pub(super) fn whole<T>(
    out: &Path,
    fill: impl FnOnce(&Path) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let name = out.file_name().unwrap_or_default().to_string_lossy();
    // The extension says how it is read back.
    let is_file = is_gguf(out);
    let partial = out.with_file_name(match is_file {
        true => format!(".partial.{name}"),
        false => format!(".{name}.partial"),
    });
    // Left by a command that was killed.
    remove(&partial).map_err(TrainError::io(&partial))?;
    let result = fill(&partial).inspect_err(|_| {
        // The first error is the one worth reporting.
        let _ = remove(&partial);
    })?;
    match is_file {
        true => publish_file(&partial, out)?,
        false => publish(&partial, out)?,
    }
    Ok(result)
}

/// Removes a file or a directory, if there is one.
pub(super) fn remove(path: &Path) -> std::io::Result<()> {
    let removed = match path.is_dir() {
        true => std::fs::remove_dir_all(path),
        false => std::fs::remove_file(path),
    };
    match removed {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn write(
    opened: &Opened,
    args: &ExportArgs,
    card: &Card,
    dtype: DType,
    to: &Path,
) -> Result<(), Failure> {
    let Opened { device, model, .. } = opened;
    match args.format {
        ExportFormat::Gguf => {
            let mut form = gguf::form(opened, card)?;
            let mix = Mix::named(dtype.name()).expect("a mix of each float type");
            form.set_file_type(mix.file_type);
            let storages = vec![dtype.into(); form.tensors().len()];
            gguf::write(opened, &form, (&storages, &|_, _| &[]), (to, 0), &mut |_| ())?;
            let types = (&storages[..], &Columns::default());
            gguf::same_weights(opened, [&form, &form], types, to)?;
            gguf::check(opened, to)
        }
        ExportFormat::Hf => {
            std::fs::create_dir(to).map_err(|error| {
                let out = args.out.display();
                Failure::Usage(format!("--out {out} cannot be created ({error}); choose another"))
            })?;
            // A model that was not tuned keeps the stop tokens that it was published with.
            let end_of_turn = opened.tokenizer.turn_end_id().filter(|_| is_adapted(model));
            let (base, quantised) = (&*opened.dir, None);
            let options = ExportOptions { base, dtype, end_of_turn, quantised };
            export_hf(model, device, options, to)?;
            Ok(())
        }
    }
}

pub(super) fn is_adapted(model: &Model) -> bool {
    model.decoder.projections().any(|(_, p)| !p.adapters.is_empty())
}

fn report(args: &ExportArgs, dtype: DType, fidelity: &Fidelity) {
    if args.json {
        output::json(&json!({
            "out": args.out,
            "dtype": dtype.name(),
            "logits_error": fidelity.max_error,
            "effect_lost": fidelity.lost,
            "kl": fidelity.kl,
            "top1_agreement": fidelity.top1_agreement,
        }));
        return;
    }
    let mut rows = vec![
        ("written", args.out.display().to_string()),
        ("weights", dtype.name().to_owned()),
        ("logits", format!("within {:.1e} of their range when read back", fidelity.max_error)),
    ];
    if let Some(lost) = fidelity.lost.filter(|_| !args.adapter_only) {
        let agreement = 100.0 * fidelity.top1_agreement;
        rows.push((
            "adapter",
            format!(
                "{:.1} % of its effect lost in the merge; most likely token unchanged for \
                 {agreement:.0} % of tokens",
                100.0 * lost
            ),
        ));
    }
    output::table(&rows);
}

/// Texts on which the model and its export are compared: prose, dialogue, figures, code.
const TEXTS: [&str; 4] = [
    "Once upon a time there was a little girl who lived in a village near the forest. One day \
     she found a small bird with a broken wing, and she took it home with her.",
    "User: What is the capital of France, and how many people live there?\nAssistant: The capital \
     of France is Paris. About two million people live in the city itself.",
    "In 2023, sales rose by 12.5 % to 3,480 units; costs fell from $1,200 to $980. The mean of 4, \
     8 and 15 is 9.",
    "def area(width, height):\n    if width < 0:\n        raise ValueError(\"negative\")\n    \
     return width * height\n",
];

/// Number of tokens of each text that are compared.
const MAX_TOKENS: usize = 64;

/// Rows of tokens on which a model is compared with what was written of it.
pub(super) fn rows(opened: &Opened) -> Result<Vec<Vec<u32>>, Failure> {
    let config = &opened.model.decoder.config;
    let is_known = |id: &u32| (*id as usize) < config.vocab_size;
    // Learned positions end.
    let max_tokens = config.longest().map_or(MAX_TOKENS, |longest| longest.min(MAX_TOKENS));
    let row = |text: &str| -> Result<Vec<u32>, Failure> {
        let tokens = opened.tokenizer.encode(text, true)?;
        Ok(tokens.into_iter().filter(is_known).take(max_tokens).collect())
    };
    TEXTS.into_iter().map(row).collect()
}

/// Reads the export back and compares it with the model in memory.
fn compare(opened: &Opened, dtype: DType, out: &Path) -> Result<Fidelity, Failure> {
    let Opened { device, model, .. } = opened;
    let written = &hone_model::load(out, device, LoadOptions::INFERENCE)?;
    let base = is_adapted(model).then(|| model.without_adapters());
    let models = Comparison { device, base: base.as_ref(), intended: model, written };
    checked(models, dtype, opened)
}

fn checked(models: Comparison<'_>, dtype: DType, opened: &Opened) -> Result<Fidelity, Failure> {
    check_written(models, dtype, &rows(opened)?).map_err(|error| match error {
        // Errors that the user can fix by choosing another type or other weights.
        ExportError::EffectLost { .. }
        | ExportError::Overflow { .. }
        | ExportError::NotFinite { .. } => {
            TrainError::Usage(Code::ExportFailed, error.to_string()).into()
        }
        other => other.into(),
    })
}
