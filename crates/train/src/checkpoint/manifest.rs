//! `manifest.json` of a checkpoint: which files it consists of, their sizes and digests. It is
//! written last, so a directory that has one was once complete; checking it finds whatever
//! happened afterwards.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::error::{CheckpointError, io_error};

/// Version of the directory's layout; others are refused.
pub const FORMAT_VERSION: u32 = 1;

pub(super) const MANIFEST: &str = "manifest.json";

/// Content of `manifest.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`FORMAT_VERSION`] of the writer.
    pub format_version: u32,
    /// Number of optimizer steps done.
    pub step: u64,
    /// By path within the directory, `/` between its parts; not the manifest itself.
    pub files: BTreeMap<String, FileEntry>,
}

/// Size and digest of one file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    /// Length in bytes.
    pub bytes: u64,
    /// SHA-256 in lower-case hexadecimal.
    pub sha256: String,
}

impl Manifest {
    /// Bytes of all files.
    pub fn total_bytes(&self) -> u64 {
        self.files.values().map(|entry| entry.bytes).sum()
    }
}

/// Checks every byte of the checkpoint in `dir`.
///
/// # Errors
/// A file is missing, surplus, of another size or digest; the manifest is unreadable or belongs
/// to another step than the directory's name says.
pub fn verify(dir: &Path) -> Result<Manifest, CheckpointError> {
    let manifest = verify_sizes(dir)?;
    for (name, entry) in &manifest.files {
        if sha256_of_file(&dir.join(name))? != entry.sha256 {
            let problem = format!("{name} is damaged: its SHA-256 is not the one in {MANIFEST}");
            return Err(damaged(dir, problem));
        }
    }
    Ok(manifest)
}

/// As [`verify`], without reading the files' content.
pub(super) fn verify_sizes(dir: &Path) -> Result<Manifest, CheckpointError> {
    let manifest = read_manifest(dir)?;
    let mut present = list_files(dir)?;
    present.remove(MANIFEST);
    for (name, entry) in &manifest.files {
        match present.remove(name) {
            None => return Err(damaged(dir, format!("{name} is missing"))),
            Some(bytes) if bytes != entry.bytes => {
                let problem = format!("{name} has {bytes} bytes instead of {}", entry.bytes);
                return Err(damaged(dir, problem));
            }
            Some(_) => {}
        }
    }
    match present.keys().next() {
        Some(name) => Err(damaged(dir, format!("{name} does not belong to the checkpoint"))),
        None => Ok(manifest),
    }
}

fn read_manifest(dir: &Path) -> Result<Manifest, CheckpointError> {
    let path = dir.join(MANIFEST);
    let text = fs::read(&path).map_err(io_error("read", &path))?;
    let manifest: Manifest = serde_json::from_slice(&text)
        .map_err(|error| damaged(dir, format!("{MANIFEST} cannot be read: {error}")))?;
    if manifest.format_version != FORMAT_VERSION {
        let found = manifest.format_version;
        let problem = format!("format version {found}; this Hone reads {FORMAT_VERSION}");
        return Err(damaged(dir, problem));
    }
    if super::step_of(dir).is_some_and(|step| step != manifest.step) {
        return Err(damaged(dir, format!("{MANIFEST} is of step {}", manifest.step)));
    }
    Ok(manifest)
}

/// Sizes of all files below `dir`, by path within it.
///
/// # Errors
/// Anything that is neither a file nor a directory, and system errors.
pub(super) fn list_files(dir: &Path) -> Result<BTreeMap<String, u64>, CheckpointError> {
    let mut files = BTreeMap::new();
    let mut pending = vec![(dir.to_owned(), String::new())];
    while let Some((folder, prefix)) = pending.pop() {
        for entry in fs::read_dir(&folder).map_err(io_error("read", &folder))? {
            let entry = entry.map_err(io_error("read", &folder))?;
            let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
            let metadata = entry.metadata().map_err(io_error("read", &entry.path()))?;
            if metadata.is_dir() {
                pending.push((entry.path(), format!("{name}/")));
            } else if metadata.is_file() {
                files.insert(name, metadata.len());
            } else {
                return Err(damaged(dir, format!("{name} is neither a file nor a directory")));
            }
        }
    }
    Ok(files)
}

/// SHA-256 of a file in lower-case hexadecimal.
///
/// # Errors
/// The file cannot be read.
pub fn sha256_of_file(path: &Path) -> Result<String, CheckpointError> {
    let mut file = File::open(path).map_err(io_error("open", path))?;
    let (mut digest, mut buffer) = (Sha256::new(), vec![0; 1 << 20]);
    loop {
        match file.read(&mut buffer).map_err(io_error("read", path))? {
            0 => return Ok(format!("{:x}", digest.finalize())),
            n => digest.update(&buffer[..n]),
        }
    }
}

pub(super) fn damaged(dir: &Path, problem: String) -> CheckpointError {
    CheckpointError::Damaged { dir: PathBuf::from(dir), problem }
}
