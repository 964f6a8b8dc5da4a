//! Rounding with error feedback: each weight makes up for the errors of those before it.
//!
//! With the curvature `H_O ⊗ H_I` of a matrix, rows and columns, an error `E` costs
//! `‖√D_O U_Oᵀ E U_I √D_I‖²`, where `H = U D Uᵀ`. Weights are rounded in the order of rows and of
//! columns, each after what the errors before it make of its term of the sum: LDLQ (Chee et al.,
//! 2023, arXiv 2307.13304) on both sides (Tseng et al., 2025, arXiv 2505.22988). Scales of a block
//! are searched for when its turn comes, for what its weights should be then.

use crate::factor::Factor;
use crate::meter::host as cpu;
use hone_tensor::gemm::{Epilogue, Matrix, OutputRegion, Product, Term, gemm};
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
    let row_bytes = storage.num_bytes(&[1, k]);
    let (values, mut bytes) = (weights.f32(), vec![0; n * row_bytes]);
    let columns = Columns { format, coding, inputs, k };
    // `W − Q` of all rows so far.
    let mut errors = vec![0.0; n * k];
    let rows = if outputs.is_some() { ROWS } else { INDEPENDENT_ROWS };
    for first in (0..n).step_by(rows) {
        let count = rows.min(n - first);
        let (own, bytes) = (&values[first * k..][..count * k], &mut bytes[first * row_bytes..]);
        let mut targets = own.to_vec();
        if let Some(outputs) = outputs.filter(|_| first > 0) {
            let shares = outputs.of_rows(first, count);
            let shares = Matrix::rows(View::F32(&shares), count).transposed();
            add_product(shares, (&errors, k), [count, first, k], &mut targets);
        }
        let short = columns.round(&targets, &mut bytes[..count * row_bytes]);
        // What rows are short of their targets, less what these are above the weights.
        let errors = &mut errors[first * k..][..count * k];
        for (error, ((short, target), own)) in
            errors.iter_mut().zip(short.iter().zip(&targets).zip(own))
        {
            *error = short - (target - own);
        }
    }
    Tensor::from_bytes(&bytes, storage, weights.shape())
}

/// Rows that are rounded together where nothing goes from one to another.
const INDEPENDENT_ROWS: usize = 256;

/// Feedback along the columns of rows.
struct Columns<'a> {
    format: &'static WeightFormat,
    coding: Coding,
    inputs: &'a Factor,
    /// Columns.
    k: usize,
}

impl Columns<'_> {
    /// Rounds whole rows into `bytes`; what they are short of `targets [_, k]`.
    fn round(&self, targets: &[f32], bytes: &mut [u8]) -> Vec<f32> {
        let (k, block) = (self.k, self.format.block);
        let count = targets.len() / k;
        let block_bytes = bytes.len() / (count * k / block);
        let mut short = vec![0.0; count * k];
        for col in (0..k).step_by(block) {
            let of_block = targets.chunks_exact(k).flat_map(|row| &row[col..col + block]);
            let mut wanted: Vec<f32> = of_block.copied().collect();
            if col > 0 {
                let upper = (&self.inputs.upper[col..], k);
                let before = Matrix::rows(View::F32(&short), k);
                add_product(before, upper, [count, col, block], &mut wanted);
            }
            let packed = self.round_blocks((targets, &wanted), col, &mut short);
            for (row, packed) in packed.chunks_exact(block_bytes).enumerate() {
                bytes[(row * k + col) / block * block_bytes..][..block_bytes]
                    .copy_from_slice(packed);
            }
        }
        short
    }

    /// Rounds the block of each row at column `col`, for which `wanted [_, block]` has the targets
    /// and what is fed back from before; writes what is short of the targets.
    fn round_blocks(
        &self,
        (targets, wanted): (&[f32], &[f32]),
        col: usize,
        short: &mut [f32],
    ) -> Vec<u8> {
        let Self { format, coding, inputs, k } = *self;
        let (block, count) = (format.block, targets.len() / k);
        let mut packed = vec![0; Storage::Packed(format).num_bytes(&[count, block])];
        let importance = &inputs.diagonal[col..col + block];
        let host = Device::host().processor().expect("the host computes");
        host.pack_by_importance(View::F32(wanted), importance, format, &mut packed);
        let mut blocks = (coding.read)(&packed);
        let groups = block / coding.group;
        // The level of each weight, and what it is short of then.
        let mut rounded = vec![(0i8, 0.0f32); count * block];
        cpu().rows(&mut rounded, block, block * block / 2, |row, rounded| {
            let mut wanted = wanted[row * block..][..block].to_vec();
            for (j, to) in rounded.iter_mut().enumerate() {
                let [scale, offset] = blocks.affine(row * groups + j / coding.group);
                let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
                let level = coding.nearest((wanted[j] + offset) * inverse);
                let short = targets[row * k + col + j] - (scale * level - offset);
                *to = (level as i8, short);
                let upper = &inputs.upper[(col + j) * k + col..][..block];
                let rest = wanted[j + 1..].iter_mut().zip(&upper[j + 1..]);
                rest.for_each(|(wanted, by)| *wanted += short * by);
            }
        });
        for (i, (level, of)) in rounded.into_iter().enumerate() {
            blocks.levels[i] = level;
            short[i / block * k + col + i % block] = of;
        }
        (coding.write)(&blocks, &mut packed);
        packed
    }
}

/// `out [m, n] += a [m, k] b [k, n]`; rows of `b` are so long.
fn add_product(a: Matrix<'_>, (b, b_len): (&[f32], usize), [m, k, n]: [usize; 3], out: &mut [f32]) {
    let terms = [Term::new(a, Matrix::rows(View::F32(b), b_len), k)];
    let epilogue = Epilogue { accumulate: true, ..Default::default() };
    let product = Product { terms: &terms, epilogue, output: OutputRegion::whole(m, n) };
    gemm(cpu(), DType::F32, &[product], ViewMut::F32(out));
}

#[cfg(test)]
mod tests {
    use super::*;
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
        let factors = [Factor::of(cpu(), &inputs, k), Factor::of(cpu(), &outputs, n)];
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
