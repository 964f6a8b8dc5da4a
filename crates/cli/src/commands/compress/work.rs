//! The folder beside `--out` in which a command keeps what it has done. Killed and started again,
//! it goes on from there, and ends with the same file.
//!
//! Everything in it is written aside, synced and renamed. The command that the folder belongs to
//! comes first and is compared before anything else is believed. What cannot be kept, for want of
//! room on the disk, is done without: it fails nothing.

use super::super::export::remove;
use crate::failure::Failure;
use crate::output;
use hone_compress::Room;
use hone_model::GgufForm;
use hone_tensor::Tensor;
use hone_tensor::safetensors::{Dtype, Lazy, RawTensor, SafeTensorsFile, write};
use hone_train::TrainError;
use hone_train::checkpoint::{Whole, newest_whole, publish_file, write_file_whole};
use hone_train::file_lock::{Asked, FileLock};
use hone_train::machine::available_memory;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use std::cell::{Cell, RefCell};
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// What the command is, as [`super::command::facts`] says it.
const COMMAND: &str = "command.json";
/// Locked by the process that works here.
const LOCK: &str = ".lock";
/// What the comparison of the whole file says, written before the file gets its name.
pub(super) const MEASURED: &str = "measured.json";
/// The importance of columns.
pub(super) const IMPORTANCE: &str = "importance.gguf";
/// Numbers that the search for types has found.
pub(super) const COSTS: &str = "costs.json";
/// The types of tensors.
pub(super) const TYPES: &str = "types.json";
/// What is learned of roundings, in checkpoints.
pub(super) const LEARNED: &str = "learned";
/// Divergences without and with feedback, and learned roundings.
pub(super) const FEEDBACK_GAIN: &str = "feedback-gain.json";
pub(super) const LEARNING_GAIN: &str = "learning-gain.json";
/// The tensor of which most is lost.
pub(super) const WORST: &str = "worst.json";
/// How many tensors of the file are written.
pub(super) const WRITTEN: &str = "written.json";

/// How often a folder that disappears under our hands is made again.
const ATTEMPTS: usize = 100;

/// A part of the work, and how long it takes.
#[derive(Clone, Serialize)]
pub(super) struct Stage {
    pub(super) name: &'static str,
    pub(super) seconds: f64,
}

/// The folder, for this process alone until it is dropped.
pub(super) struct Work {
    dir: PathBuf,
    /// The file or directory that is made, under another name until it is whole.
    partial: PathBuf,
    _lock: FileLock,
    /// Whether it is this command's.
    is_begun: Cell<bool>,
    /// Whether another process had done a part.
    goes_on: Cell<bool>,
    /// Whether something could not be kept.
    has_failed: Cell<bool>,
    pace: RefCell<Pace>,
    stages: RefCell<Vec<Stage>>,
}

/// The folder of what is to become `out`.
fn place(out: &Path) -> PathBuf {
    let mut name = out.file_name().unwrap_or_default().to_owned();
    name.push(".work");
    out.with_file_name(name)
}

/// Whether `out` is the work of a command that was killed after it had given it its name.
pub(super) fn is_published(out: &Path) -> bool {
    let dir = place(out);
    let partial = out.file_name().is_some_and(|name| dir.join(name).exists());
    dir.join(MEASURED).exists() && !partial
}

impl Work {
    /// Takes the folder, which is made if need be.
    ///
    /// # Errors
    /// If another process has it, or it is somebody else's.
    pub(super) fn claim(out: &Path) -> Result<Self, Failure> {
        let dir = place(out);
        let io = |error| Failure::from(TrainError::io(&dir)(error));
        for _ in 0..ATTEMPTS {
            match fs::create_dir(&dir) {
                Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(io(error)),
                _ => {}
            }
            let is_empty = || fs::read_dir(&dir).is_ok_and(|mut entries| entries.next().is_none());
            if dir.exists() && !dir.join(LOCK).exists() && !is_empty() {
                return Err(Failure::Usage(format!(
                    "--out {}: work on it would be kept in {}, which is something else; choose \
                     another name",
                    out.display(),
                    dir.display()
                )));
            }
            match FileLock::ask(&dir.join(LOCK)) {
                Ok(Asked::Locked(lock)) => {
                    let partial = dir.join(out.file_name().unwrap_or_default());
                    return Ok(Self::new((dir, partial), lock));
                }
                Ok(Asked::Removed) => {}
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Ok(Asked::Held(id)) => return Err(taken(out, id)),
                Err(error) => return Err(io(error)),
            }
        }
        Err(taken(out, None))
    }

    fn new((dir, partial): (PathBuf, PathBuf), lock: FileLock) -> Self {
        let (is_begun, goes_on, has_failed, pace, stages) = Default::default();
        Self { dir, partial, _lock: lock, is_begun, goes_on, has_failed, pace, stages }
    }

    /// Makes it this command's: goes on from what is there, or discards what is another's. Says so.
    ///
    /// # Errors
    /// If the system refuses.
    pub(super) fn begin(&self, command: &Map<String, Value>) -> Result<(), Failure> {
        let name = self.dir.file_name().unwrap_or_default().to_string_lossy();
        let known: Option<Map<String, Value>> = self.json(COMMAND);
        self.is_begun.set(true);
        if known.as_ref() == Some(command) {
            let what = self.holdings();
            if !what.is_empty() {
                self.goes_on.set(true);
                output::note(&format!("note: going on from {name}: {}", what.join(", ")));
            }
            return Ok(());
        }
        if let Some(known) = known {
            let differs = |(key, value): &(&String, &Value)| known.get(key.as_str()) != Some(value);
            let what = command.iter().find(differs).map_or("the command", |(key, _)| key.as_str());
            output::note(&format!(
                "note: what is in {name} was made by another command ({what} differs), and is \
                 discarded"
            ));
        }
        for entry in fs::read_dir(&self.dir).map_err(TrainError::io(&self.dir))? {
            let path = entry.map_err(TrainError::io(&self.dir))?.path();
            if path.file_name().is_some_and(|name| name != LOCK) {
                remove(&path).map_err(TrainError::io(&path))?;
            }
        }
        let text = serde_json::to_vec_pretty(command).expect("facts are plain data");
        Ok(write_file_whole(&self.path(COMMAND), &text)?)
    }

    /// What was done, in words.
    fn holdings(&self) -> Vec<String> {
        let mut all = Vec::new();
        let has = |name: &str| self.path(name).exists();
        if has(MEASURED) {
            return vec!["the file is whole".to_owned()];
        }
        all.extend(has(IMPORTANCE).then(|| "the importance of columns".to_owned()));
        match (has(TYPES), has(COSTS)) {
            (true, _) => all.push("types".to_owned()),
            (false, true) => all.push("a part of the search for types".to_owned()),
            (false, false) => {}
        }
        let matrices: usize = self.matrices().iter().map(|file| file.names().len()).sum();
        all.extend((matrices > 0).then(|| format!("{matrices} matrices")));
        let learned = self.learned().map(|of| format!("roundings after update {}", of.step));
        all.extend(learned);
        let written: Option<usize> = self.json(WRITTEN);
        all.extend(written.map(|count| format!("{count} tensors of the file")));
        all
    }

    /// The last whole checkpoint of what is learned.
    pub(super) fn learned(&self) -> Option<Whole> {
        newest_whole(&self.path(LEARNED)).ok()?.0
    }

    /// What passes over text may take.
    pub(super) fn room(&self) -> Room<'_> {
        Room { folder: &self.dir, memory: available_memory() }
    }

    /// Where a file or folder is kept.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Where what is made is until it is whole.
    pub(super) fn partial(&self) -> &Path {
        &self.partial
    }

    /// Whether the file has all its tensors.
    pub(super) fn has_written(&self, form: &GgufForm<'_>) -> bool {
        let is_there = self.partial.is_file() || self.path(MEASURED).exists();
        is_there && self.json(WRITTEN) == Some(form.tensors().len())
    }

    /// What was kept under a name; `None` if nothing was, or it cannot be read.
    pub(super) fn json<T: DeserializeOwned>(&self, name: &str) -> Option<T> {
        serde_json::from_slice(&fs::read(self.path(name)).ok()?).ok()
    }

    /// Keeps something small.
    pub(super) fn keep_json(&self, name: &str, value: &impl Serialize) {
        let text = serde_json::to_vec(value).expect("plain data can be written");
        self.keep(text.len() as u64, || Ok(write_file_whole(&self.path(name), &text)?));
    }

    /// Whether so much has been done since something was kept that to keep these bytes costs
    /// little of the time.
    pub(super) fn is_due(&self, bytes: u64) -> bool {
        !self.has_failed.get() && self.pace.borrow().is_due(bytes)
    }

    /// Keeps about so many bytes by writing them.
    pub(super) fn keep(&self, bytes: u64, write: impl FnOnce() -> Result<(), Failure>) {
        if self.has_failed.get() {
            return;
        }
        let begun = Instant::now();
        match write() {
            Ok(()) => self.pace.borrow_mut().kept(bytes, begun.elapsed().as_secs_f64()),
            Err(failure) => {
                self.has_failed.set(true);
                let why = match &failure {
                    Failure::Train(error) if error.is_disk_full() => "the disk is full".to_owned(),
                    failure => failure.message(),
                };
                output::note(&format!(
                    "note: {why}; the work goes on, but nothing more is kept of it before its end"
                ));
            }
        }
    }

    /// Runs a stage, and keeps the time.
    pub(super) fn timed<T>(&self, name: &'static str, run: impl FnOnce() -> T) -> T {
        let begun = Instant::now();
        let found = run();
        let (seconds, mut stages) = (begun.elapsed().as_secs_f64(), self.stages.borrow_mut());
        match stages.iter_mut().find(|stage| stage.name == name) {
            Some(stage) => stage.seconds += seconds,
            None => stages.push(Stage { name, seconds }),
        }
        found
    }

    /// The stages that were run.
    pub(super) fn stages(&self) -> Vec<Stage> {
        self.stages.borrow().clone()
    }

    /// Gives what was made its name.
    ///
    /// # Errors
    /// If the system refuses.
    pub(super) fn publish_file(&self, out: &Path) -> Result<(), Failure> {
        Ok(publish_file(&self.partial, out)?)
    }

    /// Removes the folder after the last thing was done: what says that it was goes last.
    pub(super) fn finish(self) {
        for entry in fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            let name = entry.file_name();
            if [LOCK, COMMAND, MEASURED].iter().all(|last| name != *last) {
                let _ = remove(&entry.path());
            }
        }
        let _ = fs::remove_dir_all(&self.dir);
    }

    /// After a failure: keeps what the same command can go on from, and removes what is of no use.
    pub(super) fn leave(self, failure: &Failure) {
        let mut entries = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        let is_empty = entries.all(|entry| entry.file_name() == LOCK);
        // What refused a command that had been accepted before is not the work: it may go on once
        // there is memory.
        let is_refused = failure.is_usage() && !self.goes_on.get();
        let is_useless = if self.is_begun.get() { is_refused } else { is_empty };
        if is_useless {
            let _ = fs::remove_dir_all(&self.dir);
        }
    }

    /// The files of matrices, in the order in which they were kept.
    pub(super) fn matrices(&self) -> Vec<SafeTensorsFile> {
        let open = |i| SafeTensorsFile::open(&self.of_matrices(i)).ok();
        (0..).map_while(open).collect()
    }

    fn of_matrices(&self, i: usize) -> PathBuf {
        self.path(&format!("matrices-{i:04}.safetensors"))
    }
}

fn taken(out: &Path, id: Option<u32>) -> Failure {
    let id = id.map_or(String::new(), |id| format!(" ({id})"));
    Failure::Usage(format!(
        "--out {}: another process{id} is writing it; wait for it, or choose another name",
        out.display()
    ))
}

/// Matrices that are done and not yet kept.
pub(super) struct Pending<'w> {
    work: &'w Work,
    /// Files that there are.
    count: usize,
    matrices: Vec<(String, Vec<u8>)>,
}

impl<'w> Pending<'w> {
    /// After so many files.
    pub(super) fn after(work: &'w Work, count: usize) -> Self {
        Self { work, count, matrices: Vec::new() }
    }

    /// Keeps a matrix, once there are enough.
    pub(super) fn add(&mut self, (tensor, part): (usize, usize), matrix: &Tensor) {
        if self.work.has_failed.get() {
            return;
        }
        self.matrices.push((name_of(tensor, part), matrix.bytes().to_vec()));
        let bytes = self.matrices.iter().map(|(_, bytes)| bytes.len() as u64).sum();
        if self.work.is_due(bytes) {
            self.keep(bytes);
        }
    }

    fn keep(&mut self, bytes: u64) {
        let Self { work, count, matrices } = self;
        let path = work.of_matrices(*count);
        work.keep(bytes, || {
            let aside = work.path(".tmp-matrices");
            let shapes: Vec<[usize; 1]> = matrices.iter().map(|(_, of)| [of.len()]).collect();
            let all = matrices.iter().zip(&shapes).map(|((name, bytes), shape)| {
                (name.clone(), Lazy::Raw(RawTensor { dtype: Dtype::U8, shape, bytes }))
            });
            write(&aside, all)?;
            Ok(publish_file(&aside, &path)?)
        });
        *count += 1;
        matrices.clear();
    }
}

/// The name of a matrix in its file.
pub(super) fn name_of(tensor: usize, part: usize) -> String {
    format!("{tensor}.{part}")
}

/// Share of the time that keeping may take.
const SHARE: f64 = 0.03;
/// Bytes per second that are written until it was seen, and how many bytes that counts for.
const RATE: f64 = 2e8;
const UNSEEN: f64 = 2e7;
/// Seconds that every write takes.
const OF_FILE: f64 = 0.005;

/// How often something is kept.
struct Pace {
    /// When something was, or work began.
    since: Instant,
    bytes: f64,
    seconds: f64,
}

impl Default for Pace {
    fn default() -> Self {
        Self { since: Instant::now(), bytes: UNSEEN, seconds: UNSEEN / RATE }
    }
}

impl Pace {
    fn is_due(&self, bytes: u64) -> bool {
        let cost = OF_FILE + bytes as f64 * self.seconds / self.bytes;
        SHARE * self.since.elapsed().as_secs_f64() >= cost
    }

    fn kept(&mut self, bytes: u64, seconds: f64) {
        self.bytes += bytes as f64;
        self.seconds += (seconds - OF_FILE).max(0.0);
        self.since = Instant::now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn keeping_costs_little_of_the_time() {
        let ago = |seconds| Instant::now().checked_sub(Duration::from_secs_f64(seconds)).unwrap();
        let mut pace = Pace { since: ago(10.0), ..Pace::default() };
        // 0.3 seconds are written in ten.
        assert!(pace.is_due(55_000_000) && !pace.is_due(65_000_000));
        pace.kept(200_000_000, 4.0);
        assert!(!pace.is_due(0));
        pace.since = ago(10.0);
        assert!(pace.is_due(10_000_000) && !pace.is_due(20_000_000), "the disk is slower");
    }
}
