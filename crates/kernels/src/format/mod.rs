//! Storage formats of weights, independent of the precision of computation.
//!
//! A format is an entry of a table: its size, how to pack and unpack numbers, and its name in CUDA.
//! Matmuls request panels of floats ([`crate::gemm`]) and know no formats, except for int8, which
//! can be multiplied as it is stored ([`Storage::is_int8`]).

mod int8;
mod nf4;
mod packed;

pub use int8::{Int8Rows, Int8RowsMut, rows_mut as int8_rows_mut};
pub use packed::Packed;

use crate::cpu::Cpu;
use crate::cuda::arg::Arg;
use crate::cuda::source::Source;
use crate::element::{Address, DType, Floats};

/// A packed storage format of a weight matrix.
pub struct WeightFormat {
    /// Name in run files and messages.
    pub name: &'static str,
    /// Whether it is also used for embedding and head, whose rows are read individually.
    pub for_tables: bool,
    /// Size in bytes of a matrix `[rows, cols]`, stored at [`crate::memory::ALIGNMENT`].
    pub num_bytes: fn([usize; 2]) -> usize,
    /// Unpacks weights `first..first + out.len()` of the row-major matrix, which are in one row.
    pub unpack: fn(&Packed<'_>, first: usize, out: &mut [f32]),
    /// Packs floats in rows of `cols` into the bytes of the matrix.
    pub pack: fn(&Cpu, Floats<'_>, cols: usize, bytes: &mut [u8]),
    /// Name in CUDA sources: a type for which `prelude.cuh` defines `read` and `aligned`.
    pub(crate) in_kernels: &'static str,
    /// Kernels `weights_unpack<Y>` for every float type.
    pub(crate) source: &'static Source,
    /// A matrix `[rows, cols]` as a kernel argument.
    pub(crate) parameter: fn(Address, [usize; 2]) -> Arg,
}

/// All formats.
pub static FORMATS: [&WeightFormat; 2] = [&int8::FORMAT, &nf4::FORMAT];

/// How the numbers of an array are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    /// As floats.
    Float(DType),
    /// Packed; read-only.
    Packed(&'static WeightFormat),
}

impl Storage {
    /// Names of all storages: float types, then [`FORMATS`].
    pub const NAMES: [&str; 5] = ["f32", "bf16", "f16", "int8", "nf4"];

    /// Bytes with zero point 128 and one `f32` scale per row: see [`Int8Rows`].
    pub const INT8: Self = Self::Packed(&int8::FORMAT);

    /// The storage with this name: a float type or a format.
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

    /// Size in bytes of an array of this shape, with rows along its last dimension.
    pub fn num_bytes(self, shape: &[usize]) -> usize {
        match self {
            Self::Float(dtype) => shape.iter().product::<usize>() * dtype.size(),
            Self::Packed(format) => {
                let cols = shape.last().copied().unwrap_or(1);
                (format.num_bytes)([shape.iter().product::<usize>() / cols.max(1), cols])
            }
        }
    }

    /// Storage of embedding and head if other matrices use this one; `None`: as in the file.
    pub fn for_tables(self) -> Option<Self> {
        match self {
            Self::Packed(format) if !format.for_tables => None,
            other => Some(other),
        }
    }

    /// Whether this is int8, which can be multiplied in integers, or in FP8 on a GPU.
    pub fn is_int8(self) -> bool {
        self == Self::INT8
    }

    /// The float type; `None` if packed.
    pub fn float(self) -> Option<DType> {
        match self {
            Self::Float(dtype) => Some(dtype),
            Self::Packed(_) => None,
        }
    }

    /// Name in CUDA sources.
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
