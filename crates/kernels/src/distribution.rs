//! Distributions of next tokens on the host: how far two are apart, and draws from one.
//!
//! A row of logits is one task, and is summed in lanes and pieces of a fixed length.

use crate::cpu::{Cpu, Kernel};
use crate::math::{exp, max, sum, sum_by};

/// Logits that are summed in f32; sums of pieces are added in f64.
const PIECE: usize = 1024;

/// How a distribution differs from the one that it should be.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Divergence {
    /// `Σ p ln(p / q)`, in nats.
    pub kl: f32,
    /// Whether the most likely token is the same.
    pub same_top: bool,
}

/// The divergence of each row of logits `q [rows, width]` from that of `p [rows, width]`.
///
/// # Panics
/// If lengths do not match.
pub fn divergences(cpu: &Cpu, p: &[f32], q: &[f32], width: usize) -> Vec<Divergence> {
    assert!(p.len() == q.len() && p.len().is_multiple_of(width));
    let mut found = vec![Divergence::default(); p.len() / width];
    cpu.rows(&mut found, 1, 16 * width, |row, to| {
        let [p, q] = [p, q].map(|of| &of[row * width..][..width]);
        to[0] = cpu.isa.run(Compare { p, q });
    });
    found
}

/// The same divergences; `q` becomes their gradient with respect to its logits, `softmax(q) −
/// softmax(p)`, times `scale`.
///
/// # Panics
/// If lengths do not match.
pub fn divergence_gradients(
    cpu: &Cpu,
    p: &[f32],
    q: &mut [f32],
    width: usize,
    scale: f32,
) -> Vec<Divergence> {
    let found = divergences(cpu, p, q, width);
    cpu.rows(q, width, 16 * width, |row, q| {
        cpu.isa.run(Gradient { p: &p[row * width..][..width], q, scale });
    });
    found
}

/// A token of each row's distribution: row `i` with the number `uniform[i]` in `[0, 1)`.
///
/// # Panics
/// If lengths do not match.
pub fn draws(cpu: &Cpu, logits: &[f32], width: usize, uniform: &[f32]) -> Vec<u32> {
    assert_eq!(logits.len(), uniform.len() * width);
    let mut drawn = vec![0; uniform.len()];
    cpu.rows(&mut drawn, 1, 16 * width, |row, to| {
        let logits = &logits[row * width..][..width];
        to[0] = cpu.isa.run(Draw { logits, uniform: f64::from(uniform[row]) });
    });
    drawn
}

struct Compare<'a> {
    p: &'a [f32],
    q: &'a [f32],
}

impl Kernel for Compare<'_> {
    type Output = Divergence;

    #[inline(always)]
    fn run(self) -> Divergence {
        let Self { p, q } = self;
        let (max_p, max_q) = (max(p), max(q));
        let (mut sum_p, mut sum_q, mut difference) = (0.0, 0.0, 0.0);
        for (p, q) in p.chunks(PIECE).zip(q.chunks(PIECE)) {
            let (mut weights, mut terms) = ([0.0; PIECE], [0.0; PIECE]);
            for (i, (p, q)) in p.iter().zip(q).enumerate() {
                weights[i] = exp(p - max_p);
                terms[i] = weights[i] * ((p - max_p) - (q - max_q));
            }
            sum_p += f64::from(sum(&weights[..p.len()]));
            sum_q += f64::from(sum_by(q, |q| exp(q - max_q)));
            difference += f64::from(sum(&terms[..p.len()]));
        }
        let kl = difference / sum_p - sum_p.ln() + sum_q.ln();
        let top = p.iter().position(|x| *x == max_p);
        let same_top = top.is_some_and(|top| q.iter().position(|x| *x == max_q) == Some(top));
        // What is not finite stays so.
        let kl = if kl < 0.0 { 0.0 } else { kl as f32 };
        Divergence { kl, same_top }
    }
}

struct Gradient<'a> {
    p: &'a [f32],
    q: &'a mut [f32],
    scale: f32,
}

impl Kernel for Gradient<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { p, q, scale } = self;
        let (max_p, max_q) = (max(p), max(q));
        let inverse = |x: &[f32], max: f32| {
            let sums = x.chunks(PIECE).map(|x| f64::from(sum_by(x, |x| exp(x - max))));
            (1.0 / sums.sum::<f64>()) as f32
        };
        let (of_p, of_q) = (inverse(p, max_p), inverse(q, max_q));
        for (p, q) in p.iter().zip(q.iter_mut()) {
            *q = scale * (of_q * exp(*q - max_q) - of_p * exp(p - max_p));
        }
    }
}

struct Draw<'a> {
    logits: &'a [f32],
    uniform: f64,
}

impl Kernel for Draw<'_> {
    type Output = u32;

    #[inline(always)]
    fn run(self) -> u32 {
        let Self { logits, uniform } = self;
        let max = max(logits);
        let sum = |x: &[f32]| f64::from(sum_by(x, |x| exp(x - max)));
        let mut left = uniform * logits.chunks(PIECE).map(sum).sum::<f64>();
        for (i, piece) in logits.chunks(PIECE).enumerate() {
            let all = sum(piece);
            if left >= all && (i + 1) * PIECE < logits.len() {
                left -= all;
                continue;
            }
            for (j, x) in piece.iter().enumerate() {
                left -= f64::from(exp(x - max));
                if left < 0.0 {
                    return (i * PIECE + j) as u32;
                }
            }
            // Sums in other orders differ by their rounding: the last one that is likely at all.
            let last = piece.iter().rposition(|x| exp(x - max) > 0.0).unwrap_or(0);
            return (i * PIECE + last) as u32;
        }
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::Isa;
    use crate::random::Philox;

    const WIDTH: usize = 2 * PIECE + 77;

    fn logits(rows: usize, stream: u64, scale: f32) -> Vec<f32> {
        let random = Philox::new(7, stream);
        (0..rows * WIDTH).map(|i| scale * random.normal(i as u64)).collect()
    }

    /// In f64, term by term.
    fn reference(p: &[f32], q: &[f32]) -> f64 {
        let log_sum = |x: &[f32]| x.iter().map(|x| f64::from(*x).exp()).sum::<f64>().ln();
        let (norm_p, norm_q) = (log_sum(p), log_sum(q));
        let term = |(p, q): (&f32, &f32)| {
            let (p, q) = (f64::from(*p) - norm_p, f64::from(*q) - norm_q);
            p.exp() * (p - q)
        };
        p.iter().zip(q).map(term).sum()
    }

    #[test]
    fn divergences_are_those_in_f64_on_every_instruction_set() {
        let p = logits(5, 0, 3.0);
        for (change, tolerance) in [(1e-2, 1e-6), (0.1, 2e-6), (2.0, 1e-5)] {
            let noise = logits(5, 1, change);
            let q: Vec<f32> = p.iter().zip(&noise).map(|(p, noise)| p + noise).collect();
            let found = divergences(&Cpu::new(2), &p, &q, WIDTH);
            for (i, found) in found.iter().enumerate() {
                let [p, q] = [&p, &q].map(|of| &of[i * WIDTH..][..WIDTH]);
                let expected = reference(p, q);
                let error = (f64::from(found.kl) - expected).abs();
                assert!(error < tolerance * (1.0 + expected), "{found:?} for {expected}");
            }
            for isa in Isa::available() {
                assert_eq!(divergences(&Cpu::with_isa(1, isa), &p, &q, WIDTH), found);
            }
        }
        let same = divergences(&Cpu::new(1), &p, &p, WIDTH);
        assert!(same.iter().all(|row| *row == Divergence { kl: 0.0, same_top: true }));
    }

    #[test]
    fn draws_are_as_frequent_as_likely() {
        let row = logits(1, 2, 1.5);
        let rows = 4000;
        let all: Vec<f32> = row.iter().copied().cycle().take(rows * WIDTH).collect();
        let random = Philox::new(1, 0);
        let uniform: Vec<f32> = (0..rows as u64).map(|i| random.uniform(i)).collect();
        let drawn = draws(&Cpu::new(2), &all, WIDTH, &uniform);
        for isa in Isa::available() {
            assert_eq!(draws(&Cpu::with_isa(1, isa), &all, WIDTH, &uniform), drawn);
        }
        // The share of each third of the tokens.
        let sum = |x: &[f32]| x.iter().map(|x| f64::from(*x).exp()).sum::<f64>();
        let third = WIDTH / 3 + 1;
        for (i, part) in row.chunks(third).enumerate() {
            let is_there = |token: &&u32| **token as usize / third == i;
            let found = drawn.iter().filter(is_there).count() as f64 / rows as f64;
            let expected = sum(part) / sum(&row);
            assert!((found - expected).abs() < 0.03, "{found} for {expected}");
        }
        let ends = draws(&Cpu::new(1), &[0.0, 9.0, f32::NEG_INFINITY], 3, &[0.999_999_94]);
        assert_eq!(ends, [1]);
    }

    /// Against differences of divergences in f64.
    #[test]
    fn gradients_are_those_of_divergences() {
        let (p, noise) = (logits(2, 0, 2.0), logits(2, 1, 0.5));
        let q: Vec<f32> = p.iter().zip(&noise).map(|(p, noise)| p + noise).collect();
        let mut d_q = q.clone();
        let found = divergence_gradients(&Cpu::new(2), &p, &mut d_q, WIDTH, 3.0);
        assert_eq!(found, divergences(&Cpu::new(1), &p, &q, WIDTH));
        for isa in Isa::available() {
            let mut again = q.clone();
            divergence_gradients(&Cpu::with_isa(2, isa), &p, &mut again, WIDTH, 3.0);
            assert!(again == d_q, "{isa:?}");
        }
        let most = (0..WIDTH).max_by(|a, b| d_q[*a].abs().total_cmp(&d_q[*b].abs())).unwrap();
        for at in [0, 1, 999, most, WIDTH - 1] {
            let moved = |by: f32| {
                let mut q = q[..WIDTH].to_vec();
                q[at] += by;
                reference(&p[..WIDTH], &q)
            };
            let expected = 3.0 * (moved(1e-2) - moved(-1e-2)) / 2e-2;
            let error = (f64::from(d_q[at]) - expected).abs();
            assert!(error < 1e-5 * (1.0 + expected.abs()), "{at}: {} {expected}", d_q[at]);
        }
    }
}
