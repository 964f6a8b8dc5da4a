//! Memory-mapped files.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

/// A read-only mapping of a whole file.
#[derive(Debug)]
pub struct Mapped {
    map: memmap2::Mmap,
    path: PathBuf,
}

impl Mapped {
    /// Maps the file.
    ///
    /// # Errors
    /// When the file cannot be opened or mapped.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        // SAFETY: the usual caveat of mappings, which all readers of model weights accept: if
        // another process truncates the file, a signal ends this process.
        let map = unsafe { memmap2::Mmap::map(&file)? };
        Ok(Self { map, path: path.to_owned() })
    }

    /// The file's bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// Returns the memory of `len` bytes beginning at `offset` to the system; they are read from
    /// the file again when next accessed.
    pub(crate) fn release(&self, offset: usize, len: usize) {
        #[cfg(unix)]
        {
            let advice = memmap2::UncheckedAdvice::DontNeed;
            // SAFETY: the mapping is shared and read-only, so the same contents come back.
            // Best effort: if the system refuses, the pages stay.
            let _ = unsafe { self.map.unchecked_advise_range(advice, offset, len) };
        }
        #[cfg(not(unix))]
        let _ = (offset, len);
    }

    /// Path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}
