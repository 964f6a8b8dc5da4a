//! What layers keep of the sequences that passes continue.

use hone_tensor::ops::{ConvState, DeltaState, KvPages};
use hone_tensor::{Device, DeviceError};

/// What a layer keeps.
pub(crate) enum LayerCache {
    /// Keys and values.
    Pages(KvPages),
    /// Nothing: another layer's keys and values are read.
    Nothing,
    /// Of a gated delta net the last inputs of its convolution, and its states.
    States(ConvState, DeltaState),
}

impl LayerCache {
    /// Of a layer that attends.
    pub(crate) fn pages(&mut self) -> &mut KvPages {
        match self {
            Self::Pages(pages) => pages,
            _ => unreachable!("a layer that attends to its own keys"),
        }
    }

    /// Of a layer with a gated delta net.
    pub(crate) fn states(&mut self) -> (&mut ConvState, &mut DeltaState) {
        match self {
            Self::States(inputs, states) => (inputs, states),
            _ => unreachable!("a layer with a gated delta net"),
        }
    }

    /// Makes room for more pages and sequences; twice as much as there was, if that is more.
    pub(crate) fn reserve(
        &mut self,
        device: &Device,
        (num_pages, max_pages): (usize, usize),
        num_slots: usize,
    ) -> Result<(), DeviceError> {
        match self {
            Self::Nothing => Ok(()),
            Self::Pages(pages) => match pages.num_pages() {
                enough if num_pages <= enough => Ok(()),
                few => pages.grow(device, num_pages.max((2 * few).min(max_pages))),
            },
            Self::States(inputs, states) => match states.num_slots() {
                enough if num_slots <= enough => Ok(()),
                few => {
                    let num_slots = num_slots.max(2 * few);
                    inputs.grow(device, num_slots)?;
                    states.grow(device, num_slots)
                }
            },
        }
    }
}
