//! Offloading: frozen weights that stay in host memory and are copied to a GPU when needed.
//!
//! Blocks of a model share a few slots of GPU memory: while one block computes, the next one is
//! copied. A block's tensors point to its slot, so operations read them like any other; the block
//! only has to be fetched first ([`Offloaded::fetch`]). The direction is inferred from the last two
//! blocks: upwards in a forward pass, downwards in a backward pass.

use super::arena::{Block, Region};
use super::{Category, Cost, Device, Transfer};
use crate::tensor::Tensor;
use hone_kernels::cuda::{Gpu, HostBlock};
use hone_kernels::{DeviceError, PAGE_LOCKED, Processor, lock, memory::ALIGNMENT};
use std::sync::{Arc, Mutex};

/// Number of slots on the GPU.
pub const OFFLOAD_SLOTS: usize = 2;

/// One block's weights.
#[derive(Clone)]
pub struct Offloaded {
    all: Arc<Blocks>,
    index: usize,
}

struct Blocks {
    device: Device,
    slots: Vec<Region>,
    blocks: Vec<Stored>,
    order: Mutex<Order>,
}

/// A block in host memory.
struct Stored {
    /// `None` on the dry device.
    memory: Option<HostBlock>,
    bytes: usize,
}

/// Which blocks are in the slots, and which was fetched last.
#[derive(Default)]
struct Order {
    slots: [Option<usize>; OFFLOAD_SLOTS],
    last: Option<usize>,
    /// The device's number of failures at the time: after another one, copies may have failed.
    num_failures: u64,
}

/// Moves the tensors of `blocks` from host memory to page-locked memory, and replaces them by
/// tensors on the GPU. These hold the block's weights after [`Offloaded::fetch`], until other
/// blocks are fetched.
///
/// # Errors
/// If page-locked memory runs out, or the GPU has no memory for the slots.
///
/// # Panics
/// If the device is not a GPU.
pub fn offload(
    device: &Device,
    mut blocks: Vec<Vec<&mut Tensor>>,
) -> Result<Vec<Offloaded>, DeviceError> {
    assert_eq!(device.target(), super::Target::Cuda, "only a GPU's weights can be offloaded");
    let bytes_of =
        |block: &Vec<&mut Tensor>| -> usize { block.iter().map(|t| aligned_len(t)).sum() };
    let slot_bytes = blocks.iter().map(bytes_of).max().unwrap_or(0);
    let num_slots = OFFLOAD_SLOTS.min(blocks.len());
    let slot = |_| device.persistent_region(slot_bytes);
    let slots = (0..num_slots).map(slot).collect::<Result<Vec<_>, _>>()?;
    let total: usize = blocks.iter().map(bytes_of).sum();
    device.memory().count_persistent(Category::Weights, num_slots * slot_bytes);
    device.memory().count_persistent(Category::Offloaded, total);
    // Reports the total, which is what the user has to provide.
    let refused = |error| match error {
        DeviceError::OutOfMemory { memory: PAGE_LOCKED, .. } => {
            device.refused(DeviceError::out_of_page_locked_memory(total))
        }
        other => other,
    };
    let store = |(i, block): (usize, &mut Vec<&mut Tensor>)| {
        let bytes = bytes_of(block);
        let mut memory = match gpu(device) {
            Some(gpu) => Some(HostBlock::new(gpu, bytes).map_err(refused)?),
            None => None,
        };
        let mut offset = 0;
        for tensor in block {
            let (aligned_len, len) = (aligned_len(tensor), tensor.num_bytes());
            if let Some(memory) = &mut memory {
                memory.write(offset, tensor.to_host()?.bytes());
                tensor.release_file();
            }
            let block = Block::shared(&slots[i % num_slots], offset, len);
            **tensor = Tensor::from_block(block, tensor.storage(), tensor.shape());
            offset += aligned_len;
        }
        Ok(Stored { memory, bytes })
    };
    let blocks =
        blocks.iter_mut().enumerate().map(store).collect::<Result<Vec<_>, DeviceError>>()?;
    let num_blocks = blocks.len();
    let (device, order) = (device.clone(), Mutex::default());
    let all = Arc::new(Blocks { device, slots, blocks, order });
    Ok((0..num_blocks).map(|index| Offloaded { all: Arc::clone(&all), index }).collect())
}

/// Bytes of a tensor in its block, including alignment.
fn aligned_len(tensor: &Tensor) -> usize {
    tensor.num_bytes().next_multiple_of(ALIGNMENT)
}

fn gpu(device: &Device) -> Option<&Gpu> {
    match device.processor() {
        Some(Processor::Cuda(gpu)) => Some(gpu),
        _ => None,
    }
}

impl Offloaded {
    /// Makes the block's weights available to later operations, and starts copying those of the
    /// block that is probably next.
    pub fn fetch(&self) {
        let (all, index) = (&*self.all, self.index);
        let (mut order, num_failures) = (lock(&all.order), all.device.num_failures());
        if all.device.is_failing() {
            // Copies are dropped until the failure is reported, so no slot is valid.
            *order = Order::default();
            return;
        }
        if order.num_failures != num_failures {
            *order = Order { num_failures, ..Order::default() };
        }
        if order.last == Some(index) {
            return;
        }
        let upwards = index == 0 || order.last.is_none_or(|last| last < index);
        let next = if upwards { Some(index + 1) } else { index.checked_sub(1) };
        all.start(&mut order, index);
        all.wait();
        // With one slot there is no room for the next block.
        if let Some(next) = next.filter(|&next| next < all.blocks.len() && all.slots.len() > 1) {
            all.start(&mut order, next);
        }
        order.last = Some(index);
    }
}

impl Blocks {
    /// Starts copying a block to its slot, unless it is there.
    fn start(&self, order: &mut Order, index: usize) {
        let slot = index % self.slots.len();
        if order.slots[slot].replace(index) == Some(index) {
            return;
        }
        let Stored { memory, bytes } = &self.blocks[index];
        self.device.begin(Cost::transfer("prefetch", Transfer::Start(*bytes as u64)));
        if let (Some(memory), Region::Cuda(slot)) = (memory, &self.slots[slot]) {
            memory.prefetch(slot);
        }
    }

    fn wait(&self) {
        self.device.begin(Cost::transfer("await_weights", Transfer::Await));
        if let Some(gpu) = gpu(&self.device) {
            gpu.await_prefetches();
        }
    }
}

impl Drop for Blocks {
    fn drop(&mut self) {
        // The slots may only be freed when no copy to them is running.
        if let Some(gpu) = gpu(&self.device) {
            gpu.await_prefetches();
        }
    }
}
