//! Products by the GPU's library, a term at a time.

use super::{Matrix, Place, Product};
use crate::cuda::{Gpu, Matmul, Operand, Slice};
use crate::element::DType;
use crate::vector;

/// Sums of products into `out`. Operands of another type than `compute` are converted first, inside
/// the operation's own memory.
///
/// # Panics
/// If terms are in integers, or an epilogue both accumulates and adds.
pub(super) fn gemm(gpu: &Gpu, compute: DType, products: &[Product<'_>], out: Slice<'_>) {
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
            let (a, b) = (operand(gpu, compute, term.a), operand(gpu, compute, term.b));
            gpu.matmul(Matmul {
                m: target.m,
                n: target.n,
                k: term.k,
                dtype: compute,
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
        dtype: compute,
        a: operand(gpu, compute, d_y.transposed()),
        b: operand(gpu, compute, x),
        c: Some(d.address),
        d,
        d_dtype: d_w.dtype(),
        alpha: 1.0,
    });
}

/// Bytes inside an operation that converting `elements` of `dtype` for a product takes.
pub fn converted_bytes(dtype: DType, compute: DType, elements: usize) -> usize {
    if dtype == compute { 0 } else { elements * compute.size() }
}

fn result(out: Slice<'_>, place: &Place) -> Operand {
    let address = out.part(place.offset, 0).address();
    Operand { address, row_stride: place.row_stride, col_stride: place.col_stride }
}

fn operand(gpu: &Gpu, compute: DType, matrix: Matrix<'_>) -> Operand {
    let (held, Matrix { offset, row_stride, col_stride, .. }) = (matrix.data.cuda(), matrix);
    let slice = as_type(gpu, compute, held);
    let address = slice.address() + (offset * compute.size()) as u64;
    Operand { address, row_stride, col_stride }
}

/// The same elements in another type, where they are not of it already.
pub(crate) fn as_type<'a>(gpu: &Gpu, compute: DType, held: Slice<'a>) -> Slice<'a> {
    if held.dtype() == compute {
        return held;
    }
    let address = gpu.scratch(converted_bytes(held.dtype(), compute, held.len()));
    let converted = Slice::new(address, compute, held.len(), held.cols());
    vector::cuda::convert(gpu, held, converted);
    converted
}
