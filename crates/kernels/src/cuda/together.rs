//! Arrays of different lengths in one launch: launching is what many small ones would wait for.

use super::{Address, Arg, Gpu, Launch, Slice, Source};

/// Elements that a block takes; `Chunk` in `prelude.cuh` has the same.
pub(crate) const CHUNK: usize = 8192;

/// Rows of `P` arrays of one length, all f32, in a table inside the operation.
pub(crate) struct Together {
    table: Address,
    rows: u32,
    chunks: usize,
}

impl Together {
    /// # Panics
    /// If arrays of a row differ in length or are not f32.
    pub(crate) fn new<const P: usize>(gpu: &Gpu, rows: &[[Slice<'_>; P]]) -> Self {
        let (mut table, mut chunks) = (Vec::with_capacity(rows.len() * (P + 2)), 0);
        for row in rows {
            let len = row[0].len();
            assert!(row.iter().all(|array| array.f32().len() == len));
            table.extend([chunks as u64, len as u64]);
            table.extend(row.iter().map(Slice::address));
            chunks += len.div_ceil(CHUNK);
        }
        let words: Vec<u32> =
            table.iter().flat_map(|&word| [word as u32, (word >> 32) as u32]).collect();
        Self { table: gpu.upload(&words), rows: rows.len() as u32, chunks }
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
