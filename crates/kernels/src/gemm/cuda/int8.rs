//! Int8 operands, whose products are accumulated in 32-bit integers.

use super::{LeftCache, LeftKey, SOURCE};
use crate::cuda::{Address, Gpu, Launch, Matmul, Operand, Operands, args};
use crate::element::DType;
use crate::gemm::{Matrix, OutputRegion, Term};

/// Row counts are rounded up to this: cuBLASLt requires more than 16 rows, and searches for an
/// algorithm once per row count.
const ROW_MULTIPLE: usize = 32;

/// Bytes of accumulators that exist at a time: few enough for most of them to stay in the GPU's L2
/// cache until they are dequantised.
pub(in crate::gemm) const SUMS_BYTES: usize = 32 << 20;

/// Rows of `n` accumulators that exist at a time, in whole tensor-core tiles.
fn rows_of_sums(m: usize, n: usize, sums_bytes: usize) -> usize {
    let fitting = sums_bytes / (4 * n) / 256 * 256;
    m.next_multiple_of(ROW_MULTIPLE).min(fitting.max(256))
}

/// Scratch allocations, in bytes, of a product of `[m, k]` and `[k, n]`.
pub(super) fn scratch([m, n, k]: [usize; 3]) -> [usize; 4] {
    let rows = m.next_multiple_of(ROW_MULTIPLE);
    [rows * k, 4 * rows, n * k, 4 * rows_of_sums(m, n, SUMS_BYTES) * n]
}

/// Rows of activations or gradients in signed bytes, and where their scales are.
#[derive(Clone, Copy)]
pub(in crate::gemm) struct Int8Operand {
    pub(in crate::gemm) operand: Operand,
    pub(in crate::gemm) scales: Address,
}

/// An int8 term: `D = scale · A B + C`.
pub(in crate::gemm) struct Int8Matmul<'a> {
    pub(in crate::gemm) term: &'a Term<'a>,
    pub(in crate::gemm) output: &'a OutputRegion,
    pub(in crate::gemm) scale: f32,
    /// Added to the product; laid out like the result.
    pub(in crate::gemm) c: Option<Address>,
    pub(in crate::gemm) d: Operand,
    pub(in crate::gemm) d_dtype: DType,
    /// Bytes of accumulators that exist at a time.
    pub(in crate::gemm) sums_bytes: usize,
}

impl Int8Matmul<'_> {
    /// Launches the product; `left` caches the quantised left operand, which terms may share.
    pub(in crate::gemm) fn launch(self, gpu: &Gpu, left: &mut LeftCache<Int8Operand>) {
        let Self { term: Term { a, b, k, .. }, output, scale, c, d, d_dtype, sums_bytes } = self;
        let (m, n, k) = (output.m, output.n, *k);
        // The scales of a weight's rows belong to columns of the result. If they run along the
        // contraction instead, the left operand is multiplied by them before it is quantised.
        let weight_scales = b.data.cuda().address();
        let (col_scales, factors) =
            if b.row_stride == 1 { (weight_scales, None) } else { (0, Some(weight_scales)) };
        let key = LeftKey { address: a.data.cuda().part(a.offset, 0).address(), k, factors };
        let rows = left.get_or(key, || int8_rows(gpu, *a, (m, k), factors));
        let weight = int8_weight(gpu, *b, (k, n));
        let max_rows = rows_of_sums(m, n, sums_bytes);
        let sums = gpu.scratch(4 * max_rows * n);
        for first in (0..m).step_by(max_rows) {
            let left = m - first;
            let address = rows.operand.address + (first * k) as u64;
            gpu.matmul(Matmul {
                m: left.next_multiple_of(ROW_MULTIPLE).min(max_rows),
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
            let row_scales = rows.scales + 4 * first as u64;
            let kernel = format!("int8_dequantise<{}>", d_dtype.in_kernels());
            let args = args![sums, n, row_scales, col_scales, scale, add, to, d.row_stride];
            gpu.launch(&SOURCE, &kernel, Launch::blocks(left.min(max_rows), 256), args);
        }
    }
}

/// Quantised rows of activations or gradients, `[m, k]`, with columns multiplied by `factors`
/// first.
pub(in crate::gemm) fn int8_rows(
    gpu: &Gpu,
    x: Matrix<'_>,
    (m, k): (usize, usize),
    factors: Option<Address>,
) -> Int8Operand {
    assert_eq!(x.col_stride, 1, "rows are contiguous");
    let slice = x.data.cuda();
    let from = slice.part(x.offset, 0);
    // Padding rows are multiplied too, whatever they contain; their results are not read.
    let rows = m.next_multiple_of(ROW_MULTIPLE);
    let (y, scales) = (gpu.scratch(rows * k), gpu.scratch(4 * rows));
    let kernel = format!("int8_quantise<{}>", slice.type_name());
    let args = args![from, k, x.row_stride, factors.unwrap_or(0), y, scales];
    gpu.launch(&SOURCE, &kernel, Launch::blocks(m, 256), args);
    Int8Operand { operand: Operand { address: y, row_stride: k, col_stride: 1 }, scales }
}

/// An int8 weight as right operand `[k, n]`, column-major.
fn int8_weight(gpu: &Gpu, w: Matrix<'_>, (k, n): (usize, usize)) -> Operand {
    let slice = w.data.cuda();
    assert!(w.offset == 0 && slice.len() == k * n, "whole weights");
    let y = gpu.scratch(n * k);
    match w.row_stride {
        1 => {
            let args = args![slice, n * k, y];
            gpu.launch(&SOURCE, "int8_weight", Launch::elements(n * k / 16), args);
        }
        _ => {
            let tiles = [n.div_ceil(32) as u32, k.div_ceil(32) as u32, 1];
            let at = Launch { grid: tiles, threads: 256, shared_bytes: 0 };
            gpu.launch(&SOURCE, "int8_weight_transposed", at, args![slice, k, n, y]);
        }
    }
    Operand { address: y, row_stride: 1, col_stride: k }
}
