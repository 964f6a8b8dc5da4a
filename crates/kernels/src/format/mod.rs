//! Storage formats of weights, independent of the precision of computation.
//!
//! A format is an entry of a table: its size, how to pack and unpack numbers, and its name in CUDA.
//! Matmuls request panels of floats ([`crate::gemm`]) and know no formats, except for int8, which
//! can be multiplied as it is stored ([`Storage::is_int8`]).

mod coding;
mod fp8;
mod gguf;
mod int8;
mod nf4;
mod packed;
mod parts;
mod shape;
mod tiles;
mod words;

pub use coding::{Coded, Coding};
pub use fp8::to_e4m3;
pub(crate) use gguf::Q8_0Blocks;
pub use gguf::UnreadType;
pub use int8::{Int8Rows, Int8RowsMut, rows_mut as int8_rows_mut};
pub(crate) use nf4::Nf4Blocks;
pub use packed::Packed;
pub use parts::{Nf4Parts, Nf4Scales, Nf4Tensors, Parts, PartsError};
pub use shape::ShapeError;
pub use tiles::Tiles;
pub use words::{PackedInts, pack_ints, packed_row_bytes};

use crate::cpu::Cpu;
use crate::cuda::arg::Arg;
use crate::cuda::source::Source;
use crate::element::{Address, DType, Floats};

/// A packed storage format of a weight matrix.
pub struct WeightFormat {
    /// Name in run files and messages.
    pub name: &'static str,
    /// Weights of a block along a row, of which rows are made; 1 if a row may have any length.
    pub block: usize,
    /// Whether it is also used for embedding and head, whose rows are read individually.
    pub for_tables: bool,
    /// Size in bytes of a matrix `[rows, cols]`, stored at [`crate::memory::ALIGNMENT`].
    pub num_bytes: fn([usize; 2]) -> usize,
    /// Unpacks weights `first..first + out.len()` of the row-major matrix, which are in one row.
    pub unpack: fn(&Packed<'_>, first: usize, out: &mut [f32]),
    /// Packs floats in rows of `cols` into the bytes of the matrix; `None` if the format is only
    /// read from files.
    pub pack: Option<Pack>,
    /// Packs floats so that an error of one column counts more than that of another; `None` if the
    /// format has nothing to search for.
    pub search: Option<Search>,
    /// The numbers that its blocks consist of, for rounding that looks at more than one weight;
    /// `None` of formats without integers of blocks.
    pub coding: Option<Coding>,
    /// The order of columns in the bytes, if it is not that of the matrix: [`Self::tiled`].
    pub tiles: Option<Tiles>,
    /// [`KERNELS`] for the format, whose type in CUDA sources is `Weights`.
    pub(crate) source: &'static Source,
    /// A matrix `[rows, cols]` as a kernel argument.
    pub(crate) parameter: fn(Address, [usize; 2]) -> Arg,
}

/// [`WeightFormat::pack`].
pub type Pack = fn(&Cpu, Floats<'_>, cols: usize, bytes: &mut [u8]);

/// [`WeightFormat::search`]: with the importance of each column, or none if all are alike, packs so
/// that the sum of `importance[column] · (weight − unpacked)²` is small. In types of two and three
/// bits large weights count more than that.
pub type Search = fn(&Cpu, Floats<'_>, cols: usize, importance: &[f32], bytes: &mut [u8]);

/// All formats.
pub static FORMATS: [&WeightFormat; 19] = [
    &int8::FORMAT,
    &nf4::FORMAT,
    &nf4::F32,
    &fp8::FP8,
    &fp8::FP8_ROWS,
    &fp8::FP8_BLOCK,
    &gguf::Q8_0,
    &gguf::Q6_K,
    &gguf::Q5_K,
    &gguf::Q5_1,
    &gguf::Q5_0,
    &gguf::Q4_K,
    &gguf::Q4_1,
    &gguf::Q4_0,
    &gguf::Q3_K,
    &gguf::Q2_K,
    &gguf::IQ4_XS,
    &gguf::IQ4_NL,
    &gguf::MXFP4,
];

/// The kernels that a format has.
const KERNELS: [&str; 7] = [
    "weights_unpack<float>",
    "weights_unpack<bf16>",
    "weights_unpack<f16>",
    "embedding_forward<Weights>",
    "head_direction<float,Weights>",
    "head_direction<bf16,Weights>",
    "head_direction<f16,Weights>",
];

/// The [`Source`] of a format: its texts, which define `Weights`, and [`KERNELS`].
macro_rules! source {
    ($name:literal, $($text:expr),+) => {
        $crate::cuda::source::Source {
            name: $name,
            texts: &[
                $($text,)+
                include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/src/format/unpack.cuh")),
                include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/src/embedding/forward.cuh")),
                include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/src/head/direction.cuh")),
            ],
            kernels: &$crate::format::KERNELS,
        }
    };
}
use source;

/// How the numbers of an array are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    /// As floats.
    Float(DType),
    /// Packed; read-only.
    Packed(&'static WeightFormat),
}

impl Storage {
    /// Names of the storages that floats can be held in: float types, then the [`FORMATS`] that
    /// pack.
    #[rustfmt::skip]
    pub const NAMES: [&str; 18] = [
        "f32", "bf16", "f16", "int8", "nf4", "q8_0", "q6_k", "q5_k", "q5_1", "q5_0", "q4_k", "q4_1",
        "q4_0", "q3_k", "q2_k", "iq4_xs", "iq4_nl", "mxfp4",
    ];

    /// Bytes with zero point 128 and one `f32` scale per row: see [`Int8Rows`].
    pub const INT8: Self = Self::Packed(&int8::FORMAT);

    /// The storage with this name, of those in [`Storage::NAMES`].
    pub fn from_name(name: &str) -> Option<Self> {
        let floats = [DType::F32, DType::Bf16, DType::F16].map(Self::Float);
        let formats = FORMATS.into_iter().filter(|format| format.pack.is_some()).map(Self::Packed);
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
            Self::Packed(_) => "Weights",
        }
    }

    /// The source of a format's kernels; `None` of floats, which an operation's own source reads.
    pub(crate) fn source(self) -> Option<&'static Source> {
        match self {
            Self::Float(_) => None,
            Self::Packed(format) => Some(format.source),
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

/// Whatever the order of columns.
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
