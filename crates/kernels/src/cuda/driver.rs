//! What a GPU is asked to do: memory, launches, matrix products.
//!
//! Everything is ordered as it is asked for, as on one CUDA stream. A call that fails means a
//! broken driver, a broken kernel, or memory that another process took: what [`super::Gpu`] asks
//! for after it does nothing until the failure was told.

use super::Arg;
use super::graphs::{Calls, Graph};
use crate::DeviceError;
pub use crate::element::Address;
use crate::element::DType;

/// An address in the host's memory.
pub type HostAddress = *mut u8;

/// Kernels of one operation, compiled together.
#[derive(Debug)]
pub struct Source {
    /// For messages and the cache of compiled kernels.
    pub name: &'static str,
    /// Texts, compiled one after another behind `prelude.cuh`.
    pub texts: &'static [&'static str],
    /// Name expressions of everything that is launched: `rms_norm_forward<bf16>`.
    pub kernels: &'static [&'static str],
}

impl PartialEq for Source {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self, other)
    }
}

impl Source {
    /// The whole program.
    pub(crate) fn program(&self) -> String {
        let mut program = include_str!("prelude.cuh").to_owned();
        self.texts.iter().for_each(|text| program.push_str(text));
        program
    }

    /// Where a kernel stands in [`Source::kernels`].
    ///
    /// # Panics
    /// If it is not listed there.
    pub(crate) fn position(&self, kernel: &str) -> usize {
        let position = self.kernels.iter().position(|&name| name == kernel);
        position.unwrap_or_else(|| panic!("{} has no kernel {kernel}", self.name))
    }
}

/// How many threads run a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launch {
    /// Blocks along x, y and z.
    pub grid: [u32; 3],
    /// Threads of a block.
    pub threads: u32,
    /// Bytes of dynamic shared memory of a block.
    pub shared_bytes: u32,
}

/// A matrix in a GPU's memory; one of the strides is 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Operand {
    /// Of element `(0, 0)`.
    pub address: Address,
    /// Distance between rows, in elements.
    pub row_stride: usize,
    /// Distance between columns, in elements.
    pub col_stride: usize,
}

impl Operand {
    /// The same elements with rows and columns exchanged.
    pub fn transposed(self) -> Self {
        Self { row_stride: self.col_stride, col_stride: self.row_stride, ..self }
    }
}

/// Numbers of eight bits (Micikevicius et al., "FP8 Formats for Deep Learning", 2022).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fp8 {
    /// Four bits of exponent, three of mantissa: up to 448, for weights and activations.
    E4m3,
    /// Five bits of exponent, two of mantissa: up to 57,344, for gradients.
    E5m2,
}

/// What the operands of a product are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Operands {
    /// Both `f32`, `bf16` or `f16`.
    Floats(DType),
    /// Each times a factor, an `f32` in the GPU's memory. See `Matmul::check_eight_bits`.
    Fp8 {
        /// Left operand.
        a: Fp8,
        /// Right operand.
        b: Fp8,
        /// Where the factors are.
        scales: [Address; 2],
    },
    /// Both signed bytes, without a factor and with nothing added. Sums are integers of 32 bits,
    /// and so is the result, in place of `f32`. See `Matmul::check_eight_bits`.
    Int8,
}

impl Operands {
    fn exchanged(self) -> Self {
        match self {
            Self::Fp8 { a, b, scales: [of_a, of_b] } => {
                Self::Fp8 { a: b, b: a, scales: [of_b, of_a] }
            }
            floats => floats,
        }
    }
}

/// `D = alpha · A[m, k] B[k, n] + C`, sums in `f32`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Matmul {
    /// Rows of the result.
    pub m: usize,
    /// Columns of the result.
    pub n: usize,
    /// Length of the contraction.
    pub k: usize,
    /// What the operands are.
    pub operands: Operands,
    /// Left operand.
    pub a: Operand,
    /// Right operand.
    pub b: Operand,
    /// What is added, of the result's type and laid out like it; may be the result itself.
    pub c: Option<Address>,
    /// The result.
    pub d: Operand,
    /// Element type of the result.
    pub d_dtype: DType,
    /// Factor of the product.
    pub alpha: f32,
}

impl Matmul {
    /// What cuBLASLt asks of products in eight bits: contractions along neighbours, `n` and `k`
    /// multiples of 16, and everything, rows of the result too, at multiples of 16 bytes.
    ///
    /// # Panics
    /// If one is not so.
    pub(crate) fn check_eight_bits(&self) {
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

    /// The same product with a result whose columns are next to each other.
    pub(crate) fn row_major(self) -> Self {
        if self.d.col_stride == 1 {
            return self;
        }
        let (a, b, d) = (self.b.transposed(), self.a.transposed(), self.d.transposed());
        Self { m: self.n, n: self.m, operands: self.operands.exchanged(), a, b, d, ..self }
    }
}

/// What a device is.
#[derive(Clone, Debug, PartialEq)]
pub struct Info {
    /// As the driver calls it.
    pub name: String,
    /// Major and minor number.
    pub compute_capability: (u32, u32),
    /// Bytes of memory in all.
    pub memory_bytes: u64,
    /// Multiprocessors.
    pub num_multiprocessors: u32,
    /// Bytes of shared memory that a block may have, where it asks for them.
    pub shared_bytes: u32,
    /// Versions of driver, compiler and cuBLASLt, which decide how sums are ordered.
    pub libraries: String,
}

impl Info {
    /// [`Info::shared_bytes`] of GPUs of a compute capability (CUDA C++ Programming Guide, table of
    /// technical specifications), for one that is only planned for.
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

/// What [`Driver::graph`] does, for messages.
pub(super) const MAKING_A_GRAPH: &str = "making a graph";

/// One GPU.
pub(crate) trait Driver: Send + Sync {
    fn info(&self) -> &Info;
    /// Bytes that can still be taken; 0 where the driver does not say.
    fn free_bytes(&self) -> u64;
    /// Aligned to 256 bytes.
    fn alloc(&self, bytes: usize) -> Result<Address, DeviceError>;
    /// # Safety
    /// `alloc` gave the address out, it was not freed since, and nothing asked for later uses it.
    unsafe fn free(&self, address: Address) -> Result<(), DeviceError>;
    /// Copies to the device. `bytes` may change once this returns.
    ///
    /// # Safety
    /// The bytes at `address` are inside memory of `alloc` that nobody else uses meanwhile.
    unsafe fn write(&self, address: Address, bytes: &[u8]) -> Result<(), DeviceError>;
    /// Waits for what was asked for before and copies to the host.
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
    /// `args` are the parameters that the kernel declares, and what it reads and writes through
    /// them is inside memory of `alloc`, what it writes used by nobody else meanwhile.
    unsafe fn launch(
        &self,
        source: &'static Source,
        kernel: usize,
        at: Launch,
        args: &[Arg],
    ) -> Result<(), DeviceError>;
    /// # Safety
    /// The matrices are inside memory of `alloc`, and nobody else uses the result's meanwhile.
    unsafe fn matmul(&self, matmul: &Matmul) -> Result<(), DeviceError>;
    /// Makes one of calls that were asked for before.
    ///
    /// # Errors
    /// Why it cannot; nothing was asked for then.
    ///
    /// # Safety
    /// Whenever the graph is launched, each of the calls must be allowed.
    unsafe fn graph(&self, _: &Calls) -> Result<Box<dyn Graph>, DeviceError> {
        let (doing, message) = (MAKING_A_GRAPH.to_owned(), "this device makes none".to_owned());
        Err(DeviceError::Driver { doing, message, is_lost: false })
    }
    /// Memory of the host, page-locked, which copies can run from beside everything else.
    fn alloc_host(&self, bytes: usize) -> Result<HostAddress, DeviceError>;
    /// Waits for copies from there.
    ///
    /// # Safety
    /// `alloc_host` gave the address out, and it was not freed since.
    unsafe fn free_host(&self, address: HostAddress) -> Result<(), DeviceError>;
    /// Copies `bytes` from such memory: once what was asked for before is done, beside what is
    /// asked for next.
    ///
    /// # Safety
    /// As [`Driver::write`], and `from` is memory of `alloc_host`, written before and not from now
    /// on.
    unsafe fn prefetch(
        &self,
        to: Address,
        from: HostAddress,
        bytes: usize,
    ) -> Result<(), DeviceError>;
    /// What is asked for next begins when all prefetches have ended.
    fn await_prefetches(&self) -> Result<(), DeviceError>;
    /// Waits for everything that was asked for.
    fn synchronize(&self) -> Result<(), DeviceError>;
}
