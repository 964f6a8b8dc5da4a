//! Where operations run, and what they take.

pub mod arena;
mod cost;
mod offload;

pub use cost::{Cost, Span, Transfer, Work};
pub use hone_kernels::Target;
pub use offload::{OFFLOAD_SLOTS, Offloaded, offload};

use crate::tensor::Tensor;
use arena::{Arena, Block, Layout, Memory, Region, Trace};
use hone_kernels::cuda::Gpu;
use hone_kernels::{Cpu, DeviceError, Failures, Processor, Storage, lock};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
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
    /// Frozen weights that a GPU's run keeps in the CPU's memory.
    Offloaded,
}

/// A device. Clones are handles on the same one.
#[derive(Clone)]
pub struct Device(Arc<Inner>);

struct Inner {
    /// `None` on the dry device.
    processor: Option<Processor>,
    target: Target,
    memory: Arc<Mutex<Memory>>,
    failures: Arc<Failures>,
    costs: Mutex<Vec<Cost>>,
    /// Beginnings of operations, while they are recorded.
    recording: Mutex<Option<Vec<(Cost, Instant)>>>,
}

impl Device {
    /// The CPU with a number of threads.
    pub fn cpu(threads: usize) -> Self {
        Self::on(Target::Cpu, Some(Processor::Cpu(Cpu::new(threads))))
    }

    /// The CPU with a given instruction set, for tests.
    pub fn cpu_with_isa(threads: usize, isa: hone_kernels::Isa) -> Self {
        Self::on(Target::Cpu, Some(Processor::Cpu(Cpu::with_isa(threads, isa))))
    }

    /// An NVIDIA GPU.
    pub fn cuda(gpu: Gpu) -> Self {
        Self::on(Target::Cuda, Some(Processor::Cuda(gpu)))
    }

    /// The CPU, for what is done once on the way to another device.
    pub fn host() -> &'static Self {
        static HOST: OnceLock<Device> = OnceLock::new();
        let threads = || std::thread::available_parallelism().map_or(1, |n| n.get());
        HOST.get_or_init(|| Self::cpu(threads()))
    }

    /// A device that runs nothing and counts memory and work, as the CPU takes them.
    pub fn dry() -> Self {
        Self::dry_as(Target::Cpu)
    }

    /// A device that runs nothing and counts memory and work, as `target` takes them.
    pub fn dry_as(target: Target) -> Self {
        Self::on(target, None)
    }

    fn on(target: Target, processor: Option<Processor>) -> Self {
        let failures = match &processor {
            Some(Processor::Cuda(gpu)) => Arc::clone(gpu.failures()),
            _ => Arc::default(),
        };
        let (memory, costs, recording) = Default::default();
        Self(Arc::new(Inner { processor, target, memory, failures, costs, recording }))
    }

    /// Whether this device only counts.
    pub fn is_dry(&self) -> bool {
        self.0.processor.is_none()
    }

    /// What operations run on, or would run on.
    pub fn target(&self) -> Target {
        self.0.target
    }

    /// What operations run on; `None` on the dry device.
    pub fn processor(&self) -> Option<&Processor> {
        self.0.processor.as_ref()
    }

    /// Memory for a tensor of the present step. Its contents are undefined. If there is not so
    /// much, the pass fails.
    pub fn alloc(
        &self,
        category: Category,
        storage: impl Into<Storage>,
        shape: &[usize],
    ) -> Tensor {
        let storage = storage.into();
        let bytes = storage.num_bytes(shape);
        let block = Block::alloc(&self.0.memory, category, bytes, self);
        Tensor::from_block(block, storage, shape)
    }

    /// Memory for a tensor that outlives steps, zeroed.
    ///
    /// # Errors
    /// If there is not so much, or the device failed before and [`Device::settle`] was not called.
    pub fn persistent(
        &self,
        category: Category,
        storage: impl Into<Storage>,
        shape: &[usize],
    ) -> Result<Tensor, DeviceError> {
        let storage = storage.into();
        let bytes = storage.num_bytes(shape);
        let block = Block::persistent(self, bytes)?;
        Ok(Tensor::from_block(block.counted(&self.0.memory, category), storage, shape))
    }

    /// Memory that outlives steps.
    fn lasting_region(&self, bytes: usize) -> Result<Region, DeviceError> {
        Region::new(self.processor(), bytes).map_err(|error| self.refused(error))
    }

    /// What is told to whoever asked for memory that is not there. It is the end of a pass of its
    /// own: after it, what a GPU keeps for speed is given back.
    fn refused(&self, error: DeviceError) -> DeviceError {
        // A pass around this one goes on, if it has not failed.
        self.synchronize();
        if self.is_failing() {
            return error;
        }
        self.fail(error.clone());
        self.settle().err().unwrap_or(error)
    }

    /// Memory of the present step outside of a plan.
    fn region(&self, bytes: usize) -> Region {
        if self.is_failing() {
            return Region::Missing;
        }
        Region::new(self.processor(), bytes).unwrap_or_else(|error| {
            self.fail(error);
            Region::Missing
        })
    }

    /// Begins an operation, whose memory has been asked for: the processor to run it on, or nothing
    /// on the dry device, which notes the cost, and on one that has failed.
    pub fn begin(&self, cost: Cost) -> Option<&Processor> {
        let Some(processor) = self.processor() else {
            lock(&self.0.costs).push(cost);
            return None;
        };
        if self.is_failing() {
            return None;
        }
        self.note_beginning(cost);
        processor.begin();
        Some(processor)
    }

    /// Notes a failure: until [`Device::settle`] operations do nothing, and what they would have
    /// written is undefined.
    pub fn fail(&self, error: DeviceError) {
        self.0.failures.note(error);
    }

    /// Whether something failed that nobody was told of yet.
    pub fn is_failing(&self) -> bool {
        self.0.failures.is_failing()
    }

    /// Grows with each failure: what was copied to the device is there if it is as it was before.
    pub(crate) fn num_failures(&self) -> u64 {
        self.0.failures.count()
    }

    /// Ends a pass, where the host takes results that depend on all of it.
    ///
    /// # Errors
    /// The first failure since this was called last. After too little memory the device can be used
    /// again; one that is lost fails each time.
    pub fn settle(&self) -> Result<(), DeviceError> {
        match self.processor() {
            Some(Processor::Cuda(gpu)) => gpu.settle(),
            _ => self.0.failures.settle(),
        }
    }

    /// Takes so much memory for use inside operations, and for lists that a pass reads, once and
    /// for all, where it is a GPU's.
    pub fn reserve(&self, scratch_bytes: u64, upload_bytes: u64) {
        if let Some(Processor::Cuda(gpu)) = self.processor() {
            gpu.reserve(scratch_bytes as usize, upload_bytes as usize);
        }
    }

    /// Launches no pass as a whole from now on, where this is a GPU.
    pub fn disable_graphs(&self) {
        if let Some(Processor::Cuda(gpu)) = self.processor() {
            gpu.disable_graphs();
        }
    }

    /// Why a GPU refused to launch passes as a whole, if it did since this was asked last.
    pub fn take_graph_error(&self) -> Option<String> {
        match self.processor() {
            Some(Processor::Cuda(gpu)) => gpu.take_graph_error(),
            _ => None,
        }
    }

    /// Gives memory that is kept for reuse back, where it is a GPU's.
    pub fn release_free_memory(&self) {
        if let Some(Processor::Cuda(gpu)) = self.processor() {
            gpu.release_free_memory();
        }
    }

    /// Waits for everything that was asked for.
    pub fn synchronize(&self) {
        if let Some(Processor::Cuda(gpu)) = self.processor() {
            gpu.synchronize();
        }
    }

    /// Notes the beginning of something that is no operation, where operations are recorded.
    pub fn mark(&self, name: &'static str) {
        self.note_beginning(Cost::memory(name, 0));
    }

    fn note_beginning(&self, cost: Cost) {
        let mut recording = lock(&self.0.recording);
        if let Some(spans) = recording.as_mut() {
            // What was asked for before must be done for its time to be known.
            self.synchronize();
            spans.push((cost, Instant::now()));
        }
    }

    /// Records when operations begin, from now on.
    pub fn start_recording(&self) {
        *lock(&self.0.recording) = Some(Vec::new());
    }

    /// Ends the recording. An operation lasts until the next one begins; the last is left out.
    pub fn take_recording(&self) -> Vec<Span> {
        let recording = lock(&self.0.recording).take();
        let begun = recording.unwrap_or_default();
        let span = |pair: &[(Cost, Instant)]| {
            let ((cost, start), (_, end)) = (pair[0], pair[1]);
            Span { cost, start, seconds: end.duration_since(start).as_secs_f64() }
        };
        begun.windows(2).map(span).collect()
    }

    /// The costs noted since the last call (dry device only).
    pub fn take_costs(&self) -> Vec<Cost> {
        std::mem::take(&mut lock(&self.0.costs))
    }

    /// Bytes of tensors that outlive steps: made in `category` and not yet released, or held.
    pub fn persistent_bytes(&self, category: Category) -> u64 {
        self.memory().persistent(category)
    }

    /// Records every allocation and release of step memory while `body` runs. Whether the device
    /// failed, [`Device::settle`] says.
    pub fn trace<R>(&self, body: impl FnOnce() -> R) -> (R, Trace) {
        self.memory().start_trace();
        let _guard = Abandon(self);
        let result = body();
        (result, self.memory().end_trace())
    }

    /// Runs `body` with its step memory inside `arena` as `layout` says: a pass, which a GPU may
    /// launch as a whole unless operations are recorded.
    ///
    /// # Errors
    /// If the device failed, before it or meanwhile; what `body` computed is undefined then.
    ///
    /// # Panics
    /// If the allocations of `body` differ from those the layout was made from, or if a tensor of
    /// an earlier plan is still in the arena. The device can be used all the same.
    pub fn planned<R>(
        &self,
        arena: &mut Arena,
        layout: &Arc<Layout>,
        body: impl FnOnce() -> R,
    ) -> Result<R, DeviceError> {
        self.settle()?;
        self.memory().start_plan(arena, layout);
        let _guard = Abandon(self);
        let is_recording = lock(&self.0.recording).is_some();
        let result = match self.processor() {
            Some(Processor::Cuda(gpu)) if !is_recording => gpu.pass(body),
            _ => body(),
        };
        self.memory().end_plan();
        self.settle().map(|()| result)
    }

    /// The CPU, on a device that has one.
    pub fn as_cpu(&self) -> Option<&Cpu> {
        match self.processor() {
            Some(Processor::Cpu(cpu)) => Some(cpu),
            _ => None,
        }
    }

    /// A copy of a tensor of the CPU's in memory that outlives steps; on the CPU the tensor itself.
    ///
    /// # Errors
    /// As [`Device::persistent`].
    pub fn hold(&self, category: Category, tensor: &Tensor) -> Result<Tensor, DeviceError> {
        let held = match (self.target(), self.processor()) {
            (Target::Cpu, _) => tensor.clone(),
            (Target::Cuda, processor) => {
                let mut block = Block::persistent(self, tensor.num_bytes())?;
                if processor.is_some() {
                    block.write(0, tensor.to_host()?.bytes());
                    tensor.release_file();
                }
                Tensor::from_block(block, tensor.storage(), tensor.shape())
            }
        };
        self.memory().count_persistent(category, tensor.num_bytes());
        Ok(held)
    }

    /// The same kind of memory, where frozen weights wait that are to be copied to this device:
    /// the CPU's, or nothing.
    pub fn waiting_room(&self) -> Self {
        if self.is_dry() { Self::dry_as(self.target()) } else { Self::host().clone() }
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        lock(&self.0.memory)
    }
}

/// Of a step under way: after a panic the device is as before it.
struct Abandon<'a>(&'a Device);

impl Drop for Abandon<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.memory().abandon();
        }
    }
}
