//! An emulated GPU: its memory is host memory, its kernels are compiled as host C++ with
//! `emulator.h`, its matmuls are plain loops. Everything above the driver runs as on a CUDA device.

use super::driver::{
    Address, Calls, Driver, Fp8, Graph, HostAddress, Info, Launch, Matmul, NoGraph, Operand,
    Operands,
};
use super::source::Source;
use super::{Arg, Faults, Gpu, cache};
use crate::element::{DType, Element, bf16, f16};
use crate::{DeviceError, lock};
use libloading::Library;
use std::alloc::{Layout, alloc, dealloc};
use std::collections::HashMap;
use std::env::consts::ARCH;
use std::ffi::c_void;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, OnceLock};

impl Gpu {
    /// A GPU to test on: the device whose number is in `HONE_TEST_GPU`, or an emulated one. Without
    /// a C++ compiler to emulate one, reports that the test is skipped and returns `None`.
    ///
    /// # Panics
    /// If `HONE_TEST_GPU` is not a number, or that device cannot be opened.
    pub fn for_tests() -> Option<Self> {
        if let Ok(index) = std::env::var("HONE_TEST_GPU") {
            let index = index.parse().expect("HONE_TEST_GPU is the number of a CUDA device");
            return Some(Self::open(index).unwrap_or_else(|error| panic!("{error}")));
        }
        let emulator = Emulator::new();
        if emulator.is_none() {
            crate::testing::skip("there is no C++ compiler to emulate a GPU with");
        }
        Some(Self::of(Box::new(emulator?)))
    }

    /// [`Gpu::for_tests`], if it supports FP8: an emulated GPU, or a real one from compute
    /// capability 8.9 on.
    pub fn for_tests_in_fp8() -> Option<Self> {
        let is_real = std::env::var_os("HONE_TEST_GPU").is_some();
        Self::for_tests().filter(|gpu| !is_real || gpu.info().compute_capability >= (8, 9))
    }

    /// An emulated GPU that fails as `faults` says; `None` without a C++ compiler.
    pub fn for_tests_with(faults: &Faults) -> Option<Self> {
        Some(Self::of(faults.of(Box::new(Emulator::new()?))))
    }
}

/// Kernels keep shared memory in statics, so only one launch may run at a time in a process.
static LAUNCHING: Mutex<()> = Mutex::new(());

type LaunchFn = unsafe extern "C" fn(*const u32, u32, usize, *mut *mut c_void);

pub(super) struct Emulator {
    info: Info,
    compiler: &'static str,
    libraries: Mutex<HashMap<&'static str, Library>>,
    blocks: Mutex<HashMap<Address, Layout>>,
    /// Prefetches that have not been awaited: their data has not arrived.
    pending: Mutex<Vec<Prefetch>>,
}

struct Prefetch {
    to: Address,
    from: Address,
    bytes: usize,
}

impl Emulator {
    /// `None` without a C++ compiler.
    pub(super) fn new() -> Option<Self> {
        static COMPILER: OnceLock<Option<String>> = OnceLock::new();
        let runs = |name: &String| {
            Command::new(name).arg("--version").output().is_ok_and(|out| out.status.success())
        };
        // First the one for this processor, as it may be an emulated one, too.
        let own = format!("{ARCH}-linux-gnu-g++");
        let names = [&own, "c++", "g++", "clang++"];
        let find = || names.into_iter().map(str::to_owned).find(runs);
        let compiler = COMPILER.get_or_init(find).as_deref()?;
        let info = Info {
            name: "emulated GPU".to_owned(),
            compute_capability: (8, 0),
            memory_bytes: 8 << 30,
            num_multiprocessors: 1,
            shared_bytes: Info::shared_bytes_of((8, 0)),
            libraries: "emulated".to_owned(),
        };
        let (libraries, blocks) = (Mutex::default(), Mutex::default());
        Some(Self { info, compiler, libraries, blocks, pending: Mutex::default() })
    }

    /// The launcher of kernel number `kernel`.
    fn function(&self, source: &'static Source, kernel: usize) -> LaunchFn {
        let mut libraries = lock(&self.libraries);
        let library = libraries.entry(source.name).or_insert_with(|| {
            let path = self.compiled(source);
            // SAFETY: compiled from our own source, which runs nothing on load.
            unsafe { Library::new(&path) }
                .unwrap_or_else(|error| panic!("cannot load {}: {error}", path.display()))
        });
        let symbol = format!("hone_launch_{kernel}");
        // SAFETY: `program` defines it with this very type.
        unsafe { *library.get::<LaunchFn>(symbol.as_bytes()).expect("compiled for all kernels") }
    }

    /// The path of the compiled library.
    fn compiled(&self, source: &Source) -> PathBuf {
        let program = program(source);
        // Not in a directory that others can write to, since libraries found there are loaded.
        let path = cache::path(source.name, &program, &format!("{ARCH}.so"))
            .expect("HOME or XDG_CACHE_HOME is set, for compiled kernels");
        if !path.exists() {
            self.compile(source.name, &program, &path);
        }
        path
    }

    fn compile(&self, name: &str, program: &str, path: &Path) {
        let dir = cache::temporary(path);
        std::fs::create_dir_all(&dir).expect("the cache is writable");
        let (text, object) = (dir.join(format!("{name}.cpp")), dir.join(format!("{name}.so")));
        std::fs::write(&text, program).expect("the cache is writable");
        let output = Command::new(self.compiler)
            .args(FLAGS.split(' '))
            .args(["-shared", "-fPIC", "-o"])
            .arg(&object)
            .arg(&text)
            .output()
            .expect("the compiler ran before");
        let messages = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{name} does not compile as C++:\n{messages}");
        std::fs::rename(&object, path).expect("the cache is writable");
        let _ = std::fs::remove_dir_all(&dir);
    }
}

const FLAGS: &str = "-std=c++17 -O2 -fno-strict-aliasing -ffp-contract=off -w";

/// The kernels as host C++, with a launcher for each. The flags are a part, as what was compiled
/// with others is another library.
fn program(source: &Source) -> String {
    let (header, kernels) = (include_str!("emulator.h"), source.program());
    let mut program = format!("// {FLAGS}\n{header}\n{kernels}");
    for (i, kernel) in source.kernels.iter().enumerate() {
        let _ = writeln!(
            program,
            "\nextern \"C\" void hone_launch_{i}(const unsigned* grid, unsigned threads, \
             size_t shared, void** args) {{ \
             emulator::launch(&{kernel}, grid, threads, shared, args); }}"
        );
    }
    program
}

impl Driver for Emulator {
    fn info(&self) -> &Info {
        &self.info
    }

    fn free_bytes(&self) -> u64 {
        self.info.memory_bytes
    }

    fn alloc(&self, bytes: usize) -> Result<Address, DeviceError> {
        let refused = || DeviceError::out_of_gpu_memory(bytes, self.free_bytes());
        let layout = Layout::from_size_align(bytes.max(1), 256).map_err(|_| refused())?;
        // SAFETY: the layout has a size above zero.
        let start = unsafe { alloc(layout) };
        if start.is_null() {
            return Err(refused());
        }
        // Reads of uninitialised memory show up as NaN.
        // SAFETY: allocated just now.
        unsafe { start.write_bytes(0xff, bytes) };
        lock(&self.blocks).insert(start as Address, layout);
        Ok(start as Address)
    }

    unsafe fn free(&self, address: Address) -> Result<(), DeviceError> {
        let layout = lock(&self.blocks).remove(&address).expect("memory is freed once");
        // SAFETY: allocated in `alloc` with this layout, and freed once.
        unsafe { dealloc(address as *mut u8, layout) };
        Ok(())
    }

    unsafe fn write(&self, address: Address, bytes: &[u8]) -> Result<(), DeviceError> {
        // SAFETY: as promised.
        unsafe { (address as *mut u8).copy_from(bytes.as_ptr(), bytes.len()) };
        Ok(())
    }

    unsafe fn read(&self, address: Address, bytes: &mut [u8]) -> Result<(), DeviceError> {
        // SAFETY: as promised.
        unsafe { (address as *const u8).copy_to(bytes.as_mut_ptr(), bytes.len()) };
        Ok(())
    }

    unsafe fn fill(&self, address: Address, byte: u8, bytes: usize) -> Result<(), DeviceError> {
        // SAFETY: as promised.
        unsafe { (address as *mut u8).write_bytes(byte, bytes) };
        Ok(())
    }

    unsafe fn launch(
        &self,
        source: &'static Source,
        kernel: usize,
        at: Launch,
        args: &[Arg],
    ) -> Result<(), DeviceError> {
        assert!(at.shared_bytes <= self.info.shared_bytes, "too much shared memory");
        let mut args = Arg::pointers(args);
        let _one_at_a_time = lock(&LAUNCHING);
        let function = self.function(source, kernel);
        // SAFETY: as promised.
        unsafe {
            function(at.grid.as_ptr(), at.threads, at.shared_bytes as usize, args.as_mut_ptr());
        }
        Ok(())
    }

    unsafe fn matmul(&self, matmul: &Matmul) -> Result<(), DeviceError> {
        let Matmul { m, n, k, operands, a, b, c, d, d_dtype, alpha } = *matmul;
        for i in 0..m {
            for j in 0..n {
                if operands == Operands::Int8 {
                    let product = |p| {
                        let [a, b] = [at(1, a, i, p), at(1, b, p, j)];
                        // SAFETY: as promised.
                        unsafe { i32::from(*(a as *const i8)) * i32::from(*(b as *const i8)) }
                    };
                    // SAFETY: as promised; the result has four bytes per element.
                    unsafe { *(at(4, d, i, j) as *mut i32) = (0..k).map(product).sum() };
                    continue;
                }
                // In f64: cuBLASLt sums in trees, which are much more accurate than a chain in f32.
                let product = |p| {
                    let [a, b] = pair(operands, (a, i, p), (b, p, j));
                    f64::from(a) * f64::from(b)
                };
                let sum = alpha * (0..k).map(product).sum::<f64>() as f32;
                let add = c.map_or(0.0, |c| load(d_dtype, Operand { address: c, ..d }, i, j));
                store(d_dtype, d, (i, j), sum + add);
            }
        }
        Ok(())
    }

    unsafe fn graph(&self, calls: &Calls) -> Result<Box<dyn Graph>, NoGraph> {
        Ok(Box::new(Replay(calls.clone())))
    }

    fn alloc_host(&self, bytes: usize) -> Result<HostAddress, DeviceError> {
        let taken = self.alloc(bytes).map(|address| address as HostAddress);
        taken.map_err(|_| DeviceError::out_of_page_locked_memory(bytes))
    }

    unsafe fn free_host(&self, address: HostAddress) -> Result<(), DeviceError> {
        self.await_prefetches()?;
        // SAFETY: as promised.
        unsafe { self.free(address as Address) }
    }

    unsafe fn prefetch(
        &self,
        to: Address,
        from: HostAddress,
        bytes: usize,
    ) -> Result<(), DeviceError> {
        // Until it is awaited, the destination holds neither the old nor the new data.
        // SAFETY: as promised.
        unsafe { self.fill(to, 0xff, bytes)? };
        lock(&self.pending).push(Prefetch { to, from: from as Address, bytes });
        Ok(())
    }

    fn await_prefetches(&self) -> Result<(), DeviceError> {
        for Prefetch { to, from, bytes } in lock(&self.pending).drain(..) {
            // SAFETY: as callers of `prefetch` promised.
            unsafe { (to as *mut u8).copy_from(from as *const u8, bytes) };
        }
        Ok(())
    }

    fn synchronize(&self) -> Result<(), DeviceError> {
        Ok(())
    }
}

/// The captured calls.
struct Replay(Calls);

impl Graph for Replay {
    unsafe fn launch(&mut self, driver: &dyn Driver, inputs: &[u8]) -> Result<(), DeviceError> {
        // SAFETY: as promised.
        unsafe { self.0.issue_with(driver, inputs) }
    }
}

impl Fp8 {
    /// The value of an encoded number.
    pub(crate) fn to_f32(self, bits: u8) -> f32 {
        match self {
            Fp8::E5m2 => f16::from_bits(u16::from(bits) << 8).to_f32(),
            Fp8::E4m3 => {
                let sign = if bits & 0x80 == 0 { 1.0 } else { -1.0 };
                let (exponent, mantissa) = (i32::from(bits >> 3 & 15), f32::from(bits & 7));
                sign * match (exponent, bits & 7) {
                    (15, 7) => f32::NAN,
                    (0, _) => mantissa * 2f32.powi(-9),
                    _ => (8.0 + mantissa) * 2f32.powi(exponent - 10),
                }
            }
        }
    }
}

/// An element of each operand, given with its row and column.
fn pair(operands: Operands, a: (Operand, usize, usize), b: (Operand, usize, usize)) -> [f32; 2] {
    match operands {
        Operands::Floats(dtype) => [a, b].map(|(x, row, col)| load(dtype, x, row, col)),
        Operands::Int8 => unreachable!("multiplied as integers"),
        Operands::Fp8 { a: kind_a, b: kind_b, scales } => {
            let load = |kind: Fp8, (x, row, col): (Operand, usize, usize), scale: Address| {
                let address = at(1, x, row, col);
                // SAFETY: operations describe matrices, and factors, inside memory that they were
                // given.
                unsafe { kind.to_f32(*(address as *const u8)) * *(scale as *const f32) }
            };
            [load(kind_a, a, scales[0]), load(kind_b, b, scales[1])]
        }
    }
}

/// Address of an element of `size` bytes.
fn at(size: usize, x: Operand, row: usize, col: usize) -> Address {
    x.address + ((row * x.row_stride + col * x.col_stride) * size) as u64
}

fn load(dtype: DType, x: Operand, row: usize, col: usize) -> f32 {
    let address = at(dtype.size(), x, row, col);
    // SAFETY: operations describe matrices inside memory that they were given.
    unsafe {
        match dtype {
            DType::F32 => *(address as *const f32),
            DType::Bf16 => Element::to_f32(*(address as *const bf16)),
            DType::F16 => Element::to_f32(*(address as *const f16)),
        }
    }
}

fn store(dtype: DType, x: Operand, (row, col): (usize, usize), value: f32) {
    let address = at(dtype.size(), x, row, col);
    // SAFETY: operations describe matrices inside memory that they were given.
    unsafe {
        match dtype {
            DType::F32 => *(address as *mut f32) = value,
            DType::Bf16 => *(address as *mut bf16) = Element::from_f32(value),
            DType::F16 => *(address as *mut f16) = Element::from_f32(value),
        }
    }
}
