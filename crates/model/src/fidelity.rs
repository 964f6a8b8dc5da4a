//! How much of the training survives in an exported model.
//!
//! Rounding moves every logit a little, and training may not have moved them any further: a merge
//! `W + s B A` in bf16 rounds back to `W` wherever the change is below half a unit in the last
//! place. So the loss is measured relative to what training changed.

use crate::batch::Batch;
use crate::divergence::Divergence;
use crate::load::Model;
use crate::pass::Pass;
use hone_tensor::{Compute, DType, Device, DeviceError, Tape, Tensor};

/// The models to compare, all on one device.
#[derive(Clone, Copy)]
pub struct Comparison<'a> {
    /// The device that holds all of them.
    pub device: &'a Device,
    /// The model before training; `None` if nothing was trained.
    pub base: Option<&'a Model>,
    /// The model that was exported.
    pub intended: &'a Model,
    /// The exported files, loaded again.
    pub written: &'a Model,
}

/// How closely an exported model matches the model in memory.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fidelity {
    /// `|written − intended| / |intended − base|` over all logits, in L2; `None` if the effect of
    /// training cannot be distinguished from rounding.
    pub lost: Option<f64>,
    /// Largest difference between logits, relative to the range of the intended model's logits.
    pub max_error: f64,
    /// Mean KL divergence of the next-token distribution from the intended one, in nats.
    pub kl: f64,
    /// Fraction of positions at which both models have the same most likely next token.
    pub top1_agreement: f64,
}

/// Largest fraction of the effect of training that an export may lose.
pub const MAX_LOST: f64 = 0.25;

/// An effect below this fraction of the logits' norm is indistinguishable from f32 rounding.
const MIN_EFFECT: f64 = 1e-5;

impl Fidelity {
    /// Share of the effect of training that is left, from 0 to 1.
    pub fn kept(&self) -> f64 {
        (1.0 - self.lost.unwrap_or(1.0)).max(0.0)
    }

    /// Compares the models on `rows` of tokens, in f32; `None` if any logit is not finite.
    ///
    /// # Errors
    /// If the device failed.
    pub fn measure(models: Comparison<'_>, rows: &[Vec<u32>]) -> Result<Option<Self>, DeviceError> {
        let config = &models.intended.decoder.config;
        let rows = rows.iter().filter(|row| !row.is_empty());
        let batches: Vec<Batch> = rows.map(|row| Batch::from_sequence(config, row)).collect();
        let hidden = |model| {
            let pass = Pass { device: models.device, model, compute: Compute::F32 };
            pass.hidden_by_blocks(&batches, None, &mut || ())
        };
        let mut hidden = [
            Some(hidden(models.intended)?),
            Some(hidden(models.written)?),
            models.base.map(hidden).transpose()?,
        ];
        let mut sums = Sums::default();
        for i in 0..batches.len() {
            let of = [Some(models.intended), Some(models.written), models.base];
            let mut logits = of.map(|_| None);
            for ((logits, hidden), model) in logits.iter_mut().zip(&mut hidden).zip(of) {
                let Some((hidden, model)) = hidden.as_mut().zip(model) else { continue };
                *logits = Some(logits_of(model, models.device, hidden[i].clone())?);
            }
            models.device.settle()?;
            if !logits.iter().flatten().all(|logits| are_finite(logits)) {
                return Ok(None);
            }
            let [Some(intended), Some(written), base] = &logits else { unreachable!("both") };
            let vocab_size = intended.len() / batches[i].tokens.len();
            sums.add(intended, written, base.as_deref(), vocab_size);
        }
        Ok(Some(sums.fidelity()))
    }

    /// Whether the loss is within what weights in `dtype` may lose.
    pub fn is_acceptable(&self, dtype: DType) -> bool {
        self.max_error <= tolerance(dtype) && self.lost.is_none_or(|lost| lost <= MAX_LOST)
    }
}

/// Permitted error of a logit with weights in `dtype`, relative to the range of the logits.
fn tolerance(dtype: DType) -> f64 {
    if dtype == DType::F32 { 1e-4 } else { 5e-2 }
}

pub(crate) fn are_finite(values: &[f32]) -> bool {
    values.iter().all(|x| x.is_finite())
}

/// `[t * vocab_size]`, of hidden states after the last norm.
fn logits_of(model: &Model, device: &Device, hidden: Tensor) -> Result<Vec<f32>, DeviceError> {
    let mut tape = Tape::inference(device, &model.params, Compute::F32);
    let hidden = tape.leaf(hidden, false);
    let hidden = model.decoder.head_input(&mut tape, hidden);
    let logits = model.decoder.logits_of(&mut tape, hidden.value()).try_to_vec_f32()?;
    model.release_tables();
    Ok(logits)
}

/// Sums over the compared rows.
struct Sums {
    error: f64,
    effect: f64,
    size: f64,
    largest: f64,
    lowest: f32,
    highest: f32,
    kl: f64,
    agreeing: usize,
    tokens: usize,
}

impl Default for Sums {
    fn default() -> Self {
        let (lowest, highest) = (f32::MAX, f32::MIN);
        let (error, effect, size, largest, kl) = (0.0, 0.0, 0.0, 0.0, 0.0);
        Self { error, effect, size, largest, lowest, highest, kl, agreeing: 0, tokens: 0 }
    }
}

impl Sums {
    fn add(&mut self, intended: &[f32], written: &[f32], base: Option<&[f32]>, vocab_size: usize) {
        let squares = |a: &[f32], b: &[f32]| -> f64 {
            a.iter().zip(b).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum()
        };
        self.error += squares(intended, written);
        self.effect += base.map_or(0.0, |base| squares(intended, base));
        self.size += intended.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>();
        let errors = intended.iter().zip(written).map(|(a, b)| f64::from((a - b).abs()));
        self.largest = errors.fold(self.largest, f64::max);
        self.lowest = intended.iter().copied().fold(self.lowest, f32::min);
        self.highest = intended.iter().copied().fold(self.highest, f32::max);
        for (p, q) in intended.chunks(vocab_size).zip(written.chunks(vocab_size)) {
            let Divergence { kl, top, .. } = Divergence::of([p, q], 0);
            self.kl += kl;
            self.agreeing += usize::from(top[0] == top[1]);
            self.tokens += 1;
        }
    }

    fn fidelity(&self) -> Fidelity {
        let tokens = self.tokens.max(1) as f64;
        let range = f64::from(self.highest - self.lowest).max(f64::MIN_POSITIVE);
        let is_measurable = self.effect.sqrt() > MIN_EFFECT * self.size.sqrt();
        Fidelity {
            lost: is_measurable.then(|| (self.error / self.effect).sqrt()),
            max_error: self.largest / range,
            kl: self.kl / tokens,
            top1_agreement: self.agreeing as f64 / tokens,
        }
    }
}
