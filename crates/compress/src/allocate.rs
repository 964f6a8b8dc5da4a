//! A type for each tensor under a bound of bytes: the multiple-choice knapsack, by dynamic
//! programming.

/// A type that a tensor may have, by its number, and what it takes and costs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Price {
    /// Bytes in the file, with what aligns the next tensor.
    pub bytes: u64,
    /// Its part of the KL divergence, in nats per token.
    pub kl: f64,
}

/// Most steps from the least to the most bytes that tables have. Bytes are counted in their
/// greatest common divisor, and rounded up only if there would be more.
const MAX_STEPS: u64 = 1 << 17;

/// The price of each tensor with which the sum of divergences is least while bytes are at most
/// `budget`; ties take the earlier one. `None` if the smallest prices are above it.
///
/// # Panics
/// If a tensor has no price, or more than 256.
pub fn allocate(tensors: &[Vec<Price>], budget: u64) -> Option<Vec<usize>> {
    let least = |prices: &Vec<Price>| prices.iter().map(|price| price.bytes).min();
    let least: Vec<u64> = tensors.iter().map(|prices| least(prices).expect("a price")).collect();
    let slack = budget.checked_sub(least.iter().sum())?;
    let above: Vec<Vec<u64>> = tensors
        .iter()
        .zip(&least)
        .map(|(prices, least)| prices.iter().map(|price| price.bytes - least).collect())
        .collect();
    // Nothing is gained by more than the largest of all.
    let all: u64 = above.iter().map(|above| above.iter().max().copied().unwrap_or(0)).sum();
    let slack = slack.min(all);
    let common = above.iter().flatten().fold(0, |a, b| gcd(a, *b)).max(1);
    let unit = common.max(slack.div_ceil(MAX_STEPS));
    let steps = (slack / unit) as usize;
    let mut best = vec![0.0; steps + 1];
    let mut choices = Vec::new();
    for (prices, above) in tensors.iter().zip(&above) {
        assert!(prices.len() <= 256, "too many types");
        let (mut next, mut chosen) = (vec![f64::INFINITY; steps + 1], vec![0u8; steps + 1]);
        for (i, (price, above)) in prices.iter().zip(above).enumerate() {
            let taken = above.div_ceil(unit) as usize;
            if taken > steps {
                continue;
            }
            let (to, chosen) = (&mut next[taken..], &mut chosen[taken..]);
            for ((to, chosen), before) in to.iter_mut().zip(chosen).zip(&best) {
                if before + price.kl < *to {
                    (*to, *chosen) = (before + price.kl, i as u8);
                }
            }
        }
        best = next;
        choices.push(chosen);
    }
    let mut at = steps;
    let mut found = Vec::new();
    for (chosen, above) in choices.iter().zip(&above).rev() {
        let choice = usize::from(chosen[at]);
        at -= above[choice].div_ceil(unit) as usize;
        found.push(choice);
    }
    found.reverse();
    Some(found)
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hone_tensor::Philox;

    fn sums(tensors: &[Vec<Price>], choice: &[usize]) -> (u64, f64) {
        let chosen = tensors.iter().zip(choice).map(|(prices, i)| prices[*i]);
        chosen.fold((0, 0.0), |(bytes, kl), price| (bytes + price.bytes, kl + price.kl))
    }

    /// The least divergence of all choices within the budget.
    fn exhaustive(tensors: &[Vec<Price>], budget: u64) -> Option<f64> {
        let mut all = vec![(0, 0.0)];
        for prices in tensors {
            let with = |(bytes, kl): (u64, f64)| {
                prices.iter().map(move |price| (bytes + price.bytes, kl + price.kl))
            };
            all = all.into_iter().flat_map(with).collect();
        }
        let within = all.into_iter().filter(|(bytes, _)| *bytes <= budget);
        within.map(|(_, kl)| kl).min_by(f64::total_cmp)
    }

    #[test]
    fn no_choice_within_the_budget_is_better() {
        for case in 0..60 {
            let random = Philox::new(case, 0);
            let unit = [1, 18, 96][case as usize % 3];
            let tensors: Vec<Vec<Price>> = (0..5)
                .map(|i| {
                    let price = |j: u64| Price {
                        bytes: unit * (3 + u64::from(random.words(i * 8 + j)[0] % 40)),
                        // Not always less for more bytes.
                        kl: f64::from(random.uniform(1000 + i * 8 + j)),
                    };
                    (0..2 + i % 4).map(price).collect()
                })
                .collect();
            for budget in (0..250).map(|step| step * unit) {
                let found = allocate(&tensors, budget).map(|choice| sums(&tensors, &choice));
                match (found, exhaustive(&tensors, budget)) {
                    (None, None) => {}
                    (Some((bytes, kl)), Some(least)) => {
                        assert!(bytes <= budget && (kl - least).abs() < 1e-12, "{case} {budget}");
                    }
                    other => panic!("{case} {budget}: {other:?}"),
                }
            }
        }
    }

    /// With sizes that have nothing in common, the bound still holds, and nearly all is used.
    #[test]
    fn coarser_steps_stay_within_the_budget() {
        let tensors: Vec<Vec<Price>> = (0..40u64)
            .map(|i| {
                let price = |bits: u64| Price {
                    bytes: bits * (1_000_003 + 7 * i) + i,
                    kl: (i + 1) as f64 * 0.25f64.powi(bits as i32),
                };
                (2..9).map(price).collect()
            })
            .collect();
        let budget = 40 * 5 * 1_000_000 + 1;
        let (bytes, _) = sums(&tensors, &allocate(&tensors, budget).unwrap());
        assert!(bytes <= budget && bytes > budget - budget / 100, "{bytes} of {budget}");
        assert_eq!(allocate(&tensors, 40 * 2 * 1_000_000), None);
    }
}
