//! How a command fails.

use crate::output;
use hone_train::recipe::Event;
use hone_train::{Code, TrainError};
use serde_json::{Value, json};
use std::process::ExitCode;

/// Why a command failed.
pub enum Failure {
    /// The input is at fault and the user can fix it: status 2.
    Usage(String),
    /// Something failed while running: status 1.
    Running(String),
    /// The user stopped it: status 130.
    Interrupted(String),
    /// An error of the training crate: status 2 or 1.
    Train(TrainError),
}

impl Failure {
    /// Prints the message, also as JSON if requested and nothing was printed yet, and returns the
    /// exit status.
    pub fn report(self, as_json: bool) -> ExitCode {
        let message = self.message();
        match self {
            Self::Interrupted(_) => output::note(&message),
            _ => output::note(&format!("error: {message}")),
        }
        if as_json && !output::has_json() {
            output::json(&self.object());
        }
        ExitCode::from(match self {
            Self::Interrupted(_) => 130,
            failure if failure.is_usage() => 2,
            _ => 1,
        })
    }

    /// Whether the input is at fault.
    pub fn is_usage(&self) -> bool {
        match self {
            Self::Usage(_) => true,
            Self::Running(_) | Self::Interrupted(_) => false,
            Self::Train(error) => error.is_usage(),
        }
    }

    /// What a verb with `--json` prints.
    pub fn object(&self) -> Value {
        json!({ "error": { "code": self.code(), "message": self.message() } })
    }

    /// Prints the last event of a run.
    pub fn end_events(&self) {
        output::json(&Event::Failed { code: self.code(), message: &self.message() });
    }

    /// The error code for programs.
    pub fn code(&self) -> Code {
        match self {
            Self::Usage(_) => Code::CommandLine,
            Self::Running(_) => Code::Failed,
            Self::Interrupted(_) => Code::Interrupted,
            Self::Train(error) => error.code(),
        }
    }

    /// What was wrong, and how to fix it.
    pub fn message(&self) -> String {
        let text = match self {
            Self::Usage(text) | Self::Running(text) | Self::Interrupted(text) => text.clone(),
            Self::Train(error) if error.is_disk_full() => with_hint(error.to_string()),
            Self::Train(error) => error.to_string(),
        };
        output::plain_words(&text)
    }
}

/// Any error that the training crate can classify.
impl<E: Into<TrainError>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Train(error.into())
    }
}

/// Adds the fix for a full disk, unless the message already has it.
fn with_hint(message: String) -> String {
    match message.contains("disk full") {
        true => message,
        false => format!("{message}; free some space, then run the command again"),
    }
}
