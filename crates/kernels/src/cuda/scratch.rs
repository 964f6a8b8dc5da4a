//! Memory inside one operation: operands in another element type, numbers from outside.

use super::driver::{Address, Driver};

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
    /// `None`, and nothing taken, where the GPU has no more memory; so do the others.
    pub(super) fn take(&mut self, driver: &dyn Driver, bytes: usize) -> Option<Address> {
        let (start, end) = (self.used, self.used + bytes.max(1).next_multiple_of(ALIGNMENT));
        let address = match self.chunks.first() {
            Some(&(address, len)) if end <= len => address + start as u64,
            _ => self.add(driver, bytes.max(1))?,
        };
        self.used = end;
        self.most = self.most.max(end);
        Some(address)
    }

    /// Makes room for so much.
    pub(super) fn reserve(&mut self, driver: &dyn Driver, bytes: usize) -> Option<()> {
        self.most = self.most.max(bytes);
        self.reset(driver)
    }

    /// Gives everything back.
    pub(super) fn reset(&mut self, driver: &dyn Driver) -> Option<()> {
        self.used = 0;
        if self.most > 0 && (self.chunks.len() != 1 || self.chunks[0].1 < self.most) {
            self.release(driver);
            self.add(driver, self.most)?;
        }
        Some(())
    }

    /// The most that an operation has used so far.
    pub(super) fn most(&self) -> usize {
        self.most
    }

    pub(super) fn release(&mut self, driver: &dyn Driver) {
        for (address, _) in self.chunks.drain(..) {
            driver.free(address);
        }
    }

    fn add(&mut self, driver: &dyn Driver, bytes: usize) -> Option<Address> {
        let address = driver.alloc(bytes)?;
        self.chunks.push((address, bytes));
        Some(address)
    }
}
