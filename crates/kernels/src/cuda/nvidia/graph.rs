//! Calls captured as a CUDA graph.

use super::super::driver::{Address, CAPTURING_A_GRAPH, Calls, Driver, Graph};
use super::Nvidia;
use super::results::{allocated, done};
use crate::DeviceError;
use cudarc::driver::result;
use cudarc::driver::sys;
use std::ops::Range;

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
    ///
    /// # Errors
    /// If the driver refused; the stream is as it was then.
    ///
    /// # Safety
    /// As the driver's `graph`.
    pub(super) unsafe fn new(gpu: &Nvidia, calls: &Calls) -> Result<Self, DeviceError> {
        let (context, stream, len) = (gpu.context.handle, gpu.stream, calls.inputs().len());
        // SAFETY: memory that only this graph uses.
        let numbers = unsafe { result::malloc_host(len.max(1), 0) };
        let refused = || DeviceError::out_of_page_locked_memory(len);
        let numbers = allocated(CAPTURING_A_GRAPH, numbers, refused)?.cast::<u8>();
        let untimed = sys::CUevent_flags_enum::CU_EVENT_DISABLE_TIMING;
        // SAFETY: as promised; the numbers are as long as those of the calls.
        let parts = unsafe { Self::capture(gpu, calls, numbers) }.and_then(|graph| {
            Ok((graph, done(CAPTURING_A_GRAPH, result::event::create(untimed))?))
        });
        let (graph, done) = parts.inspect_err(|_| {
            // SAFETY: taken above, and nothing uses it.
            let _ = unsafe { result::free_host(numbers.cast()) };
        })?;
        Ok(Self { graph, numbers, len, done, context, stream })
    }

    /// # Safety
    /// As [`Captured::new`]; `numbers` has room for all of the calls'.
    unsafe fn capture(
        gpu: &Nvidia,
        calls: &Calls,
        numbers: *mut u8,
    ) -> Result<sys::CUgraphExec, DeviceError> {
        // Calls of other threads, such as a checkpoint's, are not to be refused meanwhile.
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream lives as long as the GPU.
        done(CAPTURING_A_GRAPH, unsafe { result::stream::begin_capture(gpu.stream, mode) })?;
        let write = &mut |to: Address, part: Range<usize>| {
            // SAFETY: a part of the memory, which is written before each launch; where it goes is
            // as promised.
            let copied = unsafe {
                let from = std::slice::from_raw_parts(numbers.add(part.start), part.len());
                result::memcpy_htod_async(to, from, gpu.stream)
            };
            done("copying to the device", copied)
        };
        // SAFETY: the calls as promised; the capture was begun above and ends here even where one
        // of them is refused, and the graph is nobody else's.
        unsafe {
            let captured = calls.issue(gpu, write);
            let graph = done(CAPTURING_A_GRAPH, result::stream::end_capture(gpu.stream));
            if let (Err(_), Ok(graph)) = (&captured, &graph) {
                done(CAPTURING_A_GRAPH, result::graph::destroy(*graph))?;
            }
            let graph = captured.and(graph)?;
            let launchable = done(
                CAPTURING_A_GRAPH,
                result::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0)),
            );
            done(CAPTURING_A_GRAPH, result::graph::destroy(graph))?;
            launchable
        }
    }
}

impl Graph for Captured {
    unsafe fn launch(&mut self, _: &dyn Driver, inputs: &[u8]) -> Result<(), DeviceError> {
        assert_eq!(inputs.len(), self.len);
        // SAFETY: all handles live as long as `self`; the memory is as long as the numbers, and the
        // last launch, which read it, is waited for. The calls are as promised.
        let launched = unsafe {
            result::ctx::set_current(self.context)
                .and_then(|()| result::event::synchronize(self.done))
                .map(|()| self.numbers.copy_from(inputs.as_ptr(), self.len))
                .and_then(|()| result::graph::launch(self.graph, self.stream))
                .and_then(|()| result::event::record(self.done, self.stream))
        };
        done("launching a graph", launched)
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
