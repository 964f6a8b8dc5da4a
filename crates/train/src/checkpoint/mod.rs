//! Files that are whole or absent: checkpoints (`step-N/` directories with a manifest of digests)
//! and single files. What a checkpoint contains is the caller's business, and so is how often one
//! is written.
//!
//! A checkpoint is written into `.tmp-step-N`, every file is synced, the manifest comes last, the
//! directory is renamed and its parent synced. Whatever the instant of a kill, `step-N` either is
//! complete or does not exist. One process writes into a root at a time.

mod error;
mod manifest;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error as StdError;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use crate::failpoint::{hit, hit_io};
use error::io_error;
use manifest::{MANIFEST, list_files, verify_sizes};

pub use error::CheckpointError;
pub(crate) use error::disk_full;
pub use manifest::{FORMAT_VERSION, FileEntry, Manifest, sha256_of_file, verify};

const TEMPORARY: &str = ".tmp-";
const TRASH: &str = ".trash-";

/// A checkpoint of which every byte has been checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Whole {
    /// Its directory.
    pub dir: PathBuf,
    /// Number of optimizer steps done.
    pub step: u64,
}

/// A checkpoint that was passed over.
#[derive(Debug)]
pub struct Rejected {
    /// Its directory.
    pub dir: PathBuf,
    /// Why.
    pub reason: CheckpointError,
}

/// Writes `root/step-N`. `fill` writes the files into the empty directory that it is given; it
/// need not sync them. A checkpoint of that step that is there and whole is left as it is; a
/// damaged one is replaced.
///
/// # Errors
/// System errors and those of `fill`; nothing of the new checkpoint is left then, and older ones
/// are as they were.
pub fn write<E>(
    root: &Path,
    step: u64,
    fill: impl FnOnce(&Path) -> Result<(), E>,
) -> Result<PathBuf, CheckpointError>
where
    E: StdError + Send + Sync + 'static,
{
    let dir = root.join(format!("step-{step}"));
    let temporary = root.join(format!("{TEMPORARY}step-{step}"));
    if dir.exists() && verify(&dir).is_ok() {
        return Ok(dir);
    }
    let written = write_into(root, &temporary, &dir, step, fill);
    written.map_err(|error| explain(root, &temporary, error)).map(|()| dir)
}

/// The newest whole checkpoint in `root`, every byte checked, and the newer ones passed over.
///
/// # Errors
/// `root` exists but cannot be listed.
pub fn newest_whole(root: &Path) -> Result<(Option<Whole>, Vec<Rejected>), CheckpointError> {
    let mut rejected = Vec::new();
    for (step, dir) in newest_first(root)? {
        match verify(&dir) {
            Ok(_) => return Ok((Some(Whole { dir, step }), rejected)),
            Err(reason) => rejected.push(Rejected { dir, reason }),
        }
    }
    Ok((None, rejected))
}

/// Removes all checkpoints older than the newest `keep` whole ones up to `step`, the present one,
/// and what killed processes left behind. Checkpoints after `step` are damaged ones that were
/// passed over: they count for nothing, and stay until they are written again. Here a checkpoint
/// counts as whole if its files have the right names and sizes; their content is not read again.
///
/// # Errors
/// System errors; a checkpoint is either there or gone in any case.
pub fn prune(root: &Path, step: u64, keep: usize) -> Result<(), CheckpointError> {
    remove_leftovers(root)?;
    let mut num_whole = 0;
    for (_, dir) in newest_first(root)?.into_iter().filter(|(found, _)| *found <= step) {
        if num_whole >= keep.max(1) {
            discard(root, &dir)?;
        } else if verify_sizes(&dir).is_ok() {
            num_whole += 1;
        }
    }
    Ok(())
}

/// Replaces the file at `path` by `bytes`, or leaves it as it was.
///
/// # Errors
/// System errors; a full disk is [`CheckpointError::DiskFull`] without a last good checkpoint.
pub fn write_file_whole(path: &Path, bytes: &[u8]) -> Result<(), CheckpointError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = path.with_file_name(format!("{TEMPORARY}{name}"));
    let parent = parent_of(path);
    let written = write_synced(&temporary, bytes).and_then(|()| {
        fs::rename(&temporary, path).map_err(io_error("rename to", path))?;
        hit("file.renamed");
        sync(parent)
    });
    written.map_err(|error| {
        let _ = fs::remove_file(&temporary);
        match error {
            CheckpointError::Io { source, .. } if disk_full(&source) => {
                let needed_bytes = Some(bytes.len() as u64);
                let path = path.to_owned();
                CheckpointError::DiskFull { path, needed_bytes, last_good: None, source }
            }
            other => other,
        }
    })
}

/// Gives the finished directory `partial` the name `dir`, in place of what may be there.
///
/// # Errors
/// System errors; `dir` is then as it was, or gone.
pub fn publish(partial: &Path, dir: &Path) -> Result<(), CheckpointError> {
    let parent = parent_of(dir);
    for name in list_files(partial)?.keys() {
        sync(&partial.join(name))?;
    }
    sync(partial)?;
    if dir.exists() {
        discard(parent, dir)?;
    } else {
        // What a process left that was killed while it discarded.
        remove_all(&trash_of(parent, dir))?;
    }
    fs::rename(partial, dir).map_err(io_error("rename to", dir))?;
    sync(parent)
}

/// Gives the finished file `partial` the name `file`, in place of what may be there.
///
/// # Errors
/// System errors; `file` is then as it was.
pub fn publish_file(partial: &Path, file: &Path) -> Result<(), CheckpointError> {
    sync(partial)?;
    fs::rename(partial, file).map_err(io_error("rename to", file))?;
    sync(parent_of(file))
}

fn parent_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn write_into<E>(
    root: &Path,
    temporary: &Path,
    dir: &Path,
    step: u64,
    fill: impl FnOnce(&Path) -> Result<(), E>,
) -> Result<(), CheckpointError>
where
    E: StdError + Send + Sync + 'static,
{
    fs::create_dir_all(root).map_err(io_error("create", root))?;
    remove_leftovers(root)?;
    fs::create_dir(temporary).map_err(io_error("create", temporary))?;
    hit_io("checkpoint.begin").map_err(io_error("write", temporary))?;
    fill(temporary)
        .map_err(|source| CheckpointError::Fill { path: dir.to_owned(), source: source.into() })?;
    hit_io("checkpoint.filled").map_err(io_error("write", temporary))?;
    seal(temporary, step)?;
    if dir.exists() {
        discard(root, dir)?; // damaged: `write` has checked
    }
    fs::rename(temporary, dir).map_err(io_error("rename to", dir))?;
    hit("checkpoint.renamed");
    sync(root)?;
    hit("checkpoint.parent_synced");
    Ok(())
}

/// Syncs every file of `dir`, then writes the manifest, then syncs the directories.
fn seal(dir: &Path, step: u64) -> Result<(), CheckpointError> {
    let mut files = BTreeMap::new();
    for (name, bytes) in list_files(dir)? {
        let path = dir.join(&name);
        sync(&path)?;
        hit_io("checkpoint.file_synced").map_err(io_error("sync", &path))?;
        files.insert(name, FileEntry { bytes, sha256: sha256_of_file(&path)? });
    }
    let folders_of = |name| Path::new(name).ancestors().skip(1).map(|folder| dir.join(folder));
    let folders: BTreeSet<PathBuf> = files.keys().flat_map(folders_of).collect();
    let manifest = Manifest { format_version: FORMAT_VERSION, step, files };
    let text = serde_json::to_vec_pretty(&manifest).expect("a manifest is plain data");
    write_synced(&dir.join(MANIFEST), &text)?;
    hit_io("checkpoint.manifest_written").map_err(io_error("write", &dir.join(MANIFEST)))?;
    for folder in folders.iter().rev() {
        sync(folder)?; // the deepest first, `dir` last
    }
    hit_io("checkpoint.directory_synced").map_err(io_error("sync", dir))
}

/// Removes what is left of `temporary`, and says for a full disk what is safe and what to do.
fn explain(root: &Path, temporary: &Path, error: CheckpointError) -> CheckpointError {
    let written: u64 = list_files(temporary).map(|files| files.values().sum()).unwrap_or(0);
    let _ = fs::remove_dir_all(temporary);
    if !disk_full(&error) {
        return error;
    }
    let last_good = newest_whole(root).ok().and_then(|(whole, _)| whole);
    let last_bytes = last_good.as_ref().and_then(|whole| verify_sizes(&whole.dir).ok());
    let needed = written.max(last_bytes.map_or(0, |manifest| manifest.total_bytes()));
    let path = match &error {
        CheckpointError::Io { path, .. } | CheckpointError::Fill { path, .. } => path.clone(),
        _ => root.to_owned(),
    };
    CheckpointError::DiskFull {
        path,
        needed_bytes: Some(needed).filter(|bytes| *bytes > 0),
        last_good: last_good.map(|whole| whole.step),
        source: std::io::ErrorKind::StorageFull.into(),
    }
}

/// Takes `dir` away in one rename, then deletes it.
fn discard(root: &Path, dir: &Path) -> Result<(), CheckpointError> {
    let trash = trash_of(root, dir);
    remove_all(&trash)?;
    fs::rename(dir, &trash).map_err(io_error("rename", dir))?;
    hit("checkpoint.trashed");
    remove_all(&trash)?;
    hit("checkpoint.pruned");
    Ok(())
}

/// Where `dir` is while it is being deleted.
fn trash_of(root: &Path, dir: &Path) -> PathBuf {
    root.join(format!("{TRASH}{}", dir.file_name().unwrap_or_default().to_string_lossy()))
}

/// Removes what killed processes left behind.
fn remove_leftovers(root: &Path) -> Result<(), CheckpointError> {
    for entry in fs::read_dir(root).map_err(io_error("read", root))? {
        let entry = entry.map_err(io_error("read", root))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if [TEMPORARY, TRASH].iter().any(|prefix| name.starts_with(&format!("{prefix}step-"))) {
            remove_all(&entry.path())?;
        }
    }
    Ok(())
}

fn remove_all(dir: &Path) -> Result<(), CheckpointError> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(io_error("remove", dir)(error))
        }
        _ => Ok(()),
    }
}

fn write_synced(path: &Path, bytes: &[u8]) -> Result<(), CheckpointError> {
    let mut file = File::create(path).map_err(io_error("create", path))?;
    file.write_all(bytes).map_err(io_error("write", path))?;
    hit_io("file.written").map_err(io_error("write", path))?;
    file.sync_all().map_err(io_error("sync", path))?;
    hit_io("file.synced").map_err(io_error("sync", path))
}

/// Makes a file, or the entries of a directory, durable.
fn sync(path: &Path) -> Result<(), CheckpointError> {
    File::open(path).and_then(|file| file.sync_all()).map_err(io_error("sync", path))
}

/// `step-N` directories of `root`, the newest first; none where `root` is absent.
fn newest_first(root: &Path) -> Result<Vec<(u64, PathBuf)>, CheckpointError> {
    let entries = match fs::read_dir(root) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(io_error("read", root)(error)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(io_error("read", root))?.path();
        found.extend(step_of(&path).map(|step| (step, path)));
    }
    found.sort_by(|a, b| b.cmp(a));
    Ok(found)
}

/// N of a path that ends in `step-N`.
fn step_of(path: &Path) -> Option<u64> {
    path.file_name()?.to_str()?.strip_prefix("step-")?.parse().ok()
}
