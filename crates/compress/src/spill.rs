//! What a pass forward keeps for the way back: in memory as far as that is little, else in a file.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// Bytes that are kept in memory.
const MAX_BYTES: usize = 256 << 20;

/// Rows of numbers by the order in which they were put there, each of which is taken once.
pub(crate) struct Spill<'a> {
    folder: &'a Path,
    rows: Vec<Place>,
    /// Bytes in memory.
    held: usize,
    max_bytes: usize,
    file: Option<Scratch>,
}

enum Place {
    Memory(Vec<f32>),
    /// So many numbers, from so many bytes of the file on.
    File(u64, usize),
}

/// A file that nobody else sees.
struct Scratch {
    file: File,
    path: PathBuf,
    len: u64,
}

impl<'a> Spill<'a> {
    /// The file, if one is needed, is in `folder`.
    pub(crate) fn new(folder: &'a Path) -> Self {
        Self { folder, rows: Vec::new(), held: 0, max_bytes: MAX_BYTES, file: None }
    }

    /// Keeps rows.
    ///
    /// # Errors
    /// If the system refuses.
    pub(crate) fn put(&mut self, rows: Vec<f32>) -> io::Result<()> {
        let bytes = 4 * rows.len();
        if self.held + bytes <= self.max_bytes {
            self.held += bytes;
            self.rows.push(Place::Memory(rows));
            return Ok(());
        }
        if self.file.is_none() {
            self.file = Some(Scratch::new(self.folder)?);
        }
        let scratch = self.file.as_mut().expect("made above");
        self.rows.push(Place::File(scratch.len, rows.len()));
        scratch.append(&rows)
    }

    /// Takes the rows that were kept as the `index`th.
    ///
    /// # Errors
    /// If the system refuses.
    pub(crate) fn take(&mut self, index: usize) -> io::Result<Vec<f32>> {
        let taken = std::mem::replace(&mut self.rows[index], Place::Memory(Vec::new()));
        match (taken, &mut self.file) {
            (Place::File(at, count), Some(scratch)) => scratch.read(at, count),
            (Place::Memory(rows), _) => {
                self.held -= 4 * rows.len();
                Ok(rows)
            }
            (Place::File(..), None) => unreachable!("there is a file"),
        }
    }
}

impl Scratch {
    fn new(folder: &Path) -> io::Result<Self> {
        let path = folder.join(format!(".hone-{}.scratch", std::process::id()));
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path)?;
        // Where the system lets files live on without a name, a kill leaves nothing.
        let _ = fs::remove_file(&path);
        Ok(Self { file, path, len: 0 })
    }

    fn append(&mut self, rows: &[f32]) -> io::Result<()> {
        self.file.seek(SeekFrom::Start(self.len))?;
        let mut bytes = Vec::new();
        for piece in rows.chunks(PIECE) {
            bytes.clear();
            bytes.extend(piece.iter().flat_map(|x| x.to_le_bytes()));
            self.file.write_all(&bytes)?;
        }
        self.len += 4 * rows.len() as u64;
        Ok(())
    }

    fn read(&mut self, at: u64, count: usize) -> io::Result<Vec<f32>> {
        self.file.seek(SeekFrom::Start(at))?;
        let (mut rows, mut bytes) = (Vec::with_capacity(count), vec![0; 4 * PIECE.min(count)]);
        while rows.len() < count {
            let bytes = &mut bytes[..4 * PIECE.min(count - rows.len())];
            self.file.read_exact(bytes)?;
            rows.extend(bytes.as_chunks().0.iter().map(|x| f32::from_le_bytes(*x)));
        }
        Ok(rows)
    }
}

/// Numbers that are written or read at a time.
const PIECE: usize = 1 << 18;

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_comes_back_in_any_order() {
        let folder = tempfile::tempdir().unwrap();
        let rows = |i: usize| -> Vec<f32> {
            (0..PIECE * (i % 3) + 7).map(|j| (i * 1_000_000 + j) as f32).collect()
        };
        let mut spill = Spill { max_bytes: 3 << 20, ..Spill::new(folder.path()) };
        (0..9).for_each(|i| spill.put(rows(i)).unwrap());
        assert!(spill.held <= 3 << 20 && spill.file.is_some());
        for i in [8, 0, 3, 1, 2, 7, 4, 6, 5] {
            assert!(spill.take(i).unwrap() == rows(i), "{i}");
        }
        assert_eq!(spill.held, 0);
        drop(spill);
        assert!(fs::read_dir(folder.path()).unwrap().next().is_none());
        let nowhere = folder.path().join("none");
        let mut spill = Spill { max_bytes: 0, ..Spill::new(&nowhere) };
        assert_eq!(spill.put(vec![1.0]).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
