//! Scales of groups of symmetric integers: the least sum of
//! `importance · (weight − scale · level)²`, as far as a search finds it.
//!
//! Scales on a grid around the largest weight's are each improved by a regression; the best is
//! rounded to what files hold, and then scale and levels are improved in turn. A scale is never
//! negative, which not every program expects. Groups add up their weights in order, so that a file
//! has the same bytes whatever the processor and the threads.

use hone_tensor::Cpu;

/// Integers, and what holds their scales.
pub(crate) struct Ints<'a> {
    /// Bits of a level, from `-2^(bits - 1)` to `2^(bits - 1) - 1`.
    pub(crate) bits: u32,
    /// Weights along a row that share a scale.
    pub(crate) group: usize,
    /// The scale that a file holds for one that is wanted.
    pub(crate) rounded: &'a (dyn Fn(f32) -> f32 + Sync),
}

/// A row in integers.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Row {
    pub(crate) levels: Vec<i8>,
    /// One for each group.
    pub(crate) scales: Vec<f32>,
}

/// Scales that are tried on either side of the largest weight's, and their distance.
const STEPS: i32 = 12;
const STEP: f32 = 0.0125;
/// How often scale and levels are improved in turn, at most.
const SWEEPS: usize = 4;
/// What a column counts at least, as a share of the mean.
const LEAST: f32 = 1e-4;

impl Ints<'_> {
    /// The rows of a matrix. Columns count alike if `importance` is empty.
    ///
    /// # Panics
    /// If rows are not whole groups, or importance is that of other columns.
    pub(crate) fn rows(&self, cpu: &Cpu, x: &[f32], cols: usize, importance: &[f32]) -> Vec<Row> {
        assert!(cols.is_multiple_of(self.group), "rows of whole groups");
        assert!(importance.is_empty() || importance.len() == cols, "one for each column");
        let mean = importance.iter().sum::<f32>() / cols as f32;
        let importance: Vec<f32> = match mean > 0.0 {
            true => importance.iter().map(|x| x.max(mean * LEAST)).collect(),
            false => vec![1.0; cols],
        };
        let mut rows = vec![Row::default(); x.len() / cols];
        let cost = 4 * STEPS as usize * cols;
        cpu.rows(&mut rows, 1, cost, |row, to| {
            let groups = x[row * cols..][..cols].chunks_exact(self.group);
            let mut levels = vec![0.0; self.group];
            for (x, importance) in groups.zip(importance.chunks_exact(self.group)) {
                to[0].scales.push(self.fit(x, importance, &mut levels));
                to[0].levels.extend(levels.iter().map(|level| *level as i8));
            }
        });
        rows
    }

    /// The nearest level of `x`.
    #[inline(always)]
    fn nearest(&self, x: f32) -> f32 {
        // Adding 1.5 · 2^23 rounds to the nearest integer, ties to even.
        const ROUND: f32 = 12_582_912.0;
        let limit = (1 << (self.bits - 1)) as f32;
        (x.max(-limit).min(limit - 1.0) + ROUND) - ROUND
    }

    fn set_levels(&self, x: &[f32], scale: f32, levels: &mut [f32]) {
        let inverse = 1.0 / scale;
        levels.iter_mut().zip(x).for_each(|(level, x)| *level = self.nearest(x * inverse));
    }

    /// The scale of a group, and its levels.
    fn fit(&self, x: &[f32], importance: &[f32], levels: &mut [f32]) -> f32 {
        let largest = x.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
        let limit = (1 << (self.bits - 1)) as f32;
        let (mut best, mut gain) = ((self.rounded)(largest / (limit - 0.5)), 0.0);
        if best < f32::MIN_POSITIVE {
            // Nothing but zeros, or too small for any scale.
            levels.fill(0.0);
            return 1.0;
        }
        self.set_levels(x, best, levels);
        let mut least = error(x, importance, levels, best);
        for end in [limit - 1.0, limit] {
            for i in -STEPS..=STEPS {
                let inverse = end * (1.0 + i as f32 * STEP) / largest;
                let [products, squares] = self.regression(x, importance, inverse);
                if squares > 0.0 && products * products > gain * squares {
                    (gain, best) = (products * products / squares, products / squares);
                }
            }
        }
        let mut scale = (self.rounded)(best);
        let mut other = vec![0.0; x.len()];
        let mut kept = (self.rounded)(largest / (limit - 0.5));
        for _ in 0..SWEEPS {
            if scale < f32::MIN_POSITIVE {
                break;
            }
            self.set_levels(x, scale, &mut other);
            let found = error(x, importance, &other, scale);
            if found >= least {
                break;
            }
            (least, kept) = (found, scale);
            levels.copy_from_slice(&other);
            let [products, squares] = sums(x, importance, levels);
            scale = (self.rounded)(products / squares);
        }
        kept
    }

    /// What the best scale for the levels that are nearest with this inverse is made of.
    #[inline(always)]
    fn regression(&self, x: &[f32], importance: &[f32], inverse: f32) -> [f32; 2] {
        let (mut products, mut squares) = ([0.0f32; LANES], [0.0f32; LANES]);
        let (x, rest) = x.as_chunks::<LANES>();
        let (importance, rest_importance) = importance.as_chunks::<LANES>();
        for (x, importance) in x.iter().zip(importance) {
            for lane in 0..LANES {
                let level = self.nearest(x[lane] * inverse);
                let weighted = importance[lane] * level;
                products[lane] += weighted * x[lane];
                squares[lane] += weighted * level;
            }
        }
        for (x, importance) in rest.iter().zip(rest_importance) {
            let level = self.nearest(x * inverse);
            products[0] += importance * level * x;
            squares[0] += importance * level * level;
        }
        [products.iter().sum(), squares.iter().sum()]
    }
}

/// Sums are in so many lanes, and then of the lanes in order.
const LANES: usize = 8;

/// Sums of importance · level · weight and importance · level².
fn sums(x: &[f32], importance: &[f32], levels: &[f32]) -> [f32; 2] {
    let of = x.iter().zip(importance).zip(levels);
    of.fold([0.0, 0.0], |[products, squares], ((x, importance), level)| {
        [products + importance * level * x, squares + importance * level * level]
    })
}

fn error(x: &[f32], importance: &[f32], levels: &[f32], scale: f32) -> f32 {
    let of = x.iter().zip(importance).zip(levels);
    of.fold(0.0, |sum, ((x, importance), level)| {
        let off = x - scale * level;
        sum + importance * off * off
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use hone_tensor::{DType, Philox};

    fn total(rows: &[Row], x: &[f32], importance: &[f32], group: usize) -> f64 {
        let cols = importance.len();
        let of_row = |(row, x): (&Row, &[f32])| -> f64 {
            let at = |i: usize| f64::from(row.scales[i / group]) * f64::from(row.levels[i]);
            (0..cols).map(|i| f64::from(importance[i]) * (f64::from(x[i]) - at(i)).powi(2)).sum()
        };
        rows.iter().zip(x.chunks(cols)).map(of_row).sum()
    }

    /// What nearest rounding with the largest weight's scale makes of it.
    fn plain(ints: &Ints<'_>, x: &[f32], cols: usize) -> Vec<Row> {
        let limit = (1 << (ints.bits - 1)) as f32;
        let row = |x: &[f32]| {
            let mut row = Row::default();
            for x in x.chunks(ints.group) {
                let largest = x.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
                let scale = (ints.rounded)(largest / (limit - 0.5));
                row.scales.push(scale);
                row.levels.extend(x.iter().map(|x| ints.nearest(x / scale) as i8));
            }
            row
        };
        x.chunks(cols).map(row).collect()
    }

    /// The search is better than nearest rounding by much, for each width and group, and better
    /// still where columns matter unequally and it knows; threads change nothing.
    #[test]
    fn errors_are_smaller_than_those_of_nearest_rounding() {
        let (cols, rows) = (384, 24);
        let random = Philox::new(3, 1);
        let x: Vec<f32> = (0..(cols * rows) as u64).map(|i| 0.02 * random.normal(i)).collect();
        let importance: Vec<f32> =
            (0..cols as u64).map(|i| random.normal(90_000 + i).powi(2) + 0.01).collect();
        for (bits, group, by) in [(4, 32, 0.95), (4, 128, 0.9), (4, 384, 0.8), (8, 384, 1.0)] {
            let rounded = |x| DType::Bf16.rounded(x);
            let ints = Ints { bits, group, rounded: &rounded };
            let found = ints.rows(&Cpu::new(2), &x, cols, &importance);
            assert_eq!(found, ints.rows(&Cpu::new(1), &x, cols, &importance));
            let alike = ints.rows(&Cpu::new(2), &x, cols, &[]);
            let [found, alike, plain] =
                [found, alike, plain(&ints, &x, cols)].map(|of| total(&of, &x, &importance, group));
            assert!(found < by * plain, "{bits} bits, {group}: {found:e}, plain {plain:e}");
            assert!(found <= alike, "{bits} bits, {group}: {found:e}, alike {alike:e}");
        }
    }

    /// Weights on a grid come back as they are; a group of zeros has a scale that means nothing.
    #[test]
    fn what_lies_on_a_grid_stays() {
        let levels: Vec<i8> = (0..64).map(|i| (i % 16) as i8 - 8).collect();
        let mut x: Vec<f32> = levels.iter().map(|level| 0.25 * f32::from(*level)).collect();
        x.extend([0.0; 32]);
        let ints = Ints { bits: 4, group: 32, rounded: &|x| x };
        let found = ints.rows(&Cpu::new(1), &x, 96, &[]);
        assert_eq!(found[0].scales, [0.25, 0.25, 1.0]);
        assert_eq!(found[0].levels, [&levels[..], &[0; 32]].concat());
    }
}
