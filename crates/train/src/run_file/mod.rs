//! The run file: TOML and command-line overrides, checked against one schema, as one typed tree
//! with every default filled in. It opens nothing that it names and knows no models; whether a
//! path exists or a pattern matches a layer is found out by those who use it.

mod bytes;
mod error;
mod held;
mod keys;
mod macros;
mod names;
mod parse;
mod paths;
mod reference;
mod relations;
mod schema;
mod sections;
#[cfg(test)]
mod tests;
mod values;
mod words;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::{Deserialize, Serialize};

pub use bytes::ByteSize;
pub use error::{Location, RunFileError};
pub use held::Held;
pub use hone_data::{Format, OnError, Overlong};
pub use relations::check_held_for;
pub use sections::*;
pub use words::words;

/// The effective configuration of a run. Built by [`RunFile::load`], which checks; deserialising
/// it directly does not check ranges.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunFile {
    /// The model to start from.
    pub model: ModelSection,
    /// Records to learn from and to evaluate on.
    pub data: DataSection,
    /// `None`: full fine-tuning.
    pub adapter: Option<AdapterSection>,
    /// What is learnt.
    pub objective: ObjectiveSection,
    /// How long and in what steps.
    pub train: TrainSection,
    /// How parameters follow their gradients.
    pub optimizer: OptimizerSection,
    /// Course of the learning rate.
    pub schedule: ScheduleSection,
    /// How often progress is kept.
    pub checkpoint: CheckpointSection,
    /// What the planner has to keep to.
    pub budget: BudgetSection,
    /// The machine.
    pub run: RunSection,
    /// What the report shows.
    pub report: ReportSection,
    /// Where the result goes.
    pub output: OutputSection,
}

impl RunFile {
    /// Reads and checks the file at `path` with `key=value` overrides.
    ///
    /// # Errors
    /// The first thing wrong, with file, line, key, what was found, what is expected.
    pub fn load(path: &Path, overrides: &[String]) -> Result<RunFile, RunFileError> {
        let is_data = |extension: &std::ffi::OsStr| extension == "jsonl" || extension == "json";
        if path.extension().is_some_and(is_data) {
            return Err(RunFileError::IsData { path: path.to_owned() });
        }
        let text = std::fs::read_to_string(path)
            .map_err(|source| RunFileError::Read { path: path.to_owned(), source })?;
        Self::build(&path.display().to_string(), &text, overrides)
    }

    /// As [`RunFile::load`], from a text; messages call it "the run file".
    ///
    /// # Errors
    /// As [`RunFile::load`].
    pub fn from_str(text: &str, overrides: &[String]) -> Result<RunFile, RunFileError> {
        Self::build("the run file", text, overrides)
    }

    fn build(file: &str, text: &str, overrides: &[String]) -> Result<RunFile, RunFileError> {
        let mut settings = parse::Settings::read(file, text, overrides)?;
        relations::check_exclusive(&settings)?;
        relations::fill_derived(&mut settings);
        let places: BTreeMap<_, _> =
            keys::all().map(|key| (key.path, settings.place(key.path))).collect();
        let run: RunFile =
            settings.into_toml().try_into().expect("what the schema accepts fits the types");
        relations::check_all(&run)
            .map_err(|(key, problem)| relations::error(places[key].clone(), key, problem))?;
        Ok(run)
    }

    /// Checks the token counts once `max_seq_len` is settled from the model.
    ///
    /// # Errors
    /// `train.batch_tokens` below it, or `budget.micro_batch_tokens` not a multiple of it.
    pub fn check_with_max_seq_len(&self, max_seq_len: usize) -> Result<(), RunFileError> {
        relations::check_token_counts(self, Some(max_seq_len)).map_err(|(key, problem)| {
            relations::error(Location::File("the run file".to_owned()), key, problem)
        })
    }

    /// The effective configuration, all defaults filled in; loading it gives an equal `RunFile`.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("a run file is plain tables of plain values")
    }

    /// The reference of all keys as Markdown, from the schema that checks them.
    pub fn reference_markdown() -> String {
        reference::markdown()
    }

    /// Keys that differ, as `key: old → new`, apart from those that a resumed run may change.
    pub fn changed_keys(&self, new: &RunFile) -> Vec<String> {
        let fixed: BTreeSet<&str> =
            keys::all().filter(|key| !key.changeable).map(|key| key.path).collect();
        self.changes_among(new, fixed)
    }

    /// Of `keys` those that differ, as `key: old → new`.
    pub fn changes_among<'a>(
        &self,
        new: &RunFile,
        keys: impl IntoIterator<Item = &'a str>,
    ) -> Vec<String> {
        let (old_values, new_values) = (self.flat(), new.flat());
        let shown = |values: &BTreeMap<String, String>, path: &str| {
            values.get(path).cloned().unwrap_or_else(|| "absent".to_owned())
        };
        keys.into_iter()
            .map(|path| (path, shown(&old_values, path), shown(&new_values, path)))
            .filter(|(_, old, new)| old != new)
            .map(|(path, old, new)| format!("{path}: {old} → {new}"))
            .collect()
    }

    /// Each value as TOML, by path.
    fn flat(&self) -> BTreeMap<String, String> {
        let root = toml::Table::try_from(self).expect("a run file is plain tables");
        let mut flat = BTreeMap::new();
        for (table, values) in &root {
            for (name, value) in values.as_table().into_iter().flatten() {
                flat.insert(format!("{table}.{name}"), value.to_string());
            }
        }
        flat
    }
}
