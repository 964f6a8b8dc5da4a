//! What can be wrong with data, said so that the user can fix it.

use crate::spec::Format;

/// Something that a user may set to be rid of an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Setting {
    /// The files themselves: to be looked at again.
    Paths,
    /// The records' format: to be named, or named otherwise.
    Format,
    /// The records' format: to be this one.
    FormatAs(Format),
    /// The fields of prompt and completion: to be named.
    Fields,
    /// The longest row: to be raised.
    MaxSeqLen,
    /// Longer rows: to be cut.
    Truncate,
    /// Bad records: to be left out.
    Skip,
    /// The end of a document: to get no end-of-text token.
    NoEos,
    /// What is learnt: to be this kind of objective.
    Objective(&'static str),
    /// Passes over the data: to be at most so many.
    NumEpochs(u64),
    /// Steps: to be given instead of passes over the data.
    MaxSteps,
}

/// How a front end tells its user to use a setting, as in `raise --max-seq-len`; `None` if it has
/// no such setting.
pub type Words = fn(Setting) -> Option<String>;

/// How to fix an error: in words or by one of the settings.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Fix {
    words: String,
    settings: Vec<Setting>,
}

impl Fix {
    /// Or by this setting.
    pub(crate) fn or(mut self, setting: Setting) -> Self {
        self.settings.push(setting);
        self
    }

    /// What is wrong, and each way to fix it that the front end has.
    fn after(&self, what: &str, words: Words) -> String {
        let in_words = (!self.words.is_empty()).then(|| self.words.clone());
        let ways = in_words.into_iter().chain(self.settings.iter().filter_map(|s| words(*s)));
        match ways.collect::<Vec<_>>().join(", or ") {
            ways if ways.is_empty() => what.to_owned(),
            ways => format!("{what}; {ways}"),
        }
    }
}

impl From<&str> for Fix {
    fn from(words: &str) -> Self {
        words.to_owned().into()
    }
}

impl From<String> for Fix {
    fn from(words: String) -> Self {
        Self { words, settings: Vec::new() }
    }
}

impl From<Setting> for Fix {
    fn from(setting: Setting) -> Self {
        Self::default().or(setting)
    }
}

/// An error in files, records, tokenizer or configuration. It names the place, what was wrong and
/// how to fix it; a front end shows its `message`, since only it knows what its settings are
/// called.
#[derive(Debug, Clone, PartialEq)]
pub enum DataError {
    /// One record is wrong.
    Record {
        /// The file, as it was named or as the glob found it.
        file: String,
        /// Line of the record's first character, from 1.
        line: usize,
        /// What is wrong and how to fix it.
        fault: RecordFault,
    },
    /// A whole file is wrong: missing, unreadable, empty, not of a known kind.
    File {
        /// The file or pattern.
        file: String,
        /// What is wrong.
        what: String,
        /// How to fix it.
        fix: Fix,
    },
    /// The model's tokenizer or chat template is missing, damaged or not supported.
    Tokenizer {
        /// What is wrong, and in which file.
        what: String,
        /// How to fix it.
        fix: Fix,
    },
    /// The configuration does not fit the tokenizer or the data as a whole.
    Setup {
        /// What is wrong.
        what: String,
        /// How to fix it.
        fix: Fix,
    },
}

impl DataError {
    pub(crate) fn file(
        file: impl Into<String>,
        what: impl Into<String>,
        fix: impl Into<Fix>,
    ) -> Self {
        Self::File { file: file.into(), what: what.into(), fix: fix.into() }
    }

    pub(crate) fn tokenizer(
        file: impl std::fmt::Display,
        what: impl std::fmt::Display,
        fix: impl Into<Fix>,
    ) -> Self {
        Self::Tokenizer { what: format!("{file}: {what}"), fix: fix.into() }
    }

    pub(crate) fn setup(what: impl Into<String>, fix: impl Into<Fix>) -> Self {
        Self::Setup { what: what.into(), fix: fix.into() }
    }

    /// Without advice on the settings that say how plain records are laid out.
    pub(crate) fn without_layouts(mut self) -> Self {
        let fix = match &mut self {
            Self::Record { fault, .. } => &mut fault.fix,
            Self::File { fix, .. } | Self::Tokenizer { fix, .. } | Self::Setup { fix, .. } => fix,
        };
        let is_layout = |setting: &Setting| {
            matches!(setting, Setting::Format | Setting::FormatAs(_) | Setting::Fields)
        };
        fix.settings.retain(|setting| !is_layout(setting));
        self
    }

    /// For the user of a front end with these words for settings.
    pub fn message(&self, words: Words) -> String {
        match self {
            Self::Record { file, line, fault } => {
                format!("{file}:{line}: {}", fault.message(words))
            }
            Self::File { file, what, fix } => format!("{file}: {}", fix.after(what, words)),
            Self::Tokenizer { what, fix } | Self::Setup { what, fix } => fix.after(what, words),
        }
    }
}

/// Why a record cannot be used.
#[derive(Debug, Clone, PartialEq)]
pub struct RecordFault {
    /// What kind of fault it is.
    pub kind: FaultKind,
    /// What is wrong.
    pub what: String,
    /// How to fix it.
    pub fix: Fix,
}

/// Kinds of faults: headings of the report for records that were left out, and what stops a load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultKind {
    /// Not readable as a record of the chosen format.
    Malformed,
    /// Longer than `max_seq_len`, which is to be refused.
    Overlong,
    /// Nothing to learn from.
    WithoutTarget,
    /// No fault of the record: the model lacks what it takes. Never skipped.
    Model,
}

impl RecordFault {
    pub(crate) fn malformed(what: impl Into<String>, fix: impl Into<Fix>) -> Self {
        Self { kind: FaultKind::Malformed, what: what.into(), fix: fix.into() }
    }

    pub(crate) fn model(what: impl Into<String>, fix: impl Into<Fix>) -> Self {
        Self { kind: FaultKind::Model, what: what.into(), fix: fix.into() }
    }

    /// As [`DataError::message`].
    pub fn message(&self, words: Words) -> String {
        self.fix.after(&self.what, words)
    }
}
