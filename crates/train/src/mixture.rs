//! Mixtures of experts in training: how evenly experts are used, what says so, and the auxiliary
//! loss that evens it out.

use crate::wording::and_others;
use hone_model::DecoderConfig;
use hone_tensor::ops::{RouterLoad, Routers};
use hone_tensor::{Tape, lock};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

/// Tokens that an expert would have had with an even load since its last one, from which on it is
/// said to starve: by chance that many pass nobody by.
const STARVED_OF: f64 = 200.0;

/// The routers of an engine's model.
#[derive(Default)]
pub struct Mixture {
    /// What the auxiliary loss is multiplied by; 0: there is none.
    pub coefficient: f64,
    /// What the step's routers did so far, a load for each block with experts.
    loads: Vec<RouterLoad>,
    /// The step's auxiliary loss, and its derivative by each expert's probability.
    balance: Option<(f64, Vec<f32>)>,
}

impl Mixture {
    /// Forgets what the routers did: a step begins, or begins again.
    pub fn clear(&mut self) {
        self.loads.clear();
    }

    /// Sets the auxiliary loss of the step, given what its routers do.
    pub fn balance(&mut self, loads: &[RouterLoad]) {
        let mut all = RouterLoad::default();
        loads.iter().for_each(|load| all.add(load));
        let derivative = all.balancing_gradient().into_iter();
        let scaled = derivative.map(|d| (self.coefficient * f64::from(d)) as f32).collect();
        self.balance = Some((all.balancing_loss(), scaled));
    }

    /// The step's auxiliary loss, before its coefficient; `None` if there is none.
    pub fn balancing_loss(&self) -> Option<f64> {
        self.balance.as_ref().map(|(loss, _)| *loss)
    }

    /// Tells a training pass of `num_rows` tokens about its routers. The derivative is multiplied
    /// by `loss_scale`, as that of the objective is.
    pub(crate) fn attend(&self, tape: &mut Tape<'_>, num_rows: usize, loss_scale: f32) -> Loads {
        let loads = Loads::default();
        let balance = self.balance.as_ref().map(|(_, derivative)| {
            derivative.iter().map(|d| d * loss_scale).collect::<Vec<f32>>().into()
        });
        let (num_rows, of_pass) = (Some(num_rows), Some(Arc::clone(&loads.0)));
        let routers = Routers { num_rows, balance, loads: of_pass, sums_probabilities: false };
        tape.set_routers(routers);
        loads
    }

    /// Adds what the routers did in a pass.
    pub(crate) fn add(&mut self, loads: Loads) {
        add(&mut self.loads, loads.take());
    }

    /// How the step used each block's experts.
    pub fn expert_loads(&self, config: &DecoderConfig) -> Vec<ExpertLoad> {
        let blocks = sparse_blocks(config).zip(&self.loads);
        blocks.map(|(layer, load)| ExpertLoad::of(layer, &load.counts)).collect()
    }
}

/// What the routers of one pass did.
#[derive(Default)]
pub(crate) struct Loads(Arc<Mutex<Vec<RouterLoad>>>);

impl Loads {
    /// Tells a pass without gradients about its routers; it sums probabilities.
    pub(crate) fn of_pass(tape: &mut Tape<'_>, num_rows: usize) -> Self {
        let loads = Self::default();
        let (num_rows, of_pass) = (Some(num_rows), Some(Arc::clone(&loads.0)));
        tape.set_routers(Routers {
            num_rows,
            balance: None,
            loads: of_pass,
            sums_probabilities: true,
        });
        loads
    }

    pub(crate) fn take(self) -> Vec<RouterLoad> {
        std::mem::take(&mut *lock(&self.0))
    }
}

/// Adds loads of the same routers.
pub(crate) fn add(sums: &mut Vec<RouterLoad>, loads: Vec<RouterLoad>) {
    sums.resize(sums.len().max(loads.len()), RouterLoad::default());
    sums.iter_mut().zip(&loads).for_each(|(sum, load)| sum.add(load));
}

/// Whether a model has experts.
pub fn has_experts(config: &DecoderConfig) -> bool {
    sparse_blocks(config).next().is_some()
}

/// The blocks with experts.
fn sparse_blocks(config: &DecoderConfig) -> impl Iterator<Item = usize> {
    let blocks = config.layers.iter().enumerate();
    blocks.filter(|(_, layer)| layer.mlp.experts.is_some()).map(|(layer, _)| layer)
}

/// How evenly a step's tokens went to the experts of a block.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ExpertLoad {
    /// Block.
    pub layer: usize,
    /// Tokens of the least used expert, over those of an even load.
    pub least: f64,
    /// Tokens of the most used one, over those of an even load.
    pub greatest: f64,
    /// Number of experts without a token.
    pub idle: usize,
    /// Tokens of each expert.
    #[serde(skip)]
    counts: Vec<u64>,
}

impl ExpertLoad {
    fn of(layer: usize, counts: &[u64]) -> Self {
        let even = even_load(counts).max(f64::MIN_POSITIVE);
        let share = |count: Option<&u64>| count.map_or(0.0, |&count| count as f64 / even);
        let idle = counts.iter().filter(|&&count| count == 0).count();
        let (least, greatest) = (share(counts.iter().min()), share(counts.iter().max()));
        Self { layer, least, greatest, idle, counts: counts.to_vec() }
    }
}

/// Tokens of an expert if all had as many.
fn even_load(counts: &[u64]) -> f64 {
    counts.iter().sum::<u64>() as f64 / counts.len().max(1) as f64
}

/// Experts that no token chooses for long, each named once.
#[derive(Default)]
pub(crate) struct Starving {
    /// Of each block and expert, the tokens that it would have had since its last one.
    missed: Vec<Vec<f64>>,
    named: BTreeSet<(usize, usize)>,
}

impl Starving {
    /// Asked after each step: what to know.
    pub(crate) fn note(&mut self, loads: &[ExpertLoad]) -> Option<String> {
        self.missed.resize(loads.len(), Vec::new());
        let mut found = Vec::new();
        for (load, missed) in loads.iter().zip(&mut self.missed) {
            missed.resize(load.counts.len(), 0.0);
            let even = even_load(&load.counts);
            for (expert, (missed, &count)) in missed.iter_mut().zip(&load.counts).enumerate() {
                *missed = if count == 0 { *missed + even } else { 0.0 };
                if *missed >= STARVED_OF && self.named.insert((load.layer, expert)) {
                    found.push((load.layer, expert));
                }
            }
        }
        let (layer, expert) = *found.first()?;
        let more = and_others(found.len());
        Some(format!(
            "expert {expert} of block {layer}{more} starved: no token has chosen it where an even \
             load would have given it {STARVED_OF:.0}, so it is not trained. If it did better \
             before training, a smaller train.learning_rate or a train.router_aux_loss_coef may \
             keep it in use"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expert_without_tokens_is_named_once() {
        let mut starving = Starving::default();
        let step = |counts: &[u64]| vec![ExpertLoad::of(3, counts)];
        let loads = step(&[70, 0, 20, 30]);
        assert_eq!((loads[0].idle, loads[0].least), (1, 0.0));
        assert!((loads[0].greatest - 70.0 / 30.0).abs() < 1e-12);
        for _ in 0..6 {
            assert_eq!(starving.note(&loads), None);
        }
        let note = starving.note(&loads).unwrap();
        assert!(note.starts_with("expert 1 of block 3 starved: no token"), "{note}");
        assert_eq!(starving.note(&loads), None);
        // One token now and then is no famine.
        let mut fed = Starving::default();
        for i in 0..40 {
            assert_eq!(fed.note(&step(&[70, u64::from(i % 6 == 0), 20, 30])), None);
        }
    }

    /// The loss of all blocks is that of the sum of their loads, and its derivative has the
    /// coefficient.
    #[test]
    fn the_balance_is_of_all_blocks() {
        let load = |counts: [u64; 2], sums: [f64; 2]| RouterLoad {
            counts: counts.to_vec(),
            probability_sums: sums.to_vec(),
            num_tokens: 4,
        };
        let mut mixture = Mixture { coefficient: 0.5, ..Mixture::default() };
        mixture.balance(&[load([4, 0], [3.0, 1.0]), load([1, 3], [1.0, 3.0])]);
        let loss = 2.0 * (5.0 / 8.0 * 4.0 / 8.0 + 3.0 / 8.0 * 4.0 / 8.0);
        assert_eq!(mixture.balancing_loss(), Some(loss));
        assert_eq!(mixture.balance.unwrap().1, [0.5 * 2.0 * 5.0 / 64.0, 0.5 * 2.0 * 3.0 / 64.0]);
    }
}
