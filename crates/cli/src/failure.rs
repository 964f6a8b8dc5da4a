//! How a command ends when it does not succeed.

use crate::output;
use hone_train::TrainError;
use std::process::ExitCode;

/// Why a command did not succeed.
pub enum Failure {
    /// The user can mend it by asking otherwise: status 2.
    Usage(String),
    /// Something failed on the way: status 1.
    Running(String),
    /// The user stopped it: status 130.
    Interrupted(String),
}

impl Failure {
    /// Says what happened and gives the exit status.
    pub fn report(self) -> ExitCode {
        let (text, status) = match self {
            Self::Usage(text) => (format!("error: {text}"), 2),
            Self::Running(text) => (format!("error: {text}"), 1),
            Self::Interrupted(text) => (text, 130),
        };
        output::note(&text);
        ExitCode::from(status)
    }
}

/// Any error that the training crate can tell apart.
impl<E: Into<TrainError>> From<E> for Failure {
    fn from(error: E) -> Self {
        let error: TrainError = error.into();
        match error.is_usage() {
            true if error.is_disk_full() => Self::Usage(with_mend(error.to_string())),
            true => Self::Usage(error.to_string()),
            false => Self::Running(error.to_string()),
        }
    }
}

/// What a full disk calls for, where the message does not say it yet.
fn with_mend(message: String) -> String {
    match message.contains("disk full") {
        true => message,
        false => format!("{message}; free some space, then run the command again"),
    }
}
