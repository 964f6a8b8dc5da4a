//! Devices that operations run on, their memory, and costs.

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

/// Use of memory; the planner reports by category.
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
    /// Outputs of operations, and values saved for the backward pass.
    Activations,
    /// Logits of a tile and their gradients.
    Head,
    /// Workspace of one operation.
    Workspace,
    /// Keys and values of generated sequences.
    Cache,
    /// Frozen weights that are offloaded from a GPU to host memory.
    Offloaded,
}

/// A device. Clones share the same one.
#[derive(Clone)]
pub struct Device(Arc<Inner>);

struct Inner {
    /// `None` on the dry device.
    processor: Option<Processor>,
    target: Target,
    memory: Arc<Mutex<Memory>>,
    failures: Arc<Failures>,
    costs: Mutex<Vec<Cost>>,
    /// Start times of operations, while they are recorded.
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

    /// The CPU, for one-time work such as converting weights for another device.
    pub fn host() -> &'static Self {
        static HOST: OnceLock<Device> = OnceLock::new();
        let threads = || std::thread::available_parallelism().map_or(1, |n| n.get());
        HOST.get_or_init(|| Self::cpu(threads()))
    }

    /// A device that runs nothing and only counts the CPU's memory and work.
    pub fn dry() -> Self {
        Self::dry_as(Target::Cpu)
    }

    /// A device that runs nothing and only counts the memory and work of `target`.
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

    /// Kind of processor that operations run on, or would run on.
    pub fn target(&self) -> Target {
        self.0.target
    }

    /// Processor that operations run on; `None` on the dry device.
    pub fn processor(&self) -> Option<&Processor> {
        self.0.processor.as_ref()
    }

    /// Allocates a tensor of the current step. Its contents are undefined. If memory runs out, the
    /// pass fails.
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

    /// Allocates a tensor that outlives steps, zeroed.
    ///
    /// # Errors
    /// If memory runs out, or after an earlier failure that [`Device::settle`] has not reported.
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
    fn persistent_region(&self, bytes: usize) -> Result<Region, DeviceError> {
        Region::new(self.processor(), bytes).map_err(|error| self.refused(error))
    }

    /// The error to report for a failed allocation: the first since the last [`Device::settle`],
    /// which this reports, so that the next pass does not. A GPU releases its caches.
    fn refused(&self, error: DeviceError) -> DeviceError {
        // An enclosing pass may go on: its calls are complete.
        self.synchronize();
        self.fail(error.clone());
        self.settle().err().unwrap_or(error)
    }

    /// Memory of the current step outside of a plan.
    fn region(&self, bytes: usize) -> Region {
        if self.is_failing() {
            return Region::Missing;
        }
        Region::new(self.processor(), bytes).unwrap_or_else(|error| {
            self.fail(error);
            Region::Missing
        })
    }

    /// Begins an operation, after its memory is allocated. Returns the processor to run it on, or
    /// `None` on the dry device, which records the cost, and after a failure.
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

    /// Notes a failure: until [`Device::settle`], operations do nothing, and their outputs are
    /// undefined.
    pub fn fail(&self, error: DeviceError) {
        self.0.failures.note(error);
    }

    /// Whether there is a failure that has not been reported yet.
    pub fn is_failing(&self) -> bool {
        self.0.failures.is_failing()
    }

    /// Number of failures and of passes that panicked so far. A copy on the device is valid only
    /// while this is unchanged.
    pub(crate) fn num_failures(&self) -> u64 {
        self.0.failures.count()
    }

    /// Ends a pass, before the host uses its results.
    ///
    /// # Errors
    /// The first failure since the last call. After running out of memory the device can be used
    /// again; one that is lost fails each time.
    pub fn settle(&self) -> Result<(), DeviceError> {
        match self.processor() {
            Some(Processor::Cuda(gpu)) => gpu.settle(),
            _ => self.0.failures.settle(),
        }
    }

    /// Reserves scratch memory of operations and memory for the uploads of a pass, on a GPU.
    pub fn reserve(&self, scratch_bytes: u64, upload_bytes: u64) {
        if let Some(Processor::Cuda(gpu)) = self.processor() {
            gpu.reserve(scratch_bytes as usize, upload_bytes as usize);
        }
    }

    /// Launches no more CUDA graphs.
    pub fn disable_graphs(&self) {
        if let Some(Processor::Cuda(gpu)) = self.processor() {
            gpu.disable_graphs();
        }
    }

    /// Why a GPU gave up graphs, if that happened since the last call.
    pub fn take_graph_error(&self) -> Option<String> {
        match self.processor() {
            Some(Processor::Cuda(gpu)) => gpu.take_graph_error(),
            _ => None,
        }
    }

    /// Returns a GPU's pooled memory to the driver.
    pub fn release_free_memory(&self) {
        if let Some(Processor::Cuda(gpu)) = self.processor() {
            gpu.release_free_memory();
        }
    }

    /// Waits for all operations so far.
    pub fn synchronize(&self) {
        if let Some(Processor::Cuda(gpu)) = self.processor() {
            gpu.synchronize();
        }
    }

    /// Records the beginning of something other than an operation, if operations are recorded.
    pub fn mark(&self, name: &'static str) {
        self.note_beginning(Cost::memory_bound(name, 0));
    }

    fn note_beginning(&self, cost: Cost) {
        let mut recording = lock(&self.0.recording);
        if let Some(spans) = recording.as_mut() {
            // Earlier operations must finish for their times to be known.
            self.synchronize();
            spans.push((cost, Instant::now()));
        }
    }

    /// Starts to record when operations begin.
    pub fn start_recording(&self) {
        *lock(&self.0.recording) = Some(Vec::new());
    }

    /// Ends the recording. An operation lasts until the next one begins; the last is omitted.
    pub fn take_recording(&self) -> Vec<Span> {
        let recording = lock(&self.0.recording).take();
        let begun = recording.unwrap_or_default();
        let span = |pair: &[(Cost, Instant)]| {
            let ((cost, start), (_, end)) = (pair[0], pair[1]);
            Span { cost, start, seconds: end.duration_since(start).as_secs_f64() }
        };
        begun.windows(2).map(span).collect()
    }

    /// The costs recorded since the last call (dry device only).
    pub fn take_costs(&self) -> Vec<Cost> {
        std::mem::take(&mut lock(&self.0.costs))
    }

    /// Bytes of tensors in `category` that outlive steps: allocated and not yet released, or
    /// uploaded.
    pub fn persistent_bytes(&self, category: Category) -> u64 {
        self.memory().persistent(category)
    }

    /// Records every allocation and release of step memory while `body` runs. [`Device::settle`]
    /// reports failures.
    pub fn trace<R>(&self, body: impl FnOnce() -> R) -> (R, Trace) {
        self.memory().start_trace();
        let _guard = Abandon(self);
        let result = body();
        (result, self.memory().end_trace())
    }

    /// Runs `body` as a pass, with its step memory in `arena` according to `layout`. A GPU may
    /// launch it as a graph, unless operations are recorded.
    ///
    /// # Errors
    /// If the device failed, before or during the pass; the results of `body` are then undefined.
    ///
    /// # Panics
    /// If the allocations of `body` differ from those the layout was made from, or if a tensor of
    /// an earlier plan is still in the arena. The device remains usable.
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

    /// Keeps host memory that passes in `body` release for those that follow, so that the system
    /// need not clear pages for each. For passes of unequal sizes, which share no plan. A GPU's
    /// driver pools memory itself.
    ///
    /// # Panics
    /// Within a trace or a plan, on the CPU.
    pub fn reusing_memory<R>(&self, body: impl FnOnce() -> R) -> R {
        if self.as_cpu().is_none() {
            return body();
        }
        self.memory().start_reusing();
        let _guard = Abandon(self);
        let result = body();
        self.memory().end_reusing();
        result
    }

    /// The CPU, if this device is one.
    pub fn as_cpu(&self) -> Option<&Cpu> {
        match self.processor() {
            Some(Processor::Cpu(cpu)) => Some(cpu),
            _ => None,
        }
    }

    /// A copy of a host tensor in this device's memory that outlives steps; on the CPU the tensor
    /// itself.
    ///
    /// # Errors
    /// As [`Device::persistent`].
    pub fn upload(&self, category: Category, tensor: &Tensor) -> Result<Tensor, DeviceError> {
        let copy = match (self.target(), self.processor()) {
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
        Ok(copy)
    }

    /// Device whose memory stages frozen weights that will be copied to this one: the CPU, or a dry
    /// device if this is one.
    pub fn staging(&self) -> Self {
        if self.is_dry() { Self::dry_as(self.target()) } else { Self::host().clone() }
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        lock(&self.0.memory)
    }
}

/// Guard of a running step: on panic, resets the device's memory to its state before the step.
struct Abandon<'a>(&'a Device);

impl Drop for Abandon<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.memory().abandon();
        }
    }
}
