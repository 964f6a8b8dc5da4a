//! Standard errors, intervals and paired tests.

use hone_data::random::Stream;
use serde::Serialize;

/// Samples that a bootstrap draws.
const SAMPLES: usize = 2000;

/// The seed of every bootstrap: an evaluation said twice gives the same interval.
const SEED: u64 = 0x1234;

/// Quantile of the normal distribution for 95 %.
pub(crate) const Z: f64 = 1.959_963_984_540_054;

/// The domain of the bootstrap's random numbers.
const DOMAIN: u16 = 0x4254;

/// A figure, and how far it may be off.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Estimate {
    /// The figure.
    pub value: f64,
    /// Its standard error; `None` of a single observation.
    pub stderr: Option<f64>,
    /// Its 95 % interval; `None` where there is none, as of a single observation's mean.
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
    let n = groups.len();
    let ratio = |of: &mut dyn Iterator<Item = Group>| {
        let (sum, count) = of.fold((0.0, 0), |(sum, n), group| (sum + group.sum, n + group.count));
        sum / count.max(1) as f64
    };
    let value = ratio(&mut groups.iter().copied());
    if n < 2 {
        return Estimate { value, stderr: None, interval: None };
    }
    let count: usize = groups.iter().map(|group| group.count).sum();
    let residual = |group: &Group| (group.sum - value * group.count as f64).powi(2);
    let squares: f64 = groups.iter().map(residual).sum();
    let stderr = (squares * n as f64 / (n - 1) as f64).sqrt() / count.max(1) as f64;
    let of_drawn = |drawn: &[usize]| ratio(&mut drawn.iter().map(|&i| groups[i]));
    Estimate { stderr: Some(stderr), ..bootstrap(n, of_drawn) }
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

/// A statistic of `n` observations, which is given their numbers, with standard error and interval
/// of 2,000 bootstrap samples (Efron, 1979). What it compares of one observation stays together.
pub fn bootstrap(n: usize, statistic: impl Fn(&[usize]) -> f64) -> Estimate {
    let value = statistic(&(0..n).collect::<Vec<_>>());
    if n < 2 {
        return Estimate { value, stderr: None, interval: None };
    }
    let mut draws = Stream::new(SEED, 0, DOMAIN);
    let mut drawn = vec![0; n];
    let mut sample = || {
        drawn.iter_mut().for_each(|i| *i = draws.below(n));
        statistic(&drawn)
    };
    let mut samples: Vec<f64> = (0..SAMPLES).map(|_| sample()).collect();
    samples.sort_unstable_by(f64::total_cmp);
    let mean = samples.iter().sum::<f64>() / SAMPLES as f64;
    let squares: f64 = samples.iter().map(|sample| (sample - mean).powi(2)).sum();
    let stderr = (squares / (SAMPLES - 1) as f64).sqrt();
    let interval = [quantile(&samples, 0.025), quantile(&samples, 0.975)];
    Estimate { value, stderr: Some(stderr), interval: Some(interval) }
}

/// The difference of the shares of right answers to the same questions, the second of each pair
/// less the first. Standard error and interval are adjusted for few changes (Bonett and Price,
/// "Adjusted Wald confidence interval for a difference of binomial proportions based on paired
/// data", 2012).
pub fn paired_shares(pairs: impl Iterator<Item = [bool; 2]>) -> Estimate {
    let (mut n, mut lost, mut gained) = (0.0, 0.0, 0.0);
    for pair in pairs {
        n += 1.0;
        lost += f64::from(u8::from(pair == [true, false]));
        gained += f64::from(u8::from(pair == [false, true]));
    }
    let value = (gained - lost) / n;
    let [lost, gained] = [lost, gained].map(|changes| (changes + 1.0) / (n + 2.0));
    let middle = gained - lost;
    let stderr = ((lost + gained - middle * middle) / (n + 2.0)).sqrt();
    let interval = [middle - Z * stderr, middle + Z * stderr].map(|bound| bound.clamp(-1.0, 1.0));
    Estimate { value, stderr: Some(stderr), interval: Some(interval) }
}

/// The two-sided probability of a split of `gained + lost` changes at least as uneven, if either
/// way were as likely: McNemar's exact test of paired answers (Psychometrika 12, 1947). 1 where
/// nothing changed.
pub fn mcnemar(gained: usize, lost: usize) -> f64 {
    let (n, fewer) = (gained + lost, gained.min(lost));
    // In logarithms: 2^-n alone is zero from n = 1075 on.
    let mut log_term = -(n as f64) * std::f64::consts::LN_2;
    let mut tail = log_term.exp();
    for k in 1..=fewer {
        log_term += ((n - k + 1) as f64 / k as f64).ln();
        tail += log_term.exp();
    }
    (2.0 * tail).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn singles(values: &[f64]) -> Vec<Group> {
        values.iter().map(|&sum| Group { sum, count: 1 }).collect()
    }

    #[test]
    fn the_mean_of_single_observations_has_the_sample_s_standard_error() {
        let Estimate { value, stderr, interval } = mean(&singles(&[1.0, 0.0, 1.0, 1.0, 0.0]));
        assert!((value - 0.6).abs() < 1e-12);
        // The sample's deviation is sqrt(0.3).
        assert!((stderr.unwrap() - (0.3_f64 / 5.0).sqrt()).abs() < 1e-12);
        let [low, high] = interval.unwrap();
        assert!((0.0..0.6).contains(&low) && high > 0.6 && high <= 1.0, "{low} {high}");
        let one = mean(&singles(&[2.0]));
        assert_eq!((one.value, one.stderr, one.interval), (2.0, None, None));
    }

    /// A hundred equal tokens of each text are no more certain than one of each.
    #[test]
    fn groups_count_once() {
        let few = mean(&singles(&[1.0, 2.0, 6.0]));
        let of = |value: f64| Group { sum: 100.0 * value, count: 100 };
        let many = mean(&[of(1.0), of(2.0), of(6.0)]);
        assert!((few.value - many.value).abs() < 1e-12);
        assert!((few.stderr.unwrap() - many.stderr.unwrap()).abs() < 1e-12);
        assert_eq!(few.interval, many.interval);
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
        let of = |lost: usize| paired_shares((0..100).map(|i| [true, i >= lost]));
        for lost in [0, 4, 6, 50] {
            let Estimate { value, interval, .. } = of(lost);
            let [low, high] = interval.unwrap();
            assert!((value + lost as f64 / 100.0).abs() < 1e-12 && low <= value && value <= high);
            assert_eq!(high < 0.0, mcnemar(0, lost) < 0.05, "{lost}: {low} {high}");
        }
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
        assert_eq!(mcnemar(0, 0), 1.0);
        assert!(close(mcnemar(5, 0), 2.0 / 32.0) && close(mcnemar(0, 5), 2.0 / 32.0));
        assert!(close(mcnemar(1, 4), 12.0 / 32.0));
        assert_eq!(mcnemar(3, 3), 1.0);
        assert!((0.9..=1.0).contains(&mcnemar(1000, 1002)));
        assert!(mcnemar(900, 1100) < 1e-4 && mcnemar(900, 1100) > 0.0);
    }
}
