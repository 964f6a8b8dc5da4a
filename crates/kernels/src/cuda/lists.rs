//! Numbers from outside that operations read. Within a pass many operations read the same ones,
//! where sequences begin for one, so each list is brought once and stays until the next pass.

use super::driver::{Address, Driver};
use super::scratch::Scratch;

#[derive(Default)]
pub(super) struct Lists {
    memory: Scratch,
    /// Those of this pass, and where they are.
    brought: Vec<(Vec<u32>, Address)>,
    is_in_pass: bool,
}

impl Lists {
    /// Forgets the lists of the pass before; `None` where the GPU has no more memory, as below.
    pub(super) fn begin_pass(&mut self, driver: &dyn Driver) -> Option<()> {
        (self.is_in_pass, self.brought) = (true, Vec::new());
        self.memory.reset(driver)
    }

    pub(super) fn end_pass(&mut self) {
        self.is_in_pass = false;
    }

    /// Whether lists stay.
    pub(super) fn is_in_pass(&self) -> bool {
        self.is_in_pass
    }

    /// Makes room for so much.
    pub(super) fn reserve(&mut self, driver: &dyn Driver, bytes: usize) -> Option<()> {
        self.memory.reserve(driver, bytes)
    }

    /// Where a list is, which is brought if no operation of this pass has read it yet.
    pub(super) fn address(&mut self, driver: &dyn Driver, words: &[u32]) -> Option<Address> {
        if let Some((_, address)) = self.brought.iter().find(|(brought, _)| brought == words) {
            return Some(*address);
        }
        let address = self.memory.take(driver, 4 * words.len())?;
        driver.write(address, &bytes_of(words));
        self.brought.push((words.to_vec(), address));
        Some(address)
    }

    pub(super) fn release(&mut self, driver: &dyn Driver) {
        self.memory.release(driver);
    }
}

/// As they stand in memory.
pub(super) fn bytes_of(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}
