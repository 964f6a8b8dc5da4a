//! What a training step works on: a base, the parameters trained over it, their optimizer. Knows
//! neither run files nor directories; [`crate::loading`] builds it for a run.
//!
//! Frozen weights are shared: several adapters can be trained over one [`Base`] in one process.

use crate::loss_scale::LossScale;
use crate::mixture::Mixture;
use crate::objectives::{Metrics, Objective, Statistics};
use crate::optimizer::{self, AdamW, AdamWOptions, GradNorm, Step};
use crate::scoring::LabelledBatch;
use hone_model::adapter::{self, AdapterError, LoraConfig};
use hone_model::{LoadError, LoadOptions, Model, Pass, Recompute};
use hone_tensor::{Category, Compute, DType, Device, DeviceError, Gradients, StepKey, Tape};
use std::path::Path;

/// A model's weights on a device, without adapters.
pub struct Base {
    device: Device,
    compute: Compute,
    model: Model,
}

impl Base {
    /// Loads the model of a directory, to be computed with in `compute`.
    ///
    /// # Errors
    /// If the model cannot be loaded.
    pub fn load(
        dir: &Path,
        device: &Device,
        compute: Compute,
        options: LoadOptions,
    ) -> Result<Self, LoadError> {
        let model = hone_model::load(dir, device, options)?;
        Ok(Self { device: device.clone(), compute, model })
    }

    /// The device that holds the weights.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The model without adapters. Weights are shared, not copied.
    ///
    /// # Panics
    /// If the weights were loaded to be trained.
    pub fn frozen_model(&self) -> Model {
        self.model.without_adapters()
    }
}

/// Parameters that are trained over a base, and the sums of their gradients.
pub struct AdapterSet {
    /// The base's decoder with the adapters in it, and their values.
    pub model: Model,
    /// Sums of gradients.
    pub gradients: Gradients,
    /// The adapters' settings; `None`: all weights are trained.
    pub lora: Option<LoraConfig>,
}

impl AdapterSet {
    /// New adapters, which leave what the base computes as it is.
    ///
    /// # Errors
    /// If a target matches no layer, or there is no memory for adapters and gradients.
    pub fn new(base: &Base, lora: &LoraConfig, seed: u64) -> Result<Self, AdapterError> {
        let mut model = base.frozen_model();
        adapter::attach(&mut model, &base.device, lora, seed)?;
        Ok(Self::of(base, model, Some(lora.clone()))?)
    }

    /// The adapters of a PEFT directory, trained further with `dropout`.
    ///
    /// # Errors
    /// If they do not fit the base.
    pub fn load(
        base: &Base,
        dir: &Path,
        dropout: f32,
        note: &mut dyn FnMut(String),
    ) -> Result<Self, AdapterError> {
        let mut model = base.frozen_model();
        let found = adapter::load(dir, &mut model, &base.device, note)?;
        for (_, lora) in model.decoder.adapters_mut() {
            lora.dropout = dropout;
        }
        Ok(Self::of(base, model, Some(LoraConfig { dropout, ..found }))?)
    }

    /// All weights of a base that was loaded with [`hone_model::Trained::All`]; the base keeps its
    /// shape only.
    ///
    /// # Errors
    /// If there is no memory for gradients.
    pub fn all_weights(base: &mut Base) -> Result<Self, DeviceError> {
        let model = base.model.take();
        Self::of(base, model, None)
    }

    fn of(base: &Base, model: Model, lora: Option<LoraConfig>) -> Result<Self, DeviceError> {
        let gradients = Gradients::zeros(&base.device, &model.params)?;
        Ok(Self { model, gradients, lora })
    }
}

/// Settings of an engine.
pub struct EngineOptions {
    /// The update.
    pub optimizer: AdamWOptions,
    /// What is learnt.
    pub objective: Box<dyn Objective>,
    /// The model that training begins with, for objectives that need it.
    pub reference: Option<Model>,
}

/// What a micro-batch must know of its step.
#[derive(Clone, Copy, Debug)]
pub struct StepContext<'a> {
    /// Terms of the loss in the whole step.
    pub num_terms: usize,
    /// What the objective found before the first gradient.
    pub statistics: &'a Statistics,
    /// What the backward pass computes again.
    pub recompute: Recompute,
}

/// Everything that a training step works on; alike on all devices, the dry one included.
pub struct Engine {
    /// The device.
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
    /// What is learnt.
    pub objective: Box<dyn Objective>,
    /// The model that training began with, if the objective needs it.
    pub reference: Option<Model>,
    /// What the model's routers do.
    pub mixture: Mixture,
}

impl Engine {
    /// Trains `adapters` over `base`, from the optimizer's first update on.
    ///
    /// # Errors
    /// If there is no memory for the optimizer's moments.
    pub fn new(
        base: &Base,
        adapters: AdapterSet,
        options: EngineOptions,
    ) -> Result<Self, DeviceError> {
        let AdapterSet { model, gradients, lora } = adapters;
        let EngineOptions { optimizer, objective, reference } = options;
        assert!(reference.is_some() || !objective.needs_reference(), "no reference");
        Ok(Self {
            device: base.device.clone(),
            optimizer: AdamW::new(&base.device, &model.params, optimizer)?,
            model,
            gradients,
            lora,
            compute: base.compute,
            loss_scale: LossScale::of(base.compute),
            objective,
            reference,
            mixture: Mixture::default(),
        })
    }

    /// Passes of the trained model.
    pub fn pass(&self) -> Pass<'_> {
        Pass { device: &self.device, model: &self.model, compute: self.compute }
    }

    /// Forward and backward pass of one micro-batch: adds to the gradients, which are those of the
    /// scaled loss, and to `metrics`, and returns its part of the step's loss. Part of a pass,
    /// whose end says whether the device failed; the objective is not asked where it has.
    pub fn forward_backward(
        &mut self,
        micro_batch: &LabelledBatch,
        step: StepContext<'_>,
        key: StepKey,
        metrics: &mut Metrics,
    ) -> f64 {
        let batch = &micro_batch.batch;
        let mut tape = Tape::training(&self.device, &self.model.params, self.compute, Some(key));
        let scale = self.loss_scale.factor() as f32;
        let loads = self.mixture.attend(&mut tape, batch.num_tokens(), scale);
        let log_probs = self.model.decoder.log_probs(&mut tape, batch, step.recompute);
        let shape = log_probs.value().shape();
        let mut d_log_probs = self.device.alloc(Category::Activations, DType::F32, shape);
        let mut loss = 0.0;
        let found = (!self.device.is_dry()).then(|| log_probs.value().to_vec_f32());
        // Where the pass or reading its result failed, the memory holds what was there before.
        if let Some(log_probs) = found.filter(|_| !self.device.is_failing()) {
            let (n, mut d) = (batch.num_targets, vec![0.0; log_probs.len()]);
            let scores = micro_batch.scores(&log_probs[..n]);
            let sum = self.objective.loss(&scores, step.statistics, &mut d[..n], metrics);
            let weight = 1.0 / step.num_terms as f64;
            loss = sum * weight;
            let weight = weight as f32;
            d.iter_mut().for_each(|d| *d = *d * weight * scale);
            d_log_probs.copy_from_f32(&d);
        }
        tape.backward(log_probs, d_log_probs, &mut self.gradients);
        self.mixture.add(loads);
        loss
    }

    /// The norms of all gradients, before clipping; a GPU is waited for.
    ///
    /// # Errors
    /// If the device failed.
    pub fn grad_norm(&self) -> Result<GradNorm, DeviceError> {
        optimizer::grad_norm(&self.device, &self.gradients, self.loss_scale)
    }

    /// Updates the parameters; `grad_norm` decides on clipping.
    ///
    /// # Errors
    /// If the device failed. Where it refused the update, everything is as before it.
    pub fn update(&mut self, learning_rate: f64, grad_norm: f64) -> Result<(), DeviceError> {
        let step = Step { learning_rate, grad_norm, loss_scale: self.loss_scale };
        self.optimizer.step(&self.device, &mut self.model.params, &self.gradients, step)
    }
}
