//! Products through cuBLASLt, one term at a time.

mod fp8;
mod int8;

#[cfg(test)]
pub(super) use {
    fp8::fp8_rows,
    int8::{Int8Matmul, SUMS_BYTES, int8_rows},
};

use super::{Epilogue, Matrix, OutputRegion, Product, QuantisedType, Term, WeightGradient};
use crate::cuda::{Address, Gpu, Matmul, Operand, Operands, Slice, Source};
use crate::element::DType;
use crate::format::Storage;
use crate::vector;
use crate::vector::cuda::Rows;

#[cfg(not(test))]
use int8::Int8Matmul;

pub(crate) static SOURCE: Source = Source {
    name: "gemm",
    texts: &[include_str!("panel.cuh"), include_str!("fp8.cu"), include_str!("int8.cu")],
    kernels: &[
        "fp8_amax<bf16>",
        "fp8_amax_of_int8",
        "fp8_quantise<bf16,E4m3>",
        "fp8_quantise<bf16,E5m2>",
        "fp8_weight",
        "fp8_weight_transposed",
        "int8_quantise<bf16>",
        "int8_weight",
        "int8_weight_transposed",
        "int8_dequantise<float>",
        "int8_dequantise<bf16>",
    ],
};

/// Sums of products into `out`. Operands in a type other than `compute` are converted first, in
/// scratch memory; with `quantised`, so are both operands of terms that [`is_quantised`].
///
/// # Panics
/// If an epilogue both accumulates and adds.
pub(super) fn gemm(
    gpu: &Gpu,
    compute: DType,
    quantised: Option<QuantisedType>,
    products: &[Product<'_>],
    out: Slice<'_>,
) {
    // Projections of one input share their left operand.
    let (mut fp8_left, mut int8_left) = (LeftCache::default(), LeftCache::default());
    for Product { terms, epilogue, output } in products {
        output.check(out.len());
        assert!(!(epilogue.accumulate && epilogue.add.is_some()));
        let d = result(out, output);
        let mut c = epilogue.accumulate.then_some(d.address);
        if let Some(add) = epilogue.add {
            let add = add.cuda();
            assert!(add.dtype() == out.dtype() && add.len() >= out.len());
            c = Some(result(add, output).address);
        }
        // The small terms, of adapters, are last in the list and computed first: a bf16 result is
        // rounded after each term, so the part that is rounded twice is then the smaller one.
        let (full, partial): (Vec<_>, Vec<_>) =
            terms.iter().rev().partition(|term| term.rows.within(0..output.m).len() == output.m);
        if !partial.is_empty() {
            init_uncovered_rows(gpu, out, output, &partial, epilogue);
            let mut begun = Vec::new();
            for term in partial {
                // The first term of some rows starts from `c`, the others continue its sum.
                let rows = term.rows.within(0..output.m);
                let c = if begun.contains(&rows) { Some(d.address) } else { c };
                let sum = Sum { c, d, d_dtype: out.dtype(), alpha: epilogue.scale };
                add_to_rows(gpu, compute, term, output, sum);
                begun.push(rows);
            }
            c = Some(d.address);
        }
        for term in full {
            let quantised = quantised.filter(|_| is_quantised(term, output, d, out.dtype()));
            let (a, b, operands) = match quantised {
                Some(QuantisedType::Int8) => {
                    let (scale, d_dtype) = (epilogue.scale, out.dtype());
                    let sums_bytes = int8::SUMS_BYTES;
                    Int8Matmul { term, output, scale, c, d, d_dtype, sums_bytes }
                        .launch(gpu, &mut int8_left);
                    c = Some(d.address);
                    continue;
                }
                Some(QuantisedType::Fp8(kind)) => {
                    fp8::operands(gpu, kind, term, output, &mut fp8_left)
                }
                None => {
                    let a = operand(gpu, compute, term.a, (output.m, term.k));
                    let b = operand(gpu, compute, term.b, (term.k, output.n));
                    (a, b, Operands::Floats(compute))
                }
            };
            gpu.matmul(Matmul {
                m: output.m,
                n: output.n,
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
            assert_eq!(output.col_stride, 1);
            let (count, stride, offset) = (output.m, output.row_stride, output.offset);
            let rows = Rows { count, stride, offset };
            vector::cuda::add_bias(gpu, out, rows, bias.cuda().f32());
        }
    }
}

/// Initialises the rows that no term of `partial` will write: to `add`, or zero. Terms may have the
/// same rows, but not overlap otherwise.
fn init_uncovered_rows(
    gpu: &Gpu,
    out: Slice<'_>,
    output: &OutputRegion,
    partial: &[&Term<'_>],
    epilogue: &Epilogue<'_>,
) {
    let is_row_major = output.col_stride == 1;
    assert!(is_row_major && !epilogue.accumulate, "terms of some rows need a row-major output");
    let mut covered: Vec<_> = partial.iter().map(|term| term.rows.within(0..output.m)).collect();
    covered.retain(|rows| !rows.is_empty());
    covered.sort_by_key(|rows| (rows.start, rows.end));
    covered.dedup();
    let bounds = covered.iter().flat_map(|rows| [rows.start, rows.end]);
    let bounds: Vec<usize> = std::iter::once(0).chain(bounds).chain([output.m]).collect();
    assert!(bounds.is_sorted(), "terms of some rows overlap in part");
    for gap in bounds.chunks_exact(2).filter(|gap| gap[0] < gap[1]) {
        let offset = output.offset + gap[0] * output.row_stride;
        let rows = Rows { count: gap[1] - gap[0], stride: output.row_stride, offset };
        vector::cuda::init_rows(gpu, out, rows, output.n, epilogue.add.map(|add| add.cuda()));
    }
}

/// `d = c + alpha · product`, with `c` laid out like `d`.
#[derive(Clone, Copy)]
struct Sum {
    c: Option<Address>,
    d: Operand,
    d_dtype: DType,
    alpha: f32,
}

/// Adds a term to its rows of the output.
fn add_to_rows(gpu: &Gpu, compute: DType, term: &Term<'_>, output: &OutputRegion, sum: Sum) {
    let Sum { c, d, d_dtype, alpha } = sum;
    let rows = term.rows.within(0..output.m);
    if rows.is_empty() {
        return;
    }
    let skipped = (rows.start * output.row_stride * d_dtype.size()) as u64;
    let a = Matrix { offset: term.a.offset + rows.start * term.a.row_stride, ..term.a };
    gpu.matmul(Matmul {
        m: rows.len(),
        n: output.n,
        k: term.k,
        operands: Operands::Floats(compute),
        a: operand(gpu, compute, a, (rows.len(), term.k)),
        b: operand(gpu, compute, term.b, (term.k, output.n)),
        c: c.map(|c| c + skipped),
        d: Operand { address: d.address + skipped, ..d },
        d_dtype,
        alpha,
    });
}

/// The last quantised left operand.
pub(super) struct LeftCache<T>(Option<(LeftKey, T)>);

/// What a left operand was quantised from.
#[derive(Clone, Copy, PartialEq)]
pub(super) struct LeftKey {
    address: Address,
    /// Length of rows.
    k: usize,
    /// Factors of its columns, if any.
    factors: Option<Address>,
}

impl<T> Default for LeftCache<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<T: Copy> LeftCache<T> {
    /// The operand quantised from `key`, if it was the last one, or a new one.
    fn get_or(&mut self, key: LeftKey, quantise: impl FnOnce() -> T) -> T {
        match self.0 {
            Some((last, operand)) if last == key => operand,
            _ => self.0.insert((key, quantise())).1,
        }
    }
}

/// `d_w [m, n] += d_yᵀ x`.
pub(super) fn add_weight_gradient(
    gpu: &Gpu,
    compute: DType,
    gradient: WeightGradient<'_>,
    d_w: Slice<'_>,
) {
    let WeightGradient { t, m, n, d_y, x } = gradient;
    let d = result(d_w, &OutputRegion::whole(m, n));
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

/// Whether a weight's shape allows quantised products: 8-bit tensor-core operands come in multiples
/// of 16. Of weights whose outputs share rows, all must fit, so that each output is aligned.
pub fn fits_quantised(shape: [usize; 2]) -> bool {
    shape.iter().all(|size| size.is_multiple_of(16))
}

/// Whether a term's operands are quantised, if the caller wants that: its weight is stored as int8,
/// and sizes and alignment suit cuBLASLt.
fn is_quantised(term: &Term<'_>, output: &OutputRegion, d: Operand, dtype: DType) -> bool {
    term.b.data.storage().is_int8()
        && fits_quantised([output.n, term.k])
        && d.address.is_multiple_of(16)
        && (d.row_stride * dtype.size()).is_multiple_of(16)
}

/// Scratch bytes of a quantised product of sizes `[m, n, k]`.
pub fn quantised_bytes(quantised: QuantisedType, sizes: [usize; 3]) -> usize {
    // Every scratch allocation is aligned to 256 bytes.
    let sum = |bytes: &[usize]| bytes.iter().map(|bytes| bytes.next_multiple_of(256)).sum();
    match quantised {
        QuantisedType::Fp8(_) => sum(&fp8::scratch(sizes)),
        QuantisedType::Int8 => sum(&int8::scratch(sizes)),
    }
}

/// Scratch bytes for converting `elements` stored as `storage` to the compute type.
pub(crate) fn converted_bytes(storage: Storage, compute: DType, elements: usize) -> usize {
    if storage == compute { 0 } else { elements * compute.size() }
}

fn result(out: Slice<'_>, region: &OutputRegion) -> Operand {
    let address = out.part(region.offset, 0).address();
    Operand { address, row_stride: region.row_stride, col_stride: region.col_stride }
}

/// A matrix `[rows, cols]` in the compute type. If its array has another type, the array rows that
/// it touches are converted to scratch memory.
fn operand(gpu: &Gpu, compute: DType, matrix: Matrix<'_>, (rows, cols): (usize, usize)) -> Operand {
    let (slice, Matrix { offset, row_stride, col_stride, .. }) = (matrix.data.cuda(), matrix);
    let address = if slice.storage() == compute {
        slice.part(offset, 0).address()
    } else {
        let last = offset + rows.max(1) * row_stride - row_stride + cols.max(1) * col_stride;
        let h = slice.cols().max(1);
        let (first, end) = (offset / h, (last - col_stride) / h + 1);
        let len = ((end - first) * h).min(slice.len() - first * h);
        let to = gpu.scratch(converted_bytes(slice.storage(), compute, len));
        vector::cuda::convert_rows(gpu, slice, (first, h), Slice::new(to, compute, len, h));
        to + ((offset - first * h) * compute.size()) as u64
    };
    Operand { address, row_stride, col_stride }
}
