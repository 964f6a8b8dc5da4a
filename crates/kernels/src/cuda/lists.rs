//! Numbers from outside that operations read. Within a pass many operations read the same ones,
//! where sequences begin for one, so each list is brought once and stays until the next pass.

use super::driver::Address;
use super::graphs::Graphs;
use super::scratch::Scratch;
use crate::DeviceError;

#[derive(Default)]
pub(super) struct Lists {
    memory: Scratch,
    /// Those of this pass, and where they are.
    brought: Vec<(Vec<u32>, Address)>,
    is_in_pass: bool,
}

impl Lists {
    /// Forgets the lists of the pass before.
    pub(super) fn begin_pass(&mut self, driver: &Graphs) -> Result<(), DeviceError> {
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
    pub(super) fn reserve(&mut self, driver: &Graphs, bytes: usize) -> Result<(), DeviceError> {
        self.memory.reserve(driver, bytes)
    }

    /// Where a list is, which is brought if no operation of this pass has read it yet.
    pub(super) fn address(
        &mut self,
        driver: &Graphs,
        words: &[u32],
    ) -> Result<Address, DeviceError> {
        if let Some((_, address)) = self.brought.iter().find(|(brought, _)| brought == words) {
            return Ok(*address);
        }
        let address = self.memory.take(driver, 4 * words.len())?;
        // SAFETY: taken just now, as long as the list.
        unsafe { driver.write(address, &bytes_of(words)) };
        self.brought.push((words.to_vec(), address));
        Ok(address)
    }

    /// Gives the memory back and forgets how much was used.
    pub(super) fn forget(&mut self, driver: &Graphs) {
        self.brought.clear();
        self.memory.forget(driver);
    }
}

/// As they stand in memory.
pub(super) fn bytes_of(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}
