//! Compiled kernels on disk, by digest of everything they were compiled from.

use sha2::{Digest as _, Sha256};
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// Path of the compiled kernels of `name` with this text; `None` if the user has no cache
/// directory.
///
/// The digest distinguishes versions of our own text. It is no protection: whoever can write to the
/// user's cache can also replace the binary.
pub(super) fn path(name: &str, text: &str, extension: &str) -> Option<PathBuf> {
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or_else(home)?;
    let digest = format!("{:x}", Sha256::digest(text));
    let file = format!("{name}-{}.{extension}", &digest[..32]);
    Some(cache.join("hone/kernels").join(file))
}

/// Stores atomically, even if several processes and threads store the same file.
pub(super) fn store(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    std::fs::create_dir_all(path.parent().unwrap_or(path))?;
    let temporary = temporary(path);
    let mut file = File::create(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)
}

/// A path in the directory of `path` that is unique to this thread of this process.
pub(super) fn temporary(path: &Path) -> PathBuf {
    let unique = format!("{}-{:?}.tmp", std::process::id(), std::thread::current().id());
    path.with_extension(unique)
}
