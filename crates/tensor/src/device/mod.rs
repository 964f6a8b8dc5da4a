//! Where operations run, and what they take.

pub mod arena;
mod cost;

pub use cost::{Cost, Span, Work};

use crate::tensor::Tensor;
use arena::{Arena, Block, Layout, Memory, Trace};
use hone_kernels::{Cpu, DType};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

/// What memory is used for; the planner reports by category.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Category {
    /// Frozen weights.
    Weights,
    /// Trained parameters: adapters, or the whole model.
    Parameters,
    /// Gradients of trained parameters.
    Gradients,
    /// Moments of the optimizer.
    Optimizer,
    /// What the forward pass keeps for the backward pass, and what flows between operations.
    Activations,
    /// Logits of a tile and their gradients.
    Head,
    /// Memory inside one operation.
    Workspace,
    /// Keys and values of generated sequences.
    Cache,
}

/// A device. Clones are handles on the same one.
#[derive(Clone)]
pub struct Device(Arc<Inner>);

struct Inner {
    /// `None` on the dry device.
    cpu: Option<Cpu>,
    memory: Arc<Mutex<Memory>>,
    costs: Mutex<Vec<Cost>>,
    /// Beginnings of operations, while they are recorded.
    recording: Mutex<Option<Vec<(Cost, Instant)>>>,
}

impl Device {
    /// The CPU with a number of threads.
    pub fn cpu(threads: usize) -> Self {
        Self::on(Some(Cpu::new(threads)))
    }

    /// The CPU with a given instruction set, for tests.
    pub fn cpu_with_isa(threads: usize, isa: hone_kernels::Isa) -> Self {
        Self::on(Some(Cpu::with_isa(threads, isa)))
    }

    /// A device that runs nothing and counts memory and work.
    pub fn dry() -> Self {
        Self::on(None)
    }

    fn on(cpu: Option<Cpu>) -> Self {
        let memory = Arc::new(Mutex::new(Memory::default()));
        let (costs, recording) = (Mutex::default(), Mutex::default());
        Self(Arc::new(Inner { cpu, memory, costs, recording }))
    }

    /// Whether this device only counts.
    pub fn is_dry(&self) -> bool {
        self.0.cpu.is_none()
    }

    /// Memory for a tensor of the present step. Its contents are undefined.
    pub fn alloc(&self, category: Category, dtype: DType, shape: &[usize]) -> Tensor {
        let bytes = dtype.num_bytes(shape);
        let block = Block::alloc(&self.0.memory, category, bytes, self.is_dry());
        Tensor::from_block(block, dtype, shape)
    }

    /// Memory for a tensor that outlives steps, zeroed.
    pub fn persistent(&self, category: Category, dtype: DType, shape: &[usize]) -> Tensor {
        let bytes = dtype.num_bytes(shape);
        self.memory().count_persistent(category, bytes);
        Tensor::from_block(Block::persistent(bytes, self.is_dry()), dtype, shape)
    }

    /// Counts bytes of a mapped file that a tensor stands on, so that plans know of them.
    pub fn count_mapped(&self, bytes: usize) {
        self.memory().count_persistent(Category::Weights, bytes);
    }

    /// Begins an operation: the CPU to run it on, or nothing on the dry device, which notes the
    /// cost.
    pub fn begin(&self, cost: Cost) -> Option<&Cpu> {
        if self.is_dry() {
            self.0.costs.lock().expect("no panic while noting a cost").push(cost);
        } else {
            self.note_beginning(cost);
        }
        self.0.cpu.as_ref()
    }

    /// Notes the beginning of something that is no operation, where operations are recorded.
    pub fn mark(&self, name: &'static str) {
        self.note_beginning(Cost::memory(name, 0));
    }

    fn note_beginning(&self, cost: Cost) {
        let mut recording = self.0.recording.lock().expect("no panic while recording");
        if let Some(spans) = recording.as_mut() {
            spans.push((cost, Instant::now()));
        }
    }

    /// Records when operations begin, from now on.
    pub fn start_recording(&self) {
        *self.0.recording.lock().expect("no panic while recording") = Some(Vec::new());
    }

    /// Ends the recording. An operation lasts until the next one begins; the last is left out.
    pub fn take_recording(&self) -> Vec<Span> {
        let recording = self.0.recording.lock().expect("no panic while recording").take();
        let begun = recording.unwrap_or_default();
        let span = |pair: &[(Cost, Instant)]| {
            let ((cost, start), (_, end)) = (pair[0], pair[1]);
            Span { cost, start, seconds: end.duration_since(start).as_secs_f64() }
        };
        begun.windows(2).map(span).collect()
    }

    /// The costs noted since the last call (dry device only).
    pub fn take_costs(&self) -> Vec<Cost> {
        std::mem::take(&mut self.0.costs.lock().expect("no panic while noting a cost"))
    }

    /// Bytes of [`Device::persistent`] tensors and mapped weights made so far in `category`.
    pub fn persistent_bytes(&self, category: Category) -> u64 {
        self.memory().persistent(category)
    }

    /// Records every allocation and release of step memory while `body` runs.
    pub fn trace<R>(&self, body: impl FnOnce() -> R) -> (R, Trace) {
        self.memory().start_trace();
        let result = body();
        (result, self.memory().end_trace())
    }

    /// Runs `body` with its step memory inside `arena` as `layout` says.
    ///
    /// # Panics
    /// If the allocations of `body` differ from those the layout was made from, or if a tensor of
    /// an earlier plan is still in the arena.
    pub fn planned<R>(
        &self,
        arena: &mut Arena,
        layout: &Arc<Layout>,
        body: impl FnOnce() -> R,
    ) -> R {
        self.memory().start_plan(arena, layout);
        let result = body();
        self.memory().end_plan();
        result
    }

    /// The CPU, on a device that has one.
    pub fn as_cpu(&self) -> Option<&Cpu> {
        self.0.cpu.as_ref()
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.0.memory.lock().expect("no panic while counting memory")
    }
}
