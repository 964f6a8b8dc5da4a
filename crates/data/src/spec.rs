//! What the run file says about records.

use serde::{Deserialize, Serialize};

/// Layout of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// Decided for each file from its first record.
    Auto,
    /// `{"messages": [{"role", "content", …}], "tools"?}`.
    Messages,
    /// `{"conversations": [{"from", "value"}], "system"?, "tools"?}`.
    #[serde(rename = "sharegpt")]
    ShareGpt,
    /// `{"instruction", "input"?, "output", "system"?, "history"?}`.
    Alpaca,
    /// Two string fields, joined as they are; the second is the target.
    PromptCompletion,
    /// One document: a whole `.txt` or `.md` file, or the field `text`.
    Text,
}

impl Format {
    /// The name used in run files.
    pub fn name(self) -> &'static str {
        match self {
            Format::Auto => "auto",
            Format::Messages => "messages",
            Format::ShareGpt => "sharegpt",
            Format::Alpaca => "alpaca",
            Format::PromptCompletion => "prompt_completion",
            Format::Text => "text",
        }
    }
}

/// What happens to a row longer than `max_seq_len`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Overlong {
    /// It is an error (or skipped, under `OnError::Skip`).
    Refuse,
    /// Its end is cut off, and counted.
    Truncate,
}

/// What happens to a record that cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnError {
    /// Loading stops with an error that names file and line.
    Fail,
    /// The record is left out, counted and reported.
    Skip,
}

/// What records an objective learns from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RecordKind {
    /// Texts and answers.
    #[default]
    Plain,
    /// Pairs of answers: `prompt`, `chosen`, `rejected`.
    Pairs,
    /// Answers with a rating: `prompt`, `completion`, `label`.
    Rated,
}

impl RecordKind {
    /// Rows that a record becomes; a unit holds them all.
    pub fn rows_per_record(self) -> usize {
        if self == RecordKind::Pairs { 2 } else { 1 }
    }

    /// Tokens of the longest sequence that is scored where the longest row has `longest_row`: rated
    /// answers are also scored after the prompts of other rows. `max_seq_len` bounds it besides.
    pub fn longest_scored(self, longest_row: usize) -> usize {
        if self == RecordKind::Rated { 2 * longest_row } else { longest_row }
    }

    /// For messages.
    pub(crate) fn describe(self) -> &'static str {
        match self {
            RecordKind::Plain => "plain",
            RecordKind::Pairs => "prompt, chosen, rejected",
            RecordKind::Rated => "prompt, completion, label",
        }
    }
}

/// Files to load, and how often an epoch sees their rows.
#[derive(Debug, Clone, PartialEq)]
pub struct WeightedPath {
    /// A file or a glob pattern.
    pub path: String,
    /// How often an epoch sees each row, above 0: 2 is twice, 0.5 a half that differs from epoch
    /// to epoch.
    pub weight: f64,
}

impl From<&String> for WeightedPath {
    fn from(path: &String) -> Self {
        Self { path: path.clone(), weight: 1.0 }
    }
}

/// How records become rows of tokens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RecordSpec {
    /// Layout of the records.
    pub format: Format,
    /// Name of the prompt's field where it is not one of the usual ones.
    pub prompt_field: Option<String>,
    /// Name of the completion's field where it is not one of the usual ones.
    pub completion_field: Option<String>,
    /// Longest row, in tokens; documents are cut into windows of this length.
    pub max_seq_len: usize,
    /// Longest row that the model supports, if known: `max_seq_len` can be raised up to there.
    #[serde(skip)]
    pub model_max_len: Option<usize>,
    /// Policy for longer rows. Documents of format text are never overlong.
    pub overlong: Overlong,
    /// Policy for bad records.
    pub on_error: OnError,
    /// Whether a document of format text gets an end-of-text token, as a target.
    pub append_eos: bool,
    /// What the objective learns from.
    #[serde(default)]
    pub kind: RecordKind,
    /// Continued pre-training: every token but a row's first is a target.
    pub all_tokens_are_targets: bool,
    /// Whether windows and truncated rows begin and end with what the tokenizer adds to a text, as
    /// encoders saw all texts.
    #[serde(default)]
    pub keeps_ends: bool,
    /// Tokens at the beginning of each window of a document that are read and are no targets, for
    /// evaluations that score what has some context. A run has none.
    #[serde(skip)]
    pub context_tokens: usize,
}

impl Default for RecordSpec {
    fn default() -> Self {
        Self {
            format: Format::Auto,
            prompt_field: None,
            completion_field: None,
            max_seq_len: 2048,
            model_max_len: None,
            overlong: Overlong::Refuse,
            on_error: OnError::Fail,
            append_eos: true,
            kind: RecordKind::Plain,
            all_tokens_are_targets: false,
            keeps_ends: false,
            context_tokens: 0,
        }
    }
}
