//! Calls captured as a CUDA graph.

use super::super::driver::{Address, Driver};
use super::super::graphs::{Calls, Graph};
use super::{Nvidia, expect};
use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys;

pub(super) struct Captured {
    graph: sys::CUgraphExec,
    /// Page-locked memory that its copies read numbers from.
    numbers: *mut u8,
    len: usize,
    /// Marks the end of the last launch.
    done: sys::CUevent,
    context: sys::CUcontext,
    stream: sys::CUstream,
}

// SAFETY: handles of the driver may be used from any thread that has the context current.
unsafe impl Send for Captured {}

impl Captured {
    /// `calls`, whose kernels and products have run before, so that nothing is loaded meanwhile.
    pub(super) fn new(gpu: &Nvidia, calls: &Calls) -> Result<Self, DriverError> {
        let (context, stream, len) = (gpu.context, gpu.stream, calls.inputs().len());
        // SAFETY: memory that only this graph uses.
        let numbers = unsafe { result::malloc_host(len.max(1), 0) }?.cast::<u8>();
        let graph = Self::capture(gpu, calls, numbers);
        let untimed = sys::CUevent_flags_enum::CU_EVENT_DISABLE_TIMING;
        let parts = graph.and_then(|graph| Ok((graph, result::event::create(untimed)?)));
        match parts {
            Ok((graph, done)) => Ok(Self { graph, numbers, len, done, context, stream }),
            Err(error) => {
                // SAFETY: taken above, and nothing uses it.
                unsafe { result::free_host(numbers.cast()) }?;
                Err(error)
            }
        }
    }

    fn capture(
        gpu: &Nvidia,
        calls: &Calls,
        numbers: *mut u8,
    ) -> Result<sys::CUgraphExec, DriverError> {
        // Calls of other threads, such as a checkpoint's, are not to be refused meanwhile.
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream lives as long as the GPU.
        unsafe { result::stream::begin_capture(gpu.stream, mode) }?;
        let mut copied = Ok(());
        calls.issue(gpu, &mut |to: Address, part| {
            // SAFETY: a part of the memory, which is written before each launch; callers write
            // inside memory of the GPU that they were given.
            let copy = unsafe {
                let from = std::slice::from_raw_parts(numbers.add(part.start), part.len());
                result::memcpy_htod_async(to, from, gpu.stream)
            };
            copied = copied.and(copy);
        });
        // SAFETY: the capture was begun above, and the graph is nobody else's.
        unsafe {
            let graph = result::stream::end_capture(gpu.stream)?;
            let launchable = copied
                .and_then(|()| result::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0)));
            result::graph::destroy(graph)?;
            launchable
        }
    }
}

impl Graph for Captured {
    fn launch(&mut self, _: &dyn Driver, inputs: &[u8]) {
        assert_eq!(inputs.len(), self.len);
        // SAFETY: all handles live as long as `self`; the memory is as long as the numbers, and the
        // last launch, which read it, is waited for.
        let done = unsafe {
            result::ctx::set_current(self.context)
                .and_then(|()| result::event::synchronize(self.done))
                .map(|()| self.numbers.copy_from(inputs.as_ptr(), self.len))
                .and_then(|()| result::graph::launch(self.graph, self.stream))
                .and_then(|()| result::event::record(self.done, self.stream))
        };
        expect("launching a graph", done);
    }
}

impl Drop for Captured {
    fn drop(&mut self) {
        // Errors here have nobody to be told.
        // SAFETY: made in `new` and given back once; the last launch is waited for.
        unsafe {
            let _ = result::ctx::set_current(self.context);
            let _ = result::event::synchronize(self.done);
            let _ = result::graph::exec_destroy(self.graph);
            let _ = result::event::destroy(self.done);
            let _ = result::free_host(self.numbers.cast());
        }
    }
}
