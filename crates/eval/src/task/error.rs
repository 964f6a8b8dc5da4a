//! What can be wrong with a task, its data, or a model for it.

use hone_data::DataError;
use hone_model::generate::GenerateError;
use hone_tensor::DeviceError;
use std::fmt::Display;
use std::path::Path;

/// Why a task cannot be evaluated. The message names the place and the remedy.
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    /// A task file, its data or what was asked for is at fault.
    #[error("{0}")]
    Input(String),
    /// The tokenizer failed.
    #[error("{}", .0.message(|_| None))]
    Data(DataError),
    /// Generation failed.
    #[error(transparent)]
    Generate(#[from] GenerateError),
    /// The device failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

impl From<DataError> for TaskError {
    fn from(error: DataError) -> Self {
        Self::Data(error)
    }
}

impl TaskError {
    /// Of a whole file.
    pub fn file(file: &Path, what: impl Display) -> Self {
        Self::Input(format!("{}: {what}", file.display()))
    }

    /// Of a line of a file.
    pub fn line(file: &Path, line: usize, what: impl Display) -> Self {
        Self::Input(format!("{}:{line}: {what}", file.display()))
    }
}
