//! Scratch memory of one operation: converted operands, inputs from the host.

use super::driver::Address;
use super::graphs::Graphs;
use crate::DeviceError;

/// Alignment of allocations, which leaves cuBLASLt all of its algorithms.
const ALIGNMENT: usize = 256;

/// A bump allocator that is reset between operations. If it is too small, it falls back to the
/// driver once, and grows at the next reset.
#[derive(Default)]
pub(super) struct Scratch {
    /// The first serves allocations; later ones are fallbacks.
    chunks: Vec<(Address, usize)>,
    used: usize,
    /// Maximum that an operation has used so far.
    max_used: usize,
}

impl Scratch {
    /// Allocates `bytes` until the next reset. On failure nothing changes.
    pub(super) fn alloc(&mut self, driver: &Graphs, bytes: usize) -> Result<Address, DeviceError> {
        let (start, end) = (self.used, self.used + bytes.max(1).next_multiple_of(ALIGNMENT));
        let address = match self.chunks.first() {
            Some(&(address, len)) if end <= len => address + start as u64,
            _ => self.add(driver, bytes.max(1))?,
        };
        self.used = end;
        self.max_used = self.max_used.max(end);
        Ok(address)
    }

    /// Reserves `bytes` in advance.
    pub(super) fn reserve(&mut self, driver: &Graphs, bytes: usize) -> Result<(), DeviceError> {
        self.max_used = self.max_used.max(bytes);
        self.reset(driver)
    }

    /// Frees all allocations.
    pub(super) fn reset(&mut self, driver: &Graphs) -> Result<(), DeviceError> {
        self.used = 0;
        if self.max_used > 0 && (self.chunks.len() != 1 || self.chunks[0].1 < self.max_used) {
            self.release(driver);
            self.add(driver, self.max_used)?;
        }
        Ok(())
    }

    /// Maximum that an operation has used so far.
    pub(super) fn max_used(&self) -> usize {
        self.max_used
    }

    fn release(&mut self, driver: &Graphs) {
        for (address, _) in self.chunks.drain(..) {
            // SAFETY: from the driver's `alloc`, and no allocation from it is in use.
            unsafe { driver.free(address) };
        }
    }

    /// Returns the memory to the driver and starts over, at size zero.
    pub(super) fn clear(&mut self, driver: &Graphs) {
        self.release(driver);
        (self.used, self.max_used) = (0, 0);
    }

    fn add(&mut self, driver: &Graphs, bytes: usize) -> Result<Address, DeviceError> {
        let address = driver.alloc(bytes)?;
        self.chunks.push((address, bytes));
        Ok(address)
    }
}
