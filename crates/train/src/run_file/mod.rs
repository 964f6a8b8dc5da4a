//! The run file: TOML and command-line overrides, checked against one schema, as one typed tree
//! with every default filled in. It opens nothing that it names and knows no models; whether a
//! path exists or a pattern matches a layer is found out by those who use it.

mod bytes;
mod error;
mod parse;
mod relations;
mod schema;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub use error::{Place, RunFileError};
pub use hone_data::{Format, OnError, Overlong};
pub use relations::check_held_for;

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
    /// Objective and optimizer.
    pub train: TrainSection,
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

/// `[model]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelSection {
    /// A directory in Hugging Face layout, or a hub name.
    pub path: String,
    /// How frozen weights are held; `Auto`: as in the file, or int8 if products are.
    pub base_precision: Precision,
    /// Precision of products; `Auto`: f32 for f32 files, otherwise bf16 or, on a GPU that has none,
    /// f16; `Int8`: that of products
    /// with frozen weights, others are in bf16.
    pub compute: Precision,
}

/// `[data]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataSection {
    /// Paths or glob patterns, at least one.
    pub train: Vec<String>,
    /// Paths or glob patterns, may be empty.
    pub eval: Vec<String>,
    /// Format of the records.
    pub format: Format,
    /// Given exactly when `completion_field` is.
    pub prompt_field: Option<String>,
    /// Given exactly when `prompt_field` is.
    pub completion_field: Option<String>,
    /// Tokens, at least 2; `None`: the least of 2048, the model's maximum and `batch_tokens`.
    pub max_seq_len: Option<usize>,
    /// For rows longer than `max_seq_len`.
    pub overlong: Overlong,
    /// For rows that cannot be used.
    pub on_error: OnError,
    /// Whether an end-of-text token is appended as a target.
    pub append_eos: bool,
}

/// `[adapter]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdapterSection {
    /// Kind of adapter.
    pub method: AdapterMethod,
    /// 1 to 1024.
    pub rank: usize,
    /// Above 0.
    pub alpha: f64,
    /// From 0, below 1.
    pub dropout: f64,
    /// Which linear layers get one.
    pub target_modules: TargetModules,
    /// Scale by alpha / √rank instead of alpha / rank.
    pub use_rslora: bool,
    /// A PEFT adapter to start from.
    pub init_from: Option<PathBuf>,
}

/// `[train]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainSection {
    /// What is learnt.
    pub objective: Objective,
    /// Exactly one of this and `max_steps` is given.
    pub num_epochs: Option<u64>,
    /// Optimizer steps.
    pub max_steps: Option<u64>,
    /// Tokens per optimizer step.
    pub batch_tokens: usize,
    /// The highest learning rate.
    pub learning_rate: f64,
    /// Its course after the warm-up.
    pub lr_schedule: LrSchedule,
    /// Share of all steps; exactly one of this and `warmup_steps` is given.
    pub warmup_ratio: Option<f64>,
    /// Steps; see [`TrainSection::num_warmup_steps`].
    pub warmup_steps: Option<u64>,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Decay of the gradient's running mean.
    pub adam_beta1: f64,
    /// Decay of the squared gradient's running mean.
    pub adam_beta2: f64,
    /// Added to the update's denominator.
    pub adam_epsilon: f64,
    /// Global norm to clip to; 0: no clipping.
    pub max_grad_norm: f64,
    /// 0: only at the end.
    pub eval_every_steps: u64,
    /// What a NaN or infinite loss or gradient does; the step is never applied.
    pub on_nonfinite: OnNonfinite,
    /// Seed of everything random.
    pub seed: u64,
}

/// `[checkpoint]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckpointSection {
    /// Steps between checkpoints.
    pub every_steps: u64,
    /// How many whole ones are kept.
    pub keep: usize,
}

/// `[budget]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BudgetSection {
    /// Bytes the process may take; `None`: what the machine has.
    #[serde(serialize_with = "bytes::serialize", skip_serializing_if = "Option::is_none")]
    pub memory: Option<u64>,
    /// Tokens per forward and backward pass; `None`: the planner's choice.
    pub micro_batch_tokens: Option<usize>,
    /// What backward computes again.
    pub recompute: Recompute,
    /// Which frozen weights a GPU's run keeps in the CPU's memory.
    pub offload: Offload,
}

/// `[run]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunSection {
    /// Where to compute: see [`crate::place::Place::open`].
    pub device: String,
    /// `None`: all cores.
    pub threads: Option<usize>,
    /// Whether a GPU launches passes as a whole.
    pub cuda_graphs: bool,
}

/// `[report]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReportSection {
    /// Texts generated before and after training, 0 to 16.
    pub samples: usize,
    /// Most tokens in each.
    pub max_new_tokens: usize,
}

/// `[output]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OutputSection {
    /// Directory of the run.
    pub dir: PathBuf,
}

/// An enum of the run file: its variants in snake case are the values.
macro_rules! choice {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum $name { $($(#[$variant_doc])* $variant),+ }
    };
}

choice!(
    /// Precision of weights or products.
    Precision {
        /// Decided from the model's files.
        Auto,
        /// 32-bit floats.
        F32,
        /// bfloat16.
        Bf16,
        /// IEEE 754 binary16.
        F16,
        /// Floats of eight bits; products only.
        Fp8,
        /// 8-bit integers with a scale per row.
        Int8,
    }
);
choice!(
    /// Kind of adapter.
    AdapterMethod {
        /// Low-rank adaptation.
        Lora,
    }
);
choice!(
    /// What is learnt.
    Objective {
        /// The target tokens.
        Sft,
        /// Every token.
        Pretrain,
    }
);
choice!(
    /// Course of the learning rate after the warm-up.
    LrSchedule {
        /// Stays.
        Constant,
        /// Falls linearly to 0.
        Linear,
        /// Falls along half a cosine to 0.
        Cosine,
    }
);
choice!(
    /// What a NaN or infinite loss or gradient does.
    OnNonfinite {
        /// Stops the run.
        Stop,
        /// Leaves the step out.
        Skip,
    }
);
choice!(
    /// What backward computes again.
    Recompute {
        /// The planner's choice.
        Auto,
        /// Nothing.
        None,
        /// Everything within a block but its input.
        Block,
    }
);
choice!(
    /// Which frozen weights a GPU's run keeps in the CPU's memory, to be copied when their turn
    /// comes.
    Offload {
        /// Those of as many blocks as memory demands.
        Auto,
        /// None.
        None,
        /// Those of all blocks.
        All,
    }
);

/// Which linear layers get an adapter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<String>", into = "Vec<String>")]
pub enum TargetModules {
    /// All but the head.
    AllLinear,
    /// Names or glob patterns, at least one.
    Patterns(Vec<String>),
}

impl From<Vec<String>> for TargetModules {
    fn from(list: Vec<String>) -> Self {
        if list == ["all-linear"] { Self::AllLinear } else { Self::Patterns(list) }
    }
}

impl From<TargetModules> for Vec<String> {
    fn from(targets: TargetModules) -> Self {
        match targets {
            TargetModules::AllLinear => vec!["all-linear".to_owned()],
            TargetModules::Patterns(list) => list,
        }
    }
}

impl RunFile {
    /// Reads and checks the file at `path` with `key=value` overrides.
    ///
    /// # Errors
    /// The first thing wrong, with file, line, key, what was found, what is expected.
    pub fn load(path: &Path, overrides: &[String]) -> Result<RunFile, RunFileError> {
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
            schema::KEYS.iter().map(|key| (key.path, settings.place(key.path))).collect();
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
            relations::error(Place::File("the run file".to_owned()), key, problem)
        })
    }

    /// The effective configuration, all defaults filled in; loading it gives an equal `RunFile`.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("a run file is plain tables of plain values")
    }

    /// The reference of all keys as Markdown, from the schema that checks them.
    pub fn reference_markdown() -> String {
        schema::reference_markdown()
    }

    /// Keys that differ, as `key: old → new`, apart from those that a resumed run may change.
    pub fn changed_keys(&self, new: &RunFile) -> Vec<String> {
        let (old_values, new_values) = (self.flat(), new.flat());
        let shown = |values: &BTreeMap<String, String>, path: &str| {
            values.get(path).cloned().unwrap_or_else(|| "absent".to_owned())
        };
        schema::KEYS
            .iter()
            .map(|key| key.path)
            .filter(|path| !schema::MAY_CHANGE.iter().any(|may| path.starts_with(may)))
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

impl TrainSection {
    /// Warm-up steps of a run of `num_steps`: as given, or the share rounded up.
    pub fn num_warmup_steps(&self, num_steps: u64) -> u64 {
        match (self.warmup_steps, self.warmup_ratio) {
            (Some(steps), _) => steps.min(num_steps),
            (None, ratio) => (ratio.unwrap_or(0.0) * num_steps as f64).ceil() as u64,
        }
    }
}
