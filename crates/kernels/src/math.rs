//! Scalar building blocks that vectorise: exponential, sigmoid, dot products, sums in lanes.

use crate::element::Element;

/// Lanes of every reduction; fixed, so that sums do not depend on the register width.
pub const LANES: usize = 16;

/// `e^x` within 2 ulp for `x` in [-87, 88]; 0 below and `e^88` above.
///
/// Cody–Waite reduction to `|r| ≤ ln 2 / 2` and a degree-6 polynomial (Cephes `expf`).
#[inline(always)]
#[allow(clippy::excessive_precision)]
pub fn exp(x: f32) -> f32 {
    // Adding 1.5 · 2^23 rounds to the nearest integer and leaves it in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let clamped = x.clamp(-87.0, 88.0);
    let rounded = clamped.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = rounded - ROUND;
    let r = n.mul_add(-0.693_359_375, clamped);
    let r = n.mul_add(2.121_944_4e-4, r);
    let mut p = 1.987_569_15e-4_f32;
    p = p.mul_add(r, 1.398_199_95e-3);
    p = p.mul_add(r, 8.333_451_91e-3);
    p = p.mul_add(r, 4.166_579_59e-2);
    p = p.mul_add(r, 1.666_666_55e-1);
    p = p.mul_add(r, 0.5);
    let e_r = (p * r).mul_add(r, r + 1.0);
    let power = f32::from_bits((rounded.to_bits() << 23).wrapping_add(127 << 23));
    if x < -87.0 { 0.0 } else { e_r * power }
}

/// `1 / (1 + e^-x)`.
#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// Hyperbolic tangent, with an absolute error of about 1e-7.
#[inline(always)]
pub fn tanh(x: f32) -> f32 {
    let e = exp(-2.0 * x.abs());
    ((1.0 - e) / (1.0 + e)).copysign(x)
}

/// A soft bound for scores and logits (Gemma 2): `cap · tanh(x / cap)`, always within `±cap`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Softcap(pub f32);

impl Softcap {
    /// `cap · tanh(x / cap)`.
    #[inline(always)]
    pub fn bounded(self, x: f32) -> f32 {
        self.0 * tanh(x / self.0)
    }

    /// The derivative, given the bounded value.
    #[inline(always)]
    pub fn slope(self, bounded: f32) -> f32 {
        let share = bounded / self.0;
        share.mul_add(-share, 1.0)
    }
}

/// Sum of the lanes, as a fixed tree.
#[inline(always)]
pub fn sum_lanes(lanes: [f32; LANES]) -> f32 {
    fold_lanes(lanes, |x, y| x + y)
}

/// Halves the lanes until one is left, in arrays that stay in registers.
#[inline(always)]
fn fold_lanes(lanes: [f32; LANES], f: impl Fn(f32, f32) -> f32) -> f32 {
    let eight: [f32; 8] = std::array::from_fn(|i| f(lanes[i], lanes[i + 8]));
    let four: [f32; 4] = std::array::from_fn(|i| f(eight[i], eight[i + 4]));
    let two: [f32; 2] = std::array::from_fn(|i| f(four[i], four[i + 2]));
    f(two[0], two[1])
}

/// `Σ x`, in lanes.
#[inline(always)]
pub fn sum(x: &[f32]) -> f32 {
    let mut lanes = [0.0; LANES];
    let (whole, rest) = x.as_chunks::<LANES>();
    for chunk in whole {
        lanes.iter_mut().zip(chunk).for_each(|(lane, x)| *lane += x);
    }
    lanes.iter_mut().zip(rest).for_each(|(lane, x)| *lane += x);
    sum_lanes(lanes)
}

/// `Σ x · y` of slices of one length, in lanes.
#[inline(always)]
pub fn dot<X: Element, Y: Element>(x: &[X], y: &[Y]) -> f32 {
    let mut lanes = [0.0; LANES];
    let ((whole_x, rest_x), (whole_y, rest_y)) = (x.as_chunks::<LANES>(), y.as_chunks::<LANES>());
    for (x, y) in whole_x.iter().zip(whole_y) {
        for l in 0..LANES {
            lanes[l] += x[l].to_f32() * y[l].to_f32();
        }
    }
    for (lane, (x, y)) in lanes.iter_mut().zip(rest_x.iter().zip(rest_y)) {
        *lane += x.to_f32() * y.to_f32();
    }
    sum_lanes(lanes)
}

/// `Σ f(x)`, in lanes.
#[inline(always)]
pub fn sum_by<X: Element>(x: &[X], f: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0; LANES];
    let (whole, rest) = x.as_chunks::<LANES>();
    for x in whole {
        lanes.iter_mut().zip(x).for_each(|(lane, x)| *lane += f(x.to_f32()));
    }
    lanes.iter_mut().zip(rest).for_each(|(lane, x)| *lane += f(x.to_f32()));
    sum_lanes(lanes)
}

/// `Σ x · y · z` of slices of one length, in lanes.
#[inline(always)]
pub fn dot3<X: Element, Z: Element>(x: &[X], y: &[f32], z: &[Z]) -> f32 {
    sum_by3(x, y, z, |x, y, z| x * y * z)
}

/// `Σ f(x, y, z)` over slices of one length, in lanes.
#[inline(always)]
pub fn sum_by3<X: Element, Z: Element>(
    x: &[X],
    y: &[f32],
    z: &[Z],
    f: impl Fn(f32, f32, f32) -> f32,
) -> f32 {
    let mut lanes = [0.0; LANES];
    let (whole_x, rest_x) = x.as_chunks::<LANES>();
    let ((whole_y, rest_y), (whole_z, rest_z)) = (y.as_chunks::<LANES>(), z.as_chunks::<LANES>());
    for ((x, y), z) in whole_x.iter().zip(whole_y).zip(whole_z) {
        for l in 0..LANES {
            lanes[l] += f(x[l].to_f32(), y[l], z[l].to_f32());
        }
    }
    for (lane, ((x, y), z)) in lanes.iter_mut().zip(rest_x.iter().zip(rest_y).zip(rest_z)) {
        *lane += f(x.to_f32(), *y, z.to_f32());
    }
    sum_lanes(lanes)
}

/// Elements of a row that [`weighted_sums`] processes at a time.
pub(crate) const BLOCK: usize = 64;

/// Computes `Σ factor · row` over rows of `width`, calling `body(start, sums)` for each block of
/// elements, so that sums stay in registers.
#[inline(always)]
pub fn weighted_sums<'a>(
    width: usize,
    rows: impl Iterator<Item = (f32, &'a [f32])> + Clone,
    mut body: impl FnMut(usize, &[f32]),
) {
    for start in (0..width).step_by(BLOCK) {
        let end = width.min(start + BLOCK);
        let mut sums = [0.0; BLOCK];
        for (factor, row) in rows.clone() {
            sums.iter_mut().zip(&row[start..end]).for_each(|(sum, x)| *sum += factor * x);
        }
        body(start, &sums[..end - start]);
    }
}

/// Largest element; `-inf` if empty. NaN elements are ignored.
#[inline(always)]
pub fn max(x: &[f32]) -> f32 {
    let greater = |m: f32, v: f32| if v > m { v } else { m };
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (whole, rest) = x.as_chunks::<LANES>();
    for chunk in whole {
        lanes.iter_mut().zip(chunk).for_each(|(lane, &v)| *lane = greater(*lane, v));
    }
    lanes.iter_mut().zip(rest).for_each(|(lane, &v)| *lane = greater(*lane, v));
    fold_lanes(lanes, greater)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_ulp() {
        for i in -86_999..88_000 {
            let x = i as f32 * 1e-3;
            let exact = f64::from(x).exp();
            let error = (f64::from(exp(x)) - exact).abs() / exact;
            assert!(error <= 2.4e-7, "exp({x}) is off by {error:e}");
        }
        assert_eq!(exp(-200.0), 0.0);
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn sums_and_maxima_of_odd_lengths() {
        for len in [0, 1, 15, 16, 17, 100] {
            let x: Vec<f32> = (0..len).map(|i| (i as f32 * 0.7).sin()).collect();
            let exact: f64 = x.iter().map(|&v| f64::from(v)).sum();
            assert!((f64::from(sum(&x)) - exact).abs() < 1e-5);
            let ones = vec![1.0f32; len];
            assert_eq!((dot(&x, &ones), dot3(&x, &ones, &ones)), (sum(&x), sum(&x)));
            let greatest = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            assert_eq!(max(&x), greatest);
        }
    }
}
