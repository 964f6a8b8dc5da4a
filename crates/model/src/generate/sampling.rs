//! Choosing a token from logits.

use hone_tensor::Philox;

/// How a token is chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Logits are divided by this; 0 takes the most likely token.
    pub temperature: f32,
    /// Only the `top_k` most likely tokens; 0: all.
    pub top_k: usize,
    /// Only the most likely tokens that together have this probability (Holtzman et al., 2020).
    pub top_p: f32,
    /// Names the random numbers.
    pub seed: u64,
}

impl Sampling {
    /// Always the most likely token.
    pub const GREEDY: Self = Self { temperature: 0.0, top_k: 0, top_p: 1.0, seed: 0 };

    /// The token at `position` of the generated text; of equally likely ones the lowest id.
    pub fn choose(&self, logits: &[f32], position: u64) -> u32 {
        let mut order: Vec<u32> = (0..logits.len() as u32).collect();
        let by_logit =
            |&a: &u32, &b: &u32| logits[b as usize].total_cmp(&logits[a as usize]).then(a.cmp(&b));
        if self.temperature == 0.0 {
            return order.into_iter().min_by(by_logit).expect("a vocabulary has tokens");
        }
        order.sort_unstable_by(by_logit);
        if self.top_k > 0 {
            order.truncate(self.top_k);
        }
        let weights = self.probabilities(logits, &order);
        let uniform = f64::from(Philox::new(self.seed, 0).uniform(position));
        let mut left = uniform * weights.iter().sum::<f64>();
        for (&token, &weight) in order.iter().zip(&weights) {
            left -= weight;
            if left < 0.0 {
                return token;
            }
        }
        order[weights.len() - 1]
    }

    /// Unnormalised probabilities of the tokens in `order`, cut off where `top_p` is reached.
    fn probabilities(&self, logits: &[f32], order: &[u32]) -> Vec<f64> {
        let temperature = f64::from(self.temperature);
        let max = f64::from(logits[order[0] as usize]);
        let weight = |&t: &u32| ((f64::from(logits[t as usize]) - max) / temperature).exp();
        let mut weights: Vec<f64> = order.iter().map(weight).collect();
        let enough = f64::from(self.top_p) * weights.iter().sum::<f64>();
        let mut sum = 0.0;
        let reached = weights.iter().position(|weight| {
            sum += weight;
            sum >= enough
        });
        weights.truncate(reached.map_or(weights.len(), |i| i + 1));
        weights
    }
}

#[cfg(test)]
mod tests {
    use super::Sampling;

    fn share(sampling: Sampling, logits: &[f32], token: u32) -> f64 {
        let n = 4000;
        let hits = (0..n).filter(|&i| sampling.choose(logits, i) == token).count();
        hits as f64 / n as f64
    }

    #[test]
    fn greedy_takes_the_first_of_the_best() {
        assert_eq!(Sampling::GREEDY.choose(&[1.0, 3.0, 3.0, 2.0], 0), 1);
    }

    #[test]
    fn samples_follow_the_probabilities() {
        let logits = [0.0, 2.0f32.ln(), 5.0f32.ln()];
        let plain = Sampling { temperature: 1.0, top_k: 0, top_p: 1.0, seed: 9 };
        assert!((share(plain, &logits, 2) - 5.0 / 8.0).abs() < 0.03);
        assert!((share(plain, &logits, 0) - 1.0 / 8.0).abs() < 0.03);
        let top_k = Sampling { top_k: 2, ..plain };
        assert_eq!(share(top_k, &logits, 0), 0.0);
        assert!((share(top_k, &logits, 2) - 5.0 / 7.0).abs() < 0.03);
        let top_p = Sampling { top_p: 0.6, ..plain };
        assert_eq!(share(top_p, &logits, 2), 1.0);
        let cold = Sampling { temperature: 0.01, ..plain };
        assert_eq!(share(cold, &logits, 2), 1.0);
    }
}
