//! Model, gradients and optimizer on a device; the same on the CPU and on the dry device.

use crate::error::TrainError;
use crate::loss_scale::LossScale;
use crate::objective::negative_log_likelihood;
use crate::optimizer::AdamW;
use crate::setup::Setup;
use hone_model::adapter::{self, LoraConfig};
use hone_model::{Batch, LoadOptions, Model, Recompute, Trained};
use hone_tensor::{Category, Compute, DType, Device, Gradients, StepKey, Tape};

/// Everything a training step works on.
pub struct Engine {
    /// Where.
    pub device: Device,
    /// Decoder and trained parameters.
    pub model: Model,
    /// Sums of gradients.
    pub gradients: Gradients,
    /// Moments.
    pub optimizer: AdamW,
    /// The adapters' settings; `None`: full fine-tuning.
    pub lora: Option<LoraConfig>,
    /// What products are computed in.
    pub compute: Compute,
    /// What the loss's derivative is multiplied by.
    pub loss_scale: LossScale,
}

/// How frozen weights are held.
#[derive(Clone, Copy, Debug)]
pub struct Held {
    /// Element type of matrices; `None`: as in the file.
    pub base_precision: Option<DType>,
    /// Blocks whose projections stay in the CPU's memory: see [`LoadOptions`].
    pub offloaded_blocks: usize,
}

impl Engine {
    /// Loads the model and gets everything ready for training on `device`.
    ///
    /// # Errors
    /// If model or adapter do not fit.
    pub fn new(setup: &Setup, device: &Device) -> Result<Self, TrainError> {
        Self::offloading(setup, device, 0)
    }

    /// The same with so many blocks in the CPU's memory.
    ///
    /// # Errors
    /// If model or adapter do not fit.
    pub fn offloading(
        setup: &Setup,
        device: &Device,
        offloaded_blocks: usize,
    ) -> Result<Self, TrainError> {
        let held = Held { base_precision: setup.base_precision, offloaded_blocks };
        Self::with_weights(setup, device, held, setup.lora.as_ref())
    }

    /// The same with weights held otherwise, or other adapters, than the run file says.
    ///
    /// # Errors
    /// If model or adapter do not fit.
    pub fn with_weights(
        setup: &Setup,
        device: &Device,
        Held { base_precision, offloaded_blocks }: Held,
        lora: Option<&LoraConfig>,
    ) -> Result<Self, TrainError> {
        let trained = if lora.is_some() { Trained::Nothing } else { Trained::All };
        let options = LoadOptions { base_precision, trained, offloaded_blocks };
        let mut model = hone_model::load(&setup.model_dir, device, options)?;
        let lora = match (lora, &setup.init_adapter) {
            (Some(lora), Some(dir)) => Some(continue_adapter(&mut model, device, lora, dir)?),
            (Some(lora), None) => {
                adapter::attach(&mut model, device, lora, setup.run.train.seed)?;
                Some(lora.clone())
            }
            (None, _) => None,
        };
        let gradients = Gradients::zeros(device, &model.params);
        let optimizer = AdamW::new(device, &model.params, &setup.run.train);
        let (device, compute) = (device.clone(), setup.compute);
        let loss_scale = LossScale::of(compute);
        Ok(Self { device, model, gradients, optimizer, lora, compute, loss_scale })
    }

    /// Forward and backward pass of one micro-batch: adds to the gradients, which are those of the
    /// scaled loss, and returns its part of the loss. `num_step_targets` counts the targets of the
    /// whole optimizer step.
    pub fn forward_backward(
        &mut self,
        batch: &Batch,
        num_step_targets: usize,
        key: StepKey,
        recompute: Recompute,
    ) -> f64 {
        let mut tape = Tape::training(&self.device, &self.model.params, self.compute, Some(key));
        let log_probs = self.model.decoder.log_probs(&mut tape, batch, recompute);
        let shape = log_probs.value().shape();
        let mut d_log_probs = self.device.alloc(Category::Activations, DType::F32, shape);
        let mut loss = 0.0;
        if !self.device.is_dry() {
            let log_probs = log_probs.value().to_vec_f32();
            let (n, mut d) = (batch.num_targets, vec![0.0; log_probs.len()]);
            loss = negative_log_likelihood(&log_probs[..n], num_step_targets, &mut d[..n]);
            let scale = self.loss_scale.factor() as f32;
            d.iter_mut().for_each(|d| *d *= scale);
            d_log_probs.copy_from_f32(&d);
        }
        tape.sweep_back(log_probs, d_log_probs, &mut self.gradients);
        loss
    }
}

/// Loads the adapter to start from; it must have the rank that the run file asks for.
fn continue_adapter(
    model: &mut Model,
    device: &Device,
    wanted: &LoraConfig,
    dir: &std::path::Path,
) -> Result<LoraConfig, TrainError> {
    let found = adapter::load(dir, model, device)?;
    let same = found.rank == wanted.rank
        && found.alpha == wanted.alpha
        && found.use_rslora == wanted.use_rslora;
    if !same {
        return Err(TrainError::Usage(format!(
            "adapter.init_from: {} has rank {}, alpha {}, use_rslora {}; the run file asks for \
             rank {}, alpha {}, use_rslora {}. Give the run file the adapter's values",
            dir.display(),
            found.rank,
            found.alpha,
            found.use_rslora,
            wanted.rank,
            wanted.alpha,
            wanted.use_rslora,
        )));
    }
    for (_, lora) in model.decoder.adapters_mut() {
        lora.dropout = wanted.dropout;
    }
    Ok(LoraConfig { dropout: wanted.dropout, ..found })
}
