//! Blocks that come and go outside of plans: what generation, samples and exports allocate for each
//! operation. Asking the driver each time would wait for the GPU each time.

use super::driver::{Address, Driver};
use std::collections::HashMap;

/// Larger blocks, such as a run's arena, go back to the driver at once.
const LARGEST: usize = 64 << 20;

/// Blocks that are free, by size.
#[derive(Default)]
pub(super) struct Pool(HashMap<usize, Vec<Address>>);

impl Pool {
    /// A block of `len` bytes; `None` where there is not so much memory.
    pub(super) fn take(&mut self, driver: &dyn Driver, len: usize) -> Option<Address> {
        if let Some(address) = self.0.get_mut(&len).and_then(Vec::pop) {
            return Some(address);
        }
        driver.alloc(len).or_else(|| {
            self.release(driver);
            driver.alloc(len)
        })
    }

    pub(super) fn give_back(&mut self, driver: &dyn Driver, address: Address, len: usize) {
        match len {
            ..=LARGEST => self.0.entry(len).or_default().push(address),
            _ => driver.free(address),
        }
    }

    pub(super) fn release(&mut self, driver: &dyn Driver) {
        self.0.drain().flat_map(|(_, blocks)| blocks).for_each(|address| driver.free(address));
    }
}
