//! Why a GGUF file cannot be read.

use hone_kernels::format::{ShapeError, UnreadType};
use std::path::{Path, PathBuf};

/// Why a GGUF file cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum GgufError {
    /// The system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// File.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Header or extents are not those of a GGUF file.
    #[error(
        "{}: not a whole GGUF file ({reason}). It may have been cut short while it was copied: \
         fetch it again",
        path.display()
    )]
    Damaged {
        /// File.
        path: PathBuf,
        /// What does not fit.
        reason: String,
    },
    /// Another version of the format.
    #[error("{}: {problem}", path.display())]
    Version {
        /// File.
        path: PathBuf,
        /// Which, and what to do.
        problem: &'static str,
    },
    /// An element type that is not read.
    #[error(
        "{}: tensor `{tensor}`: {source}. Fetch the model in one of these, or quantise it again",
        path.display()
    )]
    ElementType {
        /// File.
        path: PathBuf,
        /// Tensor.
        tensor: String,
        /// Its type.
        source: UnreadType,
    },
    /// A tensor whose rows are not whole blocks of its type.
    #[error(
        "{}: tensor `{tensor}`: {source}. Quantise it in a type whose blocks divide its rows",
        path.display()
    )]
    Ragged {
        /// File.
        path: PathBuf,
        /// Tensor.
        tensor: String,
        /// Its rows and blocks.
        source: ShapeError,
    },
    /// Parts that are missing or do not belong together.
    #[error("{}: {problem}", path.display())]
    Parts {
        /// File.
        path: PathBuf,
        /// What is wrong, and what to do.
        problem: String,
    },
}

impl GgufError {
    pub(super) fn damaged(path: &Path, reason: impl Into<String>) -> Self {
        Self::Damaged { path: path.to_owned(), reason: reason.into() }
    }

    pub(super) fn parts(path: &Path, problem: String) -> Self {
        Self::Parts { path: path.to_owned(), problem }
    }
}
