//! Matrices whose columns files have in another order.

use super::WeightFormat;
use std::sync::{Mutex, PoisonError};

/// Columns of a matrix that a file has in tiles: the first head of each group, then their second
/// ones. The matrix has the heads of a group one after another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tiles {
    /// Groups of heads.
    pub groups: usize,
    /// Heads of a group.
    pub per_group: usize,
    /// Columns of a head.
    pub len: usize,
}

impl Tiles {
    /// Where the file has a column of the matrix.
    pub fn at(&self, column: usize) -> usize {
        let (head, within) = (column / self.len, column % self.len);
        let (group, which) = (head / self.per_group, head % self.per_group);
        (which * self.groups + group) * self.len + within
    }
}

impl WeightFormat {
    /// This format for matrices whose bytes have columns in tiles. Blocks stay as they are, and
    /// tiles need not be whole blocks, since columns find their places as they are unpacked.
    pub fn tiled(&'static self, tiles: Tiles) -> &'static Self {
        /// Formats live as long as the program; models have heads of one or two shapes.
        static KNOWN: Mutex<Vec<&WeightFormat>> = Mutex::new(Vec::new());
        let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
        let is_same = |other: &&&Self| other.name == self.name && other.tiles == Some(tiles);
        if let Some(format) = known.iter().find(is_same) {
            return format;
        }
        let format: &'static Self = Box::leak(Box::new(Self { tiles: Some(tiles), ..*self }));
        known.push(format);
        format
    }
}
