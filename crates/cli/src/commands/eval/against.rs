//! `hone eval --against`: how far a model is from the one that it was made of.

use super::super::{Described, Opened, Purpose, Weighed, describe, named_by_flags};
use super::words;
use crate::args::{EvalArgs, ModelArgs};
use crate::failure::Failure;
use crate::output;
use crate::progress;
use hone_data::{Dataset, RecordKind, RecordSpec};
use hone_eval::against::{Against, Rows, against, digest};
use hone_eval::statistics::Estimate;
use hone_train::TrainError;
use hone_train::run_file::Held;
use serde_json::{Value, json};

/// The model of `--against`, before its weights are loaded, which must have made the same tokens
/// of the data.
pub(super) fn describe_reference(
    args: &EvalArgs,
    model: &Described,
    (spec, dataset): (&RecordSpec, &Dataset),
) -> Result<Option<Described>, Failure> {
    let Some(against) = &args.against else { return Ok(None) };
    if spec.kind != RecordKind::Plain {
        return Err(Failure::Usage(format!(
            "--against compares predictions of texts and answers, not of --format {}; give \
             another format, or leave --against out",
            args.format.name()
        )));
    }
    let reference_args = ModelArgs {
        model: against.clone(),
        adapter: None,
        device: args.model.device.clone(),
        // What holding the model in fewer bits loses is to be seen.
        base_precision: Held::Auto,
        ..args.model
    };
    let reference = describe(&reference_args, Purpose::Unchanged)?;
    reference.predicts_tokens(&reference_args)?;
    let [own, other] = [model.config().vocab_size, reference.config().vocab_size];
    if own != other {
        return Err(Failure::Usage(format!(
            "--against {against}: has a vocabulary of {other} tokens, the model one of {own}; \
             distributions can be compared over one vocabulary only"
        )));
    }
    if !reference.config().supports_len(spec.max_seq_len) {
        let longest = reference.config().max_position_embeddings;
        return Err(Failure::Usage(format!(
            "--against {against}: its positions end at {longest}, before --max-seq-len {}",
            spec.max_seq_len
        )));
    }
    let threads = super::num_threads(args.model.threads);
    let of_reference = hone_data::load(&args.data, spec, &reference.tokenizer, threads)
        .map_err(|error| named_by_flags(error, words))?;
    let rows = dataset.len().max(of_reference.len());
    let row = |set: &Dataset, i| (i < set.len()).then(|| set.row(i).tokens.to_vec());
    if let Some(i) = (0..rows).find(|&i| row(dataset, i) != row(&of_reference, i)) {
        let of = if i < dataset.len() { dataset } else { &of_reference };
        let source = of.row(i).source;
        return Err(Failure::Usage(format!(
            "--against {against}: its tokenizer or chat template makes other tokens of {}:{}; \
             models can be compared on the same tokens only",
            source.file, source.line
        )));
    }
    Ok(Some(reference))
}

/// Compares on the model's device, both in the type that the model computes in, and says what was
/// found.
pub(super) fn run(
    args: &EvalArgs,
    (name, reference): (&str, Described),
    model: &Opened,
    rows: Rows<'_>,
) -> Result<(), Failure> {
    let device = &model.device;
    let models =
        [Weighed::of((name, None), &reference.dir, &reference.model)?, model.weighed(&args.model)?];
    let reference = Opened { compute: model.compute, ..reference.load_on(device.clone())? };
    let passes = [reference.pass(), model.pass()];
    let (num_rows, digest) = (rows.dataset.len(), digest(rows.dataset));
    let bar = progress::bar(num_rows, "rows");
    let done = &mut |rows| bar.inc(rows as u64);
    let found = device.reusing_memory(|| against(passes, rows, done));
    bar.finish_and_clear();
    let found = found.map_err(TrainError::from)?.ok_or_else(|| {
        Failure::Running(format!(
            "a logit of the model or of --against is not finite: a weight is not, or they \
             overflow with --compute {}",
            model.compute.name()
        ))
    })?;
    match args.json {
        true => {
            let mut object = summary(&found, num_rows);
            let [against, model] = models;
            object["model"] = json!(model);
            object["against"] = json!(against);
            object["data"] = json!(args.data);
            object["tokens_sha256"] = digest.into();
            output::json(&object);
        }
        false => output::table(&table(&found, num_rows)),
    }
    Ok(())
}

/// What `--json` prints of the figures.
fn summary(found: &Against, rows: usize) -> Value {
    json!({
        "kl": found.kl,
        "same_top": found.same_top,
        "flips": found.flips,
        "loss": found.loss.model,
        "loss_against": found.loss.reference,
        "loss_difference": found.loss.difference,
        "num_target_tokens": found.num_target_tokens,
        "rows": rows,
    })
}

/// The lines of the table.
fn table(found: &Against, rows: usize) -> Vec<(&'static str, String)> {
    let Against { kl, same_top, loss, flips, num_target_tokens } = found;
    let within = |interval: Option<[f64; 2]>, scale: f64, digits: usize| match interval {
        Some([low, high]) => {
            format!(" (95 %: {:.digits$} to {:.digits$})", low * scale, high * scale)
        }
        None => String::new(),
    };
    let Estimate { value, interval, .. } = *same_top;
    let difference = loss.difference;
    let few = if interval.is_none() { ", too few for intervals" } else { "" };
    vec![
        ("KL divergence", format!("{:.6} nats per token{}", kl.mean, within(kl.interval, 1.0, 6))),
        (
            "its quantiles",
            format!(
                "median {:.6}, 99 % {:.4}, 99.9 % {:.4}, largest {:.4}",
                kl.median, kl.p99, kl.p999, kl.max
            ),
        ),
        ("same top token", format!("{:.2} %{}", 100.0 * value, within(interval, 100.0, 2))),
        (
            "loss",
            format!(
                "{:.6} against {:.6} of the reference: {:+.6}{}",
                loss.model,
                loss.reference,
                difference.value,
                within(difference.interval, 1.0, 6)
            ),
        ),
        (
            "flips",
            format!(
                "{} tokens are no longer predicted, {} are newly; p = {:.3} by rows",
                flips.lost, flips.gained, flips.p_value
            ),
        ),
        ("target tokens", format!("{num_target_tokens} in {rows} rows{few}")),
    ]
}
