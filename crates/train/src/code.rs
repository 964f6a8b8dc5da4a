//! Stable names of errors, for programs that start runs: a text may be reworded, a code stays.

use serde::{Serialize, Serializer};

/// Declares the codes once: variant, meaning, name.
macro_rules! codes {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal,)+) => {
        /// What kind of error ended a command. Documented in `docs/events.md`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Code { $($(#[doc = $doc])+ $variant),+ }

        impl Code {
            /// All of them.
            pub const ALL: &[Code] = &[$(Code::$variant),+];

            /// The name that programs match.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $name),+ }
            }
        }
    };
}

codes! {
    /// A flag or an argument of the command line.
    CommandLine = "command_line.invalid",
    /// The run file cannot be read.
    RunFileUnreadable = "run_file.unreadable",
    /// The run file, or an override, is not TOML.
    RunFileSyntax = "run_file.syntax",
    /// A key or a table that the run file does not have.
    RunFileUnknownKey = "run_file.unknown_key",
    /// A value that is missing, out of range, or at odds with another or with the model.
    RunFileInvalidValue = "run_file.invalid_value",
    /// There is no such model, here or on the hub.
    ModelNotFound = "model.not_found",
    /// The hub cannot be reached, or does not answer like one.
    HubUnreachable = "hub.unreachable",
    /// The model's configuration, tokenizer or weights are damaged or not supported.
    ModelInvalid = "model.invalid",
    /// The adapter is damaged, or does not fit the model or the run file.
    AdapterInvalid = "adapter.invalid",
    /// A record is wrong.
    DataRecord = "data.record",
    /// A data file is missing, unreadable or of no known kind.
    DataFile = "data.file",
    /// Data, tokenizer and settings do not fit each other.
    DataSetup = "data.setup",
    /// A row or prompt has a token that the model does not know.
    DataUnknownToken = "data.unknown_token",
    /// No device has that name.
    DeviceUnknown = "device.unknown",
    /// The device is not here, or cannot be used.
    DeviceUnavailable = "device.unavailable",
    /// The device cannot compute what was asked for.
    DeviceUnsupported = "device.unsupported",
    /// The run needs more memory than it may take.
    MemoryDoesNotFit = "memory.does_not_fit",
    /// `output.dir` holds a run or other files.
    RunDirTaken = "run_dir.taken",
    /// Another process trains in `output.dir`.
    RunDirBusy = "run_dir.busy",
    /// `output.dir` cannot be created or written.
    RunDirNotWritable = "run_dir.not_writable",
    /// A file of the run is damaged.
    RunDirDamaged = "run_dir.damaged",
    /// Settings differ from those that the run was begun with.
    ResumeSettingsChanged = "resume.settings_changed",
    /// Model or data files differ from those that the run was begun with.
    ResumeInputsChanged = "resume.inputs_changed",
    /// The run was begun on another processor, or with other GPU libraries.
    ResumeOtherDevice = "resume.other_device",
    /// The run or checkpoint is of a version of Hone that rounds or records otherwise.
    ResumeOtherVersion = "resume.other_version",
    /// A run under this schedule ends with its last step.
    ResumeNotExtendable = "resume.not_extendable",
    /// A checkpoint cannot be written or read.
    CheckpointFailed = "checkpoint.failed",
    /// Memory ran out during the run.
    MemoryRanOut = "memory.ran_out",
    /// The device failed during the run.
    DeviceFailed = "device.failed",
    /// The disk is full.
    DiskFull = "disk.full",
    /// The system refused a file.
    FileFailed = "file.failed",
    /// A loss or gradient is not a number.
    TrainNotFinite = "train.not_finite",
    /// A text could not be generated.
    GenerateFailed = "generate.failed",
    /// An exported model is not what it should be.
    ExportFailed = "export.failed",
    /// The report cannot be built.
    ReportFailed = "report.failed",
    /// Something else failed.
    Failed = "failed",
    /// A signal stopped the run, after a checkpoint or before training.
    Interrupted = "interrupted",
}

impl Serialize for Code {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// Programs match these names. A line may be added, and none changed or removed.
    #[test]
    fn codes_are_stable_and_documented() {
        let stable = [
            "command_line.invalid",
            "run_file.unreadable",
            "run_file.syntax",
            "run_file.unknown_key",
            "run_file.invalid_value",
            "model.not_found",
            "hub.unreachable",
            "model.invalid",
            "adapter.invalid",
            "data.record",
            "data.file",
            "data.setup",
            "data.unknown_token",
            "device.unknown",
            "device.unavailable",
            "device.unsupported",
            "memory.does_not_fit",
            "run_dir.taken",
            "run_dir.busy",
            "run_dir.not_writable",
            "run_dir.damaged",
            "resume.settings_changed",
            "resume.inputs_changed",
            "resume.other_device",
            "resume.other_version",
            "resume.not_extendable",
            "checkpoint.failed",
            "memory.ran_out",
            "device.failed",
            "disk.full",
            "file.failed",
            "train.not_finite",
            "generate.failed",
            "export.failed",
            "report.failed",
            "failed",
            "interrupted",
        ];
        let names: Vec<&str> = Code::ALL.iter().map(|code| code.as_str()).collect();
        assert_eq!(names, stable);
        assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len());
        let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/events.md");
        let page = std::fs::read_to_string(page).unwrap();
        for name in names {
            assert!(page.contains(&format!("| `{name}` |")), "docs/events.md lacks {name}");
        }
    }
}
