//! The definition.

use super::Direction;

/// Rotates the first `heads` heads of `d` dimensions in rows of `width`; `cos`, `sin [t, d / 2]`.
pub fn rotate(
    x: &[f64],
    width: usize,
    (heads, d): (usize, usize),
    (cos, sin): (&[f64], &[f64]),
    direction: Direction,
) -> Vec<f64> {
    let mut y = x.to_vec();
    let half = d / 2;
    for t in 0..x.len() / width {
        for head in 0..heads {
            for i in 0..half {
                let (low, high) = (t * width + head * d + i, t * width + head * d + half + i);
                let (c, s) = (cos[t * half + i], sin[t * half + i]);
                let s = if direction == Direction::Backward { -s } else { s };
                y[low] = x[low] * c - x[high] * s;
                y[high] = x[high] * c + x[low] * s;
            }
        }
    }
    y
}
