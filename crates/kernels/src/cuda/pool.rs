//! Blocks that come and go outside of plans: what generation, samples and exports allocate for each
//! operation. Asking the driver each time would wait for the GPU each time.

use super::driver::Address;
use super::graphs::Graphs;
use crate::DeviceError;
use std::collections::HashMap;

/// Larger blocks, such as a run's arena, go back to the driver at once.
const LARGEST: usize = 64 << 20;

/// Blocks that are free, by size.
#[derive(Default)]
pub(super) struct Pool(HashMap<usize, Vec<Address>>);

impl Pool {
    /// A block of `len` bytes.
    pub(super) fn take(&mut self, driver: &Graphs, len: usize) -> Result<Address, DeviceError> {
        if let Some(address) = self.0.get_mut(&len).and_then(Vec::pop) {
            return Ok(address);
        }
        driver.alloc(len).or_else(|_| {
            self.release(driver);
            driver.alloc(len)
        })
    }

    pub(super) fn give_back(&mut self, driver: &Graphs, address: Address, len: usize) {
        match len {
            ..=LARGEST => self.0.entry(len).or_default().push(address),
            // SAFETY: who gives a block back, which came from `take`, uses it no more.
            _ => unsafe { driver.free(address) },
        }
    }

    pub(super) fn release(&mut self, driver: &Graphs) {
        for address in self.0.drain().flat_map(|(_, blocks)| blocks) {
            // SAFETY: as above.
            unsafe { driver.free(address) };
        }
    }
}
