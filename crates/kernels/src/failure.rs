//! Failures of a device as values.
//!
//! Operations do not return a `Result`: the first failure is noted, whatever is asked for after it
//! does nothing, and whoever ends a pass is told once ([`Failures::settle`]).

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Why a device could not do what it was asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// Out of memory. What the pass had allocated is released.
    #[error(
        "{memory} ran out{wanted}{}",
        free.map_or(String::new(), |free| format!(", and {free} are free"))
    )]
    OutOfMemory {
        /// Whose memory: "the GPU's memory", "host memory".
        memory: &'static str,
        /// What it was wanted for.
        wanted: Wanted,
        /// Bytes that were free, where that is known.
        free: Option<u64>,
    },
    /// A call of the driver failed.
    #[error(
        "the GPU failed while {doing}: {message}{}",
        if *is_lost { ". This process cannot use the GPU any more" } else { "" }
    )]
    Driver {
        /// What was being done.
        doing: String,
        /// In the driver's words.
        message: String,
        /// Whether every later call fails too, as after an access to memory that is not there.
        is_lost: bool,
    },
    /// Kernels were not compiled, or not loaded.
    #[error("the GPU's kernels `{kernels}` cannot be compiled: {message}")]
    Compile {
        /// Which.
        kernels: &'static str,
        /// In the compiler's words.
        message: String,
    },
}

/// What memory was wanted for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// So many bytes were asked for.
    Bytes(u64),
    /// A driver took memory of its own, which it does not measure, while it did this.
    While(String),
}

impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes(bytes) => write!(f, ": {bytes} bytes were asked for"),
            Self::While(doing) => write!(f, " while {doing}"),
        }
    }
}

/// Host memory that copies to a GPU can be made from beside everything else.
pub const PAGE_LOCKED: &str = "page-locked memory of the host";

const OF_GPU: &str = "the GPU's memory";

impl DeviceError {
    /// `asked` bytes of host memory could not be allocated.
    pub fn out_of_host_memory(asked: usize) -> Self {
        Self::out_of("host memory", asked, None)
    }

    /// `asked` bytes of the host's memory could not be page-locked.
    pub fn out_of_page_locked_memory(asked: usize) -> Self {
        Self::out_of(PAGE_LOCKED, asked, None)
    }

    /// `asked` bytes of a GPU's memory could not be allocated; `free` were free.
    pub(crate) fn out_of_gpu_memory(asked: usize, free: u64) -> Self {
        Self::out_of(OF_GPU, asked, Some(free))
    }

    /// A GPU's memory did not suffice for what its driver takes while it is `doing` something.
    pub(crate) fn out_of_gpu_memory_while(doing: String) -> Self {
        Self::OutOfMemory { memory: OF_GPU, wanted: Wanted::While(doing), free: None }
    }

    fn out_of(memory: &'static str, asked: usize, free: Option<u64>) -> Self {
        Self::OutOfMemory { memory, wanted: Wanted::Bytes(asked as u64), free }
    }

    /// Whether the device is of no use from now on.
    pub fn is_lost(&self) -> bool {
        matches!(self, Self::Driver { is_lost: true, .. })
    }

    /// Whether there was too little memory.
    pub fn is_out_of_memory(&self) -> bool {
        matches!(self, Self::OutOfMemory { .. })
    }
}

/// The first failure of a device that has not been reported yet. One pass at a time per device.
#[derive(Debug, Default)]
pub struct Failures {
    /// Whether `first` holds one: asked before every operation.
    is_failing: AtomicBool,
    first: Mutex<Option<DeviceError>>,
    count: AtomicU64,
}

impl Failures {
    /// Notes a failure, unless there was one before it.
    pub fn note(&self, error: DeviceError) {
        // Held to the end: `settle` on another thread must not come between.
        let mut first = lock(&self.first);
        first.get_or_insert(error);
        self.count.fetch_add(1, Ordering::Relaxed);
        self.is_failing.store(true, Ordering::Release);
    }

    /// Whether what is asked for does nothing at present.
    pub fn is_failing(&self) -> bool {
        self.is_failing.load(Ordering::Acquire)
    }

    /// Ends a pass.
    ///
    /// # Errors
    /// The first failure since this was asked last; of a device that is lost, the same each time.
    pub fn settle(&self) -> Result<(), DeviceError> {
        let mut first = lock(&self.first);
        let Some(error) = first.clone() else { return Ok(()) };
        if !error.is_lost() {
            *first = None;
            self.is_failing.store(false, Ordering::Release);
        }
        Err(error)
    }

    /// Counts calls that were not done and that nobody is told of, as what a pass that panicked had
    /// asked for.
    pub(crate) fn count_dropped(&self) {
        self.count.fetch_add(1, Ordering::Relaxed);
    }

    /// How often something that was asked for was not done. A copy on the device is valid only
    /// while this is unchanged.
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
        let text = "the GPU's memory ran out: 10 bytes were asked for, and 3 are free";
        assert_eq!(error.to_string(), text);
        let text = "host memory ran out: 5 bytes were asked for";
        assert_eq!(DeviceError::out_of_host_memory(5).to_string(), text);
        let error = DeviceError::out_of_gpu_memory_while("launching a graph".to_owned());
        assert_eq!(error.to_string(), "the GPU's memory ran out while launching a graph");
    }
}
