//! Factors of a curvature, along which errors are fed back.

use hone_tensor::Cpu;

/// What is added to the diagonal, as a share of its mean: directions that no token of the
/// calibration took would otherwise cost nothing.
const DAMPING: f64 = 0.01;

/// Columns that others lose their parts of in one go.
const BLOCK: usize = 48;

fn subtract(to: &mut [f64], by: f64, from: &[f64]) {
    to.iter_mut().zip(from).for_each(|(to, x)| *to -= by * x);
}

/// `H = U D Uᵀ` with a unit upper triangle `U` and a diagonal `D`.
pub(crate) struct Factor {
    /// `[n, n]`, row-major.
    pub(crate) upper: Vec<f32>,
    /// `[n]`
    pub(crate) diagonal: Vec<f32>,
}

impl Factor {
    /// The factors of a symmetric matrix `[n, n]`, whose sums of squares are in f32, after damping.
    /// A matrix of zeros, or one with a number that is not finite, is taken to be the identity.
    pub(crate) fn of(cpu: &Cpu, matrix: &[f32], n: usize) -> Self {
        let mean = (0..n).map(|i| f64::from(matrix[i * n + i])).sum::<f64>() / n as f64;
        if !(mean > 0.0 && matrix.iter().all(|x| x.is_finite())) {
            let mut upper = vec![0.0; n * n];
            (0..n).for_each(|i| upper[i * n + i] = 1.0);
            return Self { upper, diagonal: vec![1.0; n] };
        }
        // Row `j` of the transposed upper triangle is what column `j` of `H` has left.
        let mut left: Vec<f64> = matrix.iter().map(|x| f64::from(*x) / mean).collect();
        (0..n).for_each(|i| left[i * n + i] += DAMPING);
        let mut diagonal = vec![0.0; n];
        for end in (0..n).rev().step_by(BLOCK).map(|last| last + 1) {
            let first = end.saturating_sub(BLOCK);
            let (above, block) = left.split_at_mut(first * n);
            // Columns with their factor of the diagonal, which others lose a part of.
            let mut whole: Vec<Vec<f64>> = Vec::new();
            for j in (first..end).rev() {
                let (before, column) = block.split_at_mut((j - first) * n);
                let d = column[j].max(DAMPING);
                diagonal[j] = d as f32;
                let column = &mut column[..j + 1];
                whole.push(column[..j].to_vec());
                column.iter_mut().for_each(|x| *x /= d);
                column[j] = 1.0;
                for (i, to) in before.chunks_exact_mut(n).enumerate().map(|(i, to)| (first + i, to))
                {
                    subtract(&mut to[..i + 1], column[i], &whole[whole.len() - 1]);
                }
            }
            let block = &*block;
            cpu.rows(above, n, BLOCK * first, |i, to| {
                for (j, whole) in (first..end).rev().zip(&whole) {
                    subtract(&mut to[..i + 1], block[(j - first) * n + i], whole);
                }
            });
        }
        let mut upper = vec![0.0; n * n];
        cpu.rows(&mut upper, n, n, |i, row| {
            (i..n).for_each(|j| row[j] = left[j * n + i] as f32);
        });
        Self { upper, diagonal }
    }

    /// `[first, count]`: of errors before `first`, what each of the next `count` makes up for if
    /// they do so together. It is the upper triangle of the factors that have a whole block for
    /// these on the diagonal.
    pub(crate) fn of_rows(&self, first: usize, count: usize) -> Vec<f32> {
        let n = self.diagonal.len();
        let mut shares = vec![0.0; first * count];
        for (to, from) in shares.chunks_exact_mut(count).zip(self.upper.chunks_exact(n)) {
            to.copy_from_slice(&from[first..first + count]);
            for i in 0..count {
                let (known, rest) = to.split_at_mut(i + 1);
                let upper = &self.upper[(first + i) * n + first..][..count];
                rest.iter_mut().zip(&upper[i + 1..]).for_each(|(x, by)| *x -= known[i] * by);
            }
        }
        shares
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hone_tensor::Philox;

    #[test]
    fn factors_multiply_to_the_damped_matrix() {
        let n = 137;
        let random = Philox::new(3, 0);
        let a: Vec<f64> = (0..n * n).map(|i| f64::from(random.normal(i as u64))).collect();
        let product = |i: usize, j: usize| (0..n).map(|k| a[i * n + k] * a[j * n + k]).sum::<f64>();
        let matrix: Vec<f32> = (0..n * n).map(|at| product(at / n, at % n) as f32).collect();
        let mean = (0..n).map(|i| f64::from(matrix[i * n + i])).sum::<f64>() / n as f64;
        let Factor { upper, diagonal } = Factor::of(&Cpu::new(2), &matrix, n);
        for i in 0..n {
            assert!((0..i).all(|j| upper[i * n + j] == 0.0) && upper[i * n + i] == 1.0);
            for j in 0..n {
                let found: f64 = (0..n)
                    .map(|k| [upper[i * n + k], diagonal[k], upper[j * n + k]].map(f64::from))
                    .map(|[a, d, b]| a * d * b)
                    .sum();
                let damped = if i == j { DAMPING } else { 0.0 };
                let expected = f64::from(matrix[i * n + j]) / mean + damped;
                assert!((found - expected).abs() < 1e-5, "{i} {j}: {found} {expected}");
            }
        }
        for bad in [vec![0.0; n * n], vec![f32::NAN; n * n]] {
            let Factor { upper, diagonal } = Factor::of(&Cpu::new(1), &bad, n);
            assert!(diagonal.iter().all(|d| *d == 1.0) && upper.iter().sum::<f32>() == n as f32);
        }
    }
}
