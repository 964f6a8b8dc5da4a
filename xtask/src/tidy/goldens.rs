//! The size of golden files: what cannot be read by people stays small.

use super::Finding;
use std::io;
use std::path::Path;

/// Over all crates.
const MAX_BYTES: u64 = 4 << 20;

/// Bytes in the folders `crates/*/tests/goldens`.
pub fn size(root: &Path) -> io::Result<u64> {
    let mut total = 0;
    for krate in std::fs::read_dir(root.join("crates"))? {
        let goldens = krate?.path().join("tests/goldens");
        if goldens.is_dir() {
            total += size_of_folder(&goldens)?;
        }
    }
    Ok(total)
}

fn size_of_folder(folder: &Path) -> io::Result<u64> {
    let mut total = 0;
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let about = entry.metadata()?;
        total += if about.is_dir() { size_of_folder(&entry.path())? } else { about.len() };
    }
    Ok(total)
}

/// Whether that is too much.
pub fn check(bytes: u64) -> Option<Finding> {
    (bytes > MAX_BYTES).then(|| {
        let message = format!(
            "golden files take {bytes} bytes, at most {MAX_BYTES}: commit results only, and draw \
             weights from a generator"
        );
        Finding::new("crates/*/tests/goldens", 1, message)
    })
}
