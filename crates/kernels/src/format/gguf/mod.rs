//! The types of GGUF files: blocks of 32 or 256 weights along a row, each with its own scales.
//!
//! The bytes of a tensor in a file are the bytes of the matrix, so that weights can stay mapped.
//! Unpacked they have the bits that the `gguf` package gives. Where the package packs a type, so do
//! these, to the same bytes; for the others, scales are searched for ([`fit`]).

mod encode;
mod fit;
mod i_quants;
mod k_quants;
mod small;

use super::{Packed, Storage, WeightFormat};
use crate::cpu::{Cpu, Isa, Kernel};
use crate::cuda::arg::Arg;
use crate::cuda::source::Source;
use crate::element::{DType, Element, Floats, f16};
use crate::view::{View, with_elements};
use encode::Searched;
use std::marker::PhantomData;

pub(super) use i_quants::{IQ4_NL, IQ4_XS};
pub(super) use k_quants::{Q2_K, Q3_K, Q4_K, Q5_K, Q6_K};
pub(crate) use small::Q8_0Blocks;
pub(super) use small::{MXFP4, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, write_mxfp4};

/// Types by their number in files, as ggml names them, and how they are held.
const TYPES: [(u32, &str, Option<Storage>); 43] = [
    (0, "F32", Some(Storage::Float(DType::F32))),
    (1, "F16", Some(Storage::Float(DType::F16))),
    (2, "Q4_0", Some(Storage::Packed(&Q4_0))),
    (3, "Q4_1", Some(Storage::Packed(&Q4_1))),
    (4, "Q4_2", None),
    (5, "Q4_3", None),
    (6, "Q5_0", Some(Storage::Packed(&Q5_0))),
    (7, "Q5_1", Some(Storage::Packed(&Q5_1))),
    (8, "Q8_0", Some(Storage::Packed(&Q8_0))),
    (9, "Q8_1", None),
    (10, "Q2_K", Some(Storage::Packed(&Q2_K))),
    (11, "Q3_K", Some(Storage::Packed(&Q3_K))),
    (12, "Q4_K", Some(Storage::Packed(&Q4_K))),
    (13, "Q5_K", Some(Storage::Packed(&Q5_K))),
    (14, "Q6_K", Some(Storage::Packed(&Q6_K))),
    (15, "Q8_K", None),
    (16, "IQ2_XXS", None),
    (17, "IQ2_XS", None),
    (18, "IQ3_XXS", None),
    (19, "IQ1_S", None),
    (20, "IQ4_NL", Some(Storage::Packed(&IQ4_NL))),
    (21, "IQ3_S", None),
    (22, "IQ2_S", None),
    (23, "IQ4_XS", Some(Storage::Packed(&IQ4_XS))),
    (24, "I8", None),
    (25, "I16", None),
    (26, "I32", None),
    (27, "I64", None),
    (28, "F64", None),
    (29, "IQ1_M", None),
    (30, "BF16", Some(Storage::Float(DType::Bf16))),
    (31, "Q4_0_4_4", None),
    (32, "Q4_0_4_8", None),
    (33, "Q4_0_8_8", None),
    (34, "TQ1_0", None),
    (35, "TQ2_0", None),
    (36, "IQ4_NL_4_4", None),
    (37, "IQ4_NL_4_8", None),
    (38, "IQ4_NL_8_8", None),
    (39, "MXFP4", Some(Storage::Packed(&MXFP4))),
    (40, "NVFP4", None),
    (41, "Q1_0", None),
    (42, "Q2_0", None),
];

/// A type of tensors in GGUF files that is not read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("type {id} ({name}) is not read; those that are: {}", readable())]
pub struct UnreadType {
    /// Number in the file.
    pub id: u32,
    /// ggml's name, or `unknown`.
    pub name: &'static str,
}

/// Names of the types that are read.
fn readable() -> String {
    let names = TYPES.iter().filter(|(.., storage)| storage.is_some()).map(|(_, name, _)| *name);
    names.collect::<Vec<_>>().join(", ")
}

impl Storage {
    /// How a tensor of this type in a GGUF file (`ggml_type`) is held: in the file's own bytes.
    ///
    /// # Errors
    /// If the type is not read.
    pub fn from_ggml(id: u32) -> Result<Self, UnreadType> {
        let found = TYPES.iter().find(|(number, ..)| *number == id);
        let name = found.map_or("unknown", |(_, name, _)| name);
        found.and_then(|(.., storage)| *storage).ok_or(UnreadType { id, name })
    }

    /// The type (`ggml_type`) of tensors that are stored like this in a GGUF file; `None` if there
    /// is none.
    pub fn to_ggml(self) -> Option<u32> {
        TYPES.iter().find(|(.., storage)| *storage == Some(self)).map(|(id, ..)| *id)
    }
}

/// Weights that are unpacked together: all types have the scales of this many in one place.
const GROUP: usize = 32;

/// A block of weights as it lies in a file.
///
/// # Safety
/// The type consists of bytes, so that any bytes are a value of it, at any address.
unsafe trait Block: Sync + Sized + 'static {
    /// Weights of a block: a multiple of [`GROUP`].
    const WEIGHTS: usize;

    /// Unpacks the group with this number.
    fn unpack(&self, group: usize, out: &mut [f32; GROUP]);
}

/// A block that can be made of weights.
trait Pack: Block {
    /// Packs a block of [`GROUP`] weights.
    fn pack(weights: &[f32; GROUP]) -> Self;
}

/// The kernels of blocks of this type in `blocks.cuh`.
macro_rules! source {
    ($name:literal, $blocks:literal) => {
        $crate::format::source!(
            $name,
            include_str!("blocks.cuh"),
            concat!("typedef Blocks<", $blocks, "> Weights;\n")
        )
    };
}
use source;

/// The format whose blocks are `B`.
const fn format<B: Block>(name: &'static str, source: &'static Source) -> WeightFormat {
    WeightFormat {
        name,
        block: B::WEIGHTS,
        for_tables: true,
        num_bytes: |[rows, cols]| rows * cols.div_ceil(B::WEIGHTS) * size_of::<B>(),
        unpack: unpack::<B>,
        pack: None,
        search: None,
        coding: None,
        tiles: None,
        source,
        parameter: |address, _| Arg::from(address),
    }
}

/// The format whose blocks are `B`, to be packed and unpacked.
const fn packing<B: Pack>(name: &'static str, source: &'static Source) -> WeightFormat {
    WeightFormat { pack: Some(pack::<B>), ..format::<B>(name, source) }
}

/// The same, whose scales can also be searched for.
const fn packing_or_searched<B: Pack + Searched>(
    name: &'static str,
    source: &'static Source,
) -> WeightFormat {
    WeightFormat {
        search: Some(encode::pack::<B>),
        coding: Some(encode::coding::<B>()),
        ..packing::<B>(name, source)
    }
}

/// The format whose blocks are `B`, the scales of which are searched for.
const fn searched<B: Searched>(name: &'static str, source: &'static Source) -> WeightFormat {
    WeightFormat {
        pack: Some(|cpu, weights, cols, bytes| encode::pack::<B>(cpu, weights, cols, &[], bytes)),
        search: Some(encode::pack::<B>),
        coding: Some(encode::coding::<B>()),
        ..format::<B>(name, source)
    }
}

fn unpack<B: Block>(weights: &Packed<'_>, first: usize, out: &mut [f32]) {
    let bytes = weights.bytes();
    // SAFETY: a block consists of bytes.
    let blocks: &[B] =
        unsafe { std::slice::from_raw_parts(bytes.as_ptr().cast(), bytes.len() / size_of::<B>()) };
    Isa::detect().run(Unpack { blocks, first, out });
}

struct Unpack<'a, B> {
    blocks: &'a [B],
    first: usize,
    out: &'a mut [f32],
}

impl<B: Block> Kernel for Unpack<'_, B> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { blocks, first, out } = self;
        let groups = B::WEIGHTS / GROUP;
        let (mut group, mut skipped, mut left) = (first / GROUP, first % GROUP, out);
        while !left.is_empty() {
            // An array of its own: what might lie where the block does would not be vectorised.
            let mut weights = [0.0; GROUP];
            blocks[group / groups].unpack(group % groups, &mut weights);
            let len = left.len().min(GROUP - skipped);
            let (to, rest) = left.split_at_mut(len);
            match to.first_chunk_mut() {
                Some(to) => *to = weights,
                None => to.copy_from_slice(&weights[skipped..][..len]),
            }
            (group, skipped, left) = (group + 1, 0, rest);
        }
    }
}

/// Packs whole rows.
fn pack<B: Pack>(cpu: &Cpu, weights: Floats<'_>, cols: usize, bytes: &mut [u8]) {
    let weights = View::from(weights);
    assert!(cols.is_multiple_of(GROUP), "rows of whole blocks");
    let row_bytes = cols / GROUP * size_of::<B>();
    with_elements!(weights, weights => cpu.rows(bytes, row_bytes, cols, |row, to| {
        cpu.isa.run(PackRow::<B, _> { x: &weights[row * cols..][..cols], to, block: PhantomData });
    }));
}

struct PackRow<'a, B, E> {
    x: &'a [E],
    to: &'a mut [u8],
    block: PhantomData<B>,
}

impl<B: Pack, E: Element> Kernel for PackRow<'_, B, E> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let blocks = self.to.chunks_exact_mut(size_of::<B>());
        for (x, to) in self.x.as_chunks::<GROUP>().0.iter().zip(blocks) {
            let block = B::pack(&std::array::from_fn(|i| x[i].to_f32()));
            // SAFETY: a block consists of bytes, as many as there are here.
            unsafe { to.as_mut_ptr().cast::<B>().write_unaligned(block) };
        }
    }
}

/// A number that is an f16, as it lies in a file.
fn to_half(x: f32) -> [u8; 2] {
    f16::from_f32(x).to_le_bytes()
}

/// An f16 as it lies in a file.
#[inline(always)]
fn half(bytes: [u8; 2]) -> f32 {
    Element::to_f32(f16::from_le_bytes(bytes))
}

#[cfg(test)]
mod tests;
