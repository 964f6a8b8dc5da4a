//! What can go wrong with a checkpoint, and what to do about it.

use std::error::Error as StdError;
use std::io;
use std::path::{Path, PathBuf};

/// Why a checkpoint or another file of the run was not written or not accepted.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// A system call failed.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried, as in "write".
        action: &'static str,
        /// On which path.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// No space left, or the quota is used up.
    #[error(
        "disk full while writing {}: {}{}; run again with --resume", path.display(),
        hint(*needed_bytes), intact(*last_good)
    )]
    DiskFull {
        /// What was being written; nothing of it is left.
        path: PathBuf,
        /// Bytes that should be enough, where that is known.
        needed_bytes: Option<u64>,
        /// Step of the newest whole checkpoint.
        last_good: Option<u64>,
        /// The system's error.
        source: io::Error,
    },
    /// The caller's part of writing failed, for another reason than a full disk.
    #[error("cannot write the checkpoint {}: {source}", path.display())]
    Fill {
        /// The checkpoint.
        path: PathBuf,
        /// The caller's error.
        source: Box<dyn StdError + Send + Sync>,
    },
    /// The checkpoint is not as it was written.
    #[error("{}: {problem}", dir.display())]
    Damaged {
        /// The checkpoint.
        dir: PathBuf,
        /// What differs.
        problem: String,
    },
}

fn hint(needed_bytes: Option<u64>) -> String {
    match needed_bytes {
        Some(bytes) => format!("free at least {:.1} MB", (bytes as f64 / 1e6).max(0.1)),
        None => "free some space".to_owned(),
    }
}

fn intact(last_good: Option<u64>) -> String {
    match last_good {
        Some(step) => format!("; the last good checkpoint, step-{step}, is intact"),
        None => String::new(),
    }
}

/// The error of `action` on `path`, for `map_err`.
pub(super) fn io_error(
    action: &'static str,
    path: &Path,
) -> impl FnOnce(io::Error) -> CheckpointError {
    let path = path.to_owned();
    move |source| CheckpointError::Io { action, path, source }
}

/// Whether this error, or one that caused it, is a full disk.
pub(crate) fn disk_full(error: &(dyn StdError + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        let kind = error.downcast_ref::<io::Error>().map(io::Error::kind);
        if matches!(kind, Some(io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)) {
            return true;
        }
        cause = error.source();
    }
    false
}
