//! CUDA devices, through the driver's own library. Libraries are looked for at run time, so that
//! one binary serves machines with and without a GPU.

mod blas;
mod compiler;
mod copies;
mod graph;
mod libraries;

#[cfg(test)]
pub(super) use compiler::compiled;
#[cfg(test)]
pub(super) use libraries::find_compiler_in as find_compiler;

use super::Arg;
use super::driver::{Address, Driver, HostAddress, Info, Launch, Matmul, Source};
use super::graphs::{Calls, Graph};
use blas::Blas;
use copies::Copies;
use cudarc::driver::result::{self, DriverError, stream::StreamKind};
use cudarc::driver::sys;
use graph::Captured;
use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::sync::Mutex;

/// Why there is no CUDA device to use.
#[derive(Debug, thiserror::Error)]
pub enum CudaError {
    /// The driver's library is not there.
    #[error("no NVIDIA driver is installed (libcuda was not found)")]
    NoDriver,
    /// Another library is not there.
    #[error(
        "{library} was not found. It comes with the CUDA toolkit 12 or 13; set CUDA_PATH to where \
         that is, or install it with `pip install {package}` and set CUDA_PATH to the folder that \
         holds its `lib`"
    )]
    NoLibrary {
        /// Which.
        library: &'static str,
        /// A package on PyPI that has it.
        package: &'static str,
    },
    /// The driver knows no such device.
    #[error("there is no CUDA device {index}; this machine has {found}")]
    NoDevice {
        /// Asked for.
        index: u32,
        /// How many there are.
        found: u32,
    },
    /// The driver refused.
    #[error("{doing}: {message}")]
    Driver {
        /// What was being done.
        doing: &'static str,
        /// In the driver's words.
        message: String,
    },
}

/// CUDA devices that the driver sees.
///
/// # Errors
/// If there is no driver, or it cannot start.
pub fn num_devices() -> Result<u32, CudaError> {
    libraries::find_driver()?;
    doing("starting the NVIDIA driver", result::init())?;
    let count = doing("counting CUDA devices", result::device::get_count())?;
    Ok(count as u32)
}

fn doing<T>(doing: &'static str, result: Result<T, DriverError>) -> Result<T, CudaError> {
    result.map_err(|error| CudaError::Driver { doing, message: error.to_string() })
}

pub(super) struct Nvidia {
    info: Info,
    context: sys::CUcontext,
    stream: sys::CUstream,
    copies: Copies,
    blas: Mutex<Blas>,
    functions: Mutex<HashMap<&'static str, Vec<Function>>>,
    /// Of the calls that are captured, if some are, what was refused first.
    captured: Mutex<Option<Result<(), String>>>,
}

/// Graphs are made while one of so many parts of the memory is free.
const LEAST_FREE_PART: u64 = 16;

/// A kernel, and the dynamic shared memory that it was allowed so far.
struct Function {
    handle: sys::CUfunction,
    shared_bytes: u32,
}

// SAFETY: handles of the driver may be used from any thread that has the context current, which
// every call here sees to.
unsafe impl Send for Nvidia {}
// SAFETY: as above; what changes is behind mutexes.
unsafe impl Sync for Nvidia {}

impl Nvidia {
    pub(super) fn open(index: u32) -> Result<Self, CudaError> {
        let found = num_devices()?;
        if index >= found {
            return Err(CudaError::NoDevice { index, found });
        }
        libraries::find_compiler_and_blas()?;
        let device = doing("opening the device", result::device::get(index as i32))?;
        let info = info(device)?;
        // SAFETY: the device is the driver's own.
        let context = doing("opening the device", unsafe { result::primary_ctx::retain(device) })?;
        // SAFETY: retained just now.
        doing("opening the device", unsafe { result::ctx::set_current(context) })?;
        let stream = doing("making a stream", result::stream::create(StreamKind::NonBlocking))?;
        let copies = Copies::new(stream)?;
        let blas = Mutex::new(Blas::new()?);
        let (functions, captured) = Default::default();
        let new = Self { info, context, stream, copies, blas, functions, captured };
        // A compiler that does not know this GPU, or whose code this driver does not load, shows
        // here and not in the middle of a run.
        let source = &crate::adamw::cuda::SOURCE;
        let functions = new.load(source)?;
        new.functions.lock().expect("nobody else has it").insert(source.name, functions);
        Ok(new)
    }

    /// Contexts belong to threads.
    fn enter(&self) {
        // SAFETY: the context is retained as long as `self` lives.
        expect("entering the device", unsafe { result::ctx::set_current(self.context) });
    }

    /// What became of a call: one that is refused while calls are captured has not been asked for,
    /// and any other means that the run cannot go on.
    fn settle(&self, doing: &str, result: Result<(), String>) {
        let Err(message) = result else { return };
        match &mut *self.captured.lock().expect("no panic while capturing") {
            Some(captured) => *captured = std::mem::replace(captured, Ok(())).and(Err(message)),
            None => panic!("the GPU failed while {doing}: {message}"),
        }
    }

    fn load(&self, source: &'static Source) -> Result<Vec<Function>, CudaError> {
        let compiled = compiler::compiled(source, self.info.compute_capability)
            .map_err(|message| CudaError::Driver { doing: "compiling kernels", message })?;
        // SAFETY: a cubin that NVRTC made for this device.
        let module = unsafe { result::module::load_data(compiled.cubin.as_ptr().cast()) };
        let module = doing("loading kernels (is NVRTC newer than the driver?)", module)?;
        let function = |name: &String| {
            let name = CString::new(name.as_str()).expect("names hold no zero");
            // SAFETY: the module was loaded just now, and is never unloaded.
            let handle = unsafe { result::module::get_function(module, name) };
            let handle = doing("loading a kernel", handle)?;
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
        doing("asking what the device is", value).map(|value| value as u32)
    };
    // SAFETY: as above.
    let memory = unsafe { result::device::total_mem(device) };
    Ok(Info {
        name: doing("asking what the device is", result::device::get_name(device))?,
        compute_capability: (
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        memory_bytes: doing("asking what the device is", memory)? as u64,
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

fn in_words<T>(result: Result<T, DriverError>) -> Result<T, String> {
    result.map_err(|error| error.to_string())
}

/// The value, or a panic with the driver's words.
fn expect<T>(doing: &str, result: Result<T, DriverError>) -> T {
    result.unwrap_or_else(|error| panic!("the GPU failed while {doing}: {error}"))
}

impl Driver for Nvidia {
    fn info(&self) -> &Info {
        &self.info
    }

    fn free_bytes(&self) -> u64 {
        self.enter();
        expect("asking for free memory", result::mem_get_info()).0 as u64
    }

    fn alloc(&self, bytes: usize) -> Option<Address> {
        self.enter();
        // SAFETY: memory that is only given out as an address.
        match unsafe { result::malloc_sync(bytes.max(1)) } {
            Ok(address) => Some(address),
            Err(DriverError(sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => None,
            Err(error) => expect("allocating memory", Err(error)),
        }
    }

    fn free(&self, address: Address) {
        self.enter();
        // The driver waits for kernels that use the memory.
        // SAFETY: given out by `alloc`, and freed once.
        let freed = unsafe { result::free_sync(address) };
        // After another failure this one is only an echo, and a second panic would abort.
        if !std::thread::panicking() {
            expect("freeing memory", freed);
        }
    }

    fn write(&self, address: Address, bytes: &[u8]) {
        self.enter();
        self.copies.write(address, bytes);
    }

    fn read(&self, address: Address, bytes: &mut [u8]) {
        self.enter();
        // SAFETY: callers read inside memory that they were given, and wait here.
        let done = unsafe { result::memcpy_dtoh_async(bytes, address, self.stream) };
        expect("copying from the device", done);
        self.synchronize();
    }

    fn fill(&self, address: Address, byte: u8, bytes: usize) {
        if bytes == 0 {
            return;
        }
        self.enter();
        // SAFETY: callers write inside memory that they were given.
        let done = unsafe { result::memset_d8_async(address, byte, bytes, self.stream) };
        self.settle("filling memory", in_words(done));
    }

    fn launch(&self, source: &'static Source, kernel: usize, at: Launch, args: &[Arg]) {
        use sys::CUfunction_attribute as Attribute;
        self.enter();
        let mut functions = self.functions.lock().expect("no panic while launching");
        let functions = functions.entry(source.name).or_insert_with(|| {
            self.load(source).unwrap_or_else(|error| panic!("{}: {error}", source.name))
        });
        let function = &mut functions[kernel];
        if at.shared_bytes > function.shared_bytes {
            let most = Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            let bytes = at.shared_bytes as i32;
            // SAFETY: the function is loaded.
            let done =
                unsafe { result::function::set_function_attribute(function.handle, most, bytes) };
            expect("asking for shared memory", done);
            function.shared_bytes = at.shared_bytes;
        }
        let [x, y, z] = at.grid;
        // SAFETY: the operations give each kernel the parameters that it declares.
        let done = unsafe {
            let block = (at.threads, 1, 1);
            let shared = at.shared_bytes;
            let args = &mut Arg::pointers(args);
            result::launch_kernel(function.handle, (x, y, z), block, shared, self.stream, args)
        };
        self.settle(source.kernels[kernel], in_words(done));
    }

    fn matmul(&self, matmul: &Matmul) {
        self.enter();
        let mut blas = self.blas.lock().expect("no panic while multiplying");
        self.settle("multiplying", blas.run(matmul, self.stream));
    }

    fn graph(&self, calls: &Calls) -> Result<Box<dyn Graph>, String> {
        // A graph takes memory that is in no plan.
        if self.free_bytes() < self.info.memory_bytes / LEAST_FREE_PART {
            return Err("too little of the GPU's memory is free".to_owned());
        }
        Ok(Box::new(Captured::new(self, calls)?))
    }

    fn alloc_host(&self, bytes: usize) -> Option<HostAddress> {
        self.enter();
        // SAFETY: memory that is only given out as an address.
        unsafe { result::malloc_host(bytes.max(1), 0) }.ok().map(<*mut c_void>::cast)
    }

    fn free_host(&self, address: HostAddress) {
        self.enter();
        self.copies.wait();
        // SAFETY: given out by `alloc_host`, freed once, and no copy reads it any more.
        let freed = unsafe { result::free_host(address.cast()) };
        if !std::thread::panicking() {
            expect("freeing memory of the host", freed);
        }
    }

    fn prefetch(&self, to: Address, from: HostAddress, bytes: usize) {
        self.enter();
        // SAFETY: callers copy between memory that they were given, and wrote before.
        let from = unsafe { std::slice::from_raw_parts(from, bytes) };
        self.copies.prefetch(to, from);
    }

    fn await_prefetches(&self) {
        self.enter();
        self.copies.order_before_next();
    }

    fn synchronize(&self) {
        self.enter();
        // SAFETY: the stream lives as long as `self`.
        expect("waiting for the device", unsafe { result::stream::synchronize(self.stream) });
    }
}

impl Drop for Nvidia {
    fn drop(&mut self) {
        self.copies.close();
        // Errors here have nobody to be told: the process is about to end, or has failed already.
        // SAFETY: nothing uses the stream any more.
        let _ = unsafe { result::stream::destroy(self.stream) };
    }
}
