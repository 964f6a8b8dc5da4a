//! Copies to the device, through page-locked memory, so that small ones do not wait for what the
//! device is doing; weights that are fetched ahead have a stream of their own.

use super::super::driver::Address;
use super::results::done;
use super::{CudaError, doing};
use crate::{DeviceError, lock};
use cudarc::driver::result::{self, stream::StreamKind};
use cudarc::driver::sys;
use std::sync::Mutex;

/// Length of the page-locked memory that copies go through: many small ones, or pieces of a large
/// one. From other memory the driver may go on reading after it has returned.
const STAGING_BYTES: usize = 8 << 20;
const PIECE_BYTES: usize = STAGING_BYTES / 2;

pub(super) struct Copies {
    /// The stream that everything else is asked for on.
    main: sys::CUstream,
    /// Prefetches.
    ahead: sys::CUstream,
    /// Marks where `main` was when a prefetch was asked for.
    asked: sys::CUevent,
    /// Marks the end of the prefetches so far.
    fetched: sys::CUevent,
    staging: Mutex<Staging>,
}

/// Used from the front; what was copied from its front is done when the end is reached and waited
/// for.
struct Staging {
    memory: *mut u8,
    used: usize,
}

impl Copies {
    pub(super) fn new(main: sys::CUstream) -> Result<Self, CudaError> {
        let event = || {
            let untimed = sys::CUevent_flags_enum::CU_EVENT_DISABLE_TIMING;
            doing("making an event", result::event::create(untimed))
        };
        let ahead = doing("making a stream", result::stream::create(StreamKind::NonBlocking))?;
        // SAFETY: memory that only this one uses.
        let memory = unsafe { result::malloc_host(STAGING_BYTES, 0) };
        let memory = doing("locking memory of the host", memory)?.cast();
        let staging = Mutex::new(Staging { memory, used: 0 });
        Ok(Self { main, ahead, asked: event()?, fetched: event()?, staging })
    }

    /// Copies in the order of everything else; `bytes` may change once this returns.
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
            done("waiting for the device", waited)?;
            staging.used = 0;
        }
        // SAFETY: inside the memory (checked above), in a part that no copy reads: those before
        // this one end before it, and all of them are over when it is used from the front again.
        let part = unsafe {
            let start = staging.memory.add(staging.used);
            start.copy_from(bytes.as_ptr(), bytes.len());
            std::slice::from_raw_parts(start, bytes.len())
        };
        staging.used += bytes.len();
        // SAFETY: as promised.
        let copied = unsafe { result::memcpy_htod_async(to, part, self.main) };
        done("copying to the device", copied)
    }

    /// Copies from page-locked memory once what was asked for on `main` is done.
    ///
    /// # Safety
    /// As the driver's `prefetch`.
    pub(super) unsafe fn prefetch(&self, to: Address, from: &[u8]) -> Result<(), DeviceError> {
        // SAFETY: streams and events live as long as `self`; the rest as promised.
        let copied = unsafe {
            result::event::record(self.asked, self.main)
                .and_then(|()| wait(self.ahead, self.asked))
                .and_then(|()| result::memcpy_htod_async(to, from, self.ahead))
        };
        done("copying weights to the device", copied)
    }

    /// Lets what is asked for next on `main` begin after the prefetches so far.
    pub(super) fn order_before_next(&self) -> Result<(), DeviceError> {
        // SAFETY: streams and events live as long as `self`.
        let ordered = unsafe {
            result::event::record(self.fetched, self.ahead)
                .and_then(|()| wait(self.main, self.fetched))
        };
        done("waiting for weights", ordered)
    }

    /// Waits for prefetches.
    pub(super) fn wait(&self) {
        // SAFETY: the stream lives as long as `self`. A failure before has been told already.
        let _ = unsafe { result::stream::synchronize(self.ahead) };
    }

    /// Gives everything back that is not memory of the device. Errors have nobody to be told.
    pub(super) fn close(&self) {
        self.wait();
        let staging = lock(&self.staging);
        // SAFETY: made in `new`, given back once, and nothing uses them any more: `main` has been
        // waited for by whoever frees its memory.
        unsafe {
            let _ = result::stream::synchronize(self.main);
            let _ = result::free_host(staging.memory.cast());
            let _ = result::event::destroy(self.asked);
            let _ = result::event::destroy(self.fetched);
            let _ = result::stream::destroy(self.ahead);
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
