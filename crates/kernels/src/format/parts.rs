//! Matrices that safetensors files have in several tensors, as one matrix in a format. Nothing is
//! lost: the same bytes lie in another order.

use super::words::PackedInts;
use super::{Storage, fp8, gguf, nf4};

/// The tensors of one matrix.
#[derive(Clone, Copy, Debug)]
pub enum Parts<'a> {
    /// NF4 as bitsandbytes writes it, in blocks of 64 and, with double quantisation, 256.
    Nf4(Nf4Parts<'a>),
    /// MXFP4 as gpt-oss ships it.
    Mxfp4 {
        /// `[.., 16]`: in each byte a weight in the lower half and the next in the upper one.
        blocks: &'a [u8],
        /// A power of two for each block (e8m0).
        scales: &'a [u8],
    },
    /// FP8 (e4m3) with one scale or one for each 128 × 128 weights.
    Fp8 {
        /// A byte for each weight.
        values: &'a [u8],
        /// `weight_scale_inv`, which weights are multiplied by.
        scales: &'a [f32],
    },
    /// The same with a scale for each row.
    Fp8Rows {
        /// A byte for each weight.
        values: &'a [u8],
        /// `weight_scale`.
        scales: &'a [f32],
    },
    /// Integers as compressed-tensors packs them.
    Ints(PackedInts<'a>),
}

/// The tensors of `bitsandbytes.functional.QuantState.as_dict`, under their names there.
#[derive(Clone, Copy, Debug)]
pub struct Nf4Parts<'a> {
    /// Two weights in each byte.
    pub weight: &'a [u8],
    /// The levels of weights.
    pub quant_map: &'a [f32],
    /// What levels are multiplied by.
    pub scales: Nf4Scales<'a>,
}

/// The scales of NF4, under their names in bitsandbytes.
#[derive(Clone, Copy, Debug)]
pub enum Nf4Scales<'a> {
    /// One for each 64 weights.
    Plain {
        /// The scales.
        absmax: &'a [f32],
    },
    /// Quantised themselves.
    Double {
        /// A byte for each 64 weights.
        absmax: &'a [u8],
        /// A scale for each 256 bytes of `absmax`.
        nested_absmax: &'a [f32],
        /// The levels of `absmax`.
        nested_quant_map: &'a [f32],
        /// What is added to each absmax.
        nested_offset: f32,
    },
}

/// Why tensors are not a matrix.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PartsError {
    /// A part of another size than the matrix demands.
    #[error(
        "`{part}` has {found} elements, and {expected} belong to {rows} rows of {cols} weights"
    )]
    Size {
        /// Name of the tensor.
        part: &'static str,
        /// Its elements.
        found: usize,
        /// The elements it should have.
        expected: usize,
        /// Rows of the matrix.
        rows: usize,
        /// Length of a row.
        cols: usize,
    },
    /// Rows that are not whole blocks.
    #[error(transparent)]
    Shape(#[from] super::ShapeError),
    /// Weights of four bits with other levels.
    #[error("`quant_map` does not have the sixteen levels of nf4")]
    Levels,
}

impl Parts<'_> {
    /// How the matrix `[rows, cols]` is held.
    ///
    /// # Errors
    /// If the tensors are not such a matrix.
    pub fn storage(&self, [rows, cols]: [usize; 2]) -> Result<Storage, PartsError> {
        let size = |part, found, expected| match found == expected {
            true => Ok(()),
            false => Err(PartsError::Size { part, found, expected, rows, cols }),
        };
        let format = match self {
            Self::Ints(ints) => return ints.storage([rows, cols]),
            Self::Nf4(Nf4Parts { scales: Nf4Scales::Double { .. }, .. }) => &nf4::FORMAT,
            Self::Nf4(Nf4Parts { scales: Nf4Scales::Plain { .. }, .. }) => &nf4::F32,
            Self::Mxfp4 { .. } => &gguf::MXFP4,
            Self::Fp8 { scales, .. } if scales.len() == 1 => &fp8::FP8,
            Self::Fp8 { .. } => &fp8::FP8_BLOCK,
            Self::Fp8Rows { .. } => &fp8::FP8_ROWS,
        };
        let storage = Storage::Packed(format);
        storage.checked_num_bytes(&[rows, cols])?;
        let len = rows * cols;
        match self {
            Self::Nf4(parts) => {
                let [magnitudes, scales] = nf4::num_magnitudes_and_scales(len);
                size("weight", parts.weight.len(), len.div_ceil(2))?;
                match parts.scales {
                    Nf4Scales::Plain { absmax } => size("absmax", absmax.len(), magnitudes)?,
                    Nf4Scales::Double { absmax, nested_absmax, nested_quant_map, .. } => {
                        size("absmax", absmax.len(), magnitudes)?;
                        size("nested_absmax", nested_absmax.len(), scales)?;
                        size("nested_quant_map", nested_quant_map.len(), 256)?;
                    }
                }
                if parts.quant_map != nf4::LEVELS {
                    return Err(PartsError::Levels);
                }
            }
            Self::Mxfp4 { blocks, scales } => {
                size("blocks", blocks.len(), len / 2)?;
                size("scales", scales.len(), len / format.block)?;
            }
            Self::Fp8 { values, scales } => {
                size("weight", values.len(), len)?;
                if scales.len() != 1 {
                    size("weight_scale_inv", scales.len(), fp8::num_scales([rows, cols]))?;
                }
            }
            Self::Fp8Rows { values, scales } => {
                size("weight", values.len(), len)?;
                size("weight_scale", scales.len(), rows)?;
            }
            Self::Ints(_) => unreachable!("returned above"),
        }
        Ok(storage)
    }

    /// Writes the bytes of the matrix of this shape in `storage`, which is what
    /// [`Parts::storage`] says.
    ///
    /// # Panics
    /// If there is another number of bytes.
    pub fn write(&self, storage: Storage, shape: [usize; 2], bytes: &mut [u8]) {
        let words = |words: &[f32]| words.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>();
        match *self {
            Self::Nf4(Nf4Parts { weight, scales, .. }) => match scales {
                Nf4Scales::Plain { absmax } => write_all(bytes, &[&words(absmax), weight]),
                Nf4Scales::Double { absmax, nested_absmax, nested_quant_map, nested_offset } => {
                    let (levels, scales) = (words(nested_quant_map), words(nested_absmax));
                    let offset = nested_offset.to_le_bytes();
                    write_all(bytes, &[&levels, &offset, &scales, absmax, weight]);
                }
            },
            Self::Mxfp4 { blocks, scales } => gguf::write_mxfp4(blocks, scales, bytes),
            Self::Fp8 { values, scales } | Self::Fp8Rows { values, scales } => {
                write_all(bytes, &[&words(scales), values]);
            }
            Self::Ints(ints) => ints.write(storage, shape, bytes),
        }
    }
}

/// A matrix in nf4, taken apart.
#[derive(Clone, Debug)]
pub struct Nf4Tensors<'a> {
    /// Two weights in each byte.
    pub weight: &'a [u8],
    /// A byte for each 64 weights.
    pub absmax: &'a [u8],
    /// A scale for each 256 bytes of `absmax`.
    pub nested_absmax: Vec<f32>,
    /// The levels of `absmax`.
    pub nested_quant_map: Vec<f32>,
    /// What is added to each absmax.
    pub nested_offset: f32,
}

impl<'a> Nf4Tensors<'a> {
    /// The levels of weights, which is `quant_map`.
    pub const QUANT_MAP: [f32; 16] = nf4::LEVELS;

    /// The tensors of so many weights, of which these are the bytes.
    ///
    /// # Panics
    /// If there are fewer bytes.
    pub fn of(bytes: &'a [u8], num_weights: usize) -> Self {
        let [magnitudes, scales] = nf4::num_magnitudes_and_scales(num_weights);
        let floats = |bytes: &[u8]| -> Vec<f32> {
            bytes.as_chunks().0.iter().map(|word| f32::from_le_bytes(*word)).collect()
        };
        let (levels, rest) = bytes.split_at(4 * 256);
        let (offset, rest) = rest.split_at(4);
        let (scales, rest) = rest.split_at(4 * scales);
        let (absmax, weight) = rest.split_at(magnitudes);
        Self {
            weight,
            absmax,
            nested_absmax: floats(scales),
            nested_quant_map: floats(levels),
            nested_offset: floats(offset)[0],
        }
    }
}

fn write_all(bytes: &mut [u8], parts: &[&[u8]]) {
    let mut left = bytes;
    for part in parts {
        let (to, rest) = left.split_at_mut(part.len());
        to.copy_from_slice(part);
        left = rest;
    }
    assert!(left.is_empty(), "as many bytes as the parts have");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::tests::{PackedMatrix, random};

    fn matrix(parts: Parts<'_>, shape: [usize; 2]) -> PackedMatrix {
        let Ok(Storage::Packed(format)) = parts.storage(shape) else { panic!("whole") };
        let mut bytes = vec![0xff; (format.num_bytes)(shape)];
        parts.write(Storage::Packed(format), shape, &mut bytes);
        PackedMatrix::of_bytes(format, &bytes, shape)
    }

    /// The message of the error.
    fn refusal(parts: Parts<'_>, shape: [usize; 2]) -> String {
        parts.storage(shape).expect_err("not such a matrix").to_string()
    }

    #[test]
    fn mxfp4_of_gpt_oss_is_that_of_gguf() {
        let shape = [2, 64];
        let blocks: Vec<u8> = (0..64).map(|i| (i * 37 % 256) as u8).collect();
        let scales = [127, 0, 130, 120];
        let found = matrix(Parts::Mxfp4 { blocks: &blocks, scales: &scales }, shape).to_vec_f32();
        let levels = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
        for (i, found) in found.into_iter().enumerate() {
            let half = blocks[i / 2] >> (4 * (i % 2)) & 15;
            let level: f32 = levels[usize::from(half & 7)];
            let level = if half < 8 { level } else { -level };
            let scale = 2f64.powi(i32::from(scales[i / 32]) - 127);
            assert_eq!(f64::from(found), f64::from(level) * scale, "weight {i}");
        }
        let few = Parts::Mxfp4 { blocks: &blocks, scales: &scales[1..] };
        let says = "`scales` has 3 elements, and 4 belong to 2 rows of 64 weights";
        assert_eq!(refusal(few, shape), says);
        assert!(refusal(few, [4, 33]).contains("rows of 33 weights are not whole blocks of 32"));
        assert!(refusal(few, [usize::MAX, 32]).contains("larger than any memory"));
    }

    #[test]
    fn nf4_of_bitsandbytes_is_taken_apart_and_joined() {
        let shape = [70, 301];
        let packed = PackedMatrix::new(&nf4::FORMAT, &random(70 * 301, 5), 301);
        let bytes = packed.bytes();
        let [magnitudes, _] = nf4::num_magnitudes_and_scales(70 * 301);
        let Nf4Tensors {
            weight,
            absmax,
            nested_absmax: nested,
            nested_quant_map: levels,
            nested_offset,
        } = Nf4Tensors::of(bytes, 70 * 301);
        let of = |absmax| Nf4Parts {
            weight,
            quant_map: &Nf4Tensors::QUANT_MAP,
            scales: Nf4Scales::Double {
                absmax,
                nested_absmax: &nested,
                nested_quant_map: &levels,
                nested_offset,
            },
        };
        let parts = of(absmax);
        assert!(matrix(Parts::Nf4(parts), shape).bytes() == bytes);
        let fp4 = Parts::Nf4(Nf4Parts { quant_map: &levels[..16], ..parts });
        assert_eq!(refusal(fp4, shape), "`quant_map` does not have the sixteen levels of nf4");
        let says = "`absmax` has 329 elements, and 330 belong to 70 rows of 301 weights";
        assert_eq!(refusal(Parts::Nf4(of(&absmax[1..])), shape), says);

        // The same magnitudes as they are have the same weights.
        let read: Vec<f32> = absmax
            .iter()
            .zip((0..magnitudes).map(|block| nested[block / 256]))
            .map(|(&level, scale)| levels[usize::from(level)] * scale + nested_offset)
            .collect();
        let plain = |absmax| Parts::Nf4(Nf4Parts { scales: Nf4Scales::Plain { absmax }, ..parts });
        let found = matrix(plain(&read), shape);
        assert_eq!(found.bytes().len(), 4 * magnitudes + weight.len());
        assert!(found.to_vec_f32() == packed.to_vec_f32());
        assert_eq!(refusal(plain(&read[1..]), shape), says);
    }

    #[test]
    fn fp8_has_one_scale_or_one_for_each_block() {
        let (shape, values) = ([130, 3], vec![0x38; 390]);
        let of = |scales| Parts::Fp8 { values: &values, scales };
        assert_eq!(matrix(of(&[2.5]), shape).to_vec_f32(), [2.5; 390]);
        let found = matrix(of(&[0.5, 3.0]), shape).to_vec_f32();
        assert_eq!((found[383], found[384]), (0.5, 3.0));
        let says = "`weight_scale_inv` has 3 elements, and 2 belong to 130 rows of 3 weights";
        assert_eq!(refusal(of(&[0.5, 3.0, 1.0]), shape), says);
    }

    #[test]
    fn fp8_has_one_scale_for_each_row() {
        let (shape, values) = ([3, 50], vec![0x38; 150]);
        let of = |scales| Parts::Fp8Rows { values: &values, scales };
        let found = matrix(of(&[0.5, 3.0, 0.3]), shape).to_vec_f32();
        assert_eq!((found[49], found[50], found[149]), (0.5, 3.0, 0.3));
        let says = "`weight_scale` has 2 elements, and 3 belong to 3 rows of 50 weights";
        assert_eq!(refusal(of(&[0.5, 3.0]), shape), says);
    }
}
