//! A run directory taken for one process. Whoever holds the claim may check the directory, write
//! the beginning of a run and train; everybody else is refused before having changed anything.

use super::RunDir;
use crate::code::Code;
use crate::error::TrainError;
use crate::failpoint;
use crate::file_lock::{Asked, FileLock};
use crate::planner::Plan;
use crate::setup::Setup;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

/// Locked by the process that trains.
pub(super) const LOCK: &str = ".lock";

/// What a beginning writes, in the order in which to remove it; the lock goes last.
const BEGINNING: [&str; 5] =
    ["run.toml", ".tmp-run.toml", "manifest.json", ".tmp-manifest.json", LOCK];

/// How often a directory that disappears under our hands is made again.
const ATTEMPTS: usize = 100;

/// The directory, for this process alone until it is dropped. What was made for a run that then
/// did not begin is removed again.
pub struct Claim {
    dir: RunDir,
    /// Held until then.
    _lock: FileLock,
    /// The outermost directory that had to be made.
    made: Option<PathBuf>,
    /// Whether a run is here, which stays.
    holds_run: bool,
}

impl RunDir {
    /// Takes the directory, which is made if need be, for a new run, or with `resume` for the run
    /// that is in it.
    ///
    /// # Errors
    /// If another process has it, if it cannot be made, or if a new run may not have it.
    pub fn claim(&self, resume: bool) -> Result<Claim, TrainError> {
        // Before a lock is put there. Whether a run is here is asked under the lock alone: who
        // trains here is to be named before anybody is told to resume.
        self.check_is_ours()?;
        for _ in 0..ATTEMPTS {
            let made = self.0.ancestors().take_while(|dir| !is_there(dir)).last();
            let made = made.map(Path::to_owned);
            self.make()?;
            if let Some(lock) = self.lock()? {
                failpoint::hit("run_dir.locked");
                let holds_run = self.holds_run();
                let claim = Claim { dir: Self(self.0.clone()), _lock: lock, made, holds_run };
                if !(resume && holds_run) {
                    // Again, since until now another process may have begun and ended a run.
                    claim.dir.check_free()?;
                }
                return Ok(claim);
            }
        }
        Err(self.is_taken(None))
    }

    fn make(&self) -> Result<(), TrainError> {
        std::fs::create_dir_all(&self.0).map_err(|error| self.not_writable(&error))
    }

    fn not_writable(&self, error: &std::io::Error) -> TrainError {
        let dir = self.0.display();
        let fix = "Name a directory that you may write to";
        let text = format!("output.dir: {dir} cannot be created or written ({error}). {fix}");
        TrainError::Usage(Code::RunDirNotWritable, text)
    }

    /// The locked file; `None` where another process has just removed it, with the directory or
    /// without, because its run could not begin.
    fn lock(&self) -> Result<Option<FileLock>, TrainError> {
        let path = self.join(LOCK);
        match FileLock::ask(&path) {
            Ok(Asked::Locked(lock)) => Ok(Some(lock)),
            Ok(Asked::Removed) => Ok(None),
            Ok(Asked::Held(id)) => Err(self.is_taken(id)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem
                ) =>
            {
                Err(self.not_writable(&error))
            }
            Err(error) => Err(TrainError::io(&path)(error)),
        }
    }

    fn is_taken(&self, id: Option<u32>) -> TrainError {
        let id = id.map_or(String::new(), |id| format!(" ({id})"));
        TrainError::Usage(
            Code::RunDirBusy,
            format!(
                "output.dir: another process{id} is training in {}; wait for it, or name another \
                 directory",
                self.0.display()
            ),
        )
    }
}

impl Claim {
    /// Whether a run was begun here.
    pub fn holds_run(&self) -> bool {
        self.holds_run
    }

    /// The directory.
    pub fn dir(&self) -> &RunDir {
        &self.dir
    }

    /// Writes the beginning of a new run. When that fails, nothing is left of it once the claim is
    /// dropped.
    ///
    /// # Errors
    /// If the directory cannot be written.
    pub fn begin(&mut self, setup: &Setup, plan: &Plan) -> Result<(), TrainError> {
        self.dir.begin(setup, plan)?;
        self.holds_run = true;
        Ok(())
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if self.holds_run {
            return;
        }
        // Best effort, since an error is being told. Nothing here is anybody else's: the directory
        // was free, and we have its lock.
        let _ = std::fs::remove_dir(self.dir.checkpoints());
        for name in BEGINNING {
            let _ = std::fs::remove_file(self.dir.join(name));
        }
        let outermost = self.made.as_deref();
        let made = |dir: &&Path| outermost.is_some_and(|outermost| dir.starts_with(outermost));
        for dir in self.dir.path().ancestors().take_while(made) {
            let _ = std::fs::remove_dir(dir);
        }
    }
}

/// Whether there is something of that name; the empty path is the current directory.
fn is_there(path: &Path) -> bool {
    path.as_os_str().is_empty() || path.exists()
}
