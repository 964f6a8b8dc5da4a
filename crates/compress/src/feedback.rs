//! Rounding with error feedback: each weight makes up for the errors of those before it.
//!
//! With the curvature `H_O ⊗ H_I` of a matrix, rows and columns, an error `E` costs
//! `‖√D_O U_Oᵀ E U_I √D_I‖²`, where `H = U D Uᵀ`. Weights are rounded in the order of rows and of
//! columns, each after what the errors before it make of its term of the sum: LDLQ (Chee et al.,
//! 2023, arXiv 2307.13304) on both sides (Tseng et al., 2025, arXiv 2505.22988). Scales of a block
//! are searched for when its turn comes, for what its weights should be then.

use crate::factor::Factor;
use crate::meter::host;
use hone_tensor::gemm::{Epilogue, Matrix, OutputRegion, Product, Term};
use hone_tensor::{Coding, DType, Device, Storage, Tensor, View, ViewMut, WeightFormat};

/// Rows that are rounded together, without feedback between them: they make up for errors before
/// them as a block.
const ROWS: usize = 8;

/// A matrix in a packed type, rounded with the factors of its curvature: that of inputs, and that
/// of outputs if it is known.
pub(crate) fn rounded(
    weights: &Tensor,
    format: &'static WeightFormat,
    coding: Coding,
    (inputs, outputs): (&Factor, Option<&Factor>),
) -> Tensor {
    let [n, k] = [weights.shape()[0], weights.shape()[1]];
    let storage = Storage::Packed(format);
    let (block, host) = (format.block, Device::host().processor().expect("the host computes"));
    let block_bytes = storage.num_bytes(&[1, block]);
    let (values, mut bytes) = (weights.f32(), vec![0; storage.num_bytes(weights.shape())]);
    let cpu = crate::meter::host();
    // `W − Q` of all rows so far.
    let mut errors = vec![0.0; n * k];
    let rows = if outputs.is_some() { ROWS } else { 256 };
    for first in (0..n).step_by(rows) {
        let count = rows.min(n - first);
        let mut targets = values[first * k..(first + count) * k].to_vec();
        if let Some(outputs) = outputs.filter(|_| first > 0) {
            let shares = outputs.of_rows(first, count);
            add_product(
                (&shares, count, true),
                (&errors, k),
                [count, first, k],
                (&mut targets, k, 0),
            );
        }
        let mut fed = vec![0.0; count * k];
        for col in (0..k).step_by(block) {
            let mut wanted = vec![0.0; count * block];
            for (to, from) in wanted.chunks_exact_mut(block).zip(targets.chunks_exact(k)) {
                to.copy_from_slice(&from[col..col + block]);
            }
            if col > 0 {
                let upper = (&inputs.upper[col..], k);
                add_product((&fed, k, false), upper, [count, col, block], (&mut wanted, block, 0));
            }
            let importance = &inputs.diagonal[col..col + block];
            let mut packed = vec![0; count * block_bytes];
            host.pack_by_importance(View::F32(&wanted), importance, format, &mut packed);
            let mut blocks = (coding.read)(&packed);
            let groups = block / coding.group;
            // Levels of a row, and what its weights are short of their targets then.
            let mut levels = vec![(0i8, 0.0f32); count * block];
            cpu.rows(&mut levels, block, block * block / 2, |row, levels| {
                let mut wanted = wanted[row * block..][..block].to_vec();
                for j in 0..block {
                    let [scale, offset] = blocks.affine(row * groups + j / coding.group);
                    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
                    let level = coding.nearest((wanted[j] + offset) * inverse);
                    let short = targets[row * k + col + j] - (scale * level - offset);
                    levels[j] = (level as i8, short);
                    let upper = &inputs.upper[(col + j) * k + col..][..block];
                    for (to, by) in wanted[j + 1..].iter_mut().zip(&upper[j + 1..]) {
                        *to += short * by;
                    }
                }
            });
            for (row, levels) in levels.chunks_exact(block).enumerate() {
                for (j, (level, short)) in levels.iter().enumerate() {
                    blocks.levels[row * block + j] = *level;
                    fed[row * k + col + j] = *short;
                }
            }
            (coding.write)(&blocks, &mut packed);
            for (row, packed) in packed.chunks_exact(block_bytes).enumerate() {
                let at = ((first + row) * (k / block) + col / block) * block_bytes;
                bytes[at..at + block_bytes].copy_from_slice(packed);
            }
        }
        // What is short of the targets, less what they are above the weights.
        let of = values[first * k..].iter().zip(&targets).zip(&fed);
        let errors = &mut errors[first * k..(first + count) * k];
        for (error, ((value, target), fed)) in errors.iter_mut().zip(of) {
            *error = fed - (target - value);
        }
    }
    Tensor::from_bytes(&bytes, storage, weights.shape())
}

/// `out [m, n] += a [m, k] b [k, n]`, where `a` may lie transposed; rows are so long.
fn add_product(
    (a, a_len, is_transposed): (&[f32], usize, bool),
    (b, b_len): (&[f32], usize),
    [m, k, n]: [usize; 3],
    (out, out_len, col): (&mut [f32], usize, usize),
) {
    let a = Matrix::rows(View::F32(a), a_len);
    let a = if is_transposed { a.transposed() } else { a };
    let terms = [Term::new(a, Matrix::rows(View::F32(b), b_len), k)];
    let epilogue = Epilogue { accumulate: true, ..Default::default() };
    let output = OutputRegion::columns(m, n, out_len, col);
    let product = Product { terms: &terms, epilogue, output };
    hone_tensor::gemm::gemm(host(), DType::F32, &[product], ViewMut::F32(out));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meter::host;
    use hone_tensor::safetensors::{load_as, pack_as};
    use hone_tensor::{Category, FORMATS, Philox};

    /// A curvature in which each depends on its neighbours.
    fn neighbours(n: usize, stream: u64) -> Vec<f32> {
        let random = Philox::new(11, stream);
        let scale = |i: usize| 0.3 + random.uniform(i as u64);
        let of = |at: usize| {
            let (i, j) = (at / n, at % n);
            scale(i) * scale(j) * 0.9f32.powi((i as i32 - j as i32).abs())
        };
        (0..n * n).map(of).collect()
    }

    /// A curvature of few directions, in which each depends on all.
    fn directions(n: usize, stream: u64) -> Vec<f32> {
        let random = Philox::new(11, stream);
        let along = |i: usize, direction: usize| random.normal((direction * n + i) as u64);
        let of = |at: usize| {
            let (i, j) = (at / n, at % n);
            let shared: f32 =
                (0..4).map(|direction| along(i, direction) * along(j, direction)).sum();
            shared + if i == j { 0.2 } else { 0.0 }
        };
        (0..n * n).map(of).collect()
    }

    /// `tr(H_O E H_I Eᵀ)`.
    fn cost(errors: &[f32], inputs: &[f32], outputs: &[f32], k: usize) -> f64 {
        let n = errors.len() / k;
        let mut of_inputs = vec![0.0f64; n * k];
        for i in 0..n {
            for m in 0..k {
                let error = f64::from(errors[i * k + m]);
                for j in 0..k {
                    of_inputs[i * k + j] += error * f64::from(inputs[m * k + j]);
                }
            }
        }
        let mut sum = 0.0;
        for i in 0..n {
            for l in 0..n {
                let row: f64 =
                    (0..k).map(|j| of_inputs[i * k + j] * f64::from(errors[l * k + j])).sum();
                sum += f64::from(outputs[i * n + l]) * row;
            }
        }
        sum
    }

    #[test]
    fn errors_cost_less_with_feedback_on_each_side() {
        let (n, k) = (48, 256);
        let random = Philox::new(12, 0);
        let values: Vec<f32> = (0..n * k).map(|i| random.normal(i as u64)).collect();
        let weights = Tensor::from_f32(&values, &[n, k]);
        let (inputs, outputs) = (neighbours(k, 1), directions(n, 2));
        let factors = [Factor::of(host(), &inputs, k), Factor::of(host(), &outputs, n)];
        let importance: Vec<f32> = (0..k).map(|i| inputs[i * k + i]).collect();
        for format in FORMATS {
            let Some(coding) = format.coding else { continue };
            let cost = |packed: &Tensor| {
                let host = Device::host();
                let held = load_as(host, Category::Workspace, packed, DType::F32).unwrap();
                let errors = held.f32().iter().zip(&values).map(|(held, x)| x - held);
                cost(&errors.collect::<Vec<_>>(), &inputs, &outputs, k)
            };
            let nearest = pack_as(&weights, Storage::Packed(format), &importance).unwrap();
            let of_inputs = rounded(&weights, format, coding, (&factors[0], None));
            let both = rounded(&weights, format, coding, (&factors[0], Some(&factors[1])));
            let costs = [&nearest, &of_inputs, &both].map(cost);
            assert!(costs[1] < 0.6 * costs[0], "{format:?}: {costs:?}");
            assert!(costs[2] < 0.6 * costs[1], "{format:?}: {costs:?}");
        }
    }
}
