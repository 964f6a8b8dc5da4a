//! A pool of blocks that are allocated outside of plans, by each operation of generation, samples
//! and exports. Allocating from the driver would wait for the GPU each time.

use super::driver::Address;
use super::graphs::Graphs;
use crate::DeviceError;
use std::collections::HashMap;

/// Larger blocks, such as a run's arena, are not pooled.
const MAX_BYTES: usize = 64 << 20;

/// Free blocks by size.
#[derive(Default)]
pub(super) struct Pool(HashMap<usize, Vec<Address>>);

impl Pool {
    /// A block of `len` bytes.
    pub(super) fn alloc(&mut self, driver: &Graphs, len: usize) -> Result<Address, DeviceError> {
        if let Some(address) = self.0.get_mut(&len).and_then(Vec::pop) {
            return Ok(address);
        }
        driver.alloc(len).or_else(|_| {
            self.clear(driver);
            driver.alloc(len)
        })
    }

    /// Takes back a block from [`Pool::alloc`].
    pub(super) fn free(&mut self, driver: &Graphs, address: Address, len: usize) {
        match len {
            ..=MAX_BYTES => self.0.entry(len).or_default().push(address),
            // SAFETY: the caller no longer uses the block.
            _ => unsafe { driver.free(address) },
        }
    }

    /// Returns free blocks to the driver.
    pub(super) fn clear(&mut self, driver: &Graphs) {
        for address in self.0.drain().flat_map(|(_, blocks)| blocks) {
            // SAFETY: as above.
            unsafe { driver.free(address) };
        }
    }
}
