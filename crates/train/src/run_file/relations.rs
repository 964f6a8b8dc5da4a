//! What holds between keys: defaults that follow from other keys, and combinations that are
//! refused.

use super::error::{Location, RunFileError};
use super::parse::Settings;
use super::{
    AdapterSection, Format, Held, ObjectiveSection, Offload, Precision, RunFile, TargetModules,
};
use hone_tensor::Storage;

/// A key and what is wrong with it.
type Check = Result<(), (&'static str, String)>;

/// Fills in the defaults that follow from other keys.
pub(super) fn fill_derived(settings: &mut Settings) {
    if let Some(rank) = settings.get("adapter.rank").and_then(toml::Value::as_integer) {
        settings.set_default("adapter.alpha", 2.0 * rank as f64);
    }
    let learning_rate = if settings.has_table("adapter") { 2e-4 } else { 2e-5 };
    settings.set_default("train.learning_rate", learning_rate);
    if settings.get("train.max_steps").is_none() {
        settings.set_default("train.num_epochs", 1);
    }
    if settings.get("train.warmup_steps").is_none() {
        settings.set_default("train.warmup_ratio", 0.03);
    }
}

/// Refuses pairs of keys that exclude each other; before the derived defaults are filled in.
pub(super) fn check_exclusive(settings: &Settings) -> Result<(), RunFileError> {
    for (a, b) in super::keys::EXCLUSIVE {
        if settings.get(a).is_some() && settings.get(b).is_some() {
            let problem = format!("given together with {a}; remove one of the two");
            return Err(error(settings.place(b), b, problem));
        }
    }
    Ok(())
}

/// Refuses combinations of values that cannot be meant.
pub(super) fn check_all(run: &RunFile) -> Check {
    check_preferences(run)?;
    check_fields(run)?;
    check_end_of_text(run)?;
    check_precisions(run)?;
    check_offload(run)?;
    check_targets(run)?;
    check_shared_experts(run)?;
    check_warmup(run)?;
    check_token_counts(run, run.data.max_seq_len)
}

/// Preferences have a layout of their own, which the keys of other records say nothing about.
fn check_preferences(run: &RunFile) -> Check {
    let (data, kind) = (&run.data, run.objective.kind());
    match run.objective {
        ObjectiveSection::Sft | ObjectiveSection::Pretrain | ObjectiveSection::Masked(_) => {
            return Ok(());
        }
        ObjectiveSection::Dpo(_) | ObjectiveSection::Kto(_) => {}
    }
    let unread = [
        ("data.format", data.format != Format::Auto),
        ("data.prompt_field", data.prompt_field.is_some()),
        ("data.completion_field", data.completion_field.is_some()),
        ("data.append_eos", !data.append_eos),
    ];
    match unread.into_iter().find(|(_, is_given)| *is_given) {
        None => Ok(()),
        Some((key, _)) => {
            let problem = format!(
                "is not read with objective.kind = \"{kind}\", whose records have a \
                 layout of their own; remove it, or change objective.kind"
            );
            Err((key, problem))
        }
    }
}

/// Only documents may go without an end-of-text token.
fn check_end_of_text(run: &RunFile) -> Check {
    let data = &run.data;
    if data.append_eos || matches!(data.format, Format::Auto | Format::Text) {
        return Ok(());
    }
    let problem = format!(
        "false is only for documents of format text, and data.format = \"{}\"; remove it, or \
         change data.format",
        data.format.name()
    );
    Err(("data.append_eos", problem))
}

/// In PEFT's files each expert has matrices of its own.
fn check_shared_experts(run: &RunFile) -> Check {
    match &run.adapter {
        Some(AdapterSection::Lora(lora)) if lora.share_experts && lora.init_from.is_some() => {
            let problem = "is for a new adapter: in that of adapter.init_from each expert has \
                           matrices of its own; remove one of the two keys";
            Err(("adapter.share_experts", problem.to_owned()))
        }
        _ => Ok(()),
    }
}

fn check_fields(run: &RunFile) -> Check {
    let data = &run.data;
    let (given, missing) = match (&data.prompt_field, &data.completion_field) {
        (None, None) => return Ok(()),
        (Some(_), Some(_)) => ("data.prompt_field", None),
        (Some(_), None) => ("data.prompt_field", Some("data.completion_field")),
        (None, Some(_)) => ("data.completion_field", Some("data.prompt_field")),
    };
    if let Some(missing) = missing {
        return Err((given, format!("needs {missing} as well; give both or neither")));
    }
    if !matches!(data.format, Format::Auto | Format::PromptCompletion) {
        let problem = "is read only for data.format = \"prompt_completion\"; change data.format or \
                       remove prompt_field and completion_field";
        return Err((given, problem.to_owned()));
    }
    Ok(())
}

/// Integers are for frozen weights, and products in integers for weights held as such.
fn check_precisions(run: &RunFile) -> Check {
    let (held, compute) = (run.model.base_precision, run.model.compute);
    let (key, value) = match (held, compute) {
        (held, _) if held.is_packed() => ("model.base_precision", <&str>::from(held)),
        (_, Precision::Int8) => ("model.compute", "int8"),
        (_, Precision::Fp8) => ("model.compute", "fp8"),
        _ => return Ok(()),
    };
    if run.adapter.is_none() {
        let problem = format!(
            "\"{value}\" is for frozen weights, and without [adapter] all are trained; add \
             [adapter] with kind = \"lora\", or choose \"auto\""
        );
        return Err((key, problem));
    }
    check_held_for(held, compute, "model.base_precision")
        .map_err(|problem| ("model.compute", problem))
}

/// What is trained stays where it is.
fn check_offload(run: &RunFile) -> Check {
    match (run.budget.offload, &run.adapter) {
        (Offload::All, None) => {
            let problem = "\"all\" is for frozen weights, and without [adapter] all are trained; \
                           add [adapter] with kind = \"lora\", or leave it out";
            Err(("budget.offload", problem.to_owned()))
        }
        _ => Ok(()),
    }
}

/// Whether weights are held as what products are computed in; `key` says how they are held.
///
/// # Errors
/// What is wrong, and what to do about it.
pub fn check_held_for(held: Held, compute: Precision, key: &str) -> Result<(), String> {
    let value = match (held, compute) {
        (Held::Auto, _) => return Ok(()),
        (Held::As(storage), _) if storage == Storage::INT8 => return Ok(()),
        (_, Precision::Int8) => "int8",
        (_, Precision::Fp8) => "fp8",
        _ => return Ok(()),
    };
    Err(format!(
        "\"{value}\" multiplies weights that are held as int8; leave {key} out or set it to \
         \"int8\""
    ))
}

fn check_targets(run: &RunFile) -> Check {
    let Some(AdapterSection::Lora(lora)) = &run.adapter else { return Ok(()) };
    match &lora.target_modules {
        TargetModules::Patterns(list) if list.iter().any(|name| name == "all-linear") => {
            let problem = "\"all-linear\" stands alone; remove it or the other names";
            Err(("adapter.target_modules", problem.to_owned()))
        }
        _ => Ok(()),
    }
}

fn check_warmup(run: &RunFile) -> Check {
    match (run.train.warmup_steps, run.train.max_steps) {
        (Some(warmup), Some(steps)) if warmup > steps => {
            let problem = format!("{warmup} is more than train.max_steps = {steps}; lower it");
            Err(("train.warmup_steps", problem))
        }
        _ => Ok(()),
    }
}

/// Relations of token counts; those with `max_seq_len` only where it is known.
pub(super) fn check_token_counts(run: &RunFile, max_seq_len: Option<usize>) -> Check {
    let batch = run.train.batch_tokens;
    if let Some(len) = max_seq_len.filter(|len| batch < *len) {
        let problem = format!(
            "{batch} is less than max_seq_len = {len}, so one sequence would not fit into a step; \
             set train.batch_tokens to {len} or more, or data.max_seq_len to {batch} or less"
        );
        return Err(("train.batch_tokens", problem));
    }
    let Some(micro) = run.budget.micro_batch_tokens else { return Ok(()) };
    if micro > batch {
        let problem = format!("{micro} is more than train.batch_tokens = {batch}; lower it");
        return Err(("budget.micro_batch_tokens", problem));
    }
    match max_seq_len.filter(|len| !micro.is_multiple_of(*len)) {
        None => Ok(()),
        Some(len) => {
            let near = (micro / len).max(1) * len;
            let problem = format!("{micro} is not a multiple of max_seq_len = {len}; try {near}");
            Err(("budget.micro_batch_tokens", problem))
        }
    }
}

/// The error of a key.
pub(super) fn error(place: Location, key: &str, problem: String) -> RunFileError {
    RunFileError::Key { place, key: key.to_owned(), problem }
}
