//! Products by the GPU's library, a term at a time.

use super::{Matrix, Place, Product, Term};
use crate::cuda::{Address, Fp8, Gpu, Launch, Matmul, Operand, Operands, Slice, Source, args};
use crate::element::DType;
use crate::vector;

pub(crate) static SOURCE: Source = Source {
    name: "gemm",
    texts: &[include_str!("kernel.cu")],
    kernels: &[
        "fp8_greatest<bf16>",
        "fp8_greatest_of_bytes",
        "fp8_quantise<bf16,E4m3>",
        "fp8_quantise<bf16,E5m2>",
        "fp8_panel",
        "fp8_panel_turned",
    ],
};

/// Sums of products into `out`. Operands of another type than `compute` are converted first, inside
/// the operation's own memory; with `fp8`, terms for which [`is_fp8`] holds are in FP8, their left
/// operand in numbers of that kind.
///
/// # Panics
/// If terms are in integers, or an epilogue both accumulates and adds.
pub(super) fn gemm(
    gpu: &Gpu,
    (compute, fp8): (DType, Option<Fp8>),
    products: &[Product<'_>],
    out: Slice<'_>,
) {
    // Projections of one input have their left operand in common.
    let mut left = None;
    for Product { terms, epilogue, target } in products {
        target.check(out.len());
        assert!(!(epilogue.accumulate && epilogue.add.is_some()));
        let d = result(out, target);
        let mut c = epilogue.accumulate.then_some(d.address);
        if let Some(add) = epilogue.add {
            let add = add.cuda();
            assert!(add.dtype() == out.dtype() && add.len() >= out.len());
            c = Some(result(add, target).address);
        }
        // The small terms, adapters, come last and go first: a result in bf16 is rounded after
        // each, and what is rounded twice is then the smaller part.
        for term in terms.iter().rev() {
            let in_fp8 = fp8.filter(|_| is_fp8(term, target, d, out.dtype()));
            let (a, b, operands) = match in_fp8 {
                Some(kind) => operands_in_fp8(gpu, kind, (term, target), &mut left),
                None => {
                    let a = operand(gpu, compute, term.a, (target.m, term.k));
                    let b = operand(gpu, compute, term.b, (term.k, target.n));
                    (a, b, Operands::Floats(compute))
                }
            };
            gpu.matmul(Matmul {
                m: target.m,
                n: target.n,
                k: term.k,
                operands,
                a,
                b,
                c,
                d,
                d_dtype: out.dtype(),
                alpha: epilogue.scale,
            });
            c = Some(d.address);
        }
        if let Some(bias) = epilogue.bias {
            assert_eq!(target.col_stride, 1);
            let rows = (target.m, target.row_stride, target.offset);
            vector::cuda::add_bias(gpu, out, rows, bias.cuda().f32());
        }
    }
}

/// `d_w [m, n] += d_yᵀ x`.
pub(super) fn add_weight_gradient(
    gpu: &Gpu,
    compute: DType,
    (t, m, n): (usize, usize, usize),
    (d_y, x): (Matrix<'_>, Matrix<'_>),
    d_w: Slice<'_>,
) {
    let d = result(d_w, &Place::whole(m, n));
    gpu.matmul(Matmul {
        m,
        n,
        k: t,
        operands: Operands::Floats(compute),
        a: operand(gpu, compute, d_y.transposed(), (m, t)),
        b: operand(gpu, compute, x, (t, n)),
        c: Some(d.address),
        d,
        d_dtype: d_w.dtype(),
        alpha: 1.0,
    });
}

/// Whether products with a weight of that shape can be in FP8: tensor cores take sixteen numbers at
/// a time. Weights that stand side by side must all be such.
pub fn fits_fp8(shape: [usize; 2]) -> bool {
    shape.iter().all(|size| size.is_multiple_of(16))
}

/// Whether a term is in FP8: its right operand is held in bytes, and the result is where cuBLASLt
/// wants one.
fn is_fp8(term: &Term<'_>, target: &Place, d: Operand, dtype: DType) -> bool {
    term.b.data.dtype() == DType::Int8
        && fits_fp8([target.n, term.k])
        && d.address.is_multiple_of(16)
        && (d.row_stride * dtype.size()).is_multiple_of(16)
}

/// Bytes inside an operation that a product in FP8 of `[m, k]` and `[k, n]` takes.
pub fn fp8_bytes(m: usize, n: usize, k: usize) -> usize {
    // Each part begins where memory inside an operation is aligned to.
    [m * k, n * k, FACTORS, FACTORS].map(|bytes| bytes.next_multiple_of(256)).iter().sum()
}

/// Bytes of the greatest magnitude and of the factor that follows from it.
const FACTORS: usize = 8;

/// An operand in FP8, and where its factor is.
#[derive(Clone, Copy)]
pub(super) struct InFp8 {
    pub(super) operand: Operand,
    pub(super) scale: Address,
}

/// Both operands of a term in FP8. `left` is the left operand of the term before, which may be the
/// same.
fn operands_in_fp8(
    gpu: &Gpu,
    kind: Fp8,
    (term, target): (&Term<'_>, &Place),
    left: &mut Option<((Address, usize), InFp8)>,
) -> (Operand, Operand, Operands) {
    let key = (term.a.data.cuda().part(term.a.offset, 0).address(), term.k);
    let a = match left {
        Some((of, a)) if *of == key => *a,
        _ => rows_in_fp8(gpu, kind, term.a, (target.m, term.k)),
    };
    *left = Some((key, a));
    let b = weight_in_fp8(gpu, term.b, (term.k, target.n));
    let operands = Operands::Fp8 { a: kind, b: Fp8::E4m3, scales: [a.scale, b.scale] };
    (a.operand, b.operand, operands)
}

/// Rows of activations or gradients, `[m, k]`.
pub(super) fn rows_in_fp8(gpu: &Gpu, kind: Fp8, x: Matrix<'_>, (m, k): (usize, usize)) -> InFp8 {
    assert_eq!(x.col_stride, 1, "contractions go along rows");
    let held = x.data.cuda();
    let from = held.part(x.offset, 0);
    let (y, factors) = (gpu.scratch(m * k), gpu.scratch(FACTORS));
    let scale = factors + 4;
    gpu.zero(Slice::new(factors, DType::F32, 1, 1));
    let kernel = format!("fp8_greatest<{}>", held.type_name());
    let some = Launch::blocks(m.min(1024), 256);
    gpu.launch(&SOURCE, &kernel, some, args![from, m, k, x.row_stride, factors]);
    let word = if kind == Fp8::E4m3 { "E4m3" } else { "E5m2" };
    let kernel = format!("fp8_quantise<{},{word}>", held.type_name());
    let args = args![from, k, x.row_stride, factors, y, scale];
    gpu.launch(&SOURCE, &kernel, Launch::blocks(m, 256), args);
    InFp8 { operand: Operand { address: y, row_stride: k, col_stride: 1 }, scale }
}

/// A weight that is held in bytes as right operand `[k, n]`, columns one after the other.
fn weight_in_fp8(gpu: &Gpu, w: Matrix<'_>, (k, n): (usize, usize)) -> InFp8 {
    let held = w.data.cuda();
    assert!(w.offset == 0 && held.len() == k * n, "whole weights");
    let (y, factors) = (gpu.scratch(n * k), gpu.scratch(FACTORS));
    let scale = factors + 4;
    let (rows, cols) = (held.len() / held.cols(), held.cols());
    gpu.launch(
        &SOURCE,
        "fp8_greatest_of_bytes",
        Launch::blocks(1, 1024),
        args![held.address(), rows, factors],
    );
    match w.row_stride {
        1 => {
            let args = args![held, cols, factors, y, scale];
            gpu.launch(&SOURCE, "fp8_panel", Launch::blocks(rows, 128), args);
        }
        _ => {
            let tiles = [cols.div_ceil(32) as u32, rows.div_ceil(32) as u32, 1];
            let at = Launch { grid: tiles, threads: 256, shared_bytes: 0 };
            let args = args![held, rows, cols, factors, y, scale];
            gpu.launch(&SOURCE, "fp8_panel_turned", at, args);
        }
    }
    InFp8 { operand: Operand { address: y, row_stride: 1, col_stride: k }, scale }
}

/// Bytes inside an operation that converting `elements` of `dtype` for a product takes.
pub fn converted_bytes(dtype: DType, compute: DType, elements: usize) -> usize {
    if dtype == compute { 0 } else { elements * compute.size() }
}

fn result(out: Slice<'_>, place: &Place) -> Operand {
    let address = out.part(place.offset, 0).address();
    Operand { address, row_stride: place.row_stride, col_stride: place.col_stride }
}

/// A matrix `[rows, cols]` in the compute type. Of an array in another type, those rows that it has
/// a part in are converted.
fn operand(gpu: &Gpu, compute: DType, matrix: Matrix<'_>, (rows, cols): (usize, usize)) -> Operand {
    let (held, Matrix { offset, row_stride, col_stride, .. }) = (matrix.data.cuda(), matrix);
    let address = if held.dtype() == compute {
        held.part(offset, 0).address()
    } else {
        let last = offset + rows.max(1) * row_stride - row_stride + cols.max(1) * col_stride;
        let h = held.cols().max(1);
        let (first, end) = (offset / h, (last - col_stride) / h + 1);
        let len = ((end - first) * h).min(held.len() - first * h);
        let to = gpu.scratch(converted_bytes(held.dtype(), compute, len));
        vector::cuda::convert_rows(gpu, held, (first, h), Slice::new(to, compute, len, h));
        to + ((offset - first * h) * compute.size()) as u64
    };
    Operand { address, row_stride, col_stride }
}
