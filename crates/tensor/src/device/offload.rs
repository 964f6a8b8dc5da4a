//! Frozen weights that stay in the CPU's memory and visit a GPU when their turn comes.
//!
//! Blocks of a model take turns in a few places of the GPU's memory: while one computes, the next
//! arrives. A block's tensors lie where it will be, so operations read them like any other; only
//! who enters a block must say so first ([`Offloaded::fetch`]). Which blocks follow each other is
//! seen from the last two: upwards in a forward pass, downwards in a backward pass.

use super::arena::{Block, Region};
use super::{Category, Cost, Device, Transfer};
use crate::tensor::Tensor;
use hone_kernels::cuda::{Gpu, HostBlock};
use hone_kernels::{DeviceError, Processor, lock, memory::ALIGNMENT};
use std::sync::{Arc, Mutex};

/// Places on the GPU.
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

/// A block in the CPU's memory; `None` on the dry device.
struct Stored {
    memory: Option<HostBlock>,
    bytes: usize,
}

/// Who is where, and who came last.
#[derive(Default)]
struct Order {
    held: [Option<usize>; OFFLOAD_SLOTS],
    last: Option<usize>,
    /// Failures of the device before: one of them may have been a copy's.
    num_failures: u64,
}

/// Takes the tensors of `blocks`, which are in the CPU's memory, into page-locked memory, and puts
/// tensors of the GPU in their place: those of a block hold its weights after
/// [`Offloaded::fetch`], until another block is fetched.
///
/// # Errors
/// If there is not so much page-locked memory, or no place on the GPU for a block.
///
/// # Panics
/// On a device that is no GPU's.
pub fn offload(
    device: &Device,
    mut blocks: Vec<Vec<&mut Tensor>>,
) -> Result<Vec<Offloaded>, DeviceError> {
    assert_eq!(device.target(), super::Target::Cuda, "the CPU's memory is where weights are");
    let bytes_of = |block: &Vec<&mut Tensor>| -> usize { block.iter().map(|t| room_of(t)).sum() };
    let slot_bytes = blocks.iter().map(bytes_of).max().unwrap_or(0);
    let num_slots = OFFLOAD_SLOTS.min(blocks.len());
    let slot = |_| device.lasting_region(slot_bytes);
    let slots = (0..num_slots).map(slot).collect::<Result<Vec<_>, _>>()?;
    let total: usize = blocks.iter().map(bytes_of).sum();
    device.memory().count_persistent(Category::Weights, num_slots * slot_bytes);
    device.memory().count_persistent(Category::Offloaded, total);
    // All of it is what the user has to know.
    let refused = |error: DeviceError| match error.is_out_of_memory() {
        true => device.refused(DeviceError::out_of_page_locked_memory(total)),
        false => error,
    };
    let store = |(i, block): (usize, &mut Vec<&mut Tensor>)| {
        let bytes = bytes_of(block);
        let mut memory = match gpu(device) {
            Some(gpu) => Some(HostBlock::new(gpu, bytes).map_err(refused)?),
            None => None,
        };
        let mut offset = 0;
        for tensor in block {
            let (room, len) = (room_of(tensor), tensor.num_bytes());
            if let Some(memory) = &mut memory {
                memory.write(offset, tensor.to_host()?.bytes());
                tensor.release_file();
            }
            let place = Block::shared(&slots[i % num_slots], offset, len);
            **tensor = Tensor::from_block(place, tensor.storage(), tensor.shape());
            offset += room;
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

/// Bytes of a tensor in its block, the next one aligned.
fn room_of(tensor: &Tensor) -> usize {
    tensor.num_bytes().next_multiple_of(ALIGNMENT)
}

fn gpu(device: &Device) -> Option<&Gpu> {
    match device.processor() {
        Some(Processor::Cuda(gpu)) => Some(gpu),
        _ => None,
    }
}

impl Offloaded {
    /// Sees to it that operations from now on find the block's weights in place, and begins to copy
    /// those of the block that is likely to be next.
    pub fn fetch(&self) {
        let (all, index) = (&*self.all, self.index);
        let (mut order, num_failures) = (lock(&all.order), all.device.num_failures());
        if all.device.is_failing() {
            // Copies are dropped until the failure is reported: nothing is where it was.
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
        // Only one block can be next to the present one.
        if let Some(next) = next.filter(|&next| next < all.blocks.len() && all.slots.len() > 1) {
            all.start(&mut order, next);
        }
        order.last = Some(index);
    }
}

impl Blocks {
    /// Begins to copy a block to its place, unless it is there.
    fn start(&self, order: &mut Order, index: usize) {
        let slot = index % self.slots.len();
        if order.held[slot].replace(index) == Some(index) {
            return;
        }
        let Stored { memory, bytes } = &self.blocks[index];
        self.device.begin(Cost::transfer("prefetch", Transfer::Start(*bytes as u64)));
        if let (Some(memory), Region::Cuda(place)) = (memory, &self.slots[slot]) {
            memory.prefetch(place);
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
        // The places may be given to others only when nothing is on its way there.
        if let Some(gpu) = gpu(&self.device) {
            gpu.await_prefetches();
        }
    }
}
