//! Compiled kernels on disk, by digest of everything they were compiled from.

use std::path::PathBuf;

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

/// What is stored at `path`, or what `make` makes, which is then stored for the next time. A cache
/// that cannot be written costs time and nothing else.
pub(super) fn get_or_make<E>(
    path: Option<PathBuf>,
    make: impl FnOnce() -> Result<Vec<u8>, E>,
) -> Result<Vec<u8>, E> {
    if let Some(found) = path.as_ref().and_then(|path| std::fs::read(path).ok()) {
        return Ok(found);
    }
    let made = make()?;
    if let Some(path) = path {
        let _ = store(&path, &made);
    }
    Ok(made)
}

/// Whole or not at all, also when several processes store the same.
fn store(path: &std::path::Path, bytes: &[u8]) -> std::io::Result<()> {
    let dir = path.parent().unwrap_or(path);
    std::fs::create_dir_all(dir)?;
    let aside = path.with_extension(format!("{}.tmp", std::process::id()));
    std::fs::write(&aside, bytes)?;
    std::fs::rename(&aside, path)
}

fn fnv1a(bytes: &[u8]) -> u128 {
    const OFFSET: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;
    bytes.iter().fold(OFFSET, |hash, &byte| (hash ^ u128::from(byte)).wrapping_mul(PRIME))
}
