//! Fault injection: a GPU that fails when a test says so.

use super::Arg;
use super::driver::{
    Address, CAPTURING_A_GRAPH, Calls, Driver, Graph, HostAddress, Info, Launch, Matmul, NoGraph,
};
use super::source::Source;
use crate::{DeviceError, lock};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// How a GPU fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Every call fails for lack of memory, except those that free it.
    OutOfMemory,
    /// Every call fails, except those that free memory.
    Driver,
    /// Like [`Fault::Driver`], and the GPU is lost for good.
    Lost,
}

/// When and how a GPU fails. Clones share their state.
#[derive(Clone, Debug, Default)]
pub struct Faults(Arc<State>);

#[derive(Debug, Default)]
struct State {
    /// Calls so far.
    calls: AtomicU64,
    /// Number of the first call that fails, and how.
    first: Mutex<Option<(u64, Fault)>>,
}

impl Faults {
    /// Makes calls fail from the `nth` from now on (1: the next), until [`Faults::stop`].
    pub fn start(&self, nth: u64, fault: Fault) {
        *lock(&self.0.first) = Some((self.num_calls() + nth, fault));
    }

    /// Makes no more calls fail.
    pub fn stop(&self) {
        *lock(&self.0.first) = None;
    }

    /// Number of calls so far that could have failed.
    pub fn num_calls(&self) -> u64 {
        self.0.calls.load(Ordering::SeqCst)
    }

    /// Wraps `driver` with these faults.
    pub(super) fn of(&self, driver: Box<dyn Driver>) -> Box<dyn Driver> {
        Box::new(Faulty { faults: self.clone(), driver })
    }

    /// Counts a call, and fails if it is due.
    fn check(&self, doing: &str) -> Result<(), DeviceError> {
        self.check_alloc(doing, || DeviceError::out_of_gpu_memory_while(doing.to_owned()))
    }

    /// [`Faults::check`] of an allocation; `refused` is the error if there is no memory.
    fn check_alloc(
        &self,
        doing: &str,
        refused: impl FnOnce() -> DeviceError,
    ) -> Result<(), DeviceError> {
        let number = self.0.calls.fetch_add(1, Ordering::SeqCst) + 1;
        let fault = lock(&self.0.first).filter(|(first, _)| number >= *first);
        match fault.map(|(_, fault)| fault) {
            None => Ok(()),
            Some(Fault::OutOfMemory) => Err(refused()),
            Some(fault @ (Fault::Driver | Fault::Lost)) => Err(DeviceError::Driver {
                doing: doing.to_owned(),
                message: "injected by a test".to_owned(),
                is_lost: fault == Fault::Lost,
            }),
        }
    }
}

struct Faulty {
    faults: Faults,
    driver: Box<dyn Driver>,
}

// SAFETY (of all methods): callers give the same promises as to the driver.
impl Driver for Faulty {
    fn info(&self) -> &Info {
        self.driver.info()
    }

    fn free_bytes(&self) -> u64 {
        self.driver.free_bytes()
    }

    fn alloc(&self, bytes: usize) -> Result<Address, DeviceError> {
        let refused = || DeviceError::out_of_gpu_memory(bytes, 0);
        self.faults.check_alloc("allocating memory", refused)?;
        self.driver.alloc(bytes)
    }

    unsafe fn free(&self, address: Address) -> Result<(), DeviceError> {
        // SAFETY: as promised.
        unsafe { self.driver.free(address) }
    }

    unsafe fn write(&self, address: Address, bytes: &[u8]) -> Result<(), DeviceError> {
        self.faults.check("copying to the device")?;
        // SAFETY: as promised.
        unsafe { self.driver.write(address, bytes) }
    }

    unsafe fn read(&self, address: Address, bytes: &mut [u8]) -> Result<(), DeviceError> {
        self.faults.check("copying from the device")?;
        // SAFETY: as promised.
        unsafe { self.driver.read(address, bytes) }
    }

    unsafe fn fill(&self, address: Address, byte: u8, bytes: usize) -> Result<(), DeviceError> {
        self.faults.check("filling memory")?;
        // SAFETY: as promised.
        unsafe { self.driver.fill(address, byte, bytes) }
    }

    unsafe fn launch(
        &self,
        source: &'static Source,
        kernel: usize,
        at: Launch,
        args: &[Arg],
    ) -> Result<(), DeviceError> {
        self.faults.check(&format!("running {}", source.kernels[kernel]))?;
        // SAFETY: as promised.
        unsafe { self.driver.launch(source, kernel, at, args) }
    }

    unsafe fn matmul(&self, matmul: &Matmul) -> Result<(), DeviceError> {
        self.faults.check("multiplying")?;
        // SAFETY: as promised.
        unsafe { self.driver.matmul(matmul) }
    }

    unsafe fn graph(&self, calls: &Calls) -> Result<Box<dyn Graph>, NoGraph> {
        self.faults.check(CAPTURING_A_GRAPH)?;
        // SAFETY: as promised.
        unsafe { self.driver.graph(calls) }
    }

    fn alloc_host(&self, bytes: usize) -> Result<HostAddress, DeviceError> {
        let refused = || DeviceError::out_of_page_locked_memory(bytes);
        self.faults.check_alloc("locking memory of the host", refused)?;
        self.driver.alloc_host(bytes)
    }

    unsafe fn free_host(&self, address: HostAddress) -> Result<(), DeviceError> {
        // SAFETY: as promised.
        unsafe { self.driver.free_host(address) }
    }

    unsafe fn prefetch(
        &self,
        to: Address,
        from: HostAddress,
        bytes: usize,
    ) -> Result<(), DeviceError> {
        self.faults.check("copying weights to the device")?;
        // SAFETY: as promised.
        unsafe { self.driver.prefetch(to, from, bytes) }
    }

    fn await_prefetches(&self) -> Result<(), DeviceError> {
        // Waits in any case, since memory is freed afterwards.
        let checked = self.faults.check("waiting for weights");
        self.driver.await_prefetches().and(checked)
    }

    fn synchronize(&self) -> Result<(), DeviceError> {
        self.faults.check("waiting for the device")?;
        self.driver.synchronize()
    }
}
