//! How far a model's predictions of tokens are from another's, token by token.

use crate::batch::Batch;
use crate::decoder::Recompute;
use crate::pass::Pass;
use hone_tensor::{Cpu, Device, DeviceError, ops};

/// Positions whose logits of both models are held at once.
const POSITIONS: usize = 128;

/// How far a model's prediction of a token is from a reference's.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Distance {
    /// `Σ p ln(p / q)` over the vocabulary, in nats, where `p` is of the reference and `q` of the
    /// model; not a number if a logit is not finite.
    pub kl: f64,
    /// The most likely token of the reference, and of the model; the first of several.
    pub top: [u32; 2],
}

/// What two models predict in one place.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Divergence {
    /// As [`Distance`] has it.
    pub kl: f64,
    /// As [`Distance`] has it.
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
        let (Distance { kl, top }, norms) = distance([p, q]);
        let log_prob = |logits: &[f32], norm: f64| f64::from(logits[target as usize]) - norm;
        let log_probs = [log_prob(p, norms[0]), log_prob(q, norms[1])];
        Self { kl, top, target, log_probs }
    }

    /// Whether the target is the most likely token: of the reference, and of the model.
    pub fn hits(&self) -> [bool; 2] {
        self.top.map(|top| top == self.target)
    }
}

/// Compares two models of one vocabulary at the targets of a batch, in the order of `batch.rows`.
/// The models may compute in different types.
///
/// # Errors
/// If a device failed.
pub fn divergences(
    [reference, model]: [Pass<'_>; 2],
    batch: &Batch,
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
        found.extend(compared(model.device, [&logits[0], &logits[1]], targets));
    }
    Ok(found)
}

/// Of logits `[targets, vocab_size]` each.
fn compared(device: &Device, [p, q]: [&[f32]; 2], targets: &[u32]) -> Vec<Divergence> {
    let vocab_size = p.len() / targets.len();
    let cpu = device.as_cpu().or_else(|| Device::host().as_cpu()).expect("the host is a CPU");
    let mut found = vec![Divergence::default(); targets.len()];
    cpu.rows(&mut found, 1, 16 * vocab_size, |row, to| {
        let logits = [p, q].map(|of| &of[row * vocab_size..][..vocab_size]);
        to[0] = Divergence::of(logits, targets[row]);
    });
    found
}

/// The distances of rows of logits, `width` each, of a model from as many of a reference's, which
/// come first.
///
/// # Panics
/// If lengths do not match.
pub fn distances(cpu: &Cpu, [p, q]: [&[f32]; 2], width: usize) -> Vec<Distance> {
    assert!(p.len() == q.len() && p.len().is_multiple_of(width));
    let mut found = vec![Distance::default(); p.len() / width];
    cpu.rows(&mut found, 1, 16 * width, |row, to| {
        to[0] = distance([p, q].map(|of| &of[row * width..][..width])).0;
    });
    found
}

/// Of one row, with the logarithms of both sums of exponentials.
fn distance([p, q]: [&[f32]; 2]) -> (Distance, [f64; 2]) {
    let top = [argmax(p), argmax(q)];
    let [max_p, max_q] = [p, q].map(|x| f64::from(x.iter().copied().fold(f32::MIN, f32::max)));
    let (mut sum_p, mut sum_q, mut sum) = (0.0, 0.0, 0.0);
    for (p, q) in p.iter().zip(q) {
        let (p, q) = (f64::from(*p) - max_p, f64::from(*q) - max_q);
        let weight = p.exp();
        sum_p += weight;
        sum_q += q.exp();
        sum += weight * (p - q);
    }
    let kl = sum / sum_p - sum_p.ln() + sum_q.ln();
    // Rounding may leave it just below zero. `f64::max` would hide what is no number.
    let kl = if kl < 0.0 { 0.0 } else { kl };
    (Distance { kl, top }, [max_p + sum_p.ln(), max_q + sum_q.ln()])
}

/// The first of the largest.
pub(crate) fn argmax(logits: &[f32]) -> u32 {
    let greater = |best: usize, i: usize| if logits[i] > logits[best] { i } else { best };
    (0..logits.len()).fold(0, greater) as u32
}
