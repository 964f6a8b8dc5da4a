//! How sure a value is: standard errors as lm-evaluation-harness gives them, and 95 % intervals.

use super::metrics::{Aggregation, Term};
use super::random::Random;
use crate::statistics::{
    Estimate, MIN_UNITS, Z, bootstrap, effective, paired_shares, percentiles, wilson,
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

/// What the documents of tasks add to their values, and how much each task counts in the mean of
/// these.
pub struct Together<'t> {
    tasks: Vec<(Aggregation, &'t [Term])>,
    shares: Vec<f64>,
}

impl<'t> Together<'t> {
    /// Tasks with at least one document, which count by their numbers of documents, or alike.
    pub fn new(tasks: Vec<(Aggregation, &'t [Term])>, by_size: bool) -> Self {
        let weight = |terms: &[Term]| if by_size { terms.len() as f64 } else { 1.0 };
        let all: f64 = tasks.iter().map(|(_, terms)| weight(terms)).sum();
        let shares = tasks.iter().map(|(_, terms)| weight(terms) / all).collect();
        Self { tasks, shares }
    }

    /// The mean of the tasks' values.
    pub fn value(&self) -> f64 {
        self.of(&(0..self.sizes().iter().sum()).collect::<Vec<_>>())
    }

    /// That of these documents, as many of each task as it has, numbered through all tasks.
    fn of(&self, drawn: &[usize]) -> f64 {
        let (mut rest, mut first, mut value) = (drawn, 0, 0.0);
        for ((aggregation, terms), share) in self.tasks.iter().zip(&self.shares) {
            let (own, others) = rest.split_at(terms.len());
            value += share * aggregation.of(own.iter().map(|&i| terms[i - first]));
            (rest, first) = (others, first + terms.len());
        }
        value
    }

    /// Numbers of documents.
    fn sizes(&self) -> Vec<usize> {
        self.tasks.iter().map(|(_, terms)| terms.len()).collect()
    }

    /// Whether the values are shares of right answers.
    fn are_shares(&self) -> bool {
        self.tasks.iter().all(|(aggregation, terms)| aggregation.is_share(terms.iter()))
    }

    /// What each document adds, and how much it counts in the mean; on average 1.
    fn weighted(&self) -> impl Iterator<Item = (Term, f64)> {
        let n = self.sizes().iter().sum::<usize>() as f64;
        self.tasks.iter().zip(&self.shares).flat_map(move |((_, terms), share)| {
            let weight = share * n / terms.len() as f64;
            terms.iter().map(move |term| (*term, weight))
        })
    }

    /// How many documents that count alike would be as much worth.
    fn effective(&self) -> f64 {
        let n = self.sizes().iter().sum::<usize>() as f64;
        n * n / self.weighted().map(|(_, weight)| weight * weight).sum::<f64>()
    }
}

/// The difference of two models' values, `after` less `before`, of the same documents. Its interval
/// is Bonett and Price's for shares of right answers, and from a bootstrap of each task's documents
/// for others; none where a task has fewer than ten, or it would not be finite.
pub fn difference(before: &Together<'_>, after: &Together<'_>) -> Estimate {
    let found = match before.are_shares() && after.are_shares() {
        true => {
            let is_right = |term: Term| term.value > 0.5;
            let pairs = before.weighted().zip(after.weighted());
            paired_shares(pairs.map(|((b, weight), (a, _))| ([is_right(b), is_right(a)], weight)))
        }
        false => bootstrap(&before.sizes(), |drawn| after.of(drawn) - before.of(drawn)),
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

/// The estimate of several tasks together, from what each one's documents add and its standard
/// error. Standard errors are pooled as the harness does. The interval is Wilson's for shares of
/// right answers, normal for others, and where a task has no standard error from a bootstrap of
/// each task's documents.
pub fn combined(
    tasks: Vec<(Aggregation, &[Term])>,
    stderrs: &[Option<f64>],
    by_size: bool,
) -> Estimate {
    let together = Together::new(tasks, by_size);
    let (value, sizes) = (together.value(), together.sizes());
    let stderrs: Option<Vec<f64>> = stderrs.iter().copied().collect();
    let stderr = stderrs.map(|stderrs| match by_size {
        true => {
            let all: usize = sizes.iter().sum();
            let with_sizes = stderrs.iter().zip(&sizes).map(|(stderr, n)| (stderr, *n as f64));
            let variance: f64 = with_sizes.map(|(stderr, n)| (n - 1.0) * stderr * stderr * n).sum();
            (variance / (all - sizes.len()) as f64 / all as f64).sqrt()
        }
        false => stderrs.iter().map(|x| x * x).sum::<f64>().sqrt() / stderrs.len() as f64,
    });
    let interval = match stderr {
        _ if together.are_shares() => {
            let most = together.effective();
            let n = stderr.map_or(most, |stderr| effective((value, stderr), most));
            Some(wilson(value, n))
        }
        Some(stderr) if stderr > 0.0 => Some([value - Z * stderr, value + Z * stderr]),
        Some(_) => None,
        None => bootstrap(&sizes, |drawn| together.of(drawn)).interval,
    };
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

    /// As many right answers, of as many.
    fn answers(right: usize, n: usize) -> Vec<Term> {
        terms(&(0..n).map(|i| f64::from(u8::from(i < right))).collect::<Vec<_>>())
    }

    #[test]
    fn tasks_are_pooled_by_their_sizes() {
        let [small, large] = [answers(25, 100), answers(225, 300)];
        let tasks = || vec![(Aggregation::Mean, &small[..]), (Aggregation::Mean, &large[..])];
        let of = |by_size| combined(tasks(), &[Some(0.02), Some(0.03)], by_size);
        let found = of(true);
        assert_eq!(found.value, 0.625);
        assert!(near(found.stderr.unwrap(), 0.023_064_526_047_787_005), "{found:?}");
        let found = of(false);
        assert_eq!(found.value, 0.5);
        assert!(near(found.stderr.unwrap(), (0.0004f64 + 0.0009).sqrt() / 2.0));
        assert_eq!(combined(tasks(), &[None, Some(0.03)], true).stderr, None);
    }

    /// Where all answers are right, others might not have been; without a standard error of single
    /// documents, all of them together say how sure the share is.
    #[test]
    fn shares_of_groups_always_have_an_interval() {
        let [small, large] = [answers(20, 20), answers(60, 60)];
        let of = |stderr, by_size| {
            let tasks = vec![(Aggregation::Mean, &small[..]), (Aggregation::Mean, &large[..])];
            combined(tasks, &[stderr; 2], by_size).interval.unwrap()
        };
        assert_eq!(of(Some(0.0), true), wilson(1.0, 80.0));
        // Alike, the documents of the small one count three times as much.
        let found = of(Some(0.0), false);
        assert!(near(found[0], wilson(1.0, 60.0)[0]), "{found:?}");
        assert_eq!(of(None, true), wilson(1.0, 80.0));
    }

    /// The harness has no standard errors of perplexities by words, and so none of groups of them.
    #[test]
    fn groups_without_a_standard_error_have_a_bootstrap_s_interval() {
        let text = |i: usize| Term { value: -40.0 - (i * 7 % 11) as f64, weight: 10.0 };
        let [small, large]: [Vec<Term>; 2] = [20, 60].map(|n| (0..n).map(text).collect());
        let of = |small: &[Term], by_size| {
            let one = Aggregation::WeightedPerplexity;
            combined(vec![(one, small), (one, &large)], &[None; 2], by_size)
        };
        for by_size in [true, false] {
            let found = of(&small, by_size);
            let [low, high] = found.interval.unwrap();
            assert!(low < found.value && found.value < high && found.stderr.is_none(), "{found:?}");
        }
        assert_eq!(of(&small[..9], true).interval, None);
    }

    /// Of a mean of tasks that count alike the difference is that of the means, not of all
    /// documents.
    #[test]
    fn differences_are_of_the_means_that_are_shown() {
        let (few, many) = ([answers(20, 20), answers(10, 20)], answers(90, 180));
        let of = |by_size| {
            let [before, after] = [0, 1].map(|side| {
                let few = (Aggregation::Mean, &few[side][..]);
                Together::new(vec![few, (Aggregation::Mean, &many[..])], by_size)
            });
            let found = difference(&before, &after);
            assert!(near(found.value, after.value() - before.value()), "{found:?}");
            found
        };
        assert!(near(of(true).value, -0.05));
        let alike = of(false);
        assert!(near(alike.value, -0.25) && alike.stderr > of(true).stderr, "{alike:?}");
        let [low, high] = alike.interval.unwrap();
        assert!(low < -0.25 && high < 0.0, "{alike:?}");
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
