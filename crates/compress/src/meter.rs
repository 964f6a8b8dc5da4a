//! How far models are from one that they should be like, on windows of text.

use crate::window::Window;
use hone_model::{Batch, Distance, Model, Pass, distances};
use hone_tensor::{Category, Compute, Cpu, Device, DeviceError, Tape, Tensor};

/// Rows whose logits are held at once.
pub(crate) const ROWS: usize = 128;

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
    batches: Vec<Batch>,
    /// `[tokens, hidden_size]` of each.
    hidden: Vec<Vec<f32>>,
}

impl<'a> Meter<'a> {
    /// Windows that are measured on.
    pub(crate) fn num_windows(&self) -> usize {
        self.batches.len()
    }

    /// Runs the intended model on windows.
    ///
    /// # Errors
    /// If the device failed.
    pub fn new(pass: Pass<'a>, windows: &[Window]) -> Result<Self, DeviceError> {
        let Pass { device, model: intended, .. } = pass;
        let config = &intended.decoder.config;
        let batches = windows.iter().map(|window| window.batch(config)).collect();
        let mut meter = Self { device, intended, batches, hidden: Vec::new() };
        meter.hidden = meter.hidden(intended)?;
        Ok(meter)
    }

    fn hidden(&self, model: &Model) -> Result<Vec<Vec<f32>>, DeviceError> {
        let pass = Pass { device: self.device, model, compute: Compute::F32 };
        hidden_states(pass, &self.batches)
    }

    /// Measures a model on the same device, of which only weights differ.
    ///
    /// # Errors
    /// If the device failed.
    pub fn measure(&self, model: &Model) -> Result<Measured, DeviceError> {
        let (mut kl, mut same, mut num_tokens) = (0.0, 0, 0);
        let all = self.hidden(model)?;
        for ((batch, intended), hidden) in self.batches.iter().zip(&self.hidden).zip(all) {
            let width = ROWS * model.decoder.config.hidden_size;
            for rows in intended.chunks(width).zip(hidden.chunks(width)) {
                let found = self.device.reusing_memory(|| {
                    compared(self.device, [(self.intended, rows.0), (model, rows.1)])
                })?;
                kl = found.iter().fold(kl, |sum, row| sum + row.kl);
                same += found.iter().filter(|row| row.top[0] == row.top[1]).count();
            }
            num_tokens += batch.tokens.len();
        }
        let tokens = num_tokens.max(1) as f64;
        Ok(Measured { kl: kl / tokens, same_top: same as f64 / tokens, num_tokens })
    }
}

/// The hidden states after a model's last norm, `[tokens, hidden_size]` of each batch.
pub(crate) fn hidden_states(
    pass: Pass<'_>,
    batches: &[Batch],
) -> Result<Vec<Vec<f32>>, DeviceError> {
    let hidden = pass.hidden_by_blocks(batches, None, &mut || ())?;
    hidden.into_iter().map(|hidden| hidden.try_to_vec_f32()).collect()
}

/// How far the second model's predictions from its rows of hidden states, in f32, are from those of
/// the first from as many. No more than [`ROWS`] should be given at once.
pub(crate) fn compared(
    device: &Device,
    [(intended, rows), (model, others)]: [(&Model, &[f32]); 2],
) -> Result<Vec<Distance>, DeviceError> {
    let p = logits(device, intended, rows)?;
    // Not both heads at once.
    intended.release_tables();
    let q = logits(device, model, others)?;
    model.release_tables();
    let width = p.len() * intended.decoder.config.hidden_size / rows.len();
    Ok(distances(host(), [&p, &q], width))
}

/// Logits of rows of hidden states, in f32.
pub(crate) fn logits(
    device: &Device,
    model: &Model,
    rows: &[f32],
) -> Result<Vec<f32>, DeviceError> {
    let width = model.decoder.config.hidden_size;
    let rows = Tensor::from_f32(rows, &[rows.len() / width, width]);
    let rows = device.upload(Category::Workspace, &rows)?;
    let mut tape = Tape::inference(device, &model.params, Compute::F32);
    let logits = model.decoder.logits_of(&mut tape, &rows).try_to_vec_f32()?;
    device.settle().map(|()| logits)
}

pub(crate) fn host() -> &'static Cpu {
    Device::host().as_cpu().expect("the host is a CPU")
}
