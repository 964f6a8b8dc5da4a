//! Launches over many arrays of different lengths at once, since launches of many small kernels
//! would dominate their time.

use super::{Address, Arg, Gpu, Launch, Slice, Source};

/// Elements per block; the same as in `Chunk` of `prelude.cuh`.
pub(crate) const CHUNK: usize = 8192;

/// A table with rows of `P` f32 arrays of equal length and `E` extra words.
pub(crate) struct MultiTensor {
    table: Address,
    rows: u32,
    chunks: usize,
}

impl MultiTensor {
    /// A table without extra words.
    ///
    /// # Panics
    /// If arrays of a row differ in length or are not f32.
    pub(crate) fn new<const P: usize>(gpu: &Gpu, rows: &[[Slice<'_>; P]]) -> Self {
        Self::with_words(gpu, rows.iter().map(|row| (*row, [])))
    }

    /// A table with extra words in each row.
    pub(crate) fn with_words<'a, const P: usize, const E: usize>(
        gpu: &Gpu,
        rows: impl ExactSizeIterator<Item = ([Slice<'a>; P], [u64; E])>,
    ) -> Self {
        let num_rows = rows.len();
        let (mut table, mut chunks) = (Vec::with_capacity(num_rows * (2 + P + E)), 0);
        for (arrays, words) in rows {
            let len = arrays[0].len();
            assert!(arrays.iter().all(|array| array.f32().len() == len));
            table.extend([chunks as u64, len as u64]);
            table.extend(arrays.iter().map(Slice::address));
            table.extend(words);
            chunks += Self::chunks_of(len);
        }
        let words: Vec<u32> =
            table.iter().flat_map(|&word| [word as u32, (word >> 32) as u32]).collect();
        Self { table: gpu.upload(&words), rows: num_rows as u32, chunks }
    }

    /// Number of chunks of an array of `len` elements.
    pub(crate) fn chunks_of(len: usize) -> usize {
        len.div_ceil(CHUNK)
    }

    /// Total number of chunks.
    pub(crate) fn num_chunks(&self) -> usize {
        self.chunks
    }

    /// Launches a kernel over all chunks; its parameters are the table, its number of rows, and
    /// `args`.
    pub(crate) fn launch(&self, gpu: &Gpu, source: &'static Source, kernel: &str, args: &[Arg]) {
        let table = [Arg::from(self.table), Arg::from(self.rows)];
        let args = [&table, args].concat();
        gpu.launch(source, kernel, Launch::blocks(self.chunks, 256), &args);
    }
}
