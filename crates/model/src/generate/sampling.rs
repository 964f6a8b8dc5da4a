//! Samples a token from logits.

use hone_tensor::Philox;

/// How a token is sampled.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Logits are divided by this; 0 takes the most likely token.
    pub temperature: f32,
    /// Sample only from the `top_k` most likely tokens; 0: from all.
    pub top_k: usize,
    /// Sample only from the most likely tokens that together have this probability (nucleus
    /// sampling, Holtzman et al., 2020).
    pub top_p: f32,
    /// Seed of the random numbers.
    pub seed: u64,
}

/// Key of one random number, so that other requests in a batch do not affect it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Draw {
    /// Id of the request.
    pub request: u64,
    /// Index of the token in its answer, from 0.
    pub position: u64,
}

/// A logit that is NaN or infinite, so that no token can be sampled.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NotFinite {
    /// The token with this logit.
    pub token: u32,
    /// Its value.
    pub logit: f32,
}

impl Sampling {
    /// Always takes the most likely token.
    pub const GREEDY: Self = Self { temperature: 0.0, top_k: 0, top_p: 1.0, seed: 0 };

    /// Samples a token; among equally likely ones, the lowest id ranks first.
    ///
    /// # Errors
    /// If a logit is not finite.
    ///
    /// # Panics
    /// If there are no logits.
    pub fn choose(&self, logits: &[f32], draw: Draw) -> Result<u32, NotFinite> {
        if let Some(token) = logits.iter().position(|logit| !logit.is_finite()) {
            return Err(NotFinite { token: token as u32, logit: logits[token] });
        }
        let mut ranking = Ranking::new(logits);
        let best = ranking.get(0);
        if self.temperature == 0.0 {
            return Ok(best);
        }
        let (temperature, max) = (f64::from(self.temperature), f64::from(logits[best as usize]));
        let weight = |token: u32| ((f64::from(logits[token as usize]) - max) / temperature).exp();
        let num_kept = if self.top_k > 0 { self.top_k.min(logits.len()) } else { logits.len() };
        let total: f64 = match num_kept == logits.len() {
            true => (0..logits.len() as u32).map(weight).sum(),
            false => (0..num_kept).map(|i| weight(ranking.get(i))).sum(),
        };
        let (num_kept, total) = match self.top_p < 1.0 {
            true => nucleus(&mut ranking, weight, num_kept, f64::from(self.top_p) * total),
            false => (num_kept, total),
        };
        let uniform = Philox::new(self.seed, draw.request).uniform(draw.position);
        let mut left = f64::from(uniform) * total;
        for i in 0..num_kept {
            left -= weight(ranking.get(i));
            if left < 0.0 {
                return Ok(ranking.get(i));
            }
        }
        Ok(ranking.get(num_kept - 1))
    }
}

/// The smallest number of top tokens, at most `max_tokens`, whose weights sum to `threshold`, and
/// their sum.
fn nucleus(
    ranking: &mut Ranking<'_>,
    weight: impl Fn(u32) -> f64,
    max_tokens: usize,
    threshold: f64,
) -> (usize, f64) {
    let mut sum = 0.0;
    for i in 0..max_tokens {
        sum += weight(ranking.get(i));
        if sum >= threshold {
            return (i + 1, sum);
        }
    }
    (max_tokens, sum)
}

/// Tokens in descending order of their logits, sorted lazily: sampling looks at few of a vocabulary
/// of a hundred thousand.
struct Ranking<'a> {
    logits: &'a [f32],
    order: Vec<u32>,
    num_sorted: usize,
}

impl<'a> Ranking<'a> {
    /// Number of tokens sorted first.
    const FIRST: usize = 32;

    fn new(logits: &'a [f32]) -> Self {
        Self { logits, order: (0..logits.len() as u32).collect(), num_sorted: 0 }
    }

    /// The token of this rank, from 0.
    fn get(&mut self, rank: usize) -> u32 {
        while rank >= self.num_sorted {
            self.sort_more();
        }
        self.order[rank]
    }

    fn sort_more(&mut self) {
        let logits = self.logits;
        let by_logit =
            |&a: &u32, &b: &u32| logits[b as usize].total_cmp(&logits[a as usize]).then(a.cmp(&b));
        let rest = &mut self.order[self.num_sorted..];
        let num = Self::FIRST.max(3 * self.num_sorted).min(rest.len());
        if num < rest.len() {
            rest.select_nth_unstable_by(num, by_logit);
        }
        rest[..num].sort_unstable_by(by_logit);
        self.num_sorted += num;
    }
}

#[cfg(test)]
mod tests {
    use super::{Draw, NotFinite, Sampling};

    fn draw(position: u64) -> Draw {
        Draw { request: 0, position }
    }

    fn share(sampling: Sampling, logits: &[f32], token: u32) -> f64 {
        let n = 4000;
        let hits = (0..n).filter(|&i| sampling.choose(logits, draw(i)) == Ok(token)).count();
        hits as f64 / n as f64
    }

    const PLAIN: Sampling = Sampling { temperature: 1.0, top_k: 0, top_p: 1.0, seed: 9 };

    #[test]
    fn greedy_takes_the_first_of_the_best() {
        assert_eq!(Sampling::GREEDY.choose(&[1.0, 3.0, 3.0, 2.0], draw(0)), Ok(1));
    }

    #[test]
    fn samples_follow_the_probabilities() {
        let logits = [0.0, 2.0f32.ln(), 5.0f32.ln()];
        assert!((share(PLAIN, &logits, 2) - 5.0 / 8.0).abs() < 0.03);
        assert!((share(PLAIN, &logits, 0) - 1.0 / 8.0).abs() < 0.03);
        let top_k = Sampling { top_k: 2, ..PLAIN };
        assert_eq!(share(top_k, &logits, 0), 0.0);
        assert!((share(top_k, &logits, 2) - 5.0 / 7.0).abs() < 0.03);
        let top_p = Sampling { top_p: 0.6, ..PLAIN };
        assert_eq!(share(top_p, &logits, 2), 1.0);
        let cold = Sampling { temperature: 0.01, ..PLAIN };
        assert_eq!(share(cold, &logits, 2), 1.0);
    }

    /// Compared with sorting everything and then truncating, for vocabularies around the sizes at
    /// which more is sorted.
    #[test]
    fn partial_sorting_changes_no_choice() {
        for num in [1, 2, 31, 32, 33, 128, 129, 1000] {
            let random = hone_tensor::Philox::new(4, num);
            // Rounded, so that many are equal.
            let logits: Vec<f32> = (0..num).map(|i| (4.0 * random.normal(i)).round()).collect();
            for (top_k, top_p) in [(0, 1.0), (0, 0.9), (0, 0.3), (5, 1.0), (40, 0.95), (999, 1.0)] {
                let sampling = Sampling { top_k, top_p, ..PLAIN };
                for position in 0..50 {
                    let found = sampling.choose(&logits, draw(position));
                    assert_eq!(found, Ok(sorted_choice(sampling, &logits, position)));
                }
            }
        }
    }

    fn sorted_choice(sampling: Sampling, logits: &[f32], position: u64) -> u32 {
        let mut order: Vec<u32> = (0..logits.len() as u32).collect();
        order.sort_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]));
        if sampling.top_k > 0 {
            order.truncate(sampling.top_k);
        }
        let max = f64::from(logits[order[0] as usize]);
        let weight = |&t: &u32| (f64::from(logits[t as usize]) - max).exp();
        let mut weights: Vec<f64> = order.iter().map(weight).collect();
        let enough = f64::from(sampling.top_p) * weights.iter().sum::<f64>();
        let mut sum = 0.0;
        let reached = weights.iter().position(|weight| {
            sum += weight;
            sum >= enough
        });
        weights.truncate(reached.map_or(weights.len(), |i| i + 1));
        let uniform = hone_tensor::Philox::new(sampling.seed, 0).uniform(position);
        let mut left = f64::from(uniform) * weights.iter().sum::<f64>();
        let index = weights.iter().position(|weight| {
            left -= weight;
            left < 0.0
        });
        order[index.unwrap_or(weights.len() - 1)]
    }

    #[test]
    fn a_logit_that_is_not_finite_is_an_error_at_any_position() {
        for logit in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for token in 0..3 {
                let mut logits = [1.0, 2.0, 3.0];
                logits[token] = logit;
                for sampling in [Sampling::GREEDY, PLAIN, Sampling { top_k: 1, ..PLAIN }] {
                    let NotFinite { token: found, .. } =
                        sampling.choose(&logits, draw(0)).unwrap_err();
                    assert_eq!(found, token as u32);
                }
            }
        }
    }
}
