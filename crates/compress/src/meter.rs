//! How far models are from one that they should be like, on windows of text.

use crate::window::Window;
use hone_model::{Batch, Model, Pass, Recompute};
use hone_tensor::distribution::{Divergence, divergences};
use hone_tensor::{Category, Compute, Device, DeviceError, Tape, Tensor};

/// Rows whose logits are compared at once.
const ROWS: usize = 128;

/// How far a model is from the one that is intended.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Measured {
    /// Mean KL divergence of its next tokens from the intended ones, in nats per token; not finite
    /// if a logit is not.
    pub kl: f64,
    /// Share of tokens after which both find the same one most likely.
    pub same_top: f64,
    /// Tokens.
    pub num_tokens: usize,
}

/// The intended model's hidden states on some text. Everything is computed in f32.
pub struct Meter<'a> {
    device: &'a Device,
    intended: &'a Model,
    windows: Vec<(Batch, Tensor)>,
}

impl<'a> Meter<'a> {
    /// Runs the intended model on windows.
    ///
    /// # Errors
    /// If the device failed.
    pub fn new(pass: Pass<'a>, windows: &[Window]) -> Result<Self, DeviceError> {
        let Pass { device, model: intended, .. } = pass;
        let mut meter = Self { device, intended, windows: Vec::new() };
        for window in windows {
            let batch = window.batch(&intended.decoder.config);
            let hidden = meter.hidden(intended, &batch)?;
            meter.windows.push((batch, hidden));
        }
        Ok(meter)
    }

    fn hidden(&self, model: &Model, batch: &Batch) -> Result<Tensor, DeviceError> {
        self.device.reusing_memory(|| {
            let mut tape = Tape::inference(self.device, &model.params, Compute::F32);
            let hidden = model.decoder.hidden(&mut tape, batch, Recompute::None);
            // Apart from memory that later passes use again.
            let hidden = hidden.value().try_to_vec_f32()?;
            self.device.settle()?;
            let shape = [batch.tokens.len(), model.decoder.config.hidden_size];
            Ok(Tensor::from_f32(&hidden, &shape))
        })
    }

    /// Logits of rows `first..first + rows` of hidden states.
    fn logits(
        &self,
        model: &Model,
        hidden: &Tensor,
        (first, rows): (usize, usize),
    ) -> Result<Vec<f32>, DeviceError> {
        let width = hidden.shape()[1];
        let part = Tensor::from_f32(&hidden.f32()[first * width..][..rows * width], &[rows, width]);
        let part = self.device.upload(Category::Workspace, &part)?;
        let mut tape = Tape::inference(self.device, &model.params, Compute::F32);
        model.decoder.logits_of(&mut tape, &part).try_to_vec_f32()
    }

    /// Measures a model on the same device, of which only weights differ.
    ///
    /// # Errors
    /// If the device failed.
    pub fn measure(&self, model: &Model) -> Result<Measured, DeviceError> {
        let host = Device::host().as_cpu().expect("the host is a CPU");
        let (mut kl, mut same, mut num_tokens) = (0.0, 0, 0);
        for (batch, intended) in &self.windows {
            let hidden = self.hidden(model, batch)?;
            let all = batch.tokens.len();
            for first in (0..all).step_by(ROWS) {
                let rows = (first, ROWS.min(all - first));
                let found = self.device.reusing_memory(|| -> Result<_, DeviceError> {
                    let p = self.logits(self.intended, intended, rows)?;
                    let q = self.logits(model, &hidden, rows)?;
                    self.device.settle()?;
                    Ok(divergences(host, &p, &q, p.len() / rows.1))
                })?;
                let add = |sum: f64, row: &Divergence| sum + f64::from(row.kl);
                kl = found.iter().fold(kl, add);
                same += found.iter().filter(|row| row.same_top).count();
            }
            num_tokens += all;
        }
        let tokens = num_tokens.max(1) as f64;
        Ok(Measured { kl: kl / tokens, same_top: same as f64 / tokens, num_tokens })
    }
}
