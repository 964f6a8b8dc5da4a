//! Failures of a device as values.
//!
//! Operations do not return a `Result`: the first failure is noted, later operations do nothing,
//! and the failure is reported once, at the end of the pass ([`Failures::settle`]).

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Failure of a device.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// Out of memory. The pass's allocations are released.
    #[error(
        "{memory} ran out{wanted}{}",
        free.map_or(String::new(), |free| format!(", and {free} are free"))
    )]
    OutOfMemory {
        /// Kind of memory: "the GPU's memory", "host memory".
        memory: &'static str,
        /// What needed it.
        wanted: Wanted,
        /// Bytes that were free, if known.
        free: Option<u64>,
    },
    /// A driver call failed.
    #[error(
        "the GPU failed while {doing}: {message}{}",
        if *is_lost { ". This process cannot use the GPU any more" } else { "" }
    )]
    Driver {
        /// Operation that failed.
        doing: String,
        /// The driver's message.
        message: String,
        /// Whether every later call fails too, as after an invalid memory access.
        is_lost: bool,
    },
    /// Kernels could not be compiled or loaded.
    #[error("the GPU's kernels `{kernels}` cannot be compiled or loaded: {message}")]
    Compile {
        /// Name of the kernels' source.
        kernels: &'static str,
        /// The compiler's message.
        message: String,
    },
}

/// What memory was needed for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// An allocation of this many bytes.
    Bytes(u64),
    /// The driver's own use during this operation, of unknown size.
    While(String),
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes(bytes) => write!(f, ": {bytes} bytes were requested"),
            Self::While(doing) => write!(f, " while {doing}"),
        }
    }
}

/// Host memory from which copies to a GPU run concurrently.
pub const PAGE_LOCKED: &str = "page-locked host memory";

const GPU_MEMORY: &str = "the GPU's memory";

impl DeviceError {
    /// `asked` bytes of host memory could not be allocated.
    pub fn out_of_host_memory(asked: usize) -> Self {
        Self::out_of("host memory", asked, None)
    }

    /// `asked` bytes of host memory could not be page-locked.
    pub fn out_of_page_locked_memory(asked: usize) -> Self {
        Self::out_of(PAGE_LOCKED, asked, None)
    }

    /// `asked` bytes of a GPU's memory could not be allocated; `free` were free.
    pub(crate) fn out_of_gpu_memory(asked: usize, free: u64) -> Self {
        Self::out_of(GPU_MEMORY, asked, Some(free))
    }

    /// A GPU's memory did not suffice for its driver while it was `doing` something.
    pub(crate) fn out_of_gpu_memory_while(doing: String) -> Self {
        Self::OutOfMemory { memory: GPU_MEMORY, wanted: Wanted::While(doing), free: None }
    }

    fn out_of(memory: &'static str, asked: usize, free: Option<u64>) -> Self {
        Self::OutOfMemory { memory, wanted: Wanted::Bytes(asked as u64), free }
    }

    /// Whether the device cannot be used any more.
    pub fn is_lost(&self) -> bool {
        matches!(self, Self::Driver { is_lost: true, .. })
    }

    /// Whether memory ran out.
    pub fn is_out_of_memory(&self) -> bool {
        matches!(self, Self::OutOfMemory { .. })
    }
}

/// The first failure of a device that has not been reported yet. One pass at a time per device.
#[derive(Debug, Default)]
pub struct Failures {
    /// Whether `first` is set; checked before every operation.
    is_failing: AtomicBool,
    first: Mutex<Option<DeviceError>>,
    count: AtomicU64,
}

impl Failures {
    /// Notes a failure, unless there is an earlier one.
    pub fn note(&self, error: DeviceError) {
        // Locked to the end, so that `settle` on another thread cannot interleave.
        let mut first = lock(&self.first);
        first.get_or_insert(error);
        self.count.fetch_add(1, Ordering::Relaxed);
        self.is_failing.store(true, Ordering::Release);
    }

    /// Whether operations currently do nothing.
    pub fn is_failing(&self) -> bool {
        self.is_failing.load(Ordering::Acquire)
    }

    /// Ends a pass.
    ///
    /// # Errors
    /// The first failure since the last call; for a lost device, the same failure each time.
    pub fn settle(&self) -> Result<(), DeviceError> {
        let mut first = lock(&self.first);
        let Some(error) = first.clone() else { return Ok(()) };
        if !error.is_lost() {
            *first = None;
            self.is_failing.store(false, Ordering::Release);
        }
        Err(error)
    }

    /// Counts calls that were dropped without a report, such as those of a pass that panicked.
    pub(crate) fn count_dropped(&self) {
        self.count.fetch_add(1, Ordering::Relaxed);
    }

    /// Number of times that calls failed or were dropped. A copy on the device is valid only while
    /// this is unchanged.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// The first failure that has not been reported yet.
    pub fn first(&self) -> Option<DeviceError> {
        lock(&self.first).clone()
    }
}

/// The value behind a mutex whose state is whole even if a thread panicked while it held the lock.
pub fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn driver_error(is_lost: bool) -> DeviceError {
        DeviceError::Driver { doing: "copying".to_owned(), message: "no".to_owned(), is_lost }
    }

    #[test]
    fn the_first_failure_is_told_once() {
        let failures = Failures::default();
        assert_eq!(failures.settle(), Ok(()));
        failures.note(DeviceError::out_of_host_memory(7));
        failures.note(driver_error(false));
        assert!(failures.is_failing());
        assert_eq!(failures.settle(), Err(DeviceError::out_of_host_memory(7)));
        assert!(!failures.is_failing());
        assert_eq!(failures.settle(), Ok(()));
    }

    #[test]
    fn a_lost_device_fails_each_time() {
        let failures = Failures::default();
        failures.note(driver_error(true));
        for _ in 0..2 {
            assert_eq!(failures.settle(), Err(driver_error(true)));
            assert!(failures.is_failing());
        }
    }

    #[test]
    fn messages_say_how_much_there_is() {
        let error = DeviceError::out_of_gpu_memory(10, 3);
        let text = "the GPU's memory ran out: 10 bytes were requested, and 3 are free";
        assert_eq!(error.to_string(), text);
        let text = "host memory ran out: 5 bytes were requested";
        assert_eq!(DeviceError::out_of_host_memory(5).to_string(), text);
        let error = DeviceError::out_of_gpu_memory_while("launching a graph".to_owned());
        assert_eq!(error.to_string(), "the GPU's memory ran out while launching a graph");
    }
}
