//! AdamW (Loshchilov & Hutter, "Decoupled Weight Decay Regularization", 2019), in the order of
//! operations of `torch.optim.AdamW`.

mod cpu;
pub(crate) mod cuda;
#[cfg(any(test, feature = "reference"))]
pub mod reference;

pub use cpu::step;

use crate::processor::Processor;
use crate::view::{View, ViewMut};

impl Processor {
    /// Updates parameters and their moments in place.
    pub fn adamw(&self, update: &Update, parameters: Vec<Parameter<'_>>) {
        match self {
            Self::Cpu(cpu) => step(cpu, update, parameters),
            Self::Cuda(gpu) => cuda::step(gpu, update, parameters),
        }
    }
}

/// A parameter with its gradient and moments; all f32 and of one length.
pub struct Parameter<'a> {
    /// The parameter.
    pub value: ViewMut<'a>,
    /// Its gradient.
    pub gradient: View<'a>,
    /// First moment.
    pub m: ViewMut<'a>,
    /// Second moment.
    pub v: ViewMut<'a>,
}

/// Settings of an update, shared by all parameters.
#[derive(Clone, Copy, Debug)]
pub struct Update {
    /// Learning rate of this step.
    pub learning_rate: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the square root of the second moment.
    pub epsilon: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Number of this step, from 1.
    pub step: u64,
    /// Factor applied to gradients first (clipping).
    pub gradient_scale: f32,
}

impl Update {
    /// `1 - beta^step` for both moments.
    pub fn bias_corrections(&self) -> (f64, f64) {
        let power = |beta: f64| 1.0 - beta.powf(self.step as f64);
        (power(self.beta1), power(self.beta2))
    }

    /// Factors computed once in f64: `1 - 0.999` in f32 is off by 5e-5.
    fn factors(&self) -> Factors {
        let (correction1, correction2) = self.bias_corrections();
        Factors {
            b1: self.beta1 as f32,
            rest1: (1.0 - self.beta1) as f32,
            b2: self.beta2 as f32,
            rest2: (1.0 - self.beta2) as f32,
            keep: (1.0 - self.learning_rate * self.weight_decay) as f32,
            step_size: (self.learning_rate / correction1) as f32,
            root2: correction2.sqrt() as f32,
            epsilon: self.epsilon as f32,
        }
    }
}

/// Factors of an update in the precision of the elements.
struct Factors {
    b1: f32,
    rest1: f32,
    b2: f32,
    rest2: f32,
    /// Factor of the parameter: one minus its decay.
    keep: f32,
    step_size: f32,
    /// Square root of the bias correction of the second moment.
    root2: f32,
    epsilon: f32,
}

#[cfg(test)]
mod tests;
