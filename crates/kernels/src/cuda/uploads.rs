//! Inputs of operations from the host. Many operations of a pass read the same ones, such as the
//! starts of sequences, so each is uploaded once and stays until the next pass.

use super::driver::Address;
use super::graphs::Graphs;
use super::scratch::Scratch;
use crate::DeviceError;

#[derive(Default)]
pub(super) struct Uploads {
    memory: Scratch,
    /// The uploads of this pass and their addresses.
    done: Vec<(Vec<u32>, Address)>,
    is_in_pass: bool,
}

impl Uploads {
    /// Discards the uploads of the previous pass.
    pub(super) fn begin_pass(&mut self, driver: &Graphs) -> Result<(), DeviceError> {
        (self.is_in_pass, self.done) = (true, Vec::new());
        self.memory.reset(driver)
    }

    pub(super) fn end_pass(&mut self) {
        self.is_in_pass = false;
    }

    /// Whether uploads are kept.
    pub(super) fn is_in_pass(&self) -> bool {
        self.is_in_pass
    }

    /// Reserves memory in advance.
    pub(super) fn reserve(&mut self, driver: &Graphs, bytes: usize) -> Result<(), DeviceError> {
        self.memory.reserve(driver, bytes)
    }

    /// Address of `words`, which are uploaded unless this pass already did.
    pub(super) fn address(
        &mut self,
        driver: &Graphs,
        words: &[u32],
    ) -> Result<Address, DeviceError> {
        if let Some((_, address)) = self.done.iter().find(|(done, _)| done == words) {
            return Ok(*address);
        }
        let address = self.memory.alloc(driver, 4 * words.len())?;
        // SAFETY: allocated just now, with this length.
        unsafe { driver.write(address, &bytes_of(words)) };
        self.done.push((words.to_vec(), address));
        Ok(address)
    }

    /// Returns the memory to the driver and starts over.
    pub(super) fn clear(&mut self, driver: &Graphs) {
        self.done.clear();
        self.memory.clear(driver);
    }
}

/// The words as bytes in the GPU's order.
pub(super) fn bytes_of(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}
