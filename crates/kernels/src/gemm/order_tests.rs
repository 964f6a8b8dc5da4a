//! The order in which bf16 products are summed, spelt out, and the numbers at which instruction
//! sets could differ.

use super::*;
use crate::cpu::{Cpu, Isa};
use crate::element::bf16;
use crate::random::Philox;

/// The sum of products as `tdpbf16ps` makes it, with subnormals as zero.
fn sum_in_blocks(a: &[bf16], b: &[bf16]) -> f32 {
    let as_zero = |x: f32| if x.is_subnormal() { 0.0 * x } else { x };
    let chain = |parity: usize, steps: std::ops::Range<usize>| {
        let products = steps.filter(|k| k % 2 == parity);
        products.fold(0.0f32, |sum, k| {
            let [a, b] = [a[k], b[k]].map(|x| as_zero(x.to_f32()));
            as_zero(a.mul_add(b, sum))
        })
    };
    (0..a.len()).step_by(32).fold(0.0, |sum, first| {
        let steps = first..a.len().min(first + 32);
        let block = as_zero(chain(0, steps.clone()) + chain(1, steps));
        as_zero(sum + block)
    })
}

/// `a [m, k] · bᵀ [k, n]` of rows of bf16.
fn product(cpu: &Cpu, (m, n, k): (usize, usize, usize), a: &[bf16], b: &[bf16]) -> Vec<f32> {
    let mut out = vec![f32::NAN; m * n];
    let a = Matrix::rows(View::Bf16(a), k);
    let b = Matrix::rows(View::Bf16(b), k).transposed();
    let (terms, output) = ([Term::new(a, b, k)], OutputRegion::whole(m, n));
    let product = Product { terms: &terms, epilogue: Epilogue::default(), output };
    gemm(cpu, DType::Bf16, &[product], ViewMut::F32(&mut out));
    out
}

/// On every instruction set, with rows and columns that fill tiles, and that do not.
fn check(name: &str, sizes: &[(usize, usize, usize)], number: impl Fn(u64, &Philox) -> f32) {
    for &(m, n, k) in sizes {
        let numbers = |len: usize, stream| -> Vec<bf16> {
            let random = Philox::new(3, stream);
            (0..len as u64).map(|i| bf16::from_f32(number(i, &random))).collect()
        };
        let (a, b) = (numbers(m * k, 1), numbers(n * k, 2));
        let rows = a.chunks_exact(k).flat_map(|a| b.chunks_exact(k).map(move |b| (a, b)));
        let expected: Vec<f32> = rows.map(|(a, b)| sum_in_blocks(a, b)).collect();
        for isa in Isa::available() {
            let found = product(&Cpu::with_isa(2, isa), (m, n, k), &a, &b);
            for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
                let is_same = found.to_bits() == expected.to_bits()
                    || (found.is_nan() && expected.is_nan())
                    // The sign of a zero is not promised.
                    || (*found == 0.0 && *expected == 0.0);
                assert!(is_same, "{name}, {m}×{n}×{k}, {isa:?}, {i}: {found:e} for {expected:e}");
            }
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
