//! Calls captured as a CUDA graph.

use super::super::driver::{Address, CAPTURING_A_GRAPH, Calls, Driver, Graph};
use super::Nvidia;
use super::results::{check, check_alloc};
use crate::DeviceError;
use cudarc::driver::result;
use cudarc::driver::sys;
use std::ops::Range;

pub(super) struct Captured {
    graph: sys::CUgraphExec,
    /// Page-locked memory that its copies read inputs from.
    inputs: *mut u8,
    len: usize,
    /// Marks the end of the last launch.
    finished: sys::CUevent,
    context: sys::CUcontext,
    stream: sys::CUstream,
}

// SAFETY: the driver's handles may be used from any thread whose current context is set.
unsafe impl Send for Captured {}

impl Captured {
    /// Captures `calls`, whose kernels and products have run before, so that nothing has to be
    /// loaded.
    ///
    /// # Errors
    /// If the driver refused; the stream is as it was then.
    ///
    /// # Safety
    /// As the driver's `graph`.
    pub(super) unsafe fn new(gpu: &Nvidia, calls: &Calls) -> Result<Self, DeviceError> {
        let (context, stream, len) = (gpu.context.handle, gpu.stream, calls.inputs().len());
        // SAFETY: memory that only this graph uses.
        let buffer = unsafe { result::malloc_host(len.max(1), 0) };
        let refused = || DeviceError::out_of_page_locked_memory(len);
        let buffer = check_alloc(CAPTURING_A_GRAPH, buffer, refused)?.cast::<u8>();
        let untimed = sys::CUevent_flags_enum::CU_EVENT_DISABLE_TIMING;
        // SAFETY: as promised; the buffer is as long as the calls' inputs.
        let parts = unsafe { Self::capture(gpu, calls, buffer) }.and_then(|graph| {
            Ok((graph, check(CAPTURING_A_GRAPH, result::event::create(untimed))?))
        });
        let (graph, finished) = parts.inspect_err(|_| {
            // SAFETY: allocated above, and unused.
            let _ = unsafe { result::free_host(buffer.cast()) };
        })?;
        Ok(Self { graph, inputs: buffer, len, finished, context, stream })
    }

    /// # Safety
    /// As [`Captured::new`]; `buffer` has room for the calls' inputs.
    unsafe fn capture(
        gpu: &Nvidia,
        calls: &Calls,
        buffer: *mut u8,
    ) -> Result<sys::CUgraphExec, DeviceError> {
        // Other threads, such as a checkpoint's, may call the driver during the capture.
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream lives as long as the GPU.
        check(CAPTURING_A_GRAPH, unsafe { result::stream::begin_capture(gpu.stream, mode) })?;
        let write = &mut |to: Address, part: Range<usize>| {
            // SAFETY: a part of the buffer, which is written before each launch; the destination is
            // as promised.
            let copied = unsafe {
                let from = std::slice::from_raw_parts(buffer.add(part.start), part.len());
                result::memcpy_htod_async(to, from, gpu.stream)
            };
            check("copying to the device", copied)
        };
        // SAFETY: the calls as promised; the capture began above and ends here even if a call
        // fails, and the graph is not shared.
        unsafe {
            let captured = calls.issue(gpu, write);
            let graph = check(CAPTURING_A_GRAPH, result::stream::end_capture(gpu.stream));
            if let (Err(_), Ok(graph)) = (&captured, &graph) {
                check(CAPTURING_A_GRAPH, result::graph::destroy(*graph))?;
            }
            let graph = captured.and(graph)?;
            let launchable = check(
                CAPTURING_A_GRAPH,
                result::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0)),
            );
            check(CAPTURING_A_GRAPH, result::graph::destroy(graph))?;
            launchable
        }
    }
}

impl Graph for Captured {
    unsafe fn launch(&mut self, _: &dyn Driver, inputs: &[u8]) -> Result<(), DeviceError> {
        assert_eq!(inputs.len(), self.len);
        // SAFETY: all handles live as long as `self`; the buffer is as long as the inputs, and the
        // last launch that read it has been waited for. The calls are as promised.
        let launched = unsafe {
            result::ctx::set_current(self.context)
                .and_then(|()| result::event::synchronize(self.finished))
                .map(|()| self.inputs.copy_from(inputs.as_ptr(), self.len))
                .and_then(|()| result::graph::launch(self.graph, self.stream))
                .and_then(|()| result::event::record(self.finished, self.stream))
        };
        check("launching a graph", launched)
    }
}

impl Drop for Captured {
    fn drop(&mut self) {
        // Errors cannot be reported here.
        // SAFETY: created in `new` and released once; the last launch has been waited for.
        unsafe {
            let _ = result::ctx::set_current(self.context);
            let _ = result::event::synchronize(self.finished);
            let _ = result::graph::exec_destroy(self.graph);
            let _ = result::event::destroy(self.finished);
            let _ = result::free_host(self.inputs.cast());
        }
    }
}
