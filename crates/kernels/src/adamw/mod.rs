//! AdamW (Loshchilov & Hutter, "Decoupled Weight Decay Regularization", 2019), in the order of
//! operations of `torch.optim.AdamW`.

mod cpu;
pub mod reference;

pub use cpu::step;

/// Everything of one update that is the same for all parameters.
#[derive(Clone, Copy, Debug)]
pub struct Update {
    /// Learning rate of this step.
    pub learning_rate: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Number of this step, from 1.
    pub step: u64,
    /// What gradients are multiplied by first (clipping).
    pub gradient_scale: f32,
}

impl Update {
    /// `1 - beta^step` for both moments.
    pub fn bias_corrections(&self) -> (f64, f64) {
        let power = |beta: f64| 1.0 - beta.powf(self.step as f64);
        (power(self.beta1), power(self.beta2))
    }
}

#[cfg(test)]
mod tests;
