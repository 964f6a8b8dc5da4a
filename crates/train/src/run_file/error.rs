//! What can be wrong with a run file, and where.

use crate::code::Code;
use std::fmt;
use std::path::PathBuf;

/// Where a value, or its absence, was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// A line of the file, counted from 1.
    Line {
        /// The file's name.
        file: String,
        /// Its line, from 1.
        line: usize,
    },
    /// A `key=value` override.
    CommandLine,
    /// The file as a whole: something is missing from it, or follows from several keys.
    File(String),
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Location::Line { file, line } => write!(f, "{file}, line {line}"),
            Location::CommandLine => write!(f, "on the command line"),
            Location::File(file) => write!(f, "{file}"),
        }
    }
}

/// Why a run file was refused.
#[derive(Debug, thiserror::Error)]
pub enum RunFileError {
    /// The file could not be read.
    #[error("cannot read the run file {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// Data in place of a run file.
    #[error(
        "{}: this is data, and a run file is needed: a TOML file that names the model and, as \
         data.train, this one", path.display()
    )]
    IsData {
        /// The file.
        path: PathBuf,
    },
    /// The text is not TOML, or an override is not `key=value`.
    #[error("{place}: {problem}")]
    Syntax {
        /// Where.
        place: Location,
        /// What is wrong and what would fix it.
        problem: String,
    },
    /// A key or table that the run file does not have.
    #[error("{place}: {key}: {problem}")]
    UnknownKey {
        /// Where.
        place: Location,
        /// Table and name, or the table.
        key: String,
        /// What may have been meant.
        problem: String,
    },
    /// A key is missing, of the wrong type or out of range, or contradicts another.
    #[error("{place}: {key}: {problem}")]
    Key {
        /// Where.
        place: Location,
        /// Table and name, as in `train.learning_rate`.
        key: String,
        /// What is wrong and what would fix it.
        problem: String,
    },
}

impl RunFileError {
    /// Its name for programs.
    pub fn code(&self) -> Code {
        match self {
            Self::Read { .. } | Self::IsData { .. } => Code::RunFileUnreadable,
            Self::Syntax { .. } => Code::RunFileSyntax,
            Self::UnknownKey { .. } => Code::RunFileUnknownKey,
            Self::Key { .. } => Code::RunFileInvalidValue,
        }
    }
}
