//! What can be tested without a GPU: that kernels compile for every generation, and which calls
//! operations make.

use super::driver::{Operand, Operands};
use super::nvidia::compiled;
use super::*;
use crate::element::DType;
use crate::gemm::{Epilogue, Matrix, OutputRegion, Product, Term};
use crate::processor::Processor;
use crate::testing::{cases, skip};
use crate::{View, ViewMut};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// Turing, Ampere in data centres and elsewhere, Hopper, Blackwell in data centres and elsewhere.
const CAPABILITIES: [(u32, u32); 6] = [(7, 5), (8, 0), (8, 6), (9, 0), (10, 0), (12, 0)];

/// Compiles every kernel for every type with NVRTC. Those compiled before, from the same text by
/// the same version, are in the user's cache.
#[test]
fn kernels_compile_for_every_generation() {
    if let Err(error) = nvidia::find_compiler(nvrtc_folder()) {
        return skip(error);
    }
    let jobs: Vec<_> = cases(&CAPABILITIES, &[(7, 5), (9, 0)])
        .iter()
        .flat_map(|&capability| sources().map(move |source| (source, capability)))
        // Turing's tensor cores support other shapes; it uses the general attention kernels.
        .filter(|(source, capability)| {
            *capability >= (8, 0) || !source.name.starts_with(crate::attention::cuda::MMA.name)
        })
        .collect();
    let next = AtomicUsize::new(0);
    let work = || {
        while let Some(&(source, capability)) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
            let compiled = compiled(source, capability).unwrap_or_else(|error| {
                panic!("{} for {capability:?}: {error}", source.name);
            });
            assert_eq!(compiled.names.len(), source.kernels.len());
            assert!(compiled.cubin.starts_with(b"\x7fELF"));
        }
    };
    let num_threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| (0..num_threads).for_each(|_| drop(scope.spawn(work))));
}

/// Where `cargo xtask test` puts NVRTC.
fn nvrtc_folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../target/nvrtc/nvidia/cu13")
}

/// A driver that only records calls.
struct Recorder {
    info: Info,
    next: AtomicU64,
    calls: Arc<Mutex<Vec<Call>>>,
}

#[derive(Clone, Debug, PartialEq)]
enum Call {
    Alloc(usize),
    Free,
    Write(usize),
    Launch(&'static str, Launch),
    Matmul(Matmul),
    Prefetch(usize),
    Await,
}

impl Driver for Recorder {
    fn info(&self) -> &Info {
        &self.info
    }
    fn free_bytes(&self) -> u64 {
        self.info.memory_bytes
    }
    fn alloc(&self, bytes: usize) -> Result<Address, DeviceError> {
        self.note(Call::Alloc(bytes))?;
        Ok(self.next.fetch_add(1 << 20, Ordering::Relaxed))
    }
    unsafe fn free(&self, _: Address) -> Result<(), DeviceError> {
        self.note(Call::Free)
    }
    unsafe fn write(&self, _: Address, bytes: &[u8]) -> Result<(), DeviceError> {
        self.note(Call::Write(bytes.len()))
    }
    unsafe fn read(&self, _: Address, bytes: &mut [u8]) -> Result<(), DeviceError> {
        bytes.fill(0);
        Ok(())
    }
    unsafe fn fill(&self, _: Address, _: u8, _: usize) -> Result<(), DeviceError> {
        Ok(())
    }
    unsafe fn launch(
        &self,
        source: &'static Source,
        kernel: usize,
        at: Launch,
        _: &[Arg],
    ) -> Result<(), DeviceError> {
        self.note(Call::Launch(source.kernels[kernel], at))
    }
    unsafe fn matmul(&self, matmul: &Matmul) -> Result<(), DeviceError> {
        self.note(Call::Matmul(*matmul))
    }
    fn alloc_host(&self, bytes: usize) -> Result<HostAddress, DeviceError> {
        self.alloc(bytes).map(|address| address as HostAddress)
    }
    unsafe fn free_host(&self, _: HostAddress) -> Result<(), DeviceError> {
        self.note(Call::Free)
    }
    unsafe fn prefetch(&self, _: Address, _: HostAddress, bytes: usize) -> Result<(), DeviceError> {
        self.note(Call::Prefetch(bytes))
    }
    fn await_prefetches(&self) -> Result<(), DeviceError> {
        self.note(Call::Await)
    }
    fn synchronize(&self) -> Result<(), DeviceError> {
        Ok(())
    }
}

impl Recorder {
    fn note(&self, call: Call) -> Result<(), DeviceError> {
        self.calls.lock().unwrap().push(call);
        Ok(())
    }
}

fn recorded() -> (Processor, Arc<Mutex<Vec<Call>>>) {
    let info = Info {
        name: "recorder".into(),
        compute_capability: (9, 0),
        memory_bytes: 1 << 30,
        num_multiprocessors: 1,
        shared_bytes: 64 << 10,
        libraries: "emulated".to_owned(),
    };
    let calls = Arc::new(Mutex::new(Vec::new()));
    let recorder = Recorder { info, next: AtomicU64::new(1 << 20), calls: Arc::clone(&calls) };
    (Processor::Cuda(Gpu::of(Box::new(recorder))), calls)
}

/// `len` elements at an address of their own.
fn array(place: u64, dtype: DType, len: usize) -> Slice<'static> {
    Slice::new(place << 32, dtype, len, len)
}

/// A weight in another type is converted, the adapter's product goes first, and both write to the
/// same row-major output.
#[test]
fn a_projection_with_its_adapter_is_two_products() {
    let (on, calls) = recorded();
    let (t, n, k, r) = (6, 8, 16, 2);
    let (x, u) = (array(1, DType::Bf16, t * k), array(2, DType::Bf16, t * r));
    let (w, b) = (array(3, DType::F16, n * k), array(4, DType::Bf16, n * r));
    let y = array(5, DType::Bf16, t * 2 * n);
    let terms = [
        Term::new(Matrix::rows(View::Cuda(x), k), Matrix::rows(View::Cuda(w), k).transposed(), k),
        Term::new(Matrix::rows(View::Cuda(u), r), Matrix::rows(View::Cuda(b), r).transposed(), r),
    ];
    // The second of two projections of one input.
    let output = OutputRegion::columns(t, n, 2 * n, n);
    let product = Product { terms: &terms, epilogue: Epilogue::default(), output };
    let project = || {
        on.begin();
        calls.lock().unwrap().clear();
        on.gemm(DType::Bf16, &[product], ViewMut::of_gpu(y));
        calls.lock().unwrap().clone()
    };
    project();
    let again = project();
    let [Call::Matmul(adapter), Call::Launch(convert, _), Call::Matmul(weight)] = again[..] else {
        panic!("{again:?}")
    };
    assert_eq!(convert, "vector_convert<f16,bf16>");
    let d = Operand { address: (5 << 32) + 2 * n as u64, row_stride: 2 * n, col_stride: 1 };
    assert_eq!((adapter.d, adapter.c, adapter.k), (d, None, r));
    assert_eq!((weight.d, weight.c, weight.k), (d, Some(d.address), k));
    assert_eq!((weight.b.row_stride, weight.b.col_stride), (1, k));
    // Once memory is reserved, no operation allocates again.
    assert_eq!(again, project());
}

/// A column-major result is computed as its transpose.
#[test]
fn results_are_row_major() {
    let matmul = Matmul {
        m: 3,
        n: 5,
        k: 7,
        operands: Operands::Floats(DType::F32),
        a: Operand { address: 1, row_stride: 7, col_stride: 1 },
        b: Operand { address: 2, row_stride: 5, col_stride: 1 },
        c: None,
        d: Operand { address: 3, row_stride: 1, col_stride: 3 },
        d_dtype: DType::F32,
        alpha: 1.0,
    };
    let swapped = matmul.row_major();
    assert_eq!((swapped.m, swapped.n, swapped.d.row_stride, swapped.d.col_stride), (5, 3, 3, 1));
    assert_eq!((swapped.a, swapped.b), (matmul.b.transposed(), matmul.a.transposed()));
    assert_eq!(swapped.row_major(), swapped);
}

/// Tensor-core kernels where possible, general kernels otherwise; longest blocks first.
#[test]
fn attention_is_launched_by_shape() {
    use crate::attention::{Heads, Inputs, Sequence};
    for (dtype, head_dim, ahead, kernel, rows, shared_bytes) in [
        (DType::Bf16, 128, 0, "attention_forward_mma<128>", 128, 512 * 128),
        (DType::Bf16, 40, 0, "attention_forward_general<bf16>", 16, 4 * (16 * 40 + 32 * 41)),
        (DType::Bf16, 64, 1, "attention_forward_general<bf16>", 16, 4 * (16 * 64 + 32 * 65)),
        (DType::F32, 128, 0, "attention_forward_general<float>", 16, 4 * (16 * 128 + 32 * 129)),
    ] {
        let (on, calls) = recorded();
        let heads = Heads {
            num_heads: 4,
            num_kv_heads: 2,
            head_dim,
            scale: 1.0,
            window: None,
            ahead,
            softcap: None,
        };
        let sequences = [Sequence::new(0, 300), Sequence::new(300, 1)];
        let qkv = View::Cuda(array(1, dtype, 301 * heads.qkv_width()));
        let out = ViewMut::of_gpu(array(2, dtype, 301 * heads.out_width()));
        let lse = ViewMut::of_gpu(array(3, DType::F32, 301 * 4));
        on.attention(Inputs::packed(qkv, &heads), &heads, &sequences, out, lse);
        let blocks = 300usize.div_ceil(rows) as u32 + 1;
        let at = Launch { grid: [blocks, 4, 1], threads: 128, shared_bytes };
        let calls = calls.lock().unwrap();
        assert_eq!(calls.last(), Some(&Call::Launch(kernel, at)), "{dtype:?} {head_dim}");
        assert!(calls.contains(&Call::Write(8 * blocks as usize)), "a pair for each block");
    }
}

/// Inputs that several operations of a pass read are uploaded once per pass.
#[test]
fn inputs_are_uploaded_once_a_pass() {
    let (on, calls) = recorded();
    let Processor::Cuda(gpu) = &on else { panic!() };
    let (x, y) = (array(1, DType::F32, 64), array(2, DType::F32, 64));
    let gather = |rows: &[u32]| {
        on.begin();
        on.gather_rows(View::Cuda(x), 4, rows, ViewMut::of_gpu(y));
    };
    let writes = || {
        let calls = std::mem::take(&mut *calls.lock().unwrap());
        calls.into_iter().filter(|call| matches!(call, Call::Write(_))).count()
    };
    for _ in 0..2 {
        gpu.pass(|| [[1, 2], [3, 4], [1, 2]].iter().for_each(|rows| gather(rows)));
        assert_eq!(writes(), 2, "within a pass");
    }
    gather(&[1, 2]);
    gather(&[1, 2]);
    assert_eq!(writes(), 2, "outside of one");
}
