//! A matrix in a weight format.

use super::{Int8Rows, Storage, WeightFormat, int8};
use crate::element::Elements;

/// A row-major matrix of packed weights.
#[derive(Clone, Copy, Debug)]
pub struct Packed<'a> {
    bytes: &'a [u8],
    format: &'static WeightFormat,
    rows: usize,
    cols: usize,
    has_scales: bool,
}

impl<'a> Packed<'a> {
    /// `len` weights in rows of `cols`; `None` if the number of bytes does not match, if they are
    /// not aligned like an `f32`, or if rows are not whole blocks.
    pub fn new(
        bytes: &'a [u8],
        format: &'static WeightFormat,
        (len, cols): (usize, usize),
    ) -> Option<Self> {
        let rows = len / cols.max(1);
        let whole = cols.is_multiple_of(format.block);
        let fits = whole && bytes.len() == (format.num_bytes)([rows, cols]);
        let aligned = bytes.is_empty() || bytes.as_ptr().cast::<f32>().is_aligned();
        (fits && aligned).then_some(Self { bytes, format, rows, cols, has_scales: true })
    }

    /// The bytes.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The format.
    pub fn format(&self) -> &'static WeightFormat {
        self.format
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Length of a row.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Whether rows have scales.
    pub(crate) fn has_scales(&self) -> bool {
        self.has_scales
    }

    /// Number of weights.
    pub fn len(&self) -> usize {
        self.rows * self.cols
    }

    /// Whether there are no weights.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The integers alone, for matmuls whose other operand has absorbed the scales.
    ///
    /// # Panics
    /// If the format is not int8.
    pub fn without_scales(self) -> Self {
        assert!(Storage::Packed(self.format).is_int8());
        Self { has_scales: false, ..self }
    }

    /// The int8 values and scales.
    ///
    /// # Panics
    /// If the format is not int8.
    pub fn int8(&self) -> Int8Rows<'a> {
        let storage = Storage::Packed(self.format);
        assert!(storage.is_int8(), "expected int8, found {}", storage.name());
        let rows = int8::rows(self.bytes, self.rows);
        if self.has_scales { rows } else { Int8Rows { scales: &[], ..rows } }
    }

    /// Unpacks weights `first..first + out.len()`, which must be in one row.
    pub fn unpack(&self, first: usize, out: &mut [f32]) {
        let Some(tiles) = self.format.tiles else {
            return (self.format.unpack)(self, first, out);
        };
        let (mut col, mut left) = (first % self.cols, out);
        let row = first - col;
        // A head at a time.
        while !left.is_empty() {
            let len = left.len().min(tiles.len - col % tiles.len);
            let (head, rest) = left.split_at_mut(len);
            (self.format.unpack)(self, row + tiles.at(col), head);
            (col, left) = (col + len, rest);
        }
    }
}

impl Elements for Packed<'_> {
    fn at(&self, index: usize) -> f32 {
        let mut value = [0.0];
        self.unpack(index, &mut value);
        value[0]
    }
}
