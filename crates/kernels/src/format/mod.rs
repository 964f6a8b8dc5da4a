//! How weights are held, apart from what is computed with them.
//!
//! A format is a row of a table: what it takes, how numbers are packed and unpacked, and what it is
//! called in CUDA. Products ask for panels of floats ([`crate::gemm`]) and know no format; a format
//! that can be multiplied as it is held says so ([`Storage::is_int8`]).

mod int8;
mod nf4;
mod packed;

pub use int8::{Int8Rows, rows_mut as int8_rows_mut};
pub use packed::Packed;

use crate::cpu::Cpu;
use crate::cuda::{Arg, Source};
use crate::element::{DType, Slice, View};

/// A way to hold the weights of a matrix.
pub struct WeightFormat {
    /// Its name in run files and messages.
    pub name: &'static str,
    /// Whether embedding and head, whose rows are also read one by one, are held so too.
    pub for_tables: bool,
    /// Bytes of a matrix `[rows, cols]`; they begin at a multiple of [`crate::memory::ALIGNMENT`].
    pub num_bytes: fn([usize; 2]) -> usize,
    /// Writes weights `first..first + out.len()` of the row-major matrix, which are in one row.
    pub unpack: fn(&Packed<'_>, first: usize, out: &mut [f32]),
    /// Fills the bytes of the matrix from its weights, floats in rows of so many columns.
    pub pack: fn(&Cpu, View<'_>, cols: usize, bytes: &mut [u8]),
    /// Its word in kernels: a type that `read` and `aligned` of `prelude.cuh` are defined for.
    pub(crate) in_kernels: &'static str,
    /// Kernels `weights_unpack<Y>` for every type of floats.
    pub(crate) source: &'static Source,
    /// The weights as a kernel's parameter.
    pub(crate) parameter: fn(&Slice<'_>) -> Arg,
}

/// Every format.
pub static FORMATS: [&WeightFormat; 2] = [&int8::FORMAT, &nf4::FORMAT];

/// How the numbers of an array are held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    /// As floats that are computed with.
    Float(DType),
    /// Packed; for reading only.
    Packed(&'static WeightFormat),
}

impl Storage {
    /// The names of all: types of floats, then [`FORMATS`].
    pub const NAMES: [&str; 5] = ["f32", "bf16", "f16", "int8", "nf4"];

    /// Bytes with zero point 128 and one `f32` scale per row: see [`Int8Rows`].
    pub const INT8: Self = Self::Packed(&int8::FORMAT);

    /// The storage of that name: a type of floats or a format.
    pub fn from_name(name: &str) -> Option<Self> {
        let floats = [DType::F32, DType::Bf16, DType::F16].map(Self::Float);
        let formats = FORMATS.into_iter().map(Self::Packed);
        floats.into_iter().chain(formats).find(|storage| storage.name() == name)
    }

    /// The name used in run files and messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::Float(dtype) => dtype.name(),
            Self::Packed(format) => format.name,
        }
    }

    /// Bytes of an array of that shape, rows along its last dimension.
    pub fn num_bytes(self, shape: &[usize]) -> usize {
        match self {
            Self::Float(dtype) => shape.iter().product::<usize>() * dtype.size(),
            Self::Packed(format) => {
                let cols = shape.last().copied().unwrap_or(1);
                (format.num_bytes)([shape.iter().product::<usize>() / cols.max(1), cols])
            }
        }
    }

    /// How embedding and head are held where this is how matrices are; `None`: as in the file.
    pub fn for_tables(self) -> Option<Self> {
        match self {
            Self::Packed(format) if !format.for_tables => None,
            other => Some(other),
        }
    }

    /// Whether these are bytes that can be multiplied as integers, or as FP8 on a GPU.
    pub fn is_int8(self) -> bool {
        self == Self::INT8
    }

    /// The type of the floats, where they are such.
    pub fn float(self) -> Option<DType> {
        match self {
            Self::Float(dtype) => Some(dtype),
            Self::Packed(_) => None,
        }
    }

    /// The word for it in kernels.
    pub(crate) fn in_kernels(self) -> &'static str {
        match self {
            Self::Float(dtype) => dtype.in_kernels(),
            Self::Packed(format) => format.in_kernels,
        }
    }
}

impl From<DType> for Storage {
    fn from(dtype: DType) -> Self {
        Self::Float(dtype)
    }
}

impl PartialEq<DType> for Storage {
    fn eq(&self, other: &DType) -> bool {
        *self == Self::Float(*other)
    }
}

impl PartialEq for WeightFormat {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for WeightFormat {}

impl std::fmt::Debug for WeightFormat {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

#[cfg(test)]
pub(crate) mod tests;
