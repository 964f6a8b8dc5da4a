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
    pub(super) fn take(&mut self, driver: &dyn Driver, bytes: usize) -> Address {
        let start = self.used;
        self.used += bytes.max(1).next_multiple_of(ALIGNMENT);
        self.most = self.most.max(self.used);
        match self.chunks.first() {
            Some(&(address, len)) if self.used <= len => address + start as u64,
            _ => self.add(driver, bytes.max(1)),
        }
    }

    /// Makes room for so much.
    pub(super) fn reserve(&mut self, driver: &dyn Driver, bytes: usize) {
        self.most = self.most.max(bytes);
        self.reset(driver);
    }

    /// Gives everything back.
    pub(super) fn reset(&mut self, driver: &dyn Driver) {
        self.used = 0;
        if self.most > 0 && (self.chunks.len() != 1 || self.chunks[0].1 < self.most) {
            self.release(driver);
            let most = self.most;
            self.add(driver, most);
        }
    }

    pub(super) fn release(&mut self, driver: &dyn Driver) {
        for (address, _) in self.chunks.drain(..) {
            driver.free(address);
        }
    }

    fn add(&mut self, driver: &dyn Driver, bytes: usize) -> Address {
        let address = driver
            .alloc(bytes)
            .unwrap_or_else(|| panic!("cannot get {bytes} bytes of the GPU's memory"));
        self.chunks.push((address, bytes));
        address
    }
}
