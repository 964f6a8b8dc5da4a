//! `hone eval`

mod against;
mod task;

pub(super) use task::named;

use super::{Described, Opened, check_parent, named_by_flags, num_threads};
use crate::args::{EvalArgs, FormatArg};
use crate::failure::Failure;
use crate::output;
use crate::progress;
use hone_data::{Dataset, OnError, Overlong, RecordKind, RecordSpec, Setting, pack_in_order};
use hone_eval::against::{Rows, digest};
use hone_model::{Batch, DecoderConfig};
use hone_tensor::safetensors::write;
use hone_tensor::{Tape, Tensor};
use hone_train::evaluate::{EvalSet, Evaluation, evaluate};
use hone_train::objectives::{Comparison, Dpo, Kto, Likelihood, Objective};
use hone_train::scoring::{Packing, Scorer};
use hone_train::setup::check_tokens;
use serde_json::{Value, json};
use std::path::Path;

/// Tokens per micro-batch: enough for efficient matmuls, few enough to fit anywhere.
const BATCH_TOKENS: usize = 4096;

/// Of rewards, where no other is given.
const BETA: f64 = 0.1;

/// Evaluates and prints loss and perplexity, or how answers are ranked.
pub fn run(args: &EvalArgs) -> Result<(), Failure> {
    if !args.task.is_empty() {
        return task::run(args);
    }
    check_flags(args)?;
    if let Some(path) = &args.logits {
        check_parent("--logits", path)?;
    }
    let described = super::describe(&args.model, super::Purpose::Compute)?;
    check_predicts(args, &described)?;
    let spec = record_spec(args, &described)?;
    let dataset =
        hone_data::load(&args.data, &spec, &described.tokenizer, num_threads(args.model.threads))
            .map_err(|error| named_by_flags(error, words))?;
    check_tokens(&dataset, described.config())?;
    for warning in &dataset.report().warnings {
        output::note(&format!("note: {warning}"));
    }
    let of_documents =
        [("--append-eos", args.append_eos), ("--context-tokens", args.context_tokens > 0)];
    for (flag, _) in of_documents.into_iter().filter(|(_, is_given)| *is_given) {
        if !dataset.report().holds_documents() {
            super::print_note(format!(
                "{flag} changes nothing: it is for text documents, and there are none"
            ));
        }
    }
    let unit_tokens = unit_tokens(&spec, dataset.report().longest_row);
    let units = pack_in_order(&dataset, unit_tokens)?;
    let units_per_batch = (BATCH_TOKENS / unit_tokens).clamp(1, units.len());
    let packing = Packing { max_seq_len: spec.max_seq_len, unit_tokens, units_per_batch };
    let reference = against::describe_reference(args, &described, (&spec, &dataset))?;
    let objective = objective(args);
    let opened = described.load()?;
    if let (Some(name), Some(reference)) = (&args.against, reference) {
        let batch_tokens = packing.batch_tokens();
        let rows = Rows { dataset: &dataset, units: &units, batch_tokens, units_per_batch };
        return against::run(args, (name, reference), &opened, rows);
    }
    let reference = objective.needs_reference().then(|| opened.model.without_adapters());
    let scorer = Scorer { pass: opened.pass(), reference: reference.as_ref(), plan: None };
    let set = EvalSet { dataset: &dataset, units: &units, packing, masking: None };
    let bar = progress::bar(dataset.len(), "rows");
    let evaluation = opened
        .pass()
        .device
        .reusing_memory(|| evaluate(scorer, &*objective, set, &mut |rows| bar.inc(rows as u64)));
    bar.finish_and_clear();
    let evaluation = evaluation?;
    if !evaluation.loss.is_finite() {
        return Err(Failure::Running(format!(
            "the loss is {}, not finite: a weight of the model or adapter is not finite, or the \
             model overflows with --compute {}",
            evaluation.loss,
            opened.compute.name()
        )));
    }
    if let Some(path) = &args.logits {
        write_logits(&opened, &dataset, path)?;
    }
    match args.json {
        true => {
            let mut object = summary(&evaluation, dataset.len());
            object["model"] = json!(opened.weighed(&args.model)?);
            object["data"] = json!(args.data);
            object["tokens_sha256"] = digest(&dataset).into();
            output::json(&object);
        }
        false => print(&evaluation, dataset.len()),
    }
    Ok(())
}

/// Refuses models that do not predict the next token.
fn check_predicts(args: &EvalArgs, described: &Described) -> Result<(), Failure> {
    if described.config().looks_ahead().is_some() {
        return Err(Failure::Usage(format!(
            "{}: is an encoder, whose tokens see later ones too: the likelihood of a text means \
             nothing. `hone train` evaluates it with objective.kind = \"masked\" and data.eval",
            args.model.model
        )));
    }
    described.predicts_tokens(&args.model)
}

/// Refuses flags that the evaluation would not read.
fn check_flags(args: &EvalArgs) -> Result<(), Failure> {
    let (format, records) = (args.format, args.format.records());
    let takes_fields = matches!(format, FormatArg::Auto | FormatArg::PromptCompletion);
    let takes_documents = matches!(format, FormatArg::Auto | FormatArg::Text);
    let unread = [
        (
            args.prompt_field.is_some() && !takes_fields,
            ("--prompt-field and --completion-field are", "them"),
            "--format prompt_completion",
        ),
        (args.append_eos && !takes_documents, ("--append-eos is", "it"), "--format text"),
        (
            args.context_tokens > 0 && !takes_documents,
            ("--context-tokens is", "it"),
            "--format text",
        ),
        (
            args.beta.is_some() && records == RecordKind::Plain,
            ("--beta is", "it"),
            "--format pairs or rated",
        ),
    ];
    if let Some((_, (flags, them), of)) = unread.into_iter().find(|(is_unread, ..)| *is_unread) {
        let format = format.name();
        return Err(Failure::Usage(format!(
            "{flags} for {of}, not for {format}; remove {them}, or change --format"
        )));
    }
    if args.beta.is_some() && args.model.adapter.is_none() {
        return Err(Failure::Usage(
            "--beta is for rewards, which compare an adapter with its base; give --adapter, or \
             leave it out"
                .to_owned(),
        ));
    }
    Ok(())
}

/// Slots of a unit: shorter than the longest possible rows if there are none, since padding would
/// be computed for nothing.
fn unit_tokens(spec: &RecordSpec, longest_row: usize) -> usize {
    let longest = spec.kind.longest_scored(longest_row);
    spec.max_seq_len.min(longest.max(BATCH_TOKENS)) * spec.kind.rows_per_record()
}

/// What is measured: with an adapter, answers are also compared with what the base makes of them.
fn objective(args: &EvalArgs) -> Box<dyn Objective> {
    let (records, beta) = (args.format.records(), args.beta.unwrap_or(BETA));
    let rewards: Box<dyn Objective> = match records {
        RecordKind::Plain => return Box::new(Likelihood),
        RecordKind::Pairs => Box::new(Dpo { beta }),
        RecordKind::Rated => Box::new(Kto { beta, desirable_weight: 1.0, undesirable_weight: 1.0 }),
    };
    let rewards = args.model.adapter.as_ref().map(|_| rewards);
    Box::new(Comparison { records, rewards })
}

fn summary(evaluation: &Evaluation, rows: usize) -> Value {
    let mut summary = json!({
        "loss": evaluation.loss,
        "num_target_tokens": evaluation.num_target_tokens,
        "rows": rows,
    });
    match evaluation.perplexity {
        Some(perplexity) => summary["perplexity"] = perplexity.into(),
        None => summary["metrics"] = json!(evaluation.metrics),
    }
    summary
}

fn print(evaluation: &Evaluation, rows: usize) {
    let Evaluation { loss, perplexity, num_target_tokens, metrics } = evaluation;
    let mut table = vec![("loss", format!("{loss:.6} nats per target token"))];
    table.extend(perplexity.map(|perplexity| ("perplexity", format!("{perplexity:.4}"))));
    table.extend(metrics.iter().map(|(name, value)| (name.as_str(), format!("{value:.6}"))));
    table.push(("target tokens", format!("{num_target_tokens} in {rows} rows")));
    output::table(&table);
}

/// The flag for a setting that an error in data suggests to change.
fn words(setting: Setting) -> Option<String> {
    Some(match setting {
        Setting::Paths => "check --data".to_owned(),
        Setting::Format => "give the right --format".to_owned(),
        Setting::FormatAs(format) => format!("give --format {}", format.name()),
        Setting::Fields => "give --prompt-field and --completion-field".to_owned(),
        Setting::MaxSeqLen => "raise --max-seq-len".to_owned(),
        Setting::Truncate => "give --truncate".to_owned(),
        Setting::NoEos => "leave --append-eos out".to_owned(),
        Setting::Objective("dpo") => "give --format pairs".to_owned(),
        Setting::Objective("kto") => "give --format rated".to_owned(),
        Setting::Skip | Setting::Objective(_) | Setting::NumEpochs(_) | Setting::MaxSteps => {
            return None;
        }
    })
}

/// The length that rows may have.
fn max_seq_len(args: &EvalArgs, config: &DecoderConfig) -> Result<usize, Failure> {
    let longest = config.max_position_embeddings;
    let max_seq_len = args.max_seq_len.unwrap_or(longest.min(2048));
    match config.supports_len(max_seq_len) {
        true => Ok(max_seq_len),
        false => Err(Failure::Usage(format!(
            "--max-seq-len {max_seq_len} is longer than the model supports: the model's \
             positions are {longest}"
        ))),
    }
}

fn record_spec(args: &EvalArgs, described: &Described) -> Result<RecordSpec, Failure> {
    let config = described.config();
    let max_seq_len = max_seq_len(args, config)?;
    if args.context_tokens >= max_seq_len {
        return Err(Failure::Usage(format!(
            "--context-tokens {} leaves nothing to score of windows of {max_seq_len} tokens; \
             lower it, or raise --max-seq-len",
            args.context_tokens
        )));
    }
    Ok(RecordSpec {
        format: args.format.into(),
        prompt_field: args.prompt_field.clone(),
        completion_field: args.completion_field.clone(),
        max_seq_len,
        model_max_len: config.longest(),
        overlong: if args.truncate { Overlong::Truncate } else { Overlong::Refuse },
        on_error: OnError::Fail,
        append_eos: args.append_eos,
        kind: args.format.records(),
        all_tokens_are_targets: false,
        keeps_ends: false,
        context_tokens: args.context_tokens,
    })
}

/// Logits `[t, vocab_size]` and token ids `[t]` of the first row, both f32.
fn write_logits(opened: &Opened, dataset: &Dataset, path: &Path) -> Result<(), Failure> {
    let tokens = dataset.row(0).tokens;
    let batch = Batch::from_sequence(&opened.model.decoder.config, tokens);
    let mut tape = Tape::inference(&opened.device, &opened.model.params, opened.compute);
    let logits = opened.model.decoder.logits(&mut tape, &batch).to_host()?;
    opened.device.settle()?;
    let ids: Vec<f32> = tokens.iter().map(|&id| id as f32).collect();
    let tokens = Tensor::from_f32(&ids, &[ids.len()]);
    Ok(write(
        path,
        [("logits".to_owned(), (&logits).into()), ("tokens".to_owned(), (&tokens).into())],
    )?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Arguments;
    use clap::CommandFactory;

    /// A mismatched pair of rated answers is up to twice as long as a row.
    #[test]
    fn units_hold_what_is_scored() {
        let of = |kind, max_seq_len, longest_row| {
            unit_tokens(&RecordSpec { kind, max_seq_len, ..RecordSpec::default() }, longest_row)
        };
        assert_eq!(of(RecordKind::Plain, 8192, 3000), 4096);
        assert_eq!(of(RecordKind::Plain, 8192, 5000), 5000);
        assert_eq!(of(RecordKind::Rated, 8192, 3000), 6000);
        assert_eq!(of(RecordKind::Rated, 8192, 5000), 8192);
        assert_eq!(of(RecordKind::Pairs, 8192, 5000), 10000);
    }

    /// Each setting has words that name its flags, but those that the command has not.
    #[test]
    fn settings_are_called_by_their_flags() {
        let command = Arguments::command();
        let eval = command.find_subcommand("eval").unwrap();
        let flags: Vec<_> = eval.get_arguments().filter_map(|arg| arg.get_long()).collect();
        let fields = ["prompt-field", "completion-field"];
        let settings: [(Setting, &[&str]); 9] = [
            (Setting::Paths, &["data"]),
            (Setting::Format, &["format"]),
            (Setting::FormatAs(hone_data::Format::Text), &["format"]),
            (Setting::Fields, &fields),
            (Setting::MaxSeqLen, &["max-seq-len"]),
            (Setting::Truncate, &["truncate"]),
            (Setting::NoEos, &["append-eos"]),
            (Setting::Objective("dpo"), &["format"]),
            (Setting::Objective("kto"), &["format"]),
        ];
        for (setting, expected) in settings {
            let said = words(setting).unwrap_or_else(|| panic!("{setting:?} has no words"));
            let named: Vec<_> = said.split(' ').filter_map(|w| w.strip_prefix("--")).collect();
            assert_eq!(named, expected, "{setting:?}: {said}");
            expected.iter().for_each(|flag| assert!(flags.contains(flag), "no --{flag}"));
        }
        let missing = [
            (Setting::Skip, "on-error"),
            (Setting::Objective("sft"), "objective"),
            (Setting::NumEpochs(1), "num-epochs"),
            (Setting::MaxSteps, "max-steps"),
        ];
        for (setting, flag) in missing {
            assert!(words(setting).is_none() && !flags.contains(&flag), "{setting:?}");
        }
    }
}
