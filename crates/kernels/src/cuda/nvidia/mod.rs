//! CUDA devices, through the driver API. Libraries are loaded at run time, so that one binary works
//! on machines with and without a GPU.

mod blas;
mod compiler;
mod copies;
mod graph;
mod libraries;
mod results;

#[cfg(test)]
pub(super) use compiler::compiled;
#[cfg(test)]
pub(super) use libraries::find_compiler_in as find_compiler;

use super::Arg;
use super::driver::{
    Address, CAPTURING_A_GRAPH, Calls, Driver, Graph, HostAddress, Info, Launch, Matmul, NoGraph,
};
use super::source::Source;
use crate::{DeviceError, lock};
use blas::Blas;
use copies::Copies;
use cudarc::driver::result::{self, DriverError, stream::StreamKind};
use cudarc::driver::sys;
use graph::Captured;
use results::{check, check_alloc, check_load};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::{CString, c_void};
use std::sync::Mutex;

/// Why a CUDA device cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CudaError {
    /// The driver's library is missing.
    #[error("no NVIDIA driver is installed (libcuda was not found)")]
    NoDriver,
    /// Another library is missing.
    #[error(
        "{library} was not found. It comes with the CUDA toolkit 12 or 13; set CUDA_PATH to where \
         that is, or install it with `pip install {package}` and set CUDA_PATH to the folder that \
         holds its `lib`"
    )]
    NoLibrary {
        /// Name of the library.
        library: &'static str,
        /// PyPI package that contains it.
        package: &'static str,
    },
    /// There is no such device.
    #[error("there is no CUDA device {index}; this machine has {found}")]
    NoDevice {
        /// Requested index.
        index: u32,
        /// Number of devices.
        found: u32,
    },
    /// A driver call failed.
    #[error("{doing}: {message}")]
    Driver {
        /// Operation that failed.
        doing: &'static str,
        /// The driver's message.
        message: String,
    },
    /// Memory ran out, or the kernels were not compiled or not loaded.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

/// Number of CUDA devices.
///
/// # Errors
/// If there is no driver, or it cannot start.
pub fn num_devices() -> Result<u32, CudaError> {
    libraries::find_driver()?;
    check_open("starting the NVIDIA driver", result::init())?;
    let count = check_open("counting CUDA devices", result::device::get_count())?;
    Ok(count as u32)
}

fn check_open<T>(doing: &'static str, result: Result<T, DriverError>) -> Result<T, CudaError> {
    check(doing, result).map_err(|error| match error {
        DeviceError::Driver { message, .. } => CudaError::Driver { doing, message },
        other => CudaError::Device(other),
    })
}

pub(super) struct Nvidia {
    info: Info,
    stream: sys::CUstream,
    copies: Copies,
    blas: Mutex<Blas>,
    functions: Mutex<HashMap<&'static str, Vec<Function>>>,
    // Dropped last.
    context: Context,
}

/// The device's primary context, which is shared in the process.
struct Context {
    device: sys::CUdevice,
    handle: sys::CUcontext,
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: retained once.
        let _ = unsafe { result::primary_ctx::release(self.device) };
    }
}

/// Graphs are captured only while at least the device's memory divided by this is free.
const MIN_FREE_DIVISOR: u64 = 16;

/// A kernel, and the dynamic shared memory that it may use so far.
struct Function {
    handle: sys::CUfunction,
    shared_bytes: u32,
}

// SAFETY: the driver's handles may be used from any thread whose current context is set, as every
// method does first.
unsafe impl Send for Nvidia {}
// SAFETY: as above; mutable state is behind mutexes.
unsafe impl Sync for Nvidia {}

impl Nvidia {
    pub(super) fn open(index: u32) -> Result<Self, CudaError> {
        let found = num_devices()?;
        if index >= found {
            return Err(CudaError::NoDevice { index, found });
        }
        libraries::find_compiler_and_blas()?;
        let device = check_open("opening the device", result::device::get(index as i32))?;
        let info = info(device)?;
        // SAFETY: the device is the driver's own.
        let handle =
            check_open("opening the device", unsafe { result::primary_ctx::retain(device) })?;
        let context = Context { device, handle };
        // SAFETY: retained just now.
        check_open("opening the device", unsafe { result::ctx::set_current(handle) })?;
        let stream =
            check_open("making a stream", result::stream::create(StreamKind::NonBlocking))?;
        let copies = Copies::new(stream)?;
        let blas = Mutex::new(Blas::new()?);
        let functions = Mutex::default();
        let new = Self { info, stream, copies, blas, functions, context };
        // Compiles and loads one source now, so that an incompatible compiler or driver fails here
        // and not in the middle of a run.
        let source = &crate::adamw::cuda::SOURCE;
        let functions = new.load(source)?;
        lock(&new.functions).insert(source.name, functions);
        Ok(new)
    }

    /// Makes the context current in this thread.
    fn enter(&self) -> Result<(), DeviceError> {
        // SAFETY: the context is retained as long as `self` lives.
        check("entering the device", unsafe { result::ctx::set_current(self.context.handle) })
    }

    /// The kernels of a source, compiled on first use.
    fn functions<'a>(
        &self,
        all: &'a mut HashMap<&'static str, Vec<Function>>,
        source: &'static Source,
    ) -> Result<&'a mut Vec<Function>, DeviceError> {
        match all.entry(source.name) {
            Entry::Occupied(known) => Ok(known.into_mut()),
            Entry::Vacant(place) => Ok(place.insert(self.load(source)?)),
        }
    }

    fn load(&self, source: &'static Source) -> Result<Vec<Function>, DeviceError> {
        let kernels = source.name;
        let compiled = compiler::compiled(source, self.info.compute_capability)
            .map_err(|message| DeviceError::Compile { kernels, message })?;
        // SAFETY: a cubin that NVRTC made for this device.
        let module = unsafe { result::module::load_data(compiled.cubin.as_ptr().cast()) };
        let loading = "loading the kernels (is NVRTC newer than the driver?)";
        let module = check_load(kernels, loading, module)?;
        let function = |name: &String| {
            let name = CString::new(name.as_str()).expect("names hold no zero");
            // SAFETY: the module was loaded just now, and is never unloaded.
            let handle = unsafe { result::module::get_function(module, name) };
            let handle = check_load(kernels, "loading a kernel", handle)?;
            Ok(Function { handle, shared_bytes: 48 << 10 })
        };
        compiled.names.iter().map(function).collect()
    }
}

fn info(device: sys::CUdevice) -> Result<Info, CudaError> {
    use sys::CUdevice_attribute as Attribute;
    let attribute = |attribute| {
        // SAFETY: the device is the driver's own.
        let value = unsafe { result::device::get_attribute(device, attribute) };
        check_open("asking what the device is", value).map(|value| value as u32)
    };
    // SAFETY: as above.
    let memory = unsafe { result::device::total_mem(device) };
    Ok(Info {
        name: check_open("asking what the device is", result::device::get_name(device))?,
        compute_capability: (
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        memory_bytes: check_open("asking what the device is", memory)? as u64,
        num_multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        shared_bytes: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
        libraries: library_versions(),
    })
}

fn library_versions() -> String {
    let mut driver = 0;
    // SAFETY: writes one number.
    let _ = unsafe { sys::cuDriverGetVersion(&mut driver) };
    // SAFETY: reads a constant of a library that has been found.
    let blas = unsafe { cudarc::cublaslt::sys::cublasLtGetVersion() };
    format!("driver {driver}, {}, cuBLASLt {blas}", compiler::version())
}

impl Driver for Nvidia {
    fn info(&self) -> &Info {
        &self.info
    }

    fn free_bytes(&self) -> u64 {
        let asked = self.enter().map(|()| result::mem_get_info());
        asked.ok().and_then(Result::ok).map_or(0, |(free, _)| free as u64)
    }

    fn alloc(&self, bytes: usize) -> Result<Address, DeviceError> {
        self.enter()?;
        // SAFETY: memory that is only given out as an address.
        let taken = unsafe { result::malloc_sync(bytes.max(1)) };
        let refused = || DeviceError::out_of_gpu_memory(bytes, self.free_bytes());
        check_alloc("allocating memory", taken, refused)
    }

    unsafe fn free(&self, address: Address) -> Result<(), DeviceError> {
        self.enter()?;
        // The driver waits for kernels that use the memory.
        // SAFETY: as promised.
        check("freeing memory", unsafe { result::free_sync(address) })
    }

    unsafe fn write(&self, address: Address, bytes: &[u8]) -> Result<(), DeviceError> {
        self.enter()?;
        // SAFETY: as promised.
        unsafe { self.copies.write(address, bytes) }
    }

    unsafe fn read(&self, address: Address, bytes: &mut [u8]) -> Result<(), DeviceError> {
        self.enter()?;
        // SAFETY: as promised; it is waited for here.
        let copied = unsafe { result::memcpy_dtoh_async(bytes, address, self.stream) };
        check("copying from the device", copied)?;
        self.synchronize()
    }

    unsafe fn fill(&self, address: Address, byte: u8, bytes: usize) -> Result<(), DeviceError> {
        if bytes == 0 {
            return Ok(());
        }
        self.enter()?;
        // SAFETY: as promised.
        let filled = unsafe { result::memset_d8_async(address, byte, bytes, self.stream) };
        check("filling memory", filled)
    }

    unsafe fn launch(
        &self,
        source: &'static Source,
        kernel: usize,
        at: Launch,
        args: &[Arg],
    ) -> Result<(), DeviceError> {
        use sys::CUfunction_attribute as Attribute;
        self.enter()?;
        let mut functions = lock(&self.functions);
        let function = &mut self.functions(&mut functions, source)?[kernel];
        if at.shared_bytes > function.shared_bytes {
            let max_shared = Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            let bytes = at.shared_bytes as i32;
            // SAFETY: the function is loaded.
            let set = unsafe {
                result::function::set_function_attribute(function.handle, max_shared, bytes)
            };
            check("asking for shared memory", set)?;
            function.shared_bytes = at.shared_bytes;
        }
        let [x, y, z] = at.grid;
        // SAFETY: as promised.
        let launched = unsafe {
            let block = (at.threads, 1, 1);
            let shared = at.shared_bytes;
            let args = &mut Arg::pointers(args);
            result::launch_kernel(function.handle, (x, y, z), block, shared, self.stream, args)
        };
        launched.or_else(|error| check(&format!("running {}", source.kernels[kernel]), Err(error)))
    }

    unsafe fn matmul(&self, matmul: &Matmul) -> Result<(), DeviceError> {
        self.enter()?;
        // SAFETY: as promised.
        unsafe { lock(&self.blas).run(matmul, self.stream) }
    }

    unsafe fn graph(&self, calls: &Calls) -> Result<Box<dyn Graph>, NoGraph> {
        self.enter()?;
        let (free, _) = check(CAPTURING_A_GRAPH, result::mem_get_info())?;
        if (free as u64) < self.info.memory_bytes / MIN_FREE_DIVISOR {
            return Err(NoGraph::LittleMemory);
        }
        // SAFETY: as promised.
        Ok(Box::new(unsafe { Captured::new(self, calls)? }))
    }

    fn alloc_host(&self, bytes: usize) -> Result<HostAddress, DeviceError> {
        self.enter()?;
        // SAFETY: memory that is only given out as an address.
        let taken = unsafe { result::malloc_host(bytes.max(1), 0) };
        let refused = || DeviceError::out_of_page_locked_memory(bytes);
        check_alloc("locking memory of the host", taken, refused).map(<*mut c_void>::cast)
    }

    unsafe fn free_host(&self, address: HostAddress) -> Result<(), DeviceError> {
        self.enter()?;
        self.copies.wait();
        // SAFETY: as promised, and no copy reads it any more.
        check("freeing memory of the host", unsafe { result::free_host(address.cast()) })
    }

    unsafe fn prefetch(
        &self,
        to: Address,
        from: HostAddress,
        bytes: usize,
    ) -> Result<(), DeviceError> {
        self.enter()?;
        // SAFETY: as promised.
        unsafe { self.copies.prefetch(to, std::slice::from_raw_parts(from, bytes)) }
    }

    fn await_prefetches(&self) -> Result<(), DeviceError> {
        self.enter()?;
        self.copies.await_prefetches()
    }

    fn synchronize(&self) -> Result<(), DeviceError> {
        self.enter()?;
        // SAFETY: the stream lives as long as `self`.
        check("waiting for the device", unsafe { result::stream::synchronize(self.stream) })
    }
}

impl Drop for Nvidia {
    fn drop(&mut self) {
        // Errors cannot be reported here; the process is ending or has failed already.
        let _ = self.enter();
        self.copies.close();
        // SAFETY: nothing uses the stream any more.
        let _ = unsafe { result::stream::destroy(self.stream) };
    }
}
