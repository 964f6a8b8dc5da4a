//! Arrays of different lengths in one launch: launching is what many small ones would wait for.

use super::{Address, Arg, Gpu, Launch, Slice, Source};

/// Elements that a block takes; `Chunk` in `prelude.cuh` has the same.
pub(crate) const CHUNK: usize = 8192;

/// Rows of `P` arrays of one length, all f32, and of `E` words more, in a table.
pub(crate) struct Together {
    table: Address,
    rows: u32,
    chunks: usize,
}

impl Together {
    /// # Panics
    /// If arrays of a row differ in length or are not f32.
    pub(crate) fn new<const P: usize>(gpu: &Gpu, rows: &[[Slice<'_>; P]]) -> Self {
        Self::with_words(gpu, rows.iter().map(|row| (*row, [])))
    }

    /// The same with words for each row.
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
            chunks += len.div_ceil(CHUNK);
        }
        let words: Vec<u32> =
            table.iter().flat_map(|&word| [word as u32, (word >> 32) as u32]).collect();
        Self { table: gpu.upload(&words), rows: num_rows as u32, chunks }
    }

    /// Chunks of all arrays, in their order.
    pub(crate) fn num_chunks(&self) -> usize {
        self.chunks
    }

    /// Runs a kernel on all of them; its parameters are the table, its rows and `more`.
    pub(crate) fn launch(&self, gpu: &Gpu, source: &'static Source, kernel: &str, more: &[Arg]) {
        let mut args = vec![Arg::from(self.table), Arg::from(self.rows)];
        args.extend(more);
        gpu.launch(source, kernel, Launch::blocks(self.chunks, 256), &args);
    }
}
