//! What can end a run.

use crate::checkpoint::{CheckpointError, disk_full, newest_whole};
use crate::code::Code;
use crate::report::ReportError;
use crate::run_file::{RunFileError, words};
use hone_data::DataError;
use hone_model::adapter::AdapterError;
use hone_model::generate::GenerateError;
use hone_model::hub::HubError;
use hone_model::{ConfigError, DecoderConfig, ExportError, LoadError};
use hone_tensor::DeviceError;
use hone_tensor::safetensors::FileError;
use std::path::{Path, PathBuf};

/// Why a run could not start or go on. Its text is meant for the user as it is.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// The run file.
    #[error(transparent)]
    RunFile(#[from] RunFileError),
    /// The model's name.
    #[error(transparent)]
    Hub(#[from] HubError),
    /// The model's configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The model's weights.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// An adapter.
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    /// A text could not be generated.
    #[error(transparent)]
    Generate(#[from] GenerateError),
    /// Data or tokenizer.
    #[error("{}", .0.message(words))]
    Data(DataError),
    /// What was asked for cannot be done as it was asked for.
    #[error("{1}")]
    Usage(Code, String),
    /// A checkpoint or another file that is written whole.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The merged model.
    #[error(transparent)]
    Export(#[from] ExportError),
    /// A file of tensors.
    #[error(transparent)]
    Tensors(#[from] FileError),
    /// The report.
    #[error(transparent)]
    Report(#[from] ReportError),
    /// The system refused a file.
    #[error("{}: {source}", path.display())]
    Io {
        /// File.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The disk became full while something else than a checkpoint was written.
    #[error(
        "disk full: {source}. {}Free some space and run again with --resume",
        last_good.map_or(String::new(), |step| format!(
            "The last good checkpoint, step-{step}, is intact. "
        ))
    )]
    DiskFull {
        /// What was being done.
        source: Box<TrainError>,
        /// Step of the newest whole checkpoint.
        last_good: Option<u64>,
    },
    /// A loss or gradient is not a number.
    #[error(
        "step {step}: {what} is not finite; the step was not applied, and the last whole \
         checkpoint is intact. `--resume train.on_nonfinite=skip` passes over such steps; in a new \
         run, a lower train.learning_rate, a lower train.max_grad_norm or model.compute = \"f32\" \
         usually helps"
    )]
    NonFinite {
        /// The step, from 1.
        step: u64,
        /// What it was.
        what: &'static str,
    },
    /// A device has no more memory, or failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The same in the middle of a run.
    #[error(
        "{}{source}. {}{}",
        step.map_or(String::new(), |step| format!("step {step}: ")),
        resumption(*last_good),
        advice(source)
    )]
    DeviceInRun {
        /// The step, from 1, if it was in one; it was not applied.
        step: Option<u64>,
        /// What failed.
        source: DeviceError,
        /// Step of the newest whole checkpoint.
        last_good: Option<u64>,
    },
    /// A run or checkpoint of another version, which computes other bits or writes other files.
    #[error(
        "{}: written by Hone {hone_version} (numerics {numerics}), and this is Hone {} (numerics \
         {expected}), which rounds or records otherwise. Go on with that version, or start a new \
         run in another output.dir",
        path.display(),
        env!("CARGO_PKG_VERSION")
    )]
    OtherVersion {
        /// The manifest, or the checkpoint.
        path: PathBuf,
        /// The version that goes on with the run.
        hone_version: String,
        /// Its numerics.
        numerics: u32,
        /// Those of this version.
        expected: u32,
    },
}

impl From<DataError> for TrainError {
    fn from(error: DataError) -> Self {
        Self::Data(error)
    }
}

impl TrainError {
    /// A token of `whose` for which the model's embedding has no row.
    pub(crate) fn unknown_token(whose: &str, id: u32, config: &DecoderConfig) -> Self {
        let message = format!(
            "{whose} has token id {id}, but the model knows only {} tokens (its vocab_size). The \
             tokenizer belongs to another model, or tokens were added to it without resizing the \
             model's embedding; leave that token out, or resize the embedding",
            config.vocab_size
        );
        Self::Usage(Code::DataUnknownToken, message)
    }

    /// An error of the system about `path`.
    pub fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::Io { path, source }
    }

    /// Of a device: in which step it failed. Other errors stay as they are.
    pub(crate) fn in_step(self, step: u64) -> Self {
        match self {
            Self::Device(source) => Self::DeviceInRun { step: Some(step), source, last_good: None },
            other => other,
        }
    }

    /// Of a full disk or a device that failed: tells what is safe in `checkpoints`. Other errors
    /// stay as they are.
    pub(crate) fn with_last_good(self, checkpoints: &Path) -> Self {
        let is_device = matches!(self, Self::Device(_) | Self::DeviceInRun { .. });
        if !self.is_disk_full() && !is_device {
            return self;
        }
        let newest = newest_whole(checkpoints).ok().and_then(|(whole, _)| whole);
        let last_good = newest.map(|whole| whole.step);
        match self {
            Self::Device(source) => Self::DeviceInRun { step: None, source, last_good },
            Self::DeviceInRun { step, source, .. } => Self::DeviceInRun { step, source, last_good },
            Self::Checkpoint(mut error) => {
                if let CheckpointError::DiskFull { last_good: step, .. } = &mut error {
                    *step = last_good;
                }
                Self::Checkpoint(error)
            }
            other => Self::DiskFull { source: Box::new(other), last_good },
        }
    }

    /// Its name for programs.
    pub fn code(&self) -> Code {
        if let Some(error) = self.device_error() {
            let ran_out = error.is_out_of_memory();
            return if ran_out { Code::MemoryRanOut } else { Code::DeviceFailed };
        }
        match self {
            _ if self.is_disk_full() => Code::DiskFull,
            Self::Device(_) | Self::DeviceInRun { .. } => Code::DeviceFailed,
            Self::Usage(code, _) => *code,
            Self::RunFile(error) => error.code(),
            Self::Hub(HubError::Network { .. } | HubError::Protocol { .. }) => Code::HubUnreachable,
            Self::Hub(_) => Code::ModelNotFound,
            Self::Config(_) | Self::Load(_) | Self::Data(DataError::Tokenizer { .. }) => {
                Code::ModelInvalid
            }
            Self::Adapter(_) => Code::AdapterInvalid,
            Self::Generate(_) => Code::GenerateFailed,
            Self::Data(DataError::Record { .. }) => Code::DataRecord,
            Self::Data(DataError::File { .. }) => Code::DataFile,
            Self::Data(DataError::Setup { .. }) => Code::DataSetup,
            Self::Checkpoint(_) => Code::CheckpointFailed,
            Self::Export(_) => Code::ExportFailed,
            Self::Report(_) => Code::ReportFailed,
            Self::Tensors(_) | Self::Io { .. } => Code::FileFailed,
            Self::DiskFull { .. } => Code::DiskFull,
            Self::NonFinite { .. } => Code::TrainNotFinite,
            Self::OtherVersion { .. } => Code::ResumeOtherVersion,
        }
    }

    /// The device's failure that it comes from.
    fn device_error(&self) -> Option<&DeviceError> {
        match self {
            Self::Device(error)
            | Self::DeviceInRun { source: error, .. }
            | Self::Load(LoadError::Device(error) | LoadError::File(FileError::Device(error)))
            | Self::Adapter(
                AdapterError::Device(error) | AdapterError::File(FileError::Device(error)),
            )
            | Self::Generate(GenerateError::Device(error))
            | Self::Export(
                ExportError::Device(error) | ExportError::File(FileError::Device(error)),
            )
            | Self::Tensors(FileError::Device(error)) => Some(error),
            _ => None,
        }
    }

    /// Whether it comes from a full disk.
    pub fn is_disk_full(&self) -> bool {
        disk_full(self)
    }

    /// Whether the user can fix it by changing what was asked for (exit status 2).
    pub fn is_usage(&self) -> bool {
        match self {
            _ if self.is_disk_full() => true,
            _ if self.device_error().is_some() => false,
            Self::Checkpoint(_)
            | Self::Export(_)
            | Self::Generate(_)
            | Self::Tensors(_)
            | Self::Report(_)
            | Self::Io { .. }
            | Self::NonFinite { .. } => false,
            _ => true,
        }
    }
}

/// How a run goes on after its device failed.
fn resumption(last_good: Option<u64>) -> String {
    match last_good {
        Some(step) => format!(
            "The last good checkpoint, step-{step}, is intact, and `hone train --resume` goes on \
             from it"
        ),
        None => "There is no checkpoint yet: `hone train --resume` begins again".to_owned(),
    }
}

/// What helps against it.
fn advice(error: &DeviceError) -> &'static str {
    match error.is_out_of_memory() {
        true => "; end other programs that take memory before, or lower budget.memory in a new run",
        false => "",
    }
}
