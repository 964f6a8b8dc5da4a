//! Integers of two to eight bits as compressed-tensors packs them (`pack-quantized`), symmetric:
//! the least of them stands for 0, and bits of a row follow each other across the borders of its
//! 32-bit words.
//!
//! They are held without loss: four bits in blocks of Q4_0 and more in those of Q8_0, as far as
//! groups are made of such blocks and scales are f16s; integers with one scale for each row as int8
//! otherwise; and what is left as f32, in which every product is what other programs compute.

use super::{PartsError, Storage, gguf, int8};
use crate::element::{DType, f16};

/// The tensors of a matrix.
#[derive(Clone, Copy, Debug)]
pub struct PackedInts<'a> {
    /// `weight_packed [rows, words]`, little-endian.
    pub words: &'a [u8],
    /// Bits of a weight.
    pub bits: u32,
    /// `weight_scale [rows, groups]`, or one for all.
    pub scales: &'a [f32],
}

/// Weights of a block of Q4_0 and of Q8_0.
const BLOCK: usize = 32;

/// Bytes of the words of a row.
pub fn packed_row_bytes(cols: usize, bits: u32) -> usize {
    4 * (cols * bits as usize).div_ceil(32)
}

/// The words of rows of levels, from `-2^(bits - 1)` on.
pub fn pack_ints(levels: &[i8], cols: usize, bits: u32) -> Vec<u8> {
    let row_bytes = packed_row_bytes(cols, bits);
    let mut words = vec![0; levels.len() / cols.max(1) * row_bytes];
    for (row, to) in levels.chunks_exact(cols.max(1)).zip(words.chunks_exact_mut(row_bytes.max(1)))
    {
        for (i, level) in row.iter().enumerate() {
            let code = (i32::from(*level) + (1 << (bits - 1))) as u16;
            let (byte, shift) = (i * bits as usize / 8, i * bits as usize % 8);
            let [low, high] = (code << shift).to_le_bytes();
            to[byte] |= low;
            if high != 0 {
                to[byte + 1] |= high;
            }
        }
    }
    words
}

impl PackedInts<'_> {
    /// How the matrix is held.
    ///
    /// # Errors
    /// If sizes do not fit together.
    pub(super) fn storage(&self, [rows, cols]: [usize; 2]) -> Result<Storage, PartsError> {
        let size = |part, found, expected| match found == expected {
            true => Ok(()),
            false => Err(PartsError::Size { part, found, expected, rows, cols }),
        };
        Storage::Float(DType::F32).checked_num_bytes(&[rows, cols])?;
        size("weight_packed", self.words.len() / 4, rows * packed_row_bytes(cols, self.bits) / 4)?;
        let is_even = self.scales.len().is_multiple_of(rows.max(1))
            && cols.is_multiple_of((self.scales.len() / rows.max(1)).max(1));
        if self.scales.len() != 1 && (!is_even || self.scales.is_empty()) {
            size("weight_scale", self.scales.len(), rows)?;
        }
        let group = self.group([rows, cols]);
        if group.is_multiple_of(BLOCK) && self.has_halves([rows, cols]) {
            if self.bits == 4 {
                return Ok(Storage::Packed(&gguf::Q4_0));
            }
            if group < cols {
                return Ok(Storage::Packed(&gguf::Q8_0));
            }
        }
        Ok(if group == cols { Storage::INT8 } else { DType::F32.into() })
    }

    /// Weights along a row that share a scale.
    fn group(&self, [rows, cols]: [usize; 2]) -> usize {
        if self.scales.len() == 1 { cols } else { cols * rows / self.scales.len().max(1) }
    }

    /// The scale of the group that a weight is in.
    fn scale(&self, shape: [usize; 2], row: usize, col: usize) -> f32 {
        let (group, cols) = (self.group(shape), shape[1]);
        if self.scales.len() == 1 {
            self.scales[0]
        } else {
            self.scales[(row * cols + col) / group]
        }
    }

    /// Whether all scales are f16s, those of groups of zeros apart, which may be anything.
    fn has_halves(&self, shape @ [rows, cols]: [usize; 2]) -> bool {
        let group = self.group(shape).max(1);
        let is_zero = |row: usize, first: usize| {
            let mut levels = vec![0; cols];
            self.levels(cols, row, &mut levels);
            levels[first..first + group].iter().all(|&level| level == 0)
        };
        (0..rows).all(|row| {
            let mut firsts = (0..cols).step_by(group);
            firsts.all(|first| is_half(self.scale(shape, row, first)) || is_zero(row, first))
        })
    }

    /// The integers of a row.
    fn levels(&self, cols: usize, row: usize, to: &mut [i8]) {
        let row_bytes = packed_row_bytes(cols, self.bits);
        let words = &self.words[row * row_bytes..][..row_bytes];
        let (mask, zero) = ((1u16 << self.bits) - 1, 1i16 << (self.bits - 1));
        for (i, to) in to.iter_mut().enumerate() {
            let (byte, shift) = (i * self.bits as usize / 8, i * self.bits as usize % 8);
            let next = words.get(byte + 1).copied().unwrap_or(0);
            let code = u16::from_le_bytes([words[byte], next]) >> shift & mask;
            *to = (code as i16 - zero) as i8;
        }
    }

    /// Writes the bytes of the matrix in [`Self::storage`].
    pub(super) fn write(&self, storage: Storage, shape @ [rows, cols]: [usize; 2], to: &mut [u8]) {
        let mut levels = vec![0; cols];
        let row_bytes = storage.num_bytes(&[1, cols]);
        for row in 0..rows {
            self.levels(cols, row, &mut levels);
            let scale = |col| self.scale(shape, row, col);
            // Of groups of zeros it may be no f16.
            let half = |block: usize| match scale(block * BLOCK) {
                scale if is_half(scale) => f16::from_f32(scale).to_le_bytes(),
                _ => [0; 2],
            };
            let blocks = levels.as_chunks::<BLOCK>().0.iter().enumerate();
            match storage {
                _ if storage.is_int8() => {
                    let to = int8::rows_mut(to, cols);
                    to.scales[row] = scale(0);
                    let values = to.values[row * cols..].iter_mut().zip(&levels);
                    values.for_each(|(to, level)| *to = level.cast_unsigned() ^ 0x80);
                }
                Storage::Packed(format) if *format == gguf::Q4_0 => {
                    let to = to[row * row_bytes..].as_chunks_mut::<18>().0.iter_mut();
                    for (to, (block, levels)) in to.zip(blocks) {
                        to[..2].copy_from_slice(&half(block));
                        let code = |i: usize| (levels[i] + 8).cast_unsigned();
                        let halves = to[2..].iter_mut().enumerate();
                        halves.for_each(|(i, to)| *to = code(i) | code(i + BLOCK / 2) << 4);
                    }
                }
                Storage::Packed(_) => {
                    let to = to[row * row_bytes..].as_chunks_mut::<34>().0.iter_mut();
                    for (to, (block, levels)) in to.zip(blocks) {
                        to[..2].copy_from_slice(&half(block));
                        let values = to[2..].iter_mut().zip(levels);
                        values.for_each(|(to, level)| *to = level.cast_unsigned());
                    }
                }
                Storage::Float(_) => {
                    let to = to[row * row_bytes..].as_chunks_mut::<4>().0.iter_mut();
                    for (col, (to, level)) in to.zip(&levels).enumerate() {
                        *to = (f32::from(*level) * scale(col)).to_le_bytes();
                    }
                }
            }
        }
    }
}

/// Whether a number is an f16.
fn is_half(x: f32) -> bool {
    f16::from_f32(x).to_f32() == x
}

#[cfg(test)]
mod tests {
    use super::super::Parts;
    use super::*;
    use crate::format::tests::PackedMatrix;

    /// Integers of so many bits, each of them somewhere.
    fn levels(len: usize, bits: u32) -> Vec<i8> {
        (0..len).map(|i| ((i * 37 % (1 << bits)) as i32 - (1 << (bits - 1))) as i8).collect()
    }

    /// The name of the storage, and the weights in it.
    fn held(ints: PackedInts<'_>, shape: [usize; 2]) -> (&'static str, Vec<f32>) {
        let parts = Parts::Ints(ints);
        let storage = parts.storage(shape).unwrap();
        let write = |bytes: &mut [u8]| parts.write(storage, shape, bytes);
        let values = match storage {
            Storage::Packed(format) => PackedMatrix::filled(format, shape, write).to_vec_f32(),
            Storage::Float(_) => {
                let mut bytes = vec![0xff; storage.num_bytes(&shape)];
                write(&mut bytes);
                bytes.as_chunks().0.iter().map(|x| f32::from_le_bytes(*x)).collect()
            }
        };
        (storage.name(), values)
    }

    /// Any number of bits, groups of blocks and of other lengths, rows and matrices with one scale,
    /// scales that are f16s and others: products are those of integers and scales.
    #[test]
    fn what_is_packed_is_held_without_loss() {
        const ALL: usize = usize::MAX;
        for (bits, cols, group, by, name) in [
            (4, 96, 32, 1.0, "q4_0"),
            (4, 128, 64, 1.0, "q4_0"),
            (4, 64, 64, 1.0, "q4_0"),
            (4, 64, ALL, 1.0, "q4_0"),
            (4, 61, 61, 1.0, "int8"),
            (4, 64, 64, 0.3, "int8"),
            (4, 64, ALL, 0.3, "int8"),
            (4, 64, 32, 0.3, "f32"),
            (4, 48, 16, 1.0, "f32"),
            (8, 64, 64, 0.3, "int8"),
            (8, 61, ALL, 0.3, "int8"),
            (8, 64, 32, 1.0, "q8_0"),
            (8, 64, 32, 0.3, "f32"),
            (3, 96, 32, 1.0, "q8_0"),
            (5, 61, 61, 0.3, "int8"),
        ] {
            let rows = 5;
            let levels = levels(rows * cols, bits);
            let count = (rows * cols).div_ceil(group);
            let scales: Vec<f32> = (0..count).map(|i| by * (1.0 + i as f32) / 64.0).collect();
            let words = pack_ints(&levels, cols, bits);
            assert_eq!(words.len(), rows * (cols * bits as usize).div_ceil(32) * 4);
            let expected: Vec<f32> =
                levels.iter().enumerate().map(|(i, x)| f32::from(*x) * scales[i / group]).collect();
            let found = held(PackedInts { words: &words, bits, scales: &scales }, [rows, cols]);
            assert_eq!(found, (name, expected), "{bits} bits, groups of {group}");
        }
    }

    /// Scales of groups without weights do not count.
    #[test]
    fn groups_of_zeros_may_have_any_scale() {
        let mut levels = levels(64, 4);
        levels[32..].fill(0);
        let words = pack_ints(&levels, 64, 4);
        for scale in [1e-9, 1e9] {
            let ints = PackedInts { words: &words, bits: 4, scales: &[0.5, scale] };
            let (found, values) = held(ints, [1, 64]);
            assert_eq!((found, &values[32..]), ("q4_0", &[0.0; 32][..]));
        }
        let ints = PackedInts { words: &words, bits: 4, scales: &[1e-9, 0.5] };
        assert_eq!(held(ints, [1, 64]).0, "f32");
    }

    #[test]
    fn sizes_that_do_not_fit_are_refused() {
        let words = pack_ints(&levels(128, 4), 64, 4);
        let says = |words: &[u8], scales: &[f32], shape| {
            let ints = Parts::Ints(PackedInts { words, bits: 4, scales });
            ints.storage(shape).unwrap_err().to_string()
        };
        let few = "`weight_packed` has 15 elements, and 16 belong to 2 rows of 64 weights";
        assert_eq!(says(&words[4..], &[1.0, 1.0], [2, 64]), few);
        for count in [0, 3, 10] {
            let found = says(&words, &vec![1.0; count], [2, 64]);
            let expected = format!("`weight_scale` has {count} elements, and 2 belong to");
            assert!(found.contains(&expected), "{found}");
        }
        assert!(says(&words, &[1.0], [usize::MAX, 64]).contains("larger than any memory"));
    }
}
