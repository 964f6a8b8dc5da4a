//! Operands in 8-bit integers, whose products are summed in integers of 32 bits.

use super::{Kept, SOURCE};
use crate::cuda::{Address, Gpu, Launch, Matmul, Operand, Operands, args};
use crate::element::DType;
use crate::gemm::{Matrix, Place, Term};

/// What numbers of rows are rounded up to: cuBLASLt asks for more than sixteen, and an algorithm is
/// looked for once for each number.
const ROUND: usize = 32;

/// Bytes of sums that exist at a time: most of them stay in a GPU's cache between the product and
/// what is made of it.
pub(in crate::gemm) const SUMS_BYTES: usize = 32 << 20;

/// Rows of sums with `n` columns that exist at a time: whole tiles of tensor cores.
fn rows_of_sums(m: usize, n: usize, sums_bytes: usize) -> usize {
    let most = sums_bytes / (4 * n) / 256 * 256;
    m.next_multiple_of(ROUND).min(most.max(256))
}

/// Bytes that a product of `[m, k]` and `[k, n]` takes, part by part.
pub(super) fn parts([m, n, k]: [usize; 3]) -> [usize; 4] {
    let rows = m.next_multiple_of(ROUND);
    [rows * k, 4 * rows, n * k, 4 * rows_of_sums(m, n, SUMS_BYTES) * n]
}

/// Rows of activations or gradients in signed bytes, and where their scales are.
#[derive(Clone, Copy)]
pub(in crate::gemm) struct InInt8 {
    pub(in crate::gemm) operand: Operand,
    pub(in crate::gemm) scales: Address,
}

/// A term in integers: `D = scale · A B + C`.
pub(in crate::gemm) struct Int8Sum<'a> {
    pub(in crate::gemm) term: &'a Term<'a>,
    pub(in crate::gemm) target: &'a Place,
    pub(in crate::gemm) scale: f32,
    /// What is added, laid out like the result.
    pub(in crate::gemm) c: Option<Address>,
    pub(in crate::gemm) d: Operand,
    pub(in crate::gemm) d_dtype: DType,
    /// Bytes of sums that exist at a time.
    pub(in crate::gemm) sums_bytes: usize,
}

impl Int8Sum<'_> {
    /// Asks for it; `left` is the left operand of the term before, which may be the same.
    pub(in crate::gemm) fn add(self, gpu: &Gpu, left: &mut Kept<InInt8>) {
        let Self { term: Term { a, b, k, .. }, target, scale, c, d, d_dtype, sums_bytes } = self;
        let (m, n, k) = (target.m, target.n, *k);
        // The scales of a weight's rows belong to columns of the result, or are along the
        // contraction: then they enter before the left operand is rounded.
        let of_weight = b.data.cuda().address();
        let (of_columns, factors) =
            if b.row_stride == 1 { (of_weight, None) } else { (0, Some(of_weight)) };
        let made_of = (a.data.cuda().part(a.offset, 0).address(), k, factors);
        let rows = left.of(made_of, || rows_in_int8(gpu, *a, (m, k), factors));
        let weight = weight_in_int8(gpu, *b, (k, n));
        let most = rows_of_sums(m, n, sums_bytes);
        let sums = gpu.scratch(4 * most * n);
        for first in (0..m).step_by(most) {
            let left = m - first;
            let address = rows.operand.address + (first * k) as u64;
            gpu.matmul(Matmul {
                m: left.next_multiple_of(ROUND).min(most),
                n,
                k,
                operands: Operands::Int8,
                a: Operand { address, ..rows.operand },
                b: weight,
                c: None,
                d: Operand { address: sums, row_stride: n, col_stride: 1 },
                d_dtype: DType::F32,
                alpha: 1.0,
            });
            let offset = (first * d.row_stride * d_dtype.size()) as u64;
            let (add, to) = (c.map_or(0, |c| c + offset), d.address + offset);
            let of_rows = rows.scales + 4 * first as u64;
            let kernel = format!("int8_finish<{}>", d_dtype.in_kernels());
            let args = args![sums, n, of_rows, of_columns, scale, add, to, d.row_stride];
            gpu.launch(&SOURCE, &kernel, Launch::blocks(left.min(most), 256), args);
        }
    }
}

/// Rows of activations or gradients, `[m, k]`, their columns times `factors` where there are such.
pub(in crate::gemm) fn rows_in_int8(
    gpu: &Gpu,
    x: Matrix<'_>,
    (m, k): (usize, usize),
    factors: Option<Address>,
) -> InInt8 {
    assert_eq!(x.col_stride, 1, "contractions go along rows");
    let held = x.data.cuda();
    let from = held.part(x.offset, 0);
    // Rows up to a round number are multiplied for nothing, whatever is there.
    let rows = m.next_multiple_of(ROUND);
    let (y, scales) = (gpu.scratch(rows * k), gpu.scratch(4 * rows));
    let kernel = format!("int8_quantise<{}>", held.type_name());
    let args = args![from, k, x.row_stride, factors.unwrap_or(0), y, scales];
    gpu.launch(&SOURCE, &kernel, Launch::blocks(m, 256), args);
    InInt8 { operand: Operand { address: y, row_stride: k, col_stride: 1 }, scales }
}

/// A weight that is held in bytes as right operand `[k, n]`, columns one after the other.
fn weight_in_int8(gpu: &Gpu, w: Matrix<'_>, (k, n): (usize, usize)) -> Operand {
    let held = w.data.cuda();
    assert!(w.offset == 0 && held.len() == k * n, "whole weights");
    let y = gpu.scratch(n * k);
    match w.row_stride {
        1 => gpu.launch(&SOURCE, "int8_panel", Launch::elements(n * k / 16), args![held, n * k, y]),
        _ => {
            let tiles = [n.div_ceil(32) as u32, k.div_ceil(32) as u32, 1];
            let at = Launch { grid: tiles, threads: 256, shared_bytes: 0 };
            gpu.launch(&SOURCE, "int8_panel_turned", at, args![held, k, n, y]);
        }
    }
    Operand { address: y, row_stride: 1, col_stride: k }
}
