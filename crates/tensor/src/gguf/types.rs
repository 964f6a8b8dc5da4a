//! Element types of tensors in files, as ggml numbers and names them.

use crate::Storage;
use std::fmt;

/// An element type: so many weights along a row are a block of so many bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Kind {
    id: u32,
    name: &'static str,
    /// Weights of a block.
    pub(super) weights: usize,
    /// Bytes of a block.
    bytes: usize,
}

const fn kind(id: u32, name: &'static str, weights: usize, bytes: usize) -> Kind {
    Kind { id, name, weights, bytes }
}

/// All types that files have; ids of types that were withdrawn are missing.
static KINDS: [Kind; 34] = [
    kind(0, "F32", 1, 4),
    kind(1, "F16", 1, 2),
    kind(2, "Q4_0", 32, 18),
    kind(3, "Q4_1", 32, 20),
    kind(6, "Q5_0", 32, 22),
    kind(7, "Q5_1", 32, 24),
    kind(8, "Q8_0", 32, 34),
    kind(9, "Q8_1", 32, 40),
    kind(10, "Q2_K", 256, 84),
    kind(11, "Q3_K", 256, 110),
    kind(12, "Q4_K", 256, 144),
    kind(13, "Q5_K", 256, 176),
    kind(14, "Q6_K", 256, 210),
    kind(15, "Q8_K", 256, 292),
    kind(16, "IQ2_XXS", 256, 66),
    kind(17, "IQ2_XS", 256, 74),
    kind(18, "IQ3_XXS", 256, 98),
    kind(19, "IQ1_S", 256, 50),
    kind(20, "IQ4_NL", 32, 18),
    kind(21, "IQ3_S", 256, 110),
    kind(22, "IQ2_S", 256, 82),
    kind(23, "IQ4_XS", 256, 136),
    kind(24, "I8", 1, 1),
    kind(25, "I16", 1, 2),
    kind(26, "I32", 1, 4),
    kind(27, "I64", 1, 8),
    kind(28, "F64", 1, 8),
    kind(29, "IQ1_M", 256, 56),
    kind(30, "BF16", 1, 2),
    kind(34, "TQ1_0", 256, 54),
    kind(35, "TQ2_0", 256, 66),
    kind(39, "MXFP4", 32, 17),
    kind(40, "NVFP4", 64, 36),
    kind(41, "Q1_0", 128, 18),
];

impl Kind {
    pub(super) fn from_id(id: u32) -> Option<Self> {
        KINDS.iter().find(|kind| kind.id == id).copied()
    }

    /// How its bytes are held; `None` if no operation reads them.
    pub(super) fn storage(self) -> Option<Storage> {
        Storage::from_name(&self.name.to_ascii_lowercase())
    }

    /// Size in bytes of rows of `cols`, which blocks must divide; `None` if it overflows.
    pub(super) fn num_bytes(self, rows: usize, cols: usize) -> Option<usize> {
        (cols / self.weights).checked_mul(self.bytes)?.checked_mul(rows)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (type {})", self.name, self.id)
    }
}

/// Names of the types that operations read.
pub(super) fn readable() -> String {
    let readable = KINDS.iter().filter(|kind| kind.storage().is_some());
    readable.map(|kind| kind.name).collect::<Vec<_>>().join(", ")
}
