//! Standard errors, intervals and paired tests.

use hone_data::random::Stream;
use serde::Serialize;

/// Samples that a bootstrap draws.
const SAMPLES: usize = 2000;

/// The seed of every bootstrap: an evaluation said twice gives the same interval.
const SEED: u64 = 0x1234;

/// Quantile of the normal distribution for 95 %.
pub(crate) const Z: f64 = 1.959_963_984_540_054;

/// Domains of random numbers: of the bootstrap, and of signs.
const DOMAIN: u16 = 0x4254;
const FLIPS: u16 = 0x464C;

/// Fewest observations of whose bootstrap samples an interval is made.
pub(crate) const MIN_UNITS: usize = 10;

/// Most differences times their sum that a test of signs adds up exactly: a quarter of a second.
const MAX_FLIPS: usize = 1 << 28;

/// A figure, and how far it may be off.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Estimate {
    /// The figure.
    pub value: f64,
    /// Its standard error; `None` of a single observation.
    pub stderr: Option<f64>,
    /// Its 95 % interval; `None` where there is none, as of the mean of fewer than ten observations
    /// or of equal ones.
    pub interval: Option<[f64; 2]>,
}

/// Observations that are not independent, such as the tokens of one text, are told in groups, and
/// whole groups are what chance would have drawn otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Group {
    /// Sum of its observations.
    pub sum: f64,
    /// How many they are.
    pub count: usize,
}

impl Group {
    /// Adds an observation.
    pub fn add(&mut self, value: f64) {
        self.sum += value;
        self.count += 1;
    }
}

/// The mean over all observations of `groups`. Its standard error is that of a ratio of sums
/// (Cochran, "Sampling Techniques", 1977, 6.4), which for groups of one is the sample's standard
/// deviation over `√n`; its interval comes from a bootstrap of groups.
pub fn mean(groups: &[Group]) -> Estimate {
    let (value, stderr) = ratio(groups);
    let of_drawn = |drawn: &[usize]| {
        let drawn = drawn.iter().map(|&i| groups[i]);
        let (sum, count) = drawn.fold((0.0, 0), |(sum, n), of| (sum + of.sum, n + of.count));
        sum / count.max(1) as f64
    };
    Estimate { value, stderr, ..bootstrap(&[groups.len()], of_drawn) }
}

/// The share of observations that are 1, of 0 and 1. Its standard error is that of [`mean`]; its
/// interval is Wilson's for as many independent observations as would have that standard error
/// (Dean and Pagano, "Evaluating confidence interval methods for binomial proportions in clustered
/// surveys", 2015), or for one a group where all are the same. Of fewer than ten groups there is
/// none.
pub fn share(groups: &[Group]) -> Estimate {
    let (value, stderr) = ratio(groups);
    let count: usize = groups.iter().map(|group| group.count).sum();
    let enough = stderr.filter(|_| groups.len() >= MIN_UNITS);
    let are_same = value * (1.0 - value) == 0.0;
    let most = if are_same { groups.len() } else { count } as f64;
    let interval = enough.map(|stderr| wilson(value, effective((value, stderr), most)));
    Estimate { value, stderr, interval }
}

/// The mean over all observations, and its standard error where there are two groups.
fn ratio(groups: &[Group]) -> (f64, Option<f64>) {
    let n = groups.len();
    let sum: f64 = groups.iter().map(|group| group.sum).sum();
    let count = groups.iter().map(|group| group.count).sum::<usize>().max(1) as f64;
    let value = sum / count;
    let residual = |group: &Group| (group.sum - value * group.count as f64).powi(2);
    let squares: f64 = groups.iter().map(residual).sum();
    let stderr = (n > 1).then(|| (squares * n as f64 / (n - 1) as f64).sqrt() / count);
    (value, stderr)
}

/// How many independent answers would give a share that standard error, at most `most`, which it
/// is where the share is 0 or 1 and says nothing of it.
pub(crate) fn effective((share, stderr): (f64, f64), most: f64) -> f64 {
    match share * (1.0 - share) {
        0.0 => most,
        variance => (variance / (stderr * stderr)).min(most),
    }
}

/// Wilson's interval of a share of `n` independent answers (1927).
pub(crate) fn wilson(share: f64, n: f64) -> [f64; 2] {
    let middle = (share + Z * Z / (2.0 * n)) / (1.0 + Z * Z / n);
    let half = Z / (1.0 + Z * Z / n) * (share * (1.0 - share) / n + Z * Z / (4.0 * n * n)).sqrt();
    [(middle - half).max(0.0), (middle + half).min(1.0)]
}

/// The quantile `q` in [0, 1] of ascending values, between two of them in proportion; not a number
/// where there are none.
pub fn quantile(ascending: &[f64], q: f64) -> f64 {
    let Some(last) = ascending.len().checked_sub(1) else { return f64::NAN };
    let at = q * last as f64;
    let below = (at.floor() as usize).min(last);
    let above = (below + 1).min(last);
    let share = at - below as f64;
    ascending[below] * (1.0 - share) + ascending[above] * share
}

/// A statistic of observations, which is given their numbers, with standard error and interval of
/// 2,000 bootstrap samples (Efron, 1979). Observations are in strata of these `sizes`, one after
/// another, of each of which a sample draws as many as it has. What the statistic compares of one
/// observation stays together. There is no interval where a stratum has fewer than ten
/// observations, whose samples are far too much alike, or where all samples give the same.
pub fn bootstrap(sizes: &[usize], statistic: impl Fn(&[usize]) -> f64) -> Estimate {
    let n = sizes.iter().sum();
    let value = statistic(&(0..n).collect::<Vec<_>>());
    if n < 2 {
        return Estimate { value, stderr: None, interval: None };
    }
    let mut draws = Stream::new(SEED, 0, DOMAIN);
    let mut drawn = vec![0; n];
    let mut sample = || {
        let mut first = 0;
        for &size in sizes {
            drawn[first..first + size].iter_mut().for_each(|i| *i = first + draws.below(size));
            first += size;
        }
        statistic(&drawn)
    };
    let mut samples: Vec<f64> = (0..SAMPLES).map(|_| sample()).collect();
    samples.sort_unstable_by(f64::total_cmp);
    let mean = samples.iter().sum::<f64>() / SAMPLES as f64;
    let squares: f64 = samples.iter().map(|sample| (sample - mean).powi(2)).sum();
    let stderr = (squares / (SAMPLES - 1) as f64).sqrt();
    let is_enough = sizes.iter().all(|size| *size >= MIN_UNITS);
    let interval = percentiles(&samples).filter(|_| is_enough);
    Estimate { value, stderr: Some(stderr), interval }
}

/// The middle 95 % of ascending samples; `None` if they differ by no more than rounding.
pub(crate) fn percentiles(ascending: &[f64]) -> Option<[f64; 2]> {
    let (first, last) = (ascending.first()?, ascending.last()?);
    let is_constant = last - first <= 1e-12 * last.abs();
    (!is_constant).then(|| [quantile(ascending, 0.025), quantile(ascending, 0.975)])
}

/// The difference of the shares of right answers to the same questions, the second of each pair
/// less the first; answers have weights, whose mean is 1. Standard error and interval are adjusted
/// for few changes (Bonett and Price, "Adjusted Wald confidence interval for a difference of
/// binomial proportions based on paired data", 2012).
pub fn paired_shares(pairs: impl Iterator<Item = ([bool; 2], f64)>) -> Estimate {
    let (mut n, mut difference, mut squares) = (0.0, 0.0, 0.0);
    for (pair, weight) in pairs {
        n += 1.0;
        let change = weight * (f64::from(u8::from(pair[1])) - f64::from(u8::from(pair[0])));
        difference += change;
        squares += change * change;
    }
    // One more change either way.
    let adjusted = n + 2.0;
    let middle = difference / adjusted;
    let stderr = (squares + 2.0 - adjusted * middle * middle).sqrt() / adjusted;
    let interval = [middle - Z * stderr, middle + Z * stderr].map(|bound| bound.clamp(-1.0, 1.0));
    Estimate { value: difference / n, stderr: Some(stderr), interval: Some(interval) }
}

/// The two-sided probability of a sum of differences at least as far from zero, if each could as
/// well have had the other sign: Fisher's test of paired observations ("The Design of
/// Experiments", 1935, 21), which for differences of one is McNemar's. Exact, or for very many from
/// 2,000 draws of signs. 1 where nothing differs.
pub fn sign_flips(differences: &[i64]) -> f64 {
    let size = |difference: &i64| difference.unsigned_abs() as usize;
    let sizes: Vec<usize> = differences.iter().map(size).filter(|size| *size > 0).collect();
    let (all, sum) = (sizes.iter().sum::<usize>(), size(&differences.iter().sum()));
    if sizes.len().saturating_mul(all) > MAX_FLIPS {
        return drawn_flips(&sizes, sum);
    }
    // How likely the positive ones have each sum.
    let mut chances = vec![0.0; all + 1];
    chances[0] = 1.0;
    let mut most = 0;
    for size in sizes {
        most += size;
        for to in (0..=most).rev() {
            let from = if to >= size { chances[to - size] } else { 0.0 };
            chances[to] = 0.5 * (chances[to] + from);
        }
    }
    let as_far = |positive: &(usize, f64)| (2 * positive.0).abs_diff(all) >= sum;
    chances.into_iter().enumerate().filter(as_far).map(|(_, p)| p).sum::<f64>().min(1.0)
}

fn drawn_flips(sizes: &[usize], sum: usize) -> f64 {
    let mut draws = Stream::new(SEED, 0, FLIPS);
    let mut is_as_far = || {
        let signed = |&size: &usize| if draws.below(2) == 0 { size as i64 } else { -(size as i64) };
        sizes.iter().map(signed).sum::<i64>().unsigned_abs() as usize >= sum
    };
    let as_far = (0..SAMPLES).filter(|_| is_as_far()).count();
    // What was found is one of the draws.
    (as_far + 1) as f64 / (SAMPLES + 1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn singles(values: &[f64]) -> Vec<Group> {
        values.iter().map(|&sum| Group { sum, count: 1 }).collect()
    }

    #[test]
    fn the_mean_of_single_observations_has_the_sample_s_standard_error() {
        let values = [1.0, 0.0, 1.0, 1.0, 0.0].repeat(2);
        let Estimate { value, stderr, interval } = mean(&singles(&values));
        assert!((value - 0.6).abs() < 1e-12);
        // The sample's variance is 2.4 / 9.
        assert!((stderr.unwrap() - (0.24_f64 / 9.0).sqrt()).abs() < 1e-12);
        let [low, high] = interval.unwrap();
        assert!((0.0..0.6).contains(&low) && high > 0.6 && high <= 1.0, "{low} {high}");
        let one = mean(&singles(&[2.0]));
        assert_eq!((one.value, one.stderr, one.interval), (2.0, None, None));
    }

    /// A hundred equal tokens of each text are no more certain than one of each.
    #[test]
    fn groups_count_once() {
        let values = [1.0, 2.0, 6.0].repeat(4);
        let few = mean(&singles(&values));
        let of = |value: &f64| Group { sum: 100.0 * value, count: 100 };
        let many = mean(&values.iter().map(of).collect::<Vec<_>>());
        assert!((few.value - many.value).abs() < 1e-12);
        assert!((few.stderr.unwrap() - many.stderr.unwrap()).abs() < 1e-12);
        assert!(few.interval.is_some());
        assert_eq!(few.interval, many.interval);
    }

    /// Two texts give hardly more than two values to any bootstrap, and equal ones one.
    #[test]
    fn few_or_equal_groups_have_no_interval_of_a_bootstrap() {
        for values in [vec![1.0, 2.0], vec![1.0, 2.0, 3.0, 9.0], vec![0.1; 30]] {
            let found = mean(&singles(&values));
            assert!(found.stderr.is_some() && found.interval.is_none(), "{values:?}: {found:?}");
        }
        let strata = |sizes: [usize; 2]| {
            bootstrap(&sizes, |drawn| drawn.iter().map(|&i| (i % 7) as f64).sum::<f64>())
        };
        assert!(strata([12, 12]).interval.is_some());
        assert_eq!(strata([12, 4]).interval, None);
    }

    /// A sample has as many of each stratum as there are.
    #[test]
    fn strata_are_drawn_by_themselves() {
        let found = bootstrap(&[10, 30], |drawn| {
            assert!(drawn[..10].iter().all(|i| *i < 10));
            assert!(drawn[10..].iter().all(|i| (10..40).contains(i)));
            drawn.iter().filter(|i| **i < 10).count() as f64
        });
        assert_eq!((found.value, found.stderr, found.interval), (10.0, Some(0.0), None));
    }

    /// Where all tokens of all texts agree, the interval is that of as many answers as texts; where
    /// texts are alike inside, too; where tokens are independent, that of as many as tokens.
    #[test]
    fn shares_have_wilson_s_interval_of_what_they_are_worth() {
        let of = |right: &[usize]| {
            let group = |right: &usize| Group { sum: *right as f64, count: 50 };
            share(&right.iter().map(group).collect::<Vec<_>>())
        };
        let near = |found: Estimate, share: f64, n: f64| {
            let (found, expected) = (found.interval.unwrap(), wilson(share, n));
            let is_near = found.iter().zip(expected).all(|(x, y)| (x - y).abs() < 1e-9);
            assert!(is_near, "{found:?} {expected:?}");
        };
        near(of(&[50; 20]), 1.0, 20.0);
        let [low, high] = of(&[50; 20]).interval.unwrap();
        assert!((0.8..0.9).contains(&low) && high == 1.0, "{low} {high}");
        near(of(&[0; 20]), 0.0, 20.0);
        // Ten texts all right and ten all wrong: twenty answers, less one of freedom.
        near(of(&[[50; 10], [0; 10]].concat()), 0.5, 19.0);
        // No more than there are tokens, however even the texts are.
        near(of(&[[25; 10], [24; 10], [26; 10]].concat()), 0.5, 1500.0);
        assert_eq!(of(&[50; 9]).interval, None);
    }

    /// The bootstrap's interval of a mean is about that of the normal distribution.
    #[test]
    fn intervals_hold_what_a_normal_mean_would() {
        let mut draws = Stream::new(7, 0, 0);
        let values: Vec<f64> = (0..400).map(|_| draws.below(1000) as f64 / 1000.0).collect();
        let Estimate { value, stderr, interval } = mean(&singles(&values));
        let [low, high] = interval.unwrap();
        let expected = 1.96 * stderr.unwrap();
        assert!(((value - low) / expected - 1.0).abs() < 0.1, "{low} {value} {high}");
        assert!(((high - value) / expected - 1.0).abs() < 0.1, "{low} {value} {high}");
    }

    /// Six of a hundred that are lost are more than chance, as McNemar's test has it; four are not.
    #[test]
    fn paired_shares_need_some_changes() {
        let of = |lost: usize| paired_shares((0..100).map(|i| ([true, i >= lost], 1.0)));
        for lost in [0, 4, 6, 50] {
            let Estimate { value, interval, .. } = of(lost);
            let [low, high] = interval.unwrap();
            assert!((value + lost as f64 / 100.0).abs() < 1e-12 && low <= value && value <= high);
            let p = sign_flips(&vec![-1; lost]);
            assert_eq!(high < 0.0, p < 0.05, "{lost}: {low} {high}");
        }
        // By hand, of 100 pairs: 6 lost and 1 gained.
        let found = paired_shares((0..100).map(|i| ([i < 6, i == 6], 1.0)));
        let (lost, gained): (f64, f64) = (7.0 / 102.0, 2.0 / 102.0);
        let expected = ((lost + gained - (gained - lost).powi(2)) / 102.0).sqrt();
        assert!((found.stderr.unwrap() - expected).abs() < 1e-12, "{found:?}");
    }

    /// What counts twice is as if it were there twice, but for being one observation.
    #[test]
    fn weights_move_the_difference() {
        let pair = |i: usize| ([i < 10, false], if i < 50 { 1.6 } else { 0.4 });
        let found = paired_shares((0..100).map(pair));
        assert!((found.value + 0.16).abs() < 1e-12, "{found:?}");
        let even = paired_shares((0..100).map(|i| ([i < 16, false], 1.0)));
        assert!(found.stderr.unwrap() > even.stderr.unwrap());
    }

    #[test]
    fn quantiles_lie_between_values() {
        let values = [0.0, 1.0, 2.0, 10.0];
        assert_eq!([0.0, 0.5, 1.0].map(|q| quantile(&values, q)), [0.0, 1.5, 10.0]);
        assert_eq!(quantile(&[3.0], 0.99), 3.0);
        assert!(quantile(&[], 0.5).is_nan());
    }

    /// Of binomials counted by hand, and of so many changes that each term is below f64's least.
    #[test]
    fn changes_one_way_are_improbable() {
        let close = |p: f64, expected: f64| (p - expected).abs() < 1e-12;
        let ones = |gained: usize, lost: usize| {
            sign_flips(&[vec![1; gained], vec![-1; lost], vec![0; 9]].concat())
        };
        assert_eq!(ones(0, 0), 1.0);
        assert!(close(ones(5, 0), 2.0 / 32.0) && close(ones(0, 5), 2.0 / 32.0));
        assert!(close(ones(1, 4), 12.0 / 32.0));
        assert_eq!(ones(3, 3), 1.0);
        assert!((0.9..=1.0).contains(&ones(1000, 1002)));
        assert!(ones(900, 1100) < 1e-4 && ones(900, 1100) > 0.0);
        // Of ±1 ±2 ±5, sums of 8 or -8 alone are as far as 8, and 6, 8 and their negatives as 6.
        assert!(close(sign_flips(&[1, 2, 5]), 2.0 / 8.0));
        assert!(close(sign_flips(&[-1, 2, 5]), 4.0 / 8.0));
    }

    /// A hundred tokens that changed in one text are one observation.
    #[test]
    fn a_text_s_changes_count_once() {
        assert_eq!(sign_flips(&[100]), 1.0);
        assert_eq!(sign_flips(&[100, -40]), 1.0);
        assert!((sign_flips(&[-100, -40, -3]) - 0.25).abs() < 1e-12);
    }

    #[test]
    fn drawn_signs_are_about_as_improbable() {
        for (gained, lost) in [(60, 40), (70, 30), (50, 50)] {
            let exact = sign_flips(&[vec![3; gained], vec![-3; lost]].concat());
            let drawn = drawn_flips(&[3; 100], 3 * gained.abs_diff(lost));
            assert!((exact - drawn).abs() < 0.03, "{exact} {drawn}");
        }
    }
}
