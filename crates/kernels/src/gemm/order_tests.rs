//! The order in which bf16 products are summed, spelt out, and the numbers at which instruction
//! sets could differ.

use super::*;
use crate::cpu::{Cpu, Isa};
use crate::element::bf16;
use crate::gemm::tile::BLOCK;
use crate::random::Philox;

fn as_zero(x: f32) -> f32 {
    if x.is_subnormal() { 0.0f32.copysign(x) } else { x }
}

/// The sum of products as `tdpbf16ps` makes it, with subnormals as zero, of whole blocks.
fn sum_in_blocks(a: &[f32], b: &[f32]) -> f32 {
    let chain = |a: &[f32], b: &[f32], parity: usize| {
        let products = a.iter().zip(b).skip(parity).step_by(2);
        products.fold(0.0f32, |sum, (a, b)| as_zero(as_zero(*a).mul_add(as_zero(*b), sum)))
    };
    a.chunks_exact(BLOCK)
        .zip(b.chunks_exact(BLOCK))
        .fold(0.0, |sum, (a, b)| as_zero(sum + as_zero(chain(a, b, 0) + chain(a, b, 1))))
}

/// `a [m, k] · bᵀ [k, n]`, by rows.
fn product(cpu: &Cpu, (m, n, k): (usize, usize, usize), a: View<'_>, b: View<'_>) -> Vec<f32> {
    let mut out = vec![f32::NAN; m * n];
    let (a, b) = (Matrix::rows(a, k), Matrix::rows(b, k).transposed());
    let (terms, output) = ([Term::new(a, b, k)], OutputRegion::whole(m, n));
    let product = Product { terms: &terms, epilogue: Epilogue::default(), output };
    gemm(cpu, DType::Bf16, &[product], ViewMut::F32(&mut out));
    out
}

/// Operands in bf16 and in f32, on every instruction set, with rows and columns that fill tiles,
/// and that do not.
fn check(name: &str, sizes: &[(usize, usize, usize)], number: impl Fn(u64, &Philox) -> f32) {
    for &(m, n, k) in sizes {
        let numbers = |len: usize, stream| -> Vec<f32> {
            let random = Philox::new(3, stream);
            (0..len as u64).map(|i| number(i, &random)).collect()
        };
        let operands = [numbers(m * k, 1), numbers(n * k, 2)];
        let narrow = |x: &[f32]| x.iter().map(|&x| bf16::from_f32(x)).collect::<Vec<bf16>>();
        let [a, b] = [&operands[0], &operands[1]].map(|x| narrow(x));
        check_views(&format!("{name}, bf16"), (m, n, k), [View::Bf16(&a), View::Bf16(&b)]);
        let [a, b] = &operands;
        check_views(&format!("{name}, f32"), (m, n, k), [View::F32(a), View::F32(b)]);
    }
}

fn check_views(name: &str, (m, n, k): (usize, usize, usize), operands: [View<'_>; 2]) {
    // Conversions take subnormals for zero, too.
    let round = |x: &f32| bf16::from_f32(as_zero(*x)).to_f32();
    let rows = operands.map(|x| {
        let padded = |row: &[f32]| {
            let mut row: Vec<f32> = row.iter().map(round).collect();
            row.resize(k.next_multiple_of(BLOCK), 0.0);
            row
        };
        x.to_vec_f32().chunks_exact(k).map(padded).collect::<Vec<_>>()
    });
    let [a, b] = &rows;
    let pairs = a.iter().flat_map(|a| b.iter().map(move |b| (a, b)));
    let expected: Vec<f32> = pairs.map(|(a, b)| sum_in_blocks(a, b)).collect();
    for isa in Isa::available() {
        let found = product(&Cpu::with_isa(2, isa), (m, n, k), operands[0], operands[1]);
        for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
            let is_same =
                found.to_bits() == expected.to_bits() || found.is_nan() && expected.is_nan();
            assert!(is_same, "{name}, {m}×{n}×{k}, {isa:?}, {i}: {found:e} for {expected:e}");
        }
    }
}

#[test]
fn bf16_products_are_summed_in_blocks() {
    let sizes: Vec<_> = (1..=100).map(|k| (1 + k % 37, 1 + k % 53, k)).collect();
    check("normal numbers", &sizes, |i, random| random.normal(i));
    check("whole tiles", &[(64, 96, 64), (32, 32, 576), (16, 16, 32)], |i, random| {
        random.normal(i)
    });
}

/// Results, and what is summed on the way, below the least normal number.
#[test]
fn subnormals_are_zero() {
    let sizes = [(33, 49, 64), (32, 32, 96), (5, 3, 7)];
    check("subnormal products", &sizes, |i, random| random.normal(i) * 2f32.powi(-64));
    check("subnormal operands", &sizes, |i, random| match i % 3 {
        0 => random.normal(i) * 2f32.powi(-127),
        // Of which the nearest bf16 is a normal number.
        1 if i % 2 == 0 => f32::from_bits(0x007f_ffff),
        1 => random.normal(i) * 2f32.powi(100),
        _ => random.normal(i),
    });
}

#[test]
fn infinities_and_nan_come_out() {
    let sizes = [(33, 49, 64), (32, 32, 96), (5, 3, 7)];
    check("infinities", &sizes, |i, random| match random.uniform(i) {
        x if x < 0.01 => f32::INFINITY,
        x if x < 0.02 => f32::NEG_INFINITY,
        x if x < 0.025 => 0.0,
        _ => random.normal(i),
    });
    check("NaN", &sizes, |i, random| match random.uniform(i) {
        x if x < 0.01 => f32::NAN,
        _ => random.normal(i),
    });
    check("overflow", &sizes, |i, random| random.normal(i) * 2f32.powi(63));
}

/// What pads rows, columns and steps to whole tiles does not come out, even where all else is
/// infinite.
#[test]
fn padding_does_not_show() {
    check("infinite everywhere", &[(3, 5, 7), (17, 33, 31)], |_, _| f32::INFINITY);
    check("zero everywhere", &[(3, 5, 7), (17, 33, 31)], |_, _| 0.0);
}
