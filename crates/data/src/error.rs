//! What can be wrong with data, said so that the user can mend it.

/// An error in files, records, tokenizer or configuration. Its text names the place, what was
/// wrong and the mend; it is meant for the user as it is.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum DataError {
    /// One record is wrong.
    #[error("{file}:{line}: {fault}")]
    Record {
        /// The file, as it was named or as the glob found it.
        file: String,
        /// Line of the record's first character, from 1.
        line: usize,
        /// What is wrong and how to mend it.
        fault: RecordFault,
    },
    /// A whole file is wrong: missing, unreadable, empty, not of a known kind.
    #[error("{file}: {what}; {mend}")]
    File {
        /// The file or pattern.
        file: String,
        /// What is wrong.
        what: String,
        /// How to mend it.
        mend: String,
    },
    /// The configuration does not fit the tokenizer or the data as a whole.
    #[error("{what}; {mend}")]
    Setup {
        /// What is wrong.
        what: String,
        /// How to mend it.
        mend: String,
    },
}

impl DataError {
    pub(crate) fn file(
        file: impl Into<String>,
        what: impl Into<String>,
        mend: impl Into<String>,
    ) -> Self {
        Self::File { file: file.into(), what: what.into(), mend: mend.into() }
    }

    pub(crate) fn setup(what: impl Into<String>, mend: impl Into<String>) -> Self {
        Self::Setup { what: what.into(), mend: mend.into() }
    }
}

/// Why a record cannot be used; `kind` decides under which heading a skipped one is counted.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{what}; {mend}")]
pub struct RecordFault {
    /// The heading.
    pub kind: FaultKind,
    /// What is wrong.
    pub what: String,
    /// How to mend it.
    pub mend: String,
}

/// Headings of the report for records that were left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultKind {
    /// Not readable as a record of the chosen format.
    Malformed,
    /// Longer than `max_seq_len`, which is to be refused.
    Overlong,
    /// Nothing to learn from.
    WithoutTarget,
}

impl RecordFault {
    pub(crate) fn malformed(what: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { kind: FaultKind::Malformed, what: what.into(), mend: mend.into() }
    }
}
