//! FP8 operands, with one scale each.

use super::{LeftCache, LeftKey, SOURCE};
use crate::cuda::{Address, Fp8, Gpu, Launch, Operand, Operands, Slice, args};
use crate::element::DType;
use crate::gemm::{Matrix, OutputRegion, Term};

/// Bytes of an operand's largest magnitude (`amax`) and its scale.
const AMAX_AND_SCALE_BYTES: usize = 8;

/// An FP8 operand, and where its scale is.
#[derive(Clone, Copy)]
pub(in crate::gemm) struct Fp8Operand {
    pub(in crate::gemm) operand: Operand,
    pub(in crate::gemm) scale: Address,
}

/// Both operands of a term in FP8.
pub(super) fn operands(
    gpu: &Gpu,
    kind: Fp8,
    term: &Term<'_>,
    output: &OutputRegion,
    left: &mut LeftCache<Fp8Operand>,
) -> (Operand, Operand, Operands) {
    let address = term.a.data.cuda().part(term.a.offset, 0).address();
    let key = LeftKey { address, k: term.k, factors: None };
    let a = left.get_or(key, || fp8_rows(gpu, kind, term.a, (output.m, term.k)));
    let b = fp8_weight(gpu, term.b, (term.k, output.n));
    let operands = Operands::Fp8 { a: kind, b: Fp8::E4m3, scales: [a.scale, b.scale] };
    (a.operand, b.operand, operands)
}

/// Rows of activations or gradients, `[m, k]`.
pub(in crate::gemm) fn fp8_rows(
    gpu: &Gpu,
    kind: Fp8,
    x: Matrix<'_>,
    (m, k): (usize, usize),
) -> Fp8Operand {
    assert_eq!(x.col_stride, 1, "rows are contiguous");
    let slice = x.data.cuda();
    let from = slice.part(x.offset, 0);
    let (y, amax) = (gpu.scratch(m * k), gpu.scratch(AMAX_AND_SCALE_BYTES));
    let scale = amax + 4;
    gpu.zero(Slice::new(amax, DType::F32, 1, 1));
    let kernel = format!("fp8_amax<{}>", slice.type_name());
    let blocks = Launch::blocks(m.min(1024), 256);
    gpu.launch(&SOURCE, &kernel, blocks, args![from, m, k, x.row_stride, amax]);
    let format = if kind == Fp8::E4m3 { "E4m3" } else { "E5m2" };
    let kernel = format!("fp8_quantise<{},{format}>", slice.type_name());
    let args = args![from, k, x.row_stride, amax, y, scale];
    gpu.launch(&SOURCE, &kernel, Launch::blocks(m, 256), args);
    Fp8Operand { operand: Operand { address: y, row_stride: k, col_stride: 1 }, scale }
}

/// An int8 weight as right operand `[k, n]` in FP8, column-major.
fn fp8_weight(gpu: &Gpu, w: Matrix<'_>, (k, n): (usize, usize)) -> Fp8Operand {
    let slice = w.data.cuda();
    assert!(w.offset == 0 && slice.len() == k * n, "whole weights");
    let (y, amax) = (gpu.scratch(n * k), gpu.scratch(AMAX_AND_SCALE_BYTES));
    let scale = amax + 4;
    let (rows, cols) = (slice.len() / slice.cols(), slice.cols());
    let args = args![slice.address(), rows, amax];
    gpu.launch(&SOURCE, "fp8_amax_of_int8", Launch::blocks(1, 1024), args);
    match w.row_stride {
        1 => {
            let args = args![slice, cols, amax, y, scale];
            gpu.launch(&SOURCE, "fp8_weight", Launch::blocks(rows, 128), args);
        }
        _ => {
            let tiles = [cols.div_ceil(32) as u32, rows.div_ceil(32) as u32, 1];
            let at = Launch { grid: tiles, threads: 256, shared_bytes: 0 };
            let args = args![slice, rows, cols, amax, y, scale];
            gpu.launch(&SOURCE, "fp8_weight_transposed", at, args);
        }
    }
    Fp8Operand { operand: Operand { address: y, row_stride: 1, col_stride: k }, scale }
}

/// Scratch allocations, in bytes, of a product of `[m, k]` and `[k, n]`.
pub(super) fn scratch([m, n, k]: [usize; 3]) -> [usize; 4] {
    [m * k, n * k, AMAX_AND_SCALE_BYTES, AMAX_AND_SCALE_BYTES]
}
