//! Calls captured as a CUDA graph.

use super::super::driver::{Address, Driver};
use super::super::graphs::{Calls, Graph};
use super::{Nvidia, expect, in_words};
use cudarc::driver::result;
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
    ///
    /// # Errors
    /// In the driver's words; the stream is as it was then.
    pub(super) fn new(gpu: &Nvidia, calls: &Calls) -> Result<Self, String> {
        let (context, stream, len) = (gpu.context, gpu.stream, calls.num_inputs());
        // SAFETY: memory that only this graph uses.
        let numbers = in_words(unsafe { result::malloc_host(len.max(1), 0) })?.cast::<u8>();
        let untimed = sys::CUevent_flags_enum::CU_EVENT_DISABLE_TIMING;
        let parts = Self::capture(gpu, calls, numbers)
            .and_then(|graph| Ok((graph, in_words(result::event::create(untimed))?)));
        let (graph, done) = parts.inspect_err(|_| {
            // SAFETY: taken above, and nothing uses it.
            let _ = unsafe { result::free_host(numbers.cast()) };
        })?;
        Ok(Self { graph, numbers, len, done, context, stream })
    }

    fn capture(gpu: &Nvidia, calls: &Calls, numbers: *mut u8) -> Result<sys::CUgraphExec, String> {
        // Calls of other threads, such as a checkpoint's, are not to be refused meanwhile.
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream lives as long as the GPU.
        in_words(unsafe { result::stream::begin_capture(gpu.stream, mode) })?;
        *gpu.captured.lock().expect("no panic while capturing") = Some(Ok(()));
        calls.issue(gpu, &mut |to: Address, part| {
            // SAFETY: a part of the memory, which is written before each launch; callers write
            // inside memory of the GPU that they were given.
            let copied = unsafe {
                let from = std::slice::from_raw_parts(numbers.add(part.start), part.len());
                result::memcpy_htod_async(to, from, gpu.stream)
            };
            gpu.settle("copying to the device", in_words(copied));
        });
        let captured = gpu.captured.lock().expect("no panic while capturing").take();
        // SAFETY: the capture was begun above, and the graph is nobody else's.
        unsafe {
            let graph = in_words(result::stream::end_capture(gpu.stream))?;
            let launchable = captured.unwrap_or(Ok(())).and_then(|()| {
                in_words(result::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0)))
            });
            in_words(result::graph::destroy(graph))?;
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
