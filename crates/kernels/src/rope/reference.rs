//! The definition.

use super::{Direction, Rotated};
use std::ops::Range;

/// Rotates these heads of `d` dimensions in rows of `width`; `cos`, `sin` are
/// `[t, rotated.dim / 2]`.
pub fn rotate(
    x: &[f64],
    width: usize,
    (heads, d): (Range<usize>, usize),
    rotated: Rotated,
    (cos, sin): (&[f64], &[f64]),
    direction: Direction,
) -> Vec<f64> {
    let mut y = x.to_vec();
    let half = rotated.dim / 2;
    for t in 0..x.len() / width {
        for head in heads.clone() {
            for i in 0..half {
                let (low, high) = rotated.pair(i);
                let (low, high) = (t * width + head * d + low, t * width + head * d + high);
                let (c, s) = (cos[t * half + i], sin[t * half + i]);
                let s = if direction == Direction::Backward { -s } else { s };
                y[low] = x[low] * c - x[high] * s;
                y[high] = x[high] * c + x[low] * s;
            }
        }
    }
    y
}
