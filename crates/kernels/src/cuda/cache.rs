//! Compiled kernels on disk, by digest of everything they were compiled from.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// Where compiled kernels of `name` with this text go; `None` where the user has no cache.
///
/// The digest is FNV-1a in 128 bits: it tells versions of our own text apart, and protects from
/// nobody, since whoever can write into the user's cache can as well replace the binary.
pub(super) fn path(name: &str, text: &str, extension: &str) -> Option<PathBuf> {
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or_else(home)?;
    let digest = fnv1a(text.as_bytes());
    Some(cache.join("hone/kernels").join(format!("{name}-{digest:032x}.{extension}")))
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

fn fnv1a(bytes: &[u8]) -> u128 {
    const OFFSET: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;
    bytes.iter().fold(OFFSET, |hash, &byte| (hash ^ u128::from(byte)).wrapping_mul(PRIME))
}
