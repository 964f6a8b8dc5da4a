//! Matmuls with cuBLASLt. The algorithm for each shape is chosen once.

use super::super::driver::{Fp8, Matmul, Operand, Operands};
use super::results::{refused_product, refused_start};
use super::{CudaError, check_open};
use crate::DeviceError;
use crate::element::DType;
use cudarc::cublaslt::result::{self, CublasError};
use cudarc::cublaslt::sys;
use cudarc::driver::result as driver;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::c_void;

/// NVIDIA's recommendation for Hopper; smaller GPUs use less of it.
pub(super) const WORKSPACE_BYTES: usize = 32 << 20;

/// Maximum plans that are cached: more than a step has products, since numbers of rows vary.
const MAX_PLANS: usize = 4096;

pub(super) struct Blas {
    plans: HashMap<Key, Plan>,
    workspace: u64,
    handle: Owned<sys::cublasLtHandle_t>,
}

impl Drop for Blas {
    fn drop(&mut self) {
        // SAFETY: allocated in `new`; freeing waits for products that use it.
        let _ = unsafe { driver::free_sync(self.workspace) };
    }
}

/// Everything that the choice of an algorithm depends on.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    sizes: [usize; 3],
    kinds: Kinds,
    d_dtype: DType,
    strides: [(usize, usize); 3],
    /// Alignments of A, B, C and D in bytes.
    alignments: [u32; 4],
    adds: bool,
}

/// Types of the operands, without the addresses of their scales.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Kinds {
    Floats(DType),
    Fp8(Fp8, Fp8),
    Int8,
}

impl Kinds {
    fn of(operands: Operands) -> Self {
        match operands {
            Operands::Floats(dtype) => Self::Floats(dtype),
            Operands::Fp8 { a, b, .. } => Self::Fp8(a, b),
            Operands::Int8 => Self::Int8,
        }
    }

    /// cuBLASLt's types of both operands.
    fn types(self) -> [sys::cudaDataType; 2] {
        let of_fp8 = |kind| match kind {
            Fp8::E4m3 => sys::cudaDataType_t::CUDA_R_8F_E4M3,
            Fp8::E5m2 => sys::cudaDataType_t::CUDA_R_8F_E5M2,
        };
        match self {
            Self::Floats(dtype) => [type_of(dtype); 2],
            Self::Fp8(a, b) => [of_fp8(a), of_fp8(b)],
            Self::Int8 => [sys::cudaDataType_t::CUDA_R_8I; 2],
        }
    }

    /// Compute type, type of alpha and beta, and type of the result if it is `d_dtype` for floats.
    /// f32 operands are not rounded to TF32.
    fn sums(self, d_dtype: DType) -> (sys::cublasComputeType_t, [sys::cudaDataType; 2]) {
        use sys::cublasComputeType_t::{CUBLAS_COMPUTE_32F, CUBLAS_COMPUTE_32I};
        match self {
            Self::Int8 => (CUBLAS_COMPUTE_32I, [sys::cudaDataType_t::CUDA_R_32I; 2]),
            _ => (CUBLAS_COMPUTE_32F, [type_of(DType::F32), type_of(d_dtype)]),
        }
    }

    /// Whether to accumulate with fewer bits than f32, as is usual for FP8 in the forward pass,
    /// which has no gradients as operands.
    fn sums_fast(self) -> bool {
        self == Self::Fp8(Fp8::E4m3, Fp8::E4m3)
    }
}

/// A cuBLASLt handle, and how to destroy it.
struct Owned<T: Copy>(T, unsafe fn(T) -> Result<(), CublasError>);

impl<T: Copy> Drop for Owned<T> {
    fn drop(&mut self) {
        // SAFETY: created by the library, destroyed once; the library keeps what it still needs.
        let _ = unsafe { (self.1)(self.0) };
    }
}

type Product = Owned<sys::cublasLtMatmulDesc_t>;
type Layout = Owned<sys::cublasLtMatrixLayout_t>;

/// Descriptors and the algorithm for one kind of product.
struct Plan {
    product: Product,
    a: Layout,
    b: Layout,
    d: Layout,
    algorithm: sys::cublasLtMatmulAlgo_t,
}

impl Blas {
    pub(super) fn new() -> Result<Self, CudaError> {
        let doing = "starting cuBLASLt";
        let handle = result::create_handle().map_err(|error| refused_start(doing, error))?;
        let handle = Owned(handle, result::destroy_handle);
        // SAFETY: memory that only cuBLASLt uses.
        let workspace = unsafe { driver::malloc_sync(WORKSPACE_BYTES) };
        let workspace = check_open(doing, workspace)?;
        Ok(Self { handle, workspace, plans: HashMap::new() })
    }

    /// Launches a product with a row-major result.
    ///
    /// # Errors
    /// If it refused, or the GPU is lost.
    ///
    /// # Safety
    /// As the driver's `matmul`, with the context of the stream current.
    pub(super) unsafe fn run(
        &mut self,
        matmul: &Matmul,
        stream: cudarc::driver::sys::CUstream,
    ) -> Result<(), DeviceError> {
        let key = Key::of(matmul);
        let handle = self.handle.0;
        if self.plans.len() >= MAX_PLANS && !self.plans.contains_key(&key) {
            self.plans.clear();
        }
        let plan = match self.plans.entry(key) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(place) => {
                let plan = Plan::new(handle, matmul, &key).map_err(|error| {
                    refused_product(&format!("cuBLASLt has no product for {matmul:?}"), error)
                })?;
                place.insert(plan)
            }
        };
        plan.set_scales(matmul.operands)
            .map_err(|error| refused_product("cuBLASLt refused a scale", error))?;
        let (alpha, beta) = (matmul.alpha, if matmul.c.is_some() { 1.0f32 } else { 0.0 });
        // For integers, alpha and beta are integers, too: always one and zero.
        let (alpha, beta) = match matmul.operands {
            Operands::Int8 => (1, 0),
            _ => (alpha.to_bits(), beta.to_bits()),
        };
        let pointer = |address: u64| address as *const c_void;
        // cuBLASLt is column-major: it sees the transposes, and computes Dᵀ = Bᵀ Aᵀ.
        // SAFETY: as promised.
        let result = unsafe {
            result::matmul(
                handle,
                plan.product.0,
                (&raw const alpha).cast(),
                (&raw const beta).cast(),
                pointer(matmul.b.address),
                plan.b.0,
                pointer(matmul.a.address),
                plan.a.0,
                pointer(matmul.c.unwrap_or(matmul.d.address)),
                plan.d.0,
                pointer(matmul.d.address).cast_mut(),
                plan.d.0,
                &plan.algorithm,
                pointer(self.workspace).cast_mut(),
                WORKSPACE_BYTES,
                stream.cast(),
            )
        };
        result.map_err(|error| refused_product(&format!("cuBLASLt failed at {matmul:?}"), error))
    }
}

impl Key {
    fn of(matmul: &Matmul) -> Self {
        let strides = |x: Operand| (x.row_stride, x.col_stride);
        let c = matmul.c.unwrap_or(matmul.d.address);
        let addresses = [matmul.a.address, matmul.b.address, c, matmul.d.address];
        Self {
            sizes: [matmul.m, matmul.n, matmul.k],
            kinds: Kinds::of(matmul.operands),
            d_dtype: matmul.d_dtype,
            strides: [matmul.a, matmul.b, matmul.d].map(strides),
            // Kernels only distinguish alignments up to 16 bytes; larger ones would let a product's
            // algorithm depend on its addresses.
            alignments: addresses.map(|address| 1 << address.trailing_zeros().min(4)),
            adds: matmul.c.is_some(),
        }
    }
}

impl Plan {
    fn new(handle: sys::cublasLtHandle_t, matmul: &Matmul, key: &Key) -> Result<Self, CublasError> {
        use sys::cublasLtMatmulDescAttributes_t as Attribute;
        let Matmul { m, n, k, d_dtype, .. } = *matmul;
        let [type_a, type_b] = key.kinds.types();
        let (compute, [type_of_factors, type_d]) = key.kinds.sums(d_dtype);
        let product = result::create_matmul_desc(compute, type_of_factors)?;
        let product = Owned(product, result::destroy_matmul_desc);
        let (a, a_transposed) = layout(matmul.a, type_a, m, k)?;
        let (b, b_transposed) = layout(matmul.b, type_b, k, n)?;
        let (d, _) = layout(matmul.d, type_d, m, n)?;
        set(&product, Attribute::CUBLASLT_MATMUL_DESC_TRANSA, i32::from(b_transposed))?;
        set(&product, Attribute::CUBLASLT_MATMUL_DESC_TRANSB, i32::from(a_transposed))?;
        set_scales(&product, matmul.operands)?;
        if key.kinds.sums_fast() {
            set(&product, Attribute::CUBLASLT_MATMUL_DESC_FAST_ACCUM, 1i8)?;
        }
        let preference = preference(key)?;
        // SAFETY: all created above.
        let found = unsafe {
            let [of_a, of_b, of_d] = [&a, &b, &d].map(|layout| layout.0);
            let (product, preference) = (product.0, preference.0);
            result::get_matmul_algo_heuristic(handle, product, of_b, of_a, of_d, of_d, preference)
        };
        Ok(Self { product, a, b, d, algorithm: found?.algo })
    }

    /// Sets the addresses of scales, if operands have any.
    fn set_scales(&self, operands: Operands) -> Result<(), CublasError> {
        set_scales(&self.product, operands)
    }
}

fn set_scales(product: &Product, operands: Operands) -> Result<(), CublasError> {
    use sys::cublasLtMatmulDescAttributes_t as Attribute;
    let Operands::Fp8 { scales: [of_a, of_b], .. } = operands else { return Ok(()) };
    // Its A is our B.
    set(product, Attribute::CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, of_b)?;
    set(product, Attribute::CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, of_a)
}

/// Sets an attribute whose value has the type of `value`.
fn set<T: Copy>(
    product: &Product,
    attribute: sys::cublasLtMatmulDescAttributes_t,
    value: T,
) -> Result<(), CublasError> {
    // SAFETY: callers give each attribute a number of its size.
    unsafe {
        let value = &raw const value;
        result::set_matmul_desc_attribute(product.0, attribute, value.cast(), size_of::<T>())
    }
}

/// The layout of a matrix as column-major cuBLASLt sees it, and whether it must be transposed.
fn layout(
    x: Operand,
    element: sys::cudaDataType,
    rows: usize,
    cols: usize,
) -> Result<(Layout, bool), CublasError> {
    let (is_transposed, height, width, stride) = match x.col_stride {
        1 => (false, cols, rows, x.row_stride),
        _ => (true, rows, cols, x.col_stride),
    };
    let stride = stride.max(height) as i64;
    let layout = result::create_matrix_layout(element, height as u64, width as u64, stride)?;
    Ok((Owned(layout, result::destroy_matrix_layout), is_transposed))
}

fn preference(key: &Key) -> Result<Owned<sys::cublasLtMatmulPreference_t>, CublasError> {
    use sys::cublasLtMatmulPreferenceAttributes_t as Attribute;
    let owned = Owned(result::create_matmul_pref()?, result::destroy_matmul_pref);
    let preference = owned.0;
    let bytes = WORKSPACE_BYTES as u64;
    let [a, b, c, d] = key.alignments;
    // SAFETY: the attributes are numbers of these sizes.
    unsafe {
        let workspace = Attribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
        let bytes = (&raw const bytes).cast();
        result::set_matmul_pref_attribute(preference, workspace, bytes, 8)?;
        // Split-k partial sums are reduced in f32, not in the result's type.
        let schemes = Attribute::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK;
        let in_f32 = sys::cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE as u32;
        let in_f32 = (&raw const in_f32).cast();
        result::set_matmul_pref_attribute(preference, schemes, in_f32, 4)?;
        // Its A is our B.
        for (attribute, alignment) in [
            (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, b),
            (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, a),
            (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, c),
            (Attribute::CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, d),
        ] {
            let alignment = (&raw const alignment).cast();
            result::set_matmul_pref_attribute(preference, attribute, alignment, 4)?;
        }
    }
    Ok(owned)
}

fn type_of(dtype: DType) -> sys::cudaDataType {
    match dtype {
        DType::F32 => sys::cudaDataType_t::CUDA_R_32F,
        DType::Bf16 => sys::cudaDataType_t::CUDA_R_16BF,
        DType::F16 => sys::cudaDataType_t::CUDA_R_16F,
    }
}
