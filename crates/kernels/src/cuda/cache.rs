//! Compiled kernels on disk, by digest of everything they were compiled from.

use sha2::{Digest as _, Sha256};
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// Where compiled kernels of `name` with this text go; `None` where the user has no cache.
///
/// The digest tells versions of our own text apart, and protects from nobody, since whoever can
/// write into the user's cache can as well replace the binary.
pub(super) fn path(name: &str, text: &str, extension: &str) -> Option<PathBuf> {
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or_else(home)?;
    let digest = format!("{:x}", Sha256::digest(text));
    let file = format!("{name}-{}.{extension}", &digest[..32]);
    Some(cache.join("hone/kernels").join(file))
}

/// Stores whole or not at all, also when several processes and threads store the same.
pub(super) fn store(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    std::fs::create_dir_all(path.parent().unwrap_or(path))?;
    let aside = aside(path);
    let mut file = File::create(&aside)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&aside, path)
}

/// A name beside `path` that this thread of this process has alone.
pub(super) fn aside(path: &Path) -> PathBuf {
    let unique = format!("{}-{:?}.tmp", std::process::id(), std::thread::current().id());
    path.with_extension(unique)
}
