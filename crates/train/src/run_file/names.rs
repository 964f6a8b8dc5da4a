//! Unknown keys: what they are called here, or what they may be a misspelling of.

use super::keys;
use super::schema::Key;

/// Keys that had another name before, and keys of TRL, PEFT, Transformers and Axolotl, by the name
/// without its table: what to write instead.
const TRANSLATIONS: &[(&str, &str)] = &[
    // Earlier names.
    ("method", "it is `adapter.kind` now"),
    ("objective", "it is `objective.kind` now"),
    ("adam_beta1", "it is `optimizer.beta1` now"),
    ("adam_beta2", "it is `optimizer.beta2` now"),
    ("adam_epsilon", "it is `optimizer.epsilon` now"),
    ("lr_schedule", "it is `schedule.kind` now"),
    // The model.
    ("model_name_or_path", "here it is `model.path`"),
    ("base_model", "here it is `model.path`"),
    ("torch_dtype", "here it is `model.compute`"),
    ("dtype", "here it is `model.compute`"),
    ("bf16", "here it is `model.compute = \"bf16\"`, which \"auto\" chooses for 16-bit files"),
    ("fp16", "here it is `model.compute = \"f16\"`, for GPUs without bf16"),
    ("tf32", "f32 is not rounded to TF32; remove it"),
    ("load_in_8bit", "here it is `model.base_precision = \"int8\"`"),
    ("attn_implementation", "attention never forms the matrix of scores; remove it"),
    ("flash_attention", "attention never forms the matrix of scores; remove it"),
    // Adapters.
    ("peft_type", "here it is `adapter.kind`"),
    ("peft_config", "here it is the table [adapter]"),
    ("use_peft", "here an [adapter] table says so"),
    ("r", "here it is `adapter.rank`"),
    ("lora_r", "here it is `adapter.rank`"),
    ("lora_alpha", "here it is `adapter.alpha`"),
    ("lora_dropout", "here it is `adapter.dropout`"),
    ("lora_target_modules", "here it is `adapter.target_modules`"),
    ("lora_target_linear", "here it is `adapter.target_modules = \"all-linear\"`, the default"),
    ("lora_model_dir", "here it is `adapter.init_from`"),
    // Data.
    ("datasets", "here it is `data.train`"),
    ("dataset_name", "here it is `data.train`, which names files"),
    ("dataset_path", "here it is `data.train`"),
    ("train_file", "here it is `data.train`"),
    ("eval_file", "here it is `data.eval`"),
    ("test_datasets", "here it is `data.eval`"),
    ("max_length", "here it is `data.max_seq_len`"),
    ("max_seq_length", "here it is `data.max_seq_len`"),
    ("sequence_len", "here it is `data.max_seq_len`"),
    ("packing", "rows are always packed, and never see each other; remove it"),
    ("sample_packing", "rows are always packed, and never see each other; remove it"),
    ("eval_packing", "rows are always packed, and never see each other; remove it"),
    ("pad_to_sequence_len", "rows are packed, not padded; remove it"),
    ("train_on_inputs", "here it is `objective.kind = \"pretrain\"`, which learns every token"),
    ("completion_only_loss", "prompts are never learnt with `objective.kind = \"sft\"`; remove it"),
    ("assistant_only_loss", "prompts are never learnt with `objective.kind = \"sft\"`; remove it"),
    // Steps.
    ("num_train_epochs", "here it is `train.num_epochs`"),
    ("per_device_train_batch_size", BATCH),
    ("micro_batch_size", BATCH),
    ("gradient_accumulation_steps", BATCH),
    ("train_batch_size", BATCH),
    ("batch_size", BATCH),
    ("per_device_eval_batch_size", "the planner chooses it; remove it"),
    ("gradient_checkpointing", "here it is `budget.recompute`, which the planner chooses"),
    ("lr", "here it is `train.learning_rate`"),
    ("lr_scheduler", "here it is `schedule.kind`"),
    ("lr_scheduler_type", "here it is `schedule.kind`"),
    ("optim", "here it is `optimizer.kind`"),
    ("gradient_clipping", "here it is `train.max_grad_norm`"),
    ("eval_steps", "here it is `train.eval_every_steps`"),
    ("evals_per_epoch", "here it is `train.eval_every_steps`"),
    // The run.
    ("save_steps", "here it is `checkpoint.every_steps`"),
    ("saves_per_epoch", "here it is `checkpoint.every_steps`"),
    ("save_total_limit", "here it is `checkpoint.keep`"),
    ("output_dir", "here it is `output.dir`"),
    ("resume_from_checkpoint", "here it is the flag --resume"),
    ("logging_steps", "every step is logged; remove it"),
    ("report_to", "a run writes metrics.jsonl and report.html; remove it"),
    ("use_cpu", "here it is `run.device = \"cpu\"`"),
];

const BATCH: &str = "here `train.batch_tokens` says how many tokens a step takes, and the planner \
                     how many at once";

/// What is wrong with a key that the schema does not have.
pub(super) fn unknown_key(path: &str) -> String {
    let (table, name) = path.split_once('.').unwrap_or(("", path));
    if let Some(translation) = translation(name) {
        return translation;
    }
    if keys::section(table).is_none() {
        return unknown_table(if table.is_empty() { name } else { table });
    }
    let siblings = keys::all().map(Key::parts).filter(|(of, _)| *of == table);
    let near = nearest(name, siblings.map(|(_, name)| name));
    match near.map(|near| format!("{table}.{near}")).or_else(|| elsewhere(name)) {
        Some(near) => format!("unknown key; did you mean `{near}`?"),
        None => format!("unknown key; the keys of [{table}] are {}", keys_of(table)),
    }
}

/// What is wrong with a table, or a key outside of tables, that the schema does not have.
pub(super) fn unknown_table(name: &str) -> String {
    if let Some(translation) = translation(name) {
        return translation;
    }
    let table = nearest(name, keys::tables()).map(|near| format!("[{near}]"));
    match table.or_else(|| elsewhere(name).map(|near| format!("`{near}`"))) {
        Some(near) => format!("unknown table or key; did you mean {near}?"),
        None => {
            let tables: Vec<_> = keys::tables().collect();
            format!("unknown table or key; the tables are {}", tables.join(", "))
        }
    }
}

/// The names of a table's keys.
pub(super) fn keys_of(table: &str) -> String {
    let mut names: Vec<&str> = Vec::new();
    for (of, name) in keys::all().map(Key::parts) {
        if of == table && !names.contains(&name) {
            names.push(name);
        }
    }
    names.join(", ")
}

fn translation(name: &str) -> Option<String> {
    let (_, translation) = TRANSLATIONS.iter().find(|(foreign, _)| *foreign == name)?;
    Some(format!("unknown key; {translation}"))
}

/// A key of exactly, or nearly, that name in any table.
fn elsewhere(name: &str) -> Option<String> {
    let near = nearest(name, keys::all().map(|key| key.parts().1))?;
    keys::all().find(|key| key.parts().1 == near).map(|key| key.path.to_owned())
}

/// The option at the smallest edit distance, if that is at most a third of the name.
pub(super) fn nearest(
    name: &str,
    options: impl Iterator<Item = &'static str>,
) -> Option<&'static str> {
    let distance = |option: &str| strsim::damerau_levenshtein(name, option);
    let limit = (name.chars().count() / 3).max(1);
    options.map(|o| (distance(o), o)).min().filter(|(d, _)| *d <= limit).map(|(_, o)| o)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// No key of ours is hidden, and every key that a translation names is one.
    #[test]
    fn translations_lead_to_keys() {
        for (foreign, text) in TRANSLATIONS {
            let ours = keys::all().any(|key| key.parts().1 == *foreign);
            assert!(!ours, "{foreign} is a key of ours");
            for quoted in text.split('`').skip(1).step_by(2) {
                let path = quoted.split(' ').next().unwrap();
                assert!(keys::find(path).is_some(), "{foreign}: {path} is no key");
            }
        }
    }
}
