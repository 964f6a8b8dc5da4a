//! Files that one process at a time has: each locks the file and signs it with its id.
//!
//! Such a file is made before anything else and never replaced: a lock on a file that a rename may
//! replace would be a lock on whichever file had the name before.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::path::Path;
use std::time::{Duration, Instant};

/// A locked file, with this process's id in it, until it is dropped.
pub struct FileLock(File);

/// What came of asking for a lock.
pub enum Asked {
    /// It is ours.
    Locked(FileLock),
    /// Another process has it, with this id if it could be read.
    Held(Option<u32>),
    /// Another process removed the file meanwhile; ask again.
    Removed,
}

impl FileLock {
    /// Locks the file at `path`, which is made if need be.
    ///
    /// # Errors
    /// If the system refuses.
    pub fn ask(path: &Path) -> io::Result<Asked> {
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        match try_lock(&file) {
            Ok(()) if is_at(&file, path) => {
                sign(&file);
                Ok(Asked::Locked(Self(file)))
            }
            Ok(()) => Ok(Asked::Removed),
            Err(TryLockError::WouldBlock) => {
                let id = std::fs::read_to_string(path).unwrap_or_default();
                Ok(Asked::Held(id.trim().parse().ok()))
            }
            Err(TryLockError::Error(error)) => Err(error),
        }
    }
}

impl Drop for FileLock {
    fn drop(&mut self) {
        let _ = self.0.set_len(0);
    }
}

/// Takes the lock, which a process that was killed holds until the system has taken its memory
/// back.
fn try_lock(file: &File) -> Result<(), TryLockError> {
    const PATIENCE: Duration = Duration::from_millis(500);
    let begun = Instant::now();
    loop {
        match file.try_lock() {
            Err(TryLockError::WouldBlock) if begun.elapsed() < PATIENCE => {
                std::thread::sleep(PATIENCE / 10);
            }
            locked => return locked,
        }
    }
}

/// Writes who holds the lock into its file. Best effort: it is for a message alone.
fn sign(mut lock: &File) {
    let _ = lock.set_len(0);
    let _ = writeln!(lock, "{}", std::process::id());
}

/// Whether `path` still names `file`.
#[cfg(unix)]
fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let identity = |metadata: std::fs::Metadata| (metadata.dev(), metadata.ino());
    let (file, there) = (file.metadata().map(identity), std::fs::metadata(path).map(identity));
    file.is_ok_and(|file| there.is_ok_and(|there| file == there))
}

/// Elsewhere a file that is open cannot be removed.
#[cfg(not(unix))]
fn is_at(_: &File, _: &Path) -> bool {
    true
}
