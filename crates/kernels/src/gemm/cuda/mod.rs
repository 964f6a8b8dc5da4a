//! Products by the GPU's library, a term at a time.

mod fp8;
mod int8;

#[cfg(test)]
pub(super) use {
    fp8::rows_in_fp8,
    int8::{Int8Sum, SUMS_BYTES, rows_in_int8},
};

use super::{EightBits, Epilogue, Matrix, Place, Product, Term};
use crate::cuda::{Address, Gpu, Matmul, Operand, Operands, Slice, Source};
use crate::element::DType;
use crate::format::Storage;
use crate::vector;

#[cfg(not(test))]
use int8::Int8Sum;

pub(crate) static SOURCE: Source = Source {
    name: "gemm",
    texts: &[include_str!("panel.cuh"), include_str!("fp8.cu"), include_str!("int8.cu")],
    kernels: &[
        "fp8_greatest<bf16>",
        "fp8_greatest_of_bytes",
        "fp8_quantise<bf16,E4m3>",
        "fp8_quantise<bf16,E5m2>",
        "fp8_panel",
        "fp8_panel_turned",
        "int8_quantise<bf16>",
        "int8_panel",
        "int8_panel_turned",
        "int8_finish<float>",
        "int8_finish<bf16>",
    ],
};

/// Sums of products into `out`. Operands of another type than `compute` are converted first, inside
/// the operation's own memory; terms for which [`in_eight_bits`] holds are multiplied so.
///
/// # Panics
/// If an epilogue both accumulates and adds.
pub(super) fn gemm(
    gpu: &Gpu,
    (compute, kind): (DType, Option<EightBits>),
    products: &[Product<'_>],
    out: Slice<'_>,
) {
    // Projections of one input have their left operand in common.
    let (mut in_fp8, mut in_int8) = (Kept::default(), Kept::default());
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
        let (all, some): (Vec<_>, Vec<_>) =
            terms.iter().rev().partition(|term| term.rows.within(0..target.m).len() == target.m);
        if !some.is_empty() {
            begin_uncovered_rows(gpu, out, target, &some, epilogue);
            for term in some {
                add_to_rows(gpu, compute, (term, epilogue, target), c, d, out.dtype());
            }
            c = Some(d.address);
        }
        for term in all {
            let kind = kind.filter(|_| in_eight_bits(term, target, d, out.dtype()));
            let (a, b, operands) = match kind {
                Some(EightBits::Int8) => {
                    let (scale, d_dtype) = (epilogue.scale, out.dtype());
                    let sums_bytes = int8::SUMS_BYTES;
                    Int8Sum { term, target, scale, c, d, d_dtype, sums_bytes }
                        .add(gpu, &mut in_int8);
                    c = Some(d.address);
                    continue;
                }
                Some(EightBits::Fp8(kind)) => fp8::operands(gpu, kind, (term, target), &mut in_fp8),
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

/// Where no term of `some` rows will write, what they would add to.
fn begin_uncovered_rows(
    gpu: &Gpu,
    out: Slice<'_>,
    target: &Place,
    some: &[&Term<'_>],
    epilogue: &Epilogue<'_>,
) {
    assert!(target.col_stride == 1 && !epilogue.accumulate, "terms of some rows of whole rows");
    let mut covered: Vec<_> = some.iter().map(|term| term.rows.within(0..target.m)).collect();
    covered.retain(|rows| !rows.is_empty());
    covered.sort_by_key(|rows| rows.start);
    let bounds = covered.iter().flat_map(|rows| [rows.start, rows.end]);
    let bounds: Vec<usize> = std::iter::once(0).chain(bounds).chain([target.m]).collect();
    assert!(bounds.is_sorted(), "terms of some rows overlap");
    for gap in bounds.chunks_exact(2).filter(|gap| gap[0] < gap[1]) {
        let first = target.offset + gap[0] * target.row_stride;
        let rows = (gap[1] - gap[0], target.row_stride, first);
        vector::cuda::begin_rows(gpu, out, rows, target.n, epilogue.add.map(|add| add.cuda()));
    }
}

/// Adds a term to its rows of `d`, or to those of `c`, which stand there alike.
fn add_to_rows(
    gpu: &Gpu,
    compute: DType,
    (term, epilogue, target): (&Term<'_>, &Epilogue<'_>, &Place),
    c: Option<Address>,
    d: Operand,
    d_dtype: DType,
) {
    let rows = term.rows.within(0..target.m);
    if rows.is_empty() {
        return;
    }
    let skipped = (rows.start * target.row_stride * d_dtype.size()) as u64;
    let a = Matrix { offset: term.a.offset + rows.start * term.a.row_stride, ..term.a };
    gpu.matmul(Matmul {
        m: rows.len(),
        n: target.n,
        k: term.k,
        operands: Operands::Floats(compute),
        a: operand(gpu, compute, a, (rows.len(), term.k)),
        b: operand(gpu, compute, term.b, (term.k, target.n)),
        c: c.map(|c| c + skipped),
        d: Operand { address: d.address + skipped, ..d },
        d_dtype,
        alpha: epilogue.scale,
    });
}

/// A left operand in eight bits, and what it was made of.
pub(super) struct Kept<T>(Option<(Made, T)>);

/// Address, length of rows, and where factors of its columns are, if any.
type Made = (Address, usize, Option<Address>);

impl<T> Default for Kept<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<T: Copy> Kept<T> {
    /// The one that was made of the same before, or a new one.
    fn of(&mut self, made_of: Made, make: impl FnOnce() -> T) -> T {
        match self.0 {
            Some((before, kept)) if before == made_of => kept,
            _ => self.0.insert((made_of, make())).1,
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

/// Whether products with a weight of that shape can be in eight bits: tensor cores take sixteen
/// numbers at a time. Weights that stand side by side must all be such.
pub fn fits_eight_bits(shape: [usize; 2]) -> bool {
    shape.iter().all(|size| size.is_multiple_of(16))
}

/// Whether a term is multiplied in eight bits, where that is asked for: its right operand is held
/// in bytes, and the result is where cuBLASLt wants one.
fn in_eight_bits(term: &Term<'_>, target: &Place, d: Operand, dtype: DType) -> bool {
    term.b.data.storage().is_int8()
        && fits_eight_bits([target.n, term.k])
        && d.address.is_multiple_of(16)
        && (d.row_stride * dtype.size()).is_multiple_of(16)
}

/// Bytes inside an operation that such a product of `[m, k]` and `[k, n]` takes.
pub fn eight_bit_bytes(kind: EightBits, sizes: [usize; 3]) -> usize {
    // Each part begins where memory inside an operation is aligned to.
    let sum = |parts: &[usize]| parts.iter().map(|bytes| bytes.next_multiple_of(256)).sum();
    match kind {
        EightBits::Fp8(_) => sum(&fp8::parts(sizes)),
        EightBits::Int8 => sum(&int8::parts(sizes)),
    }
}

/// Bytes inside an operation that converting `elements` held so for a product takes.
pub(crate) fn converted_bytes(held: Storage, compute: DType, elements: usize) -> usize {
    if held == compute { 0 } else { elements * compute.size() }
}

fn result(out: Slice<'_>, place: &Place) -> Operand {
    let address = out.part(place.offset, 0).address();
    Operand { address, row_stride: place.row_stride, col_stride: place.col_stride }
}

/// A matrix `[rows, cols]` in the compute type. Of an array in another type, those rows that it has
/// a part in are converted.
fn operand(gpu: &Gpu, compute: DType, matrix: Matrix<'_>, (rows, cols): (usize, usize)) -> Operand {
    let (held, Matrix { offset, row_stride, col_stride, .. }) = (matrix.data.cuda(), matrix);
    let address = if held.storage() == compute {
        held.part(offset, 0).address()
    } else {
        let last = offset + rows.max(1) * row_stride - row_stride + cols.max(1) * col_stride;
        let h = held.cols().max(1);
        let (first, end) = (offset / h, (last - col_stride) / h + 1);
        let len = ((end - first) * h).min(held.len() - first * h);
        let to = gpu.scratch(converted_bytes(held.storage(), compute, len));
        vector::cuda::convert_rows(gpu, held, (first, h), Slice::new(to, compute, len, h));
        to + ((offset - first * h) * compute.size()) as u64
    };
    Operand { address, row_stride, col_stride }
}
