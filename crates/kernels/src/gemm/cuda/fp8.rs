//! Operands in FP8, with one factor for each.

use super::{Kept, SOURCE};
use crate::cuda::{Address, Fp8, Gpu, Launch, Operand, Operands, Slice, args};
use crate::element::DType;
use crate::gemm::{Matrix, Place, Term};

/// Bytes of the greatest magnitude and of the factor that follows from it.
const FACTORS: usize = 8;

/// An operand in FP8, and where its factor is.
#[derive(Clone, Copy)]
pub(in crate::gemm) struct InFp8 {
    pub(in crate::gemm) operand: Operand,
    pub(in crate::gemm) scale: Address,
}

/// Both operands of a term in FP8.
pub(super) fn operands(
    gpu: &Gpu,
    kind: Fp8,
    (term, target): (&Term<'_>, &Place),
    left: &mut Kept<InFp8>,
) -> (Operand, Operand, Operands) {
    let made_of = (term.a.data.cuda().part(term.a.offset, 0).address(), term.k, None);
    let a = left.of(made_of, || rows_in_fp8(gpu, kind, term.a, (target.m, term.k)));
    let b = weight_in_fp8(gpu, term.b, (term.k, target.n));
    let operands = Operands::Fp8 { a: kind, b: Fp8::E4m3, scales: [a.scale, b.scale] };
    (a.operand, b.operand, operands)
}

/// Rows of activations or gradients, `[m, k]`.
pub(in crate::gemm) fn rows_in_fp8(
    gpu: &Gpu,
    kind: Fp8,
    x: Matrix<'_>,
    (m, k): (usize, usize),
) -> InFp8 {
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

/// Bytes that a product of `[m, k]` and `[k, n]` takes, part by part.
pub(super) fn parts([m, n, k]: [usize; 3]) -> [usize; 4] {
    [m * k, n * k, FACTORS, FACTORS]
}
