//! NVIDIA GPUs.
//!
//! [`Gpu`] is what operations launch their kernels on: a CUDA device, or an emulation of one that
//! runs the kernels' own source as host C++ so that their logic is tested everywhere. Kernels are
//! CUDA C++ in each operation's folder, embedded in the binary and compiled when they are first
//! used; matrix products are cuBLASLt's.

mod cache;
mod driver;
#[cfg(any(test, feature = "emulator"))]
mod emulator;
#[cfg(any(test, feature = "emulator"))]
mod faults;
mod graphs;
mod lists;
mod nvidia;
mod pool;
mod scratch;
#[cfg(test)]
mod tests;
mod together;

pub use driver::{Fp8, Info, Launch, Matmul, Operand, Operands, Source};
#[cfg(any(test, feature = "emulator"))]
pub use faults::{Fault, Faults};
pub use nvidia::{CudaError, num_devices};
pub(crate) use together::Together;

pub use crate::element::{Address, Slice, SliceMut};
use crate::format::Storage;
use crate::room::with_room;
use crate::{DeviceError, Failures, lock};
use driver::{Driver, HostAddress};
use graphs::Graphs;
use lists::Lists;
use pool::Pool;
use scratch::Scratch;
use std::ffi::c_void;
use std::sync::{Arc, Mutex, PoisonError};

/// All kernels there are.
#[cfg(test)]
pub(crate) fn sources() -> impl Iterator<Item = &'static Source> {
    OF_OPERATIONS.into_iter().chain(crate::format::FORMATS.iter().map(|format| format.source))
}

#[cfg(test)]
static OF_OPERATIONS: [&Source; 12] = [
    &crate::adamw::cuda::SOURCE,
    &crate::attention::cuda::GENERAL,
    &crate::attention::cuda::MMA,
    &crate::attention::cuda::MMA_F16,
    &crate::dropout::cuda::SOURCE,
    &crate::embedding::cuda::SOURCE,
    &crate::gemm::cuda::SOURCE,
    &crate::head::cuda::SOURCE,
    &crate::rms_norm::cuda::SOURCE,
    &crate::rope::cuda::SOURCE,
    &crate::glu::cuda::SOURCE,
    &crate::vector::cuda::SOURCE,
];

/// A GPU. Clones are handles on the same one.
#[derive(Clone)]
pub struct Gpu(Arc<Inner>);

struct Inner {
    // All are released before the driver that they came from.
    scratch: Mutex<Scratch>,
    lists: Mutex<Lists>,
    pool: Mutex<Pool>,
    driver: Graphs,
}

impl Gpu {
    /// CUDA device number `index`.
    ///
    /// # Errors
    /// If driver, compiler or cuBLASLt are missing, or there is no such device; the message says
    /// which and what to do.
    pub fn open(index: u32) -> Result<Self, CudaError> {
        Ok(Self::of(Box::new(nvidia::Nvidia::open(index)?)))
    }

    fn of(driver: Box<dyn Driver>) -> Self {
        let (scratch, lists, pool) = Default::default();
        Self(Arc::new(Inner { scratch, lists, pool, driver: Graphs::of(driver) }))
    }

    /// Runs one pass of a model. Where one before it asked for the same, but for numbers from
    /// outside, it is launched as a whole. Whether it failed, [`Gpu::settle`] says.
    pub fn pass<R>(&self, body: impl FnOnce() -> R) -> R {
        struct Pass<'a>(&'a Inner);
        impl Drop for Pass<'_> {
            fn drop(&mut self) {
                lock(&self.0.lists).end_pass();
                self.0.driver.end();
            }
        }
        self.with(&self.0.lists, Lists::begin_pass);
        self.0.driver.begin();
        let _pass = Pass(&self.0);
        body()
    }

    /// What failed since [`Gpu::settle`] was called last.
    pub fn failures(&self) -> &Arc<Failures> {
        self.0.driver.failures()
    }

    /// Ends what was asked for so far, where the host takes its results. After too little memory
    /// everything that is only kept for speed is given back.
    ///
    /// # Errors
    /// The first failure since this was called last: what was asked for after it was not done, and
    /// results are zeros. A GPU that is lost fails each time.
    pub fn settle(&self) -> Result<(), DeviceError> {
        self.0.driver.catch_up();
        let settled = self.failures().settle();
        if matches!(&settled, Err(error) if error.is_out_of_memory()) {
            self.0.driver.forget();
            lock(&self.0.scratch).forget(&self.0.driver);
            lock(&self.0.lists).forget(&self.0.driver);
            self.release_free_memory();
        }
        settled
    }

    /// Launches nothing as a whole from now on.
    pub fn turn_graphs_off(&self) {
        self.0.driver.turn_off();
    }

    /// Why the driver refused to launch passes as a whole, if it did since this was asked last.
    pub fn take_graphs_refusal(&self) -> Option<String> {
        self.0.driver.take_refusal()
    }

    /// How often a pass, or what is before or behind a number that it waits for, was launched as a
    /// whole.
    pub fn num_replays(&self) -> u64 {
        self.0.driver.num_replays()
    }

    /// What this device is.
    pub fn info(&self) -> &Info {
        self.0.driver.info()
    }

    /// Bytes that can still be taken.
    pub fn free_bytes(&self) -> u64 {
        self.0.driver.free_bytes()
    }

    /// Waits for everything that was asked for.
    pub fn synchronize(&self) {
        self.0.driver.synchronize();
    }

    /// What is asked for next begins when the copies that [`HostBlock::prefetch`] began have ended.
    pub fn await_prefetches(&self) {
        self.0.driver.await_prefetches();
    }

    /// Gives blocks that are kept for reuse back to the driver.
    pub fn release_free_memory(&self) {
        lock(&self.0.pool).release(&self.0.driver);
    }

    /// Takes so much memory for use inside operations, and for lists that a pass reads, once and
    /// for all.
    pub fn reserve(&self, scratch_bytes: usize, list_bytes: usize) {
        self.with(&self.0.scratch, |scratch, driver| scratch.reserve(driver, scratch_bytes));
        self.with(&self.0.lists, |lists, driver| lists.reserve(driver, list_bytes));
    }

    /// Begins an operation: the memory inside the one before may be used again.
    pub fn begin_operation(&self) {
        self.with(&self.0.scratch, Scratch::reset);
    }

    /// Memory for use inside the present operation.
    pub(crate) fn scratch(&self, bytes: usize) -> Address {
        self.with(&self.0.scratch, |scratch, driver| scratch.take(driver, bytes))
    }

    /// The most that an operation has taken inside it so far, in bytes.
    pub fn most_scratch_bytes(&self) -> usize {
        lock(&self.0.scratch).most()
    }

    /// What `take` gets, if need be after blocks that are kept for reuse were given back. Where the
    /// memory is too small all the same, that is a failure, and nothing is done at the address.
    fn with<T, R: Default>(
        &self,
        memory: &Mutex<T>,
        take: impl Fn(&mut T, &Graphs) -> Result<R, DeviceError>,
    ) -> R {
        let mut memory = lock(memory);
        let taken = take(&mut memory, &self.0.driver).or_else(|_| {
            self.release_free_memory();
            take(&mut memory, &self.0.driver)
        });
        taken.unwrap_or_else(|error| {
            self.failures().note(error);
            R::default()
        })
    }

    /// Where numbers from outside are that an operation reads: in memory inside the operation, or
    /// of the pass, where others have brought the same.
    pub(crate) fn upload(&self, words: &[u32]) -> Address {
        if lock(&self.0.lists).is_in_pass() {
            return self.with(&self.0.lists, |lists, driver| lists.address(driver, words));
        }
        let address = self.scratch(4 * words.len());
        // SAFETY: taken just now, as long as the list.
        unsafe { self.0.driver.write(address, &lists::bytes_of(words)) };
        address
    }

    /// The `f32` numbers at `address`, where an operation has put them; none, and a failure, where
    /// the host has no memory for them.
    pub(crate) fn download(&self, address: Address, len: usize) -> Vec<f32> {
        let room = with_room(4 * len).and_then(|bytes| Ok((bytes, with_room(len)?)));
        let (mut bytes, mut numbers) = match room {
            Ok(room) => room,
            Err(error) => {
                self.failures().note(error);
                return Vec::new();
            }
        };
        bytes.resize(4 * len, 0);
        // SAFETY: operations ask for what they have written, in memory that they were given.
        unsafe { self.0.driver.read(address, &mut bytes) };
        numbers.extend(bytes.as_chunks().0.iter().map(|&word| f32::from_le_bytes(word)));
        numbers
    }

    /// Sets every byte to zero.
    pub(crate) fn zero(&self, slice: Slice<'_>) {
        // SAFETY: a slice is inside its memory.
        unsafe { self.0.driver.fill(slice.address(), 0, slice.num_bytes()) };
    }

    /// Runs a kernel. Each `cuda.rs`, which declares the parameters beside its kernels, passes
    /// slices and memory inside the operation.
    pub(crate) fn launch(&self, source: &'static Source, kernel: &str, at: Launch, args: &[Arg]) {
        if !at.grid.contains(&0) {
            let kernel = source.position(kernel);
            // SAFETY: the operations give each kernel the parameters that it declares, over memory
            // that they were given.
            unsafe { self.0.driver.launch(source, kernel, at, args) };
        }
    }

    /// Multiplies matrices.
    pub(crate) fn matmul(&self, matmul: Matmul) {
        if matmul.m > 0 && matmul.n > 0 {
            let matmul = matmul.row_major();
            if !matches!(matmul.operands, Operands::Floats(_)) {
                matmul.check_eight_bits();
            }
            // SAFETY: operations describe matrices inside memory that they were given.
            unsafe { self.0.driver.matmul(&matmul) };
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.scratch.get_mut().unwrap_or_else(PoisonError::into_inner).forget(&self.driver);
        self.lists.get_mut().unwrap_or_else(PoisonError::into_inner).forget(&self.driver);
        self.pool.get_mut().unwrap_or_else(PoisonError::into_inner).release(&self.driver);
    }
}

impl Launch {
    /// One block for each of `blocks`.
    pub(crate) fn blocks(blocks: usize, threads: u32) -> Self {
        Self { grid: [blocks as u32, 1, 1], threads, shared_bytes: 0 }
    }

    /// One block for every 32 columns, whose warps share the rows between them.
    pub(crate) fn columns(n: usize) -> Self {
        Self::blocks(n.div_ceil(32), 1024)
    }

    /// Enough blocks of 256 threads for one thread an element, up to a number that fills any GPU:
    /// kernels walk the rest in strides of the grid.
    pub(crate) fn elements(n: usize) -> Self {
        Self::blocks(n.div_ceil(256).min(1 << 14), 256)
    }
}

/// The value of a kernel's parameter, as it stands in memory.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Arg([u64; 2]);

impl Arg {
    /// Pointers to each, for who reads them.
    fn pointers(args: &[Self]) -> Vec<*mut c_void> {
        args.iter().map(|arg| arg.0.as_ptr().cast_mut().cast()).collect()
    }

    /// A struct of two words.
    pub(crate) fn pair(first: u64, second: u64) -> Self {
        Self([first, second])
    }
}

impl From<u32> for Arg {
    fn from(x: u32) -> Self {
        Self([u64::from(x), 0])
    }
}

impl From<usize> for Arg {
    fn from(x: usize) -> Self {
        Self([x as u64, 0])
    }
}

impl From<u64> for Arg {
    fn from(x: u64) -> Self {
        Self([x, 0])
    }
}

impl From<f32> for Arg {
    fn from(x: f32) -> Self {
        Self([u64::from(x.to_bits()), 0])
    }
}

impl From<Slice<'_>> for Arg {
    /// A pointer, or what a format says.
    fn from(slice: Slice<'_>) -> Self {
        match slice.storage() {
            Storage::Packed(format) => (format.parameter)(&slice),
            Storage::Float(_) => Self([slice.address(), 0]),
        }
    }
}

/// A kernel's parameters.
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
        let address = lock(&gpu.0.pool).take(&gpu.0.driver, len)?;
        // SAFETY: taken just now.
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

    /// The elements at byte `offset`, to write.
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

    /// Copies to the GPU, in the order of what else it is asked for.
    ///
    /// # Panics
    /// If the bytes reach beyond the region; so of the others.
    pub fn write(&self, offset: usize, bytes: &[u8]) {
        self.check(offset, bytes.len());
        // SAFETY: inside the region (checked); its owner keeps blocks that are in use apart.
        unsafe { self.gpu.0.driver.write(self.address + offset as u64, bytes) };
    }

    /// Copies from the GPU; zeros where it failed.
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
        lock(&self.gpu.0.pool).give_back(&self.gpu.0.driver, self.address, self.len);
    }
}

/// Page-locked memory of the host.
pub struct HostBlock {
    gpu: Gpu,
    start: HostAddress,
    len: usize,
}

// SAFETY: memory like a vector's: read by copies, written through `&mut self` only.
unsafe impl Send for HostBlock {}
// SAFETY: as above.
unsafe impl Sync for HostBlock {}

impl HostBlock {
    /// `len` bytes, zeroed.
    ///
    /// # Errors
    /// If the system locks no more memory, or the GPU failed before and [`Gpu::settle`] was not
    /// called since.
    pub fn new(gpu: &Gpu, len: usize) -> Result<Self, DeviceError> {
        let start = gpu.0.driver.alloc_host(len)?;
        // Copies read all of it, gaps between what is written included.
        // SAFETY: taken just now, and nobody else has it.
        unsafe { start.write_bytes(0, len) };
        Ok(Self { gpu: gpu.clone(), start, len })
    }

    /// Writes `bytes` at byte `offset`.
    pub fn write(&mut self, offset: usize, bytes: &[u8]) {
        assert!(offset <= self.len && bytes.len() <= self.len - offset, "outside of a block");
        // SAFETY: inside the memory, and `&mut self` makes this the only access but for prefetches,
        // which do not begin before everything is written.
        unsafe { self.start.add(offset).copy_from(bytes.as_ptr(), bytes.len()) };
    }

    /// Copies everything to the start of `to`, once what was asked for before is done, beside what
    /// is asked for next; nothing is written to the block from then on.
    pub fn prefetch(&self, to: &Region) {
        assert!(self.len <= to.len);
        // SAFETY: the region is long enough, and the block, taken from `alloc_host`, is whole.
        unsafe { self.gpu.0.driver.prefetch(to.address, self.start, self.len) };
    }
}

impl Drop for HostBlock {
    fn drop(&mut self) {
        // SAFETY: from `alloc_host`, and nobody has the block any more.
        unsafe { self.gpu.0.driver.free_host(self.start) };
    }
}
