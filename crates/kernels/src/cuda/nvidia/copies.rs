//! Copies to the device, staged in page-locked memory, so that small ones do not wait for the
//! device; prefetches have a stream of their own.

use super::super::driver::Address;
use super::results::{check, check_alloc};
use super::{CudaError, check_open};
use crate::{DeviceError, lock};
use cudarc::driver::result::{self, stream::StreamKind};
use cudarc::driver::sys;
use std::sync::Mutex;

/// Size of the page-locked staging buffer, for many small copies or pieces of a large one. The
/// driver may read pageable memory even after a call has returned.
const STAGING_BYTES: usize = 8 << 20;
const PIECE_BYTES: usize = STAGING_BYTES / 2;

pub(super) struct Copies {
    /// The stream of everything else.
    main: sys::CUstream,
    /// The stream of prefetches.
    prefetch: sys::CUstream,
    /// Marks the position of `main` at the start of a prefetch.
    started: sys::CUevent,
    /// Marks the end of the prefetches so far.
    fetched: sys::CUevent,
    staging: Mutex<Staging>,
}

/// The staging buffer, filled from the front. When it is full, all copies from it are waited for.
struct Staging {
    memory: *mut u8,
    used: usize,
}

impl Copies {
    pub(super) fn new(main: sys::CUstream) -> Result<Self, CudaError> {
        let event = || {
            let untimed = sys::CUevent_flags_enum::CU_EVENT_DISABLE_TIMING;
            check_open("making an event", result::event::create(untimed))
        };
        let prefetch =
            check_open("making a stream", result::stream::create(StreamKind::NonBlocking))?;
        // SAFETY: memory that nothing else uses.
        let memory = unsafe { result::malloc_host(STAGING_BYTES, 0) };
        let refused = || DeviceError::out_of_page_locked_memory(STAGING_BYTES);
        let memory = check_alloc("locking memory of the host", memory, refused)?.cast();
        let staging = Mutex::new(Staging { memory, used: 0 });
        Ok(Self { main, prefetch, started: event()?, fetched: event()?, staging })
    }

    /// Copies in order with everything else; `bytes` may change once this returns.
    ///
    /// # Safety
    /// As the driver's `write`.
    pub(super) unsafe fn write(&self, to: Address, bytes: &[u8]) -> Result<(), DeviceError> {
        let mut staging = lock(&self.staging);
        for (i, piece) in bytes.chunks(PIECE_BYTES).enumerate() {
            // SAFETY: a part of what was promised.
            unsafe { self.write_piece(&mut staging, to + (i * PIECE_BYTES) as u64, piece)? };
        }
        Ok(())
    }

    /// # Safety
    /// As [`Copies::write`].
    unsafe fn write_piece(
        &self,
        staging: &mut Staging,
        to: Address,
        bytes: &[u8],
    ) -> Result<(), DeviceError> {
        if staging.used + bytes.len() > STAGING_BYTES {
            // SAFETY: the stream lives as long as the device.
            let waited = unsafe { result::stream::synchronize(self.main) };
            check("waiting for the device", waited)?;
            staging.used = 0;
        }
        // SAFETY: inside the buffer (checked above), in a part that no copy reads: earlier copies
        // read earlier parts, and all of them have finished when the buffer is reused.
        let part = unsafe {
            let start = staging.memory.add(staging.used);
            start.copy_from(bytes.as_ptr(), bytes.len());
            std::slice::from_raw_parts(start, bytes.len())
        };
        staging.used += bytes.len();
        // SAFETY: as promised.
        let copied = unsafe { result::memcpy_htod_async(to, part, self.main) };
        check("copying to the device", copied)
    }

    /// Copies from page-locked memory, after earlier calls on `main`.
    ///
    /// # Safety
    /// As the driver's `prefetch`.
    pub(super) unsafe fn prefetch(&self, to: Address, from: &[u8]) -> Result<(), DeviceError> {
        // SAFETY: streams and events live as long as `self`; the rest as promised.
        let copied = unsafe {
            result::event::record(self.started, self.main)
                .and_then(|()| wait(self.prefetch, self.started))
                .and_then(|()| result::memcpy_htod_async(to, from, self.prefetch))
        };
        check("copying weights to the device", copied)
    }

    /// Makes later calls on `main` wait for the prefetches so far.
    pub(super) fn await_prefetches(&self) -> Result<(), DeviceError> {
        // SAFETY: streams and events live as long as `self`.
        let ordered = unsafe {
            result::event::record(self.fetched, self.prefetch)
                .and_then(|()| wait(self.main, self.fetched))
        };
        check("waiting for weights", ordered)
    }

    /// Waits for prefetches.
    pub(super) fn wait(&self) {
        // SAFETY: the stream lives as long as `self`. Failures have been reported already.
        let _ = unsafe { result::stream::synchronize(self.prefetch) };
    }

    /// Releases everything but device memory. Errors cannot be reported here.
    pub(super) fn close(&self) {
        self.wait();
        let staging = lock(&self.staging);
        // SAFETY: created in `new`, released once, and no longer in use, since `main` is waited
        // for.
        unsafe {
            let _ = result::stream::synchronize(self.main);
            let _ = result::free_host(staging.memory.cast());
            let _ = result::event::destroy(self.started);
            let _ = result::event::destroy(self.fetched);
            let _ = result::stream::destroy(self.prefetch);
        }
    }
}

/// # Safety
/// Both must be alive.
unsafe fn wait(stream: sys::CUstream, event: sys::CUevent) -> Result<(), result::DriverError> {
    let flags = sys::CUevent_wait_flags_enum::CU_EVENT_WAIT_DEFAULT;
    // SAFETY: as promised.
    unsafe { result::stream::wait_event(stream, event, flags) }
}
