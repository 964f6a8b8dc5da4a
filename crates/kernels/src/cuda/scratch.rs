//! Memory inside one operation: operands in another element type, numbers from outside.

use super::driver::Address;
use super::graphs::Graphs;
use crate::DeviceError;

/// Alignment of what is handed out, which lets cuBLASLt choose among all of its algorithms.
const ALIGNMENT: usize = 256;

/// Handed out from the front, all given back at once. What does not fit comes from the driver once;
/// from then on there is room for it.
#[derive(Default)]
pub(super) struct Scratch {
    /// The first serves; later ones were taken because it was too small.
    chunks: Vec<(Address, usize)>,
    used: usize,
    /// Most that an operation has used so far.
    most: usize,
}

impl Scratch {
    /// Where the GPU has no more memory, nothing is taken; nor by the others.
    pub(super) fn take(&mut self, driver: &Graphs, bytes: usize) -> Result<Address, DeviceError> {
        let (start, end) = (self.used, self.used + bytes.max(1).next_multiple_of(ALIGNMENT));
        let address = match self.chunks.first() {
            Some(&(address, len)) if end <= len => address + start as u64,
            _ => self.add(driver, bytes.max(1))?,
        };
        self.used = end;
        self.most = self.most.max(end);
        Ok(address)
    }

    /// Makes room for so much.
    pub(super) fn reserve(&mut self, driver: &Graphs, bytes: usize) -> Result<(), DeviceError> {
        self.most = self.most.max(bytes);
        self.reset(driver)
    }

    /// Gives everything back.
    pub(super) fn reset(&mut self, driver: &Graphs) -> Result<(), DeviceError> {
        self.used = 0;
        if self.most > 0 && (self.chunks.len() != 1 || self.chunks[0].1 < self.most) {
            self.release(driver);
            self.add(driver, self.most)?;
        }
        Ok(())
    }

    /// The most that an operation has used so far.
    pub(super) fn most(&self) -> usize {
        self.most
    }

    pub(super) fn release(&mut self, driver: &Graphs) {
        for (address, _) in self.chunks.drain(..) {
            // SAFETY: from `alloc`; who was handed a part of it uses it no more.
            unsafe { driver.free(address) };
        }
    }

    /// Gives the memory back and forgets how much was used, so that less may do.
    pub(super) fn forget(&mut self, driver: &Graphs) {
        self.release(driver);
        (self.used, self.most) = (0, 0);
    }

    fn add(&mut self, driver: &Graphs, bytes: usize) -> Result<Address, DeviceError> {
        let address = driver.alloc(bytes)?;
        self.chunks.push((address, bytes));
        Ok(address)
    }
}
