//! NVIDIA GPUs.
//!
//! Operations launch their kernels on a [`Gpu`]: a CUDA device, or an emulation of one that runs
//! the kernels' own source as host C++, so that their logic is tested everywhere. Kernels are CUDA
//! C++ in each operation's folder, embedded in the binary and compiled on first use; matmuls are
//! cuBLASLt's.

pub(crate) mod arg;
mod cache;
mod driver;
#[cfg(any(test, feature = "emulator"))]
mod emulator;
#[cfg(any(test, feature = "emulator"))]
mod faults;
mod graphs;
mod multi_tensor;
mod nvidia;
mod pool;
mod scratch;
pub(crate) mod source;
#[cfg(test)]
mod tests;
mod uploads;

pub use driver::{Fp8, Info, Launch, Matmul, Operand, Operands};
#[cfg(any(test, feature = "emulator"))]
pub use faults::{Fault, Faults};
pub(crate) use multi_tensor::MultiTensor;
pub use nvidia::{CudaError, num_devices};
pub use source::Source;

pub(crate) use arg::Arg;

use crate::capacity::try_with_capacity;
pub use crate::element::Address;
use crate::format::Storage;
pub use crate::view::{Slice, SliceMut};
use crate::{DeviceError, Failures, lock};
use driver::{Driver, HostAddress};
use graphs::Graphs;
use pool::Pool;
use scratch::Scratch;
use std::sync::{Arc, Mutex, PoisonError};
use uploads::Uploads;

/// All kernel sources.
#[cfg(test)]
pub(crate) fn sources() -> impl Iterator<Item = &'static Source> {
    OPERATIONS.iter().copied().chain(crate::format::FORMATS.iter().map(|format| format.source))
}

#[cfg(test)]
static OPERATIONS: &[&Source] = &[
    &crate::activation::cuda::SOURCE,
    &crate::adamw::cuda::SOURCE,
    &crate::attention::cuda::GENERAL,
    &crate::attention::cuda::WIDE,
    &crate::attention::cuda::MMA,
    &crate::attention::cuda::MMA_F16,
    &crate::columns::cuda::SOURCE,
    &crate::combine::cuda::SOURCE,
    &crate::delta_columns::cuda::SOURCE,
    &crate::delta_gates::cuda::SOURCE,
    &crate::dropout::cuda::SOURCE,
    &crate::embedding::cuda::SOURCE,
    &crate::gated_delta_rule::cuda::SOURCE,
    &crate::gated_rms_norm::cuda::SOURCE,
    &crate::gemm::cuda::SOURCE,
    &crate::glu::cuda::SOURCE,
    &crate::head::cuda::SOURCE,
    &crate::layer_norm::cuda::SOURCE,
    &crate::output_gate::cuda::SOURCE,
    &crate::rms_norm::cuda::SOURCE,
    &crate::rope::cuda::SOURCE,
    &crate::router::cuda::SOURCE,
    &crate::short_conv::cuda::SOURCE,
    &crate::vector::cuda::SOURCE,
];

/// A GPU. Clones are handles on the same device.
#[derive(Clone)]
pub struct Gpu(Arc<Inner>);

struct Inner {
    // All are released before the driver.
    scratch: Mutex<Scratch>,
    uploads: Mutex<Uploads>,
    pool: Mutex<Pool>,
    driver: Graphs,
}

impl Gpu {
    /// CUDA device number `index`.
    ///
    /// # Errors
    /// If driver, compiler or cuBLASLt are missing, or there is no such device; the message names
    /// the cause and the remedy.
    pub fn open(index: u32) -> Result<Self, CudaError> {
        Ok(Self::of(Box::new(nvidia::Nvidia::open(index)?)))
    }

    fn of(driver: Box<dyn Driver>) -> Self {
        let (scratch, uploads, pool) = Default::default();
        Self(Arc::new(Inner { scratch, uploads, pool, driver: Graphs::of(driver) }))
    }

    /// Runs one pass of a model. From the third time that the same calls are made, apart from the
    /// contents of their inputs, they are launched as a graph. [`Gpu::settle`] reports failures.
    pub fn pass<R>(&self, body: impl FnOnce() -> R) -> R {
        struct Pass<'a>(&'a Inner);
        impl Drop for Pass<'_> {
            fn drop(&mut self) {
                lock(&self.0.uploads).end_pass();
                self.0.driver.end();
            }
        }
        self.with(&self.0.uploads, Uploads::begin_pass);
        self.0.driver.begin();
        let _pass = Pass(&self.0);
        body()
    }

    /// Failures since [`Gpu::settle`] was last called.
    pub fn failures(&self) -> &Arc<Failures> {
        self.0.driver.failures()
    }

    /// Issues all calls and reports failures, before the host uses results. After running out of
    /// memory, releases everything that is only cached.
    ///
    /// # Errors
    /// The first failure since the last call; calls after it were not executed, and results are
    /// zeros. A GPU that is lost fails each time.
    pub fn settle(&self) -> Result<(), DeviceError> {
        self.0.driver.catch_up();
        let settled = self.failures().settle();
        if matches!(&settled, Err(error) if error.is_out_of_memory()) {
            self.0.driver.clear();
            lock(&self.0.scratch).clear(&self.0.driver);
            lock(&self.0.uploads).clear(&self.0.driver);
            self.release_free_memory();
        }
        settled
    }

    /// Launches no more graphs.
    pub fn disable_graphs(&self) {
        self.0.driver.disable();
    }

    /// Why graphs were given up, if that happened since the last call.
    pub fn take_graph_error(&self) -> Option<String> {
        self.0.driver.take_error()
    }

    /// How often a graph was launched.
    pub fn num_replays(&self) -> u64 {
        self.0.driver.num_replays()
    }

    /// Properties of the device.
    pub fn info(&self) -> &Info {
        self.0.driver.info()
    }

    /// Bytes of free memory.
    pub fn free_bytes(&self) -> u64 {
        self.0.driver.free_bytes()
    }

    /// Waits for all earlier calls.
    pub fn synchronize(&self) {
        self.0.driver.synchronize();
    }

    /// Makes later calls wait for the copies that [`HostBlock::prefetch`] started.
    pub fn await_prefetches(&self) {
        self.0.driver.await_prefetches();
    }

    /// Returns pooled blocks to the driver.
    pub fn release_free_memory(&self) {
        lock(&self.0.pool).clear(&self.0.driver);
    }

    /// Reserves scratch memory of operations, and memory for the uploads of a pass.
    pub fn reserve(&self, scratch_bytes: usize, upload_bytes: usize) {
        self.with(&self.0.scratch, |scratch, driver| scratch.reserve(driver, scratch_bytes));
        self.with(&self.0.uploads, |uploads, driver| uploads.reserve(driver, upload_bytes));
    }

    /// Begins an operation; the scratch memory of the previous one may be overwritten.
    pub fn begin_operation(&self) {
        self.with(&self.0.scratch, Scratch::reset);
    }

    /// Scratch memory of the current operation.
    pub(crate) fn scratch(&self, bytes: usize) -> Address {
        self.with(&self.0.scratch, |scratch, driver| scratch.alloc(driver, bytes))
    }

    /// Maximum scratch bytes that an operation has used so far.
    pub fn max_scratch_bytes(&self) -> usize {
        lock(&self.0.scratch).max_used()
    }

    /// Allocates by `alloc`, if necessary after pooled blocks are returned to the driver. If there
    /// still is too little memory, that is noted as a failure, and the result is never accessed.
    fn with<T, R: Default>(
        &self,
        memory: &Mutex<T>,
        alloc: impl Fn(&mut T, &Graphs) -> Result<R, DeviceError>,
    ) -> R {
        let mut memory = lock(memory);
        let allocated = alloc(&mut memory, &self.0.driver).or_else(|_| {
            self.release_free_memory();
            alloc(&mut memory, &self.0.driver)
        });
        allocated.unwrap_or_else(|error| {
            self.failures().note(error);
            R::default()
        })
    }

    /// Uploads inputs of an operation: to its scratch memory, or, in a pass, to memory that
    /// operations with the same inputs share.
    pub(crate) fn upload(&self, words: &[u32]) -> Address {
        if lock(&self.0.uploads).is_in_pass() {
            return self.with(&self.0.uploads, |uploads, driver| uploads.address(driver, words));
        }
        let address = self.scratch(4 * words.len());
        // SAFETY: allocated just now, with this length.
        unsafe { self.0.driver.write(address, &uploads::bytes_of(words)) };
        address
    }

    /// Downloads `f32` numbers that an operation has written; none, and a failure, if the host has
    /// no memory for them.
    pub(crate) fn download(&self, address: Address, len: usize) -> Vec<f32> {
        let buffers =
            try_with_capacity(4 * len).and_then(|bytes| Ok((bytes, try_with_capacity(len)?)));
        let (mut bytes, mut numbers) = match buffers {
            Ok(buffers) => buffers,
            Err(error) => {
                self.failures().note(error);
                return Vec::new();
            }
        };
        bytes.resize(4 * len, 0);
        // SAFETY: operations read what they have written, in memory that they were given.
        unsafe { self.0.driver.read(address, &mut bytes) };
        numbers.extend(bytes.as_chunks().0.iter().map(|&word| f32::from_le_bytes(word)));
        numbers
    }

    /// Sets every byte to zero.
    pub(crate) fn zero(&self, slice: Slice<'_>) {
        // SAFETY: a slice is inside its memory.
        unsafe { self.0.driver.fill(slice.address(), 0, slice.num_bytes()) };
    }

    /// Launches a kernel with arguments as its source declares them.
    pub(crate) fn launch(&self, source: &'static Source, kernel: &str, at: Launch, args: &[Arg]) {
        if !at.grid.contains(&0) {
            let kernel = source.position(kernel);
            // SAFETY: operations pass each kernel the arguments that it declares, over memory that
            // they were given.
            unsafe { self.0.driver.launch(source, kernel, at, args) };
        }
    }

    /// Multiplies matrices.
    pub(crate) fn matmul(&self, matmul: Matmul) {
        if matmul.m > 0 && matmul.n > 0 {
            let matmul = matmul.row_major();
            if !matches!(matmul.operands, Operands::Floats(_)) {
                matmul.check_8bit();
            }
            // SAFETY: operations describe matrices inside memory that they were given.
            unsafe { self.0.driver.matmul(&matmul) };
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.scratch.get_mut().unwrap_or_else(PoisonError::into_inner).clear(&self.driver);
        self.uploads.get_mut().unwrap_or_else(PoisonError::into_inner).clear(&self.driver);
        self.pool.get_mut().unwrap_or_else(PoisonError::into_inner).clear(&self.driver);
    }
}

impl Launch {
    /// A one-dimensional grid.
    pub(crate) fn blocks(blocks: usize, threads: u32) -> Self {
        Self { grid: [blocks as u32, 1, 1], threads, shared_bytes: 0 }
    }

    /// One block per 32 columns, with the rows distributed over its warps.
    pub(crate) fn columns(n: usize) -> Self {
        Self::blocks(n.div_ceil(32), 1024)
    }

    /// One thread per element in blocks of 256, up to enough blocks to fill any GPU; kernels use
    /// grid-stride loops.
    pub(crate) fn elements(n: usize) -> Self {
        Self::blocks(n.div_ceil(256).min(1 << 14), 256)
    }
}

impl From<Slice<'_>> for Arg {
    /// A pointer, or a packed format's own parameter.
    fn from(slice: Slice<'_>) -> Self {
        match slice.storage() {
            Storage::Packed(format) => {
                let rows = slice.len() / slice.cols().max(1);
                (format.parameter)(slice.address(), [rows, slice.cols()])
            }
            Storage::Float(_) => slice.address().into(),
        }
    }
}

/// A kernel's arguments.
macro_rules! args {
    ($($value:expr),* $(,)?) => { &[$($crate::cuda::Arg::from($value)),*] };
}
pub(crate) use args;

/// A fixed range of a GPU's memory, shared by disjoint blocks.
pub struct Region {
    gpu: Gpu,
    address: Address,
    len: usize,
}

impl std::fmt::Debug for Region {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes of a GPU", self.len)
    }
}

impl Region {
    /// `len` bytes, zeroed.
    ///
    /// # Errors
    /// If the GPU has no more memory, or failed before and [`Gpu::settle`] was not called since.
    pub fn new(gpu: &Gpu, len: usize) -> Result<Self, DeviceError> {
        let address = lock(&gpu.0.pool).alloc(&gpu.0.driver, len)?;
        // SAFETY: allocated just now.
        unsafe { gpu.0.driver.fill(address, 0, len) };
        Ok(Self { gpu: gpu.clone(), address, len })
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the region holds no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The elements at byte `offset`: `len` of them in rows of `cols`.
    pub fn slice(
        &self,
        offset: usize,
        storage: impl Into<Storage>,
        (len, cols): (usize, usize),
    ) -> Slice<'_> {
        let slice = Slice::new(self.address + offset as u64, storage, len, cols);
        self.check(offset, slice.num_bytes());
        slice
    }

    /// The elements at byte `offset`, for writing.
    ///
    /// # Safety
    /// Nothing else may read or write them while the slice lives.
    pub unsafe fn slice_mut(
        &self,
        offset: usize,
        storage: impl Into<Storage>,
        shape: (usize, usize),
    ) -> SliceMut<'_> {
        // SAFETY: as promised.
        unsafe { SliceMut::new(self.slice(offset, storage, shape)) }
    }

    /// # Panics
    /// If the bytes `offset..offset + len` are not inside the region.
    fn check(&self, offset: usize, len: usize) {
        assert!(offset <= self.len && len <= self.len - offset, "outside of a region");
    }

    /// Copies to the GPU, in order with other calls.
    ///
    /// # Panics
    /// If the bytes are not inside the region, as for the other methods.
    pub fn write(&self, offset: usize, bytes: &[u8]) {
        self.check(offset, bytes.len());
        // SAFETY: inside the region (checked), whose owner keeps blocks disjoint.
        unsafe { self.gpu.0.driver.write(self.address + offset as u64, bytes) };
    }

    /// Copies from the GPU; reads zeros after a failure.
    pub fn read(&self, offset: usize, bytes: &mut [u8]) {
        self.check(offset, bytes.len());
        // SAFETY: as above.
        unsafe { self.gpu.0.driver.read(self.address + offset as u64, bytes) };
    }

    /// Sets every byte of a part.
    pub fn fill(&self, offset: usize, byte: u8, len: usize) {
        self.check(offset, len);
        // SAFETY: as above.
        unsafe { self.gpu.0.driver.fill(self.address + offset as u64, byte, len) };
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        lock(&self.gpu.0.pool).free(&self.gpu.0.driver, self.address, self.len);
    }
}

/// Page-locked host memory.
pub struct HostBlock {
    gpu: Gpu,
    start: HostAddress,
    len: usize,
}

// SAFETY: like a vector, it is only written through `&mut self`.
unsafe impl Send for HostBlock {}
// SAFETY: as above.
unsafe impl Sync for HostBlock {}

impl HostBlock {
    /// `len` bytes, zeroed.
    ///
    /// # Errors
    /// If the system cannot lock that much memory, or the GPU failed before and [`Gpu::settle`] was
    /// not called since.
    pub fn new(gpu: &Gpu, len: usize) -> Result<Self, DeviceError> {
        let start = gpu.0.driver.alloc_host(len)?;
        // Copies read all of it, including gaps.
        // SAFETY: allocated just now.
        unsafe { start.write_bytes(0, len) };
        Ok(Self { gpu: gpu.clone(), start, len })
    }

    /// Writes `bytes` at byte `offset`.
    pub fn write(&mut self, offset: usize, bytes: &[u8]) {
        assert!(offset <= self.len && bytes.len() <= self.len - offset, "outside of a block");
        // SAFETY: inside the memory, and `&mut self` makes this the only access, apart from
        // prefetches, which do not start before everything is written.
        unsafe { self.start.add(offset).copy_from(bytes.as_ptr(), bytes.len()) };
    }

    /// Copies everything to the start of `to`, after earlier calls and concurrently with later
    /// ones. The block must not be written to afterwards.
    pub fn prefetch(&self, to: &Region) {
        assert!(self.len <= to.len);
        // SAFETY: the region is long enough, and the block comes from `alloc_host`.
        unsafe { self.gpu.0.driver.prefetch(to.address, self.start, self.len) };
    }
}

impl Drop for HostBlock {
    fn drop(&mut self) {
        // SAFETY: from `alloc_host`, and no longer in use.
        unsafe { self.gpu.0.driver.free_host(self.start) };
    }
}
