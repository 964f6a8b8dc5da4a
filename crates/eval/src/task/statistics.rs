//! How sure a value is: standard errors as lm-evaluation-harness gives them, and 95 % intervals.

use super::metrics::{Aggregation, Term};
use super::random::Random;
use crate::statistics::{
    Estimate, MIN_UNITS, Z, bootstrap, paired_shares, percentiles, wilson,
};
use std::thread;

/// Replicates of a standard error by bootstrap, and how many one generator draws, as in the
/// harness.
const STDERR_REPLICATES: usize = 100_000;
const CHUNK: usize = 1000;
/// Replicates of an interval where no standard error is drawn.
const INTERVAL_REPLICATES: usize = 10_000;

/// The estimate of at least one document's terms, the same for any number of threads. Its standard
/// error is `None` where the harness gives none; its interval is Wilson's for shares of right
/// answers, and percentiles of a bootstrap for others, if there are ten documents that differ.
pub fn estimate(aggregation: Aggregation, terms: &[Term], num_threads: usize) -> Estimate {
    let value = aggregation.of(terms.iter().copied());
    if aggregation.is_share(terms.iter()) {
        let interval = Some(wilson(value, terms.len() as f64));
        return Estimate { value, stderr: mean_stderr(terms), interval };
    }
    if terms.len() < 2 {
        return Estimate { value, stderr: None, interval: None };
    }
    let draws_stderr = matches!(aggregation, Aggregation::Perplexity | Aggregation::Median);
    let num = if draws_stderr { STDERR_REPLICATES } else { INTERVAL_REPLICATES };
    let mut drawn = replicates(aggregation, terms, num, num_threads);
    let stderr = match aggregation {
        Aggregation::Mean => mean_stderr(terms),
        _ if draws_stderr => Some(sample_deviation(&drawn)),
        _ => None,
    };
    drawn.sort_by(f64::total_cmp);
    let interval = percentiles(&drawn).filter(|_| terms.len() >= MIN_UNITS);
    Estimate { value, stderr, interval }
}

/// The difference of two models' values, `after` less `before`, of the same documents, at least
/// one: its interval is Bonett and Price's for shares of right answers, and from a bootstrap of
/// documents for others; none where these are fewer than ten or alike, or it would not be finite.
pub fn difference(aggregation: Aggregation, before: &[Term], after: &[Term]) -> Estimate {
    let found = match aggregation.is_share(before.iter().chain(after)) {
        true => {
            let is_right = |term: &Term| term.value > 0.5;
            let pairs = before.iter().zip(after);
            paired_shares(pairs.map(|(b, a)| ([is_right(b), is_right(a)], 1.0)))
        }
        false => bootstrap(&[before.len()], |drawn| {
            let of_drawn = |terms: &[Term]| aggregation.of(drawn.iter().map(|&i| terms[i]));
            of_drawn(after) - of_drawn(before)
        }),
    };
    let interval = found.interval.filter(|bounds| bounds.iter().all(|x| x.is_finite()));
    Estimate { interval, ..found }
}

/// Values of resampled documents: generator `i`, seeded with `i`, draws the `i`-th thousand.
fn replicates(
    aggregation: Aggregation,
    terms: &[Term],
    num: usize,
    num_threads: usize,
) -> Vec<f64> {
    let chunks: Vec<u32> = (0..(num / CHUNK) as u32).collect();
    let draw = |seed: &u32| {
        let (mut random, mut resample) = (Random::new(*seed), Vec::with_capacity(terms.len()));
        let replicate = |_| {
            resample.clear();
            let n = terms.len() as f64;
            resample.extend((0..terms.len()).map(|_| terms[(random.uniform() * n) as usize]));
            aggregation.of(resample.iter().copied())
        };
        (0..CHUNK).map(replicate).collect::<Vec<f64>>()
    };
    let share = chunks.len().div_ceil(num_threads.max(1)).max(1);
    thread::scope(|scope| {
        let of_thread = |seeds: &'_ [u32]| seeds.iter().flat_map(draw).collect::<Vec<f64>>();
        let threads: Vec<_> =
            chunks.chunks(share).map(|seeds| scope.spawn(move || of_thread(seeds))).collect();
        let drawn = threads.into_iter().map(|thread| thread.join().expect("no panic"));
        drawn.flatten().collect()
    })
}

/// Standard deviation of a sample over the root of its size.
fn mean_stderr(terms: &[Term]) -> Option<f64> {
    let values: Vec<f64> = terms.iter().map(|term| term.value).collect();
    (values.len() > 1).then(|| sample_deviation(&values) / (values.len() as f64).sqrt())
}

fn sample_deviation(values: &[f64]) -> f64 {
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    let squares: f64 = values.iter().map(|x| (x - mean).powi(2)).sum();
    (squares / (values.len() - 1) as f64).sqrt()
}

/// The estimate of several tasks together, from each one's and its number of documents: their mean,
/// weighted by these or not. Standard errors are pooled as the harness does; the interval is
/// normal, within 0 and 1 where all are shares.
pub fn combined(parts: &[(Estimate, usize)], weight_by_size: bool) -> Estimate {
    let sizes = |n: usize| if weight_by_size { n as f64 } else { 1.0 };
    let all: f64 = parts.iter().map(|(_, n)| sizes(*n)).sum();
    let value = parts.iter().map(|(part, n)| part.value * sizes(*n)).sum::<f64>() / all;
    let stderrs: Option<Vec<f64>> = parts.iter().map(|(part, _)| part.stderr).collect();
    let stderr = stderrs.map(|stderrs| match weight_by_size {
        true => {
            let with_sizes = stderrs.iter().zip(parts).map(|(stderr, (_, n))| (stderr, *n as f64));
            let variance: f64 = with_sizes.map(|(stderr, n)| (n - 1.0) * stderr * stderr * n).sum();
            (variance / (all - parts.len() as f64) / all).sqrt()
        }
        false => stderrs.iter().map(|x| x * x).sum::<f64>().sqrt() / stderrs.len() as f64,
    });
    let are_shares = parts.iter().all(|(part, _)| (0.0..=1.0).contains(&part.value));
    let bound = |x: f64| if are_shares { x.clamp(0.0, 1.0) } else { x };
    let interval = stderr.map(|stderr| [bound(value - Z * stderr), bound(value + Z * stderr)]);
    Estimate { value, stderr, interval }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn terms(values: &[f64]) -> Vec<Term> {
        values.iter().map(|&value| Term { value, weight: 1.0 }).collect()
    }

    fn near(a: f64, b: f64) -> bool {
        (a - b).abs() <= 1e-9 * b.abs().max(1.0)
    }

    /// Values of lm_eval 0.4.13's `mean_stderr` and `bootstrap_stderr`, of statsmodels' Wilson.
    #[test]
    fn standard_errors_are_those_of_the_harness() {
        let right = [1.0, 0.0, 1.0, 1.0, 0.0, 1.0, 1.0];
        let found = estimate(Aggregation::Mean, &terms(&right), 2);
        assert!(near(found.stderr.unwrap(), 0.184_427_778_390_829_38), "{found:?}");
        let [low, high] = found.interval.unwrap();
        assert!(
            near(low, 0.358_934_451_832_619_35) && near(high, 0.917_781_075_995_943_3),
            "{found:?}"
        );
        let logs = [-1.0, -2.5, -0.25, -3.0, -4.5];
        let found = estimate(Aggregation::Perplexity, &terms(&logs), 2);
        assert!(near(found.stderr.unwrap(), 8.877_872_036_252_523), "{found:?}");
        // Five documents are too few for an interval.
        assert_eq!(found.interval, None);
        let logs = logs.repeat(3);
        let found = estimate(Aggregation::Perplexity, &terms(&logs), 2);
        let [low, high] = found.interval.unwrap();
        assert!(low < found.value && found.value < high);
        assert_eq!(found, estimate(Aggregation::Perplexity, &terms(&logs), 1));
        let equal = estimate(Aggregation::Perplexity, &terms(&[-1.0; 30]), 1);
        assert_eq!(equal.interval, None);
    }

    #[test]
    fn tasks_are_pooled_by_their_sizes() {
        let part = |value, stderr| Estimate { value, stderr: Some(stderr), interval: None };
        let parts = [(part(0.25, 0.02), 100), (part(0.75, 0.03), 300)];
        let found = combined(&parts, true);
        assert_eq!(found.value, 0.625);
        assert!(near(found.stderr.unwrap(), 0.023_064_526_047_787_005), "{found:?}");
        let found = combined(&parts, false);
        assert_eq!(found.value, 0.5);
        assert!(near(found.stderr.unwrap(), (0.0004f64 + 0.0009).sqrt() / 2.0));
        let unsure = Estimate { stderr: None, ..parts[0].0 };
        assert_eq!(combined(&[(unsure, 3)], true).stderr, None);
    }

    #[test]
    fn one_document_has_no_deviation() {
        let found = estimate(Aggregation::Mean, &terms(&[1.0]), 1);
        assert_eq!((found.value, found.stderr), (1.0, None));
        assert!(found.interval.is_some());
        let found = estimate(Aggregation::Perplexity, &terms(&[-1.0]), 1);
        assert_eq!((found.stderr, found.interval), (None, None));
    }
}
