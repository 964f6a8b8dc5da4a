//! How far a model's predictions of tokens are from another's, token by token.

use crate::batch::Batch;
use crate::decoder::Recompute;
use crate::pass::Pass;
use hone_tensor::{DeviceError, ops};

/// Positions whose logits of both models are held at once.
const POSITIONS: usize = 128;

/// What two models predict in one place.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Divergence {
    /// `Σ p ln(p / q)` over the vocabulary, in nats, where `p` is of the reference and `q` of the
    /// model; not a number if a logit is not finite.
    pub kl: f64,
    /// The most likely token of the reference, and of the model; the first of several.
    pub top: [u32; 2],
    /// The token that is there.
    pub target: u32,
    /// Its log-probability under the reference, and under the model.
    pub log_probs: [f64; 2],
}

impl Divergence {
    /// Compares rows of logits, the reference's first. Both are as long as the vocabulary, and
    /// `target` is of it.
    pub fn of([p, q]: [&[f32]; 2], target: u32) -> Self {
        let norms = [log_sum_exp(p), log_sum_exp(q)];
        let log_prob = |logit: f32, norm: f64| f64::from(logit) - norm;
        let term = |(&p, &q): (&f32, &f32)| {
            let (log_p, log_q) = (log_prob(p, norms[0]), log_prob(q, norms[1]));
            log_p.exp() * (log_p - log_q)
        };
        let kl: f64 = p.iter().zip(q).map(term).sum();
        let at = target as usize;
        Self {
            // Rounding may leave it just below zero. `f64::max` would hide what is no number.
            kl: if kl < 0.0 { 0.0 } else { kl },
            top: [argmax(p), argmax(q)],
            target,
            log_probs: [log_prob(p[at], norms[0]), log_prob(q[at], norms[1])],
        }
    }

    /// Whether the target is the most likely token: of the reference, and of the model.
    pub fn hits(&self) -> [bool; 2] {
        self.top.map(|top| top == self.target)
    }
}

/// Compares two models of one vocabulary at the targets of a batch, in the order of `batch.rows`,
/// on as many threads as `num_threads`. The models may compute in different types.
///
/// # Errors
/// If a device failed.
pub fn divergences(
    [reference, model]: [Pass<'_>; 2],
    batch: &Batch,
    num_threads: usize,
) -> Result<Vec<Divergence>, DeviceError> {
    let mut tapes = [reference, model].map(Pass::inference_tape);
    let hidden = [reference, model].map(|pass| pass.model);
    let hidden: [_; 2] = std::array::from_fn(|i| {
        hidden[i].decoder.head_inputs(&mut tapes[i], batch, Recompute::None)
    });
    let mut found = Vec::with_capacity(batch.num_targets);
    let rows = batch.rows[..batch.num_targets].chunks(POSITIONS);
    for (rows, targets) in rows.zip(batch.targets.chunks(POSITIONS)) {
        let mut logits = [Vec::new(), Vec::new()];
        for (i, pass) in [reference, model].into_iter().enumerate() {
            let taken = ops::take_rows(&mut tapes[i], hidden[i].clone(), rows);
            let of_rows = pass.model.decoder.logits_of(&mut tapes[i], taken.value());
            logits[i] = of_rows.try_to_vec_f32()?;
            pass.device.settle()?;
        }
        found.extend(compared([&logits[0], &logits[1]], targets, num_threads));
    }
    Ok(found)
}

/// Of logits `[targets, vocab_size]` each.
fn compared(logits: [&[f32]; 2], targets: &[u32], num_threads: usize) -> Vec<Divergence> {
    let vocab_size = logits[0].len() / targets.len().max(1);
    let share = targets.len().div_ceil(num_threads.max(1)).max(1);
    let of_share = |(i, targets): (usize, &[u32])| -> Vec<Divergence> {
        let row = |of: &'_ [f32], j: usize| {
            let start = (i * share + j) * vocab_size;
            start..(start + vocab_size).min(of.len())
        };
        let [p, q] = logits;
        let one = |(j, &target)| Divergence::of([&p[row(p, j)], &q[row(q, j)]], target);
        targets.iter().enumerate().map(one).collect()
    };
    std::thread::scope(|scope| {
        let shares: Vec<_> = targets
            .chunks(share)
            .enumerate()
            .map(|share| scope.spawn(move || of_share(share)))
            .collect();
        let join = |share: std::thread::ScopedJoinHandle<'_, Vec<Divergence>>| {
            share.join().expect("comparing logits of one length does not panic")
        };
        shares.into_iter().flat_map(join).collect()
    })
}

fn log_sum_exp(x: &[f32]) -> f64 {
    let max = f64::from(x.iter().copied().fold(f32::MIN, f32::max));
    max + x.iter().map(|x| (f64::from(*x) - max).exp()).sum::<f64>().ln()
}

fn argmax(logits: &[f32]) -> u32 {
    let greater = |best: usize, i: usize| if logits[i] > logits[best] { i } else { best };
    (0..logits.len()).fold(0, greater) as u32
}
