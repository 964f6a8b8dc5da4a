//! The inputs that every forward pass needs.

use crate::load::Model;
use hone_tensor::{Compute, Device, Tape};

/// A model on its device, and the precision it computes in.
#[derive(Clone, Copy)]
pub struct Pass<'a> {
    /// The device that holds the model.
    pub device: &'a Device,
    /// The model.
    pub model: &'a Model,
    /// Element type that matmuls are computed in.
    pub compute: Compute,
}

impl<'a> Pass<'a> {
    /// A tape that records nothing.
    pub fn inference_tape(self) -> Tape<'a> {
        Tape::inference(self.device, &self.model.params, self.compute)
    }

    /// A pass over another model on the same device.
    pub fn with_model(self, model: &'a Model) -> Self {
        Self { model, ..self }
    }
}
