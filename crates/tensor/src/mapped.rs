//! A file mapped into memory.

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
        // SAFETY: the usual caveat of mappings, which all readers of model weights accept: a file
        // that another process truncates meanwhile ends this process by a signal.
        let map = unsafe { memmap2::Mmap::map(&file)? };
        Ok(Self { map, path: path.to_owned() })
    }

    /// The file's bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// Gives the memory of `len` bytes from `offset` on back to the system; they are read from the
    /// file again when they are next looked at.
    pub(crate) fn release(&self, offset: usize, len: usize) {
        #[cfg(unix)]
        {
            let advice = memmap2::UncheckedAdvice::DontNeed;
            // SAFETY: the mapping is shared and read-only: what comes back is what was there.
            // Best effort: a refusal leaves the pages where they are.
            let _ = unsafe { self.map.unchecked_advise_range(advice, offset, len) };
        }
        #[cfg(not(unix))]
        let _ = (offset, len);
    }

    /// Where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}
