//! The interface to a GPU: memory, launches, matmuls.
//!
//! Calls execute in order, as on one CUDA stream. A call that fails means a broken driver, a broken
//! kernel, or memory that another process took; [`super::Gpu`] then does nothing more until the
//! failure has been reported.

use super::arg::Arg;
use super::source::Source;
use crate::DeviceError;
pub use crate::element::Address;
use crate::element::DType;
use std::ops::Range;

/// An address in the host's memory.
pub type HostAddress = *mut u8;

/// Launch configuration of a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launch {
    /// Blocks along x, y and z.
    pub grid: [u32; 3],
    /// Threads per block.
    pub threads: u32,
    /// Bytes of dynamic shared memory per block.
    pub shared_bytes: u32,
}

/// A matrix in GPU memory; one of the strides is 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Operand {
    /// Address of element `(0, 0)`.
    pub address: Address,
    /// Distance between rows, in elements.
    pub row_stride: usize,
    /// Distance between columns, in elements.
    pub col_stride: usize,
}

impl Operand {
    /// The transpose, without copying.
    pub fn transposed(self) -> Self {
        Self { row_stride: self.col_stride, col_stride: self.row_stride, ..self }
    }
}

/// FP8 formats (Micikevicius et al., "FP8 Formats for Deep Learning", 2022).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fp8 {
    /// Four bits of exponent, three of mantissa: up to 448, for weights and activations.
    E4m3,
    /// Five bits of exponent, two of mantissa: up to 57,344, for gradients.
    E5m2,
}

/// Types of a matmul's operands.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Operands {
    /// Both `f32`, `bf16` or `f16`.
    Floats(DType),
    /// FP8 with a scale per operand, an `f32` in GPU memory. See `Matmul::check_8bit`.
    Fp8 {
        /// Left operand.
        a: Fp8,
        /// Right operand.
        b: Fp8,
        /// Addresses of the scales.
        scales: [Address; 2],
    },
    /// Signed bytes without scales; the result is in 32-bit integers, in place of `f32`, with
    /// nothing added. See `Matmul::check_8bit`.
    Int8,
}

impl Operands {
    fn swapped(self) -> Self {
        match self {
            Self::Fp8 { a, b, scales: [scale_a, scale_b] } => {
                Self::Fp8 { a: b, b: a, scales: [scale_b, scale_a] }
            }
            same_types => same_types,
        }
    }
}

/// `D = alpha · A[m, k] B[k, n] + C`, accumulated in `f32`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Matmul {
    /// Rows of the result.
    pub m: usize,
    /// Columns of the result.
    pub n: usize,
    /// Length of the contraction.
    pub k: usize,
    /// Types of the operands.
    pub operands: Operands,
    /// Left operand.
    pub a: Operand,
    /// Right operand.
    pub b: Operand,
    /// Added to the product; of the result's type and layout, and possibly the result itself.
    pub c: Option<Address>,
    /// The result.
    pub d: Operand,
    /// Element type of the result.
    pub d_dtype: DType,
    /// Factor of the product.
    pub alpha: f32,
}

impl Matmul {
    /// Checks cuBLASLt's requirements on 8-bit operands: contiguous along the contraction, `n` and
    /// `k` multiples of 16, and everything, including rows of the result, aligned to 16 bytes.
    ///
    /// # Panics
    /// If a requirement is not met.
    pub(crate) fn check_8bit(&self) {
        assert!(self.a.col_stride == 1 && self.b.row_stride == 1 && self.d.col_stride == 1);
        assert!(self.n.is_multiple_of(16) && self.k.is_multiple_of(16));
        let c = self.c.unwrap_or(self.d.address);
        let addresses = [self.a.address, self.b.address, c, self.d.address];
        assert!(addresses.iter().all(|address| address.is_multiple_of(16)));
        let strides =
            [self.a.row_stride, self.b.col_stride, self.d.row_stride * self.d_dtype.size()];
        assert!(strides.iter().all(|stride| stride.is_multiple_of(16)));
        let is_plain = self.c.is_none() && self.alpha == 1.0 && self.d_dtype == DType::F32;
        assert!(self.operands != Operands::Int8 || is_plain);
    }

    /// The same product with a row-major result; the transposed product if necessary.
    pub(crate) fn row_major(self) -> Self {
        if self.d.col_stride == 1 {
            return self;
        }
        let (a, b, d) = (self.b.transposed(), self.a.transposed(), self.d.transposed());
        Self { m: self.n, n: self.m, operands: self.operands.swapped(), a, b, d, ..self }
    }
}

/// Properties of a device.
#[derive(Clone, Debug, PartialEq)]
pub struct Info {
    /// Name that the driver reports.
    pub name: String,
    /// Compute capability: major and minor number.
    pub compute_capability: (u32, u32),
    /// Total memory in bytes.
    pub memory_bytes: u64,
    /// Multiprocessors.
    pub num_multiprocessors: u32,
    /// Maximum shared memory per block in bytes (opt-in).
    pub shared_bytes: u32,
    /// Versions of driver, compiler and cuBLASLt, which determine the order of sums.
    pub libraries: String,
}

impl Info {
    /// [`Info::shared_bytes`] for a compute capability (CUDA C++ Programming Guide, table of
    /// technical specifications), to plan for a GPU that is not present.
    pub fn shared_bytes_of(capability: (u32, u32)) -> u32 {
        let kib = match capability {
            (..=7, _) => 64,
            (8, 0 | 7) => 163,
            (8, _) | (12.., _) => 99,
            (9..=11, _) => 227,
        };
        kib << 10
    }
}

/// Why calls were not captured as a graph.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoGraph {
    /// Graphs use memory that is not in the plan, and what is free is left to others.
    #[error("too little of the GPU's memory is free")]
    LittleMemory,
    /// The driver refused.
    #[error(transparent)]
    Failed(#[from] DeviceError),
}

/// What [`Driver::graph`] does, for messages.
pub(super) const CAPTURING_A_GRAPH: &str = "capturing a graph";

/// One GPU.
pub(crate) trait Driver: Send + Sync {
    fn info(&self) -> &Info;
    /// Bytes of free memory; 0 if unknown.
    fn free_bytes(&self) -> u64;
    /// Allocates memory aligned to 256 bytes.
    fn alloc(&self, bytes: usize) -> Result<Address, DeviceError>;
    /// # Safety
    /// The address came from `alloc` and has not been freed, and no later call uses it.
    unsafe fn free(&self, address: Address) -> Result<(), DeviceError>;
    /// Copies to the device. `bytes` may change once this returns.
    ///
    /// # Safety
    /// The bytes at `address` are inside memory of `alloc` that nothing else uses concurrently.
    unsafe fn write(&self, address: Address, bytes: &[u8]) -> Result<(), DeviceError>;
    /// Copies to the host, after waiting for earlier calls.
    ///
    /// # Safety
    /// The bytes at `address` are inside memory of `alloc`.
    unsafe fn read(&self, address: Address, bytes: &mut [u8]) -> Result<(), DeviceError>;
    /// # Safety
    /// As [`Driver::write`].
    unsafe fn fill(&self, address: Address, byte: u8, bytes: usize) -> Result<(), DeviceError>;
    /// Runs kernel `kernel` of `source`.
    ///
    /// # Safety
    /// `args` are the parameters that the kernel declares; what it accesses through them is inside
    /// memory of `alloc`, and nothing else uses what it writes concurrently.
    unsafe fn launch(
        &self,
        source: &'static Source,
        kernel: usize,
        at: Launch,
        args: &[Arg],
    ) -> Result<(), DeviceError>;
    /// # Safety
    /// The matrices are inside memory of `alloc`, and nothing else uses the result's concurrently.
    unsafe fn matmul(&self, matmul: &Matmul) -> Result<(), DeviceError>;
    /// Captures `calls`, which have been executed before, as a graph.
    ///
    /// # Errors
    /// The reason, if the driver cannot; no call was executed then.
    ///
    /// # Safety
    /// Whenever the graph is launched, each of the calls must be sound.
    unsafe fn graph(&self, _: &Calls) -> Result<Box<dyn Graph>, NoGraph> {
        let doing = CAPTURING_A_GRAPH.to_owned();
        let message = "this device has no graphs".to_owned();
        Err(NoGraph::Failed(DeviceError::Driver { doing, message, is_lost: false }))
    }
    /// Allocates page-locked host memory, from which copies run concurrently.
    fn alloc_host(&self, bytes: usize) -> Result<HostAddress, DeviceError>;
    /// Frees page-locked memory, after waiting for copies from it.
    ///
    /// # Safety
    /// The address came from `alloc_host` and has not been freed.
    unsafe fn free_host(&self, address: HostAddress) -> Result<(), DeviceError>;
    /// Copies `bytes` from page-locked memory, after earlier calls and concurrently with later
    /// ones.
    ///
    /// # Safety
    /// As [`Driver::write`]; `from` is memory of `alloc_host` that is no longer written to.
    unsafe fn prefetch(
        &self,
        to: Address,
        from: HostAddress,
        bytes: usize,
    ) -> Result<(), DeviceError>;
    /// Makes later calls wait for all prefetches.
    fn await_prefetches(&self) -> Result<(), DeviceError>;
    /// Waits for all earlier calls.
    fn synchronize(&self) -> Result<(), DeviceError>;
}

/// A call without a result, which can be deferred.
#[derive(Clone, Debug, PartialEq)]
enum Call {
    /// Copies a part of the inputs to the device.
    Write {
        to: Address,
        input: Range<usize>,
    },
    Fill {
        address: Address,
        byte: u8,
        bytes: usize,
    },
    /// Launches a kernel with a part of the arguments.
    Launch {
        source: &'static Source,
        kernel: usize,
        at: Launch,
        args: Range<usize>,
    },
    Matmul(Matmul),
}

/// Deferred calls in order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Calls {
    calls: Vec<Call>,
    args: Vec<Arg>,
    /// Data that the host passes to the device, of all calls.
    inputs: Vec<u8>,
}

impl Calls {
    pub(super) fn len(&self) -> usize {
        self.calls.len()
    }

    pub(super) fn write(&mut self, to: Address, bytes: &[u8]) {
        let start = self.inputs.len();
        self.inputs.extend_from_slice(bytes);
        self.calls.push(Call::Write { to, input: start..self.inputs.len() });
    }

    pub(super) fn fill(&mut self, address: Address, byte: u8, bytes: usize) {
        self.calls.push(Call::Fill { address, byte, bytes });
    }

    pub(super) fn launch(
        &mut self,
        source: &'static Source,
        kernel: usize,
        at: Launch,
        args: &[Arg],
    ) {
        let start = self.args.len();
        self.args.extend_from_slice(args);
        self.calls.push(Call::Launch { source, kernel, at, args: start..self.args.len() });
    }

    pub(super) fn matmul(&mut self, matmul: &Matmul) {
        self.calls.push(Call::Matmul(*matmul));
    }

    /// Inputs of all calls.
    pub(super) fn inputs(&self) -> &[u8] {
        &self.inputs
    }

    /// Takes the inputs out, leaving the calls.
    pub(super) fn take_inputs(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.inputs)
    }

    /// Whether the calls are equal, apart from the contents of their inputs.
    pub(super) fn are_same(&self, other: &Self) -> bool {
        self.args == other.args && self.calls == other.calls
    }

    /// Executes the calls; `write` copies a part of the inputs.
    ///
    /// # Safety
    /// Each call must be sound now.
    pub(super) unsafe fn issue(
        &self,
        driver: &dyn Driver,
        write: &mut dyn FnMut(Address, Range<usize>) -> Result<(), DeviceError>,
    ) -> Result<(), DeviceError> {
        for call in &self.calls {
            // SAFETY: as promised.
            unsafe {
                match call {
                    Call::Write { to, input } => write(*to, input.clone())?,
                    Call::Fill { address, byte, bytes } => driver.fill(*address, *byte, *bytes)?,
                    Call::Launch { source, kernel, at, args } => {
                        driver.launch(source, *kernel, *at, &self.args[args.clone()])?;
                    }
                    Call::Matmul(matmul) => driver.matmul(matmul)?,
                }
            }
        }
        Ok(())
    }

    /// Executes the calls with other inputs.
    ///
    /// # Safety
    /// As [`Calls::issue`].
    pub(super) unsafe fn issue_with(
        &self,
        driver: &dyn Driver,
        inputs: &[u8],
    ) -> Result<(), DeviceError> {
        // SAFETY: as promised.
        unsafe { self.issue(driver, &mut |to, input| driver.write(to, &inputs[input])) }
    }
}

/// Calls that a driver captured as one.
pub(crate) trait Graph: Send {
    /// Executes all of them with these inputs.
    ///
    /// # Safety
    /// Each call must be sound now.
    unsafe fn launch(&mut self, driver: &dyn Driver, inputs: &[u8]) -> Result<(), DeviceError>;
}
