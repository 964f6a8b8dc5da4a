//! AdamW with clipping of the global gradient norm.

use crate::loss_scale::LossScale;
use hone_tensor::{
    Category, Cost, DType, Device, DeviceError, Gradients, ParamId, Params, Tensor, adamw,
};

/// Settings of the update.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWOptions {
    /// Decay of the first moments.
    pub beta1: f64,
    /// Decay of the second moments.
    pub beta2: f64,
    /// Added to the denominator.
    pub epsilon: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Gradients of a larger global norm are scaled down to it; 0: never.
    pub max_grad_norm: f64,
}

/// What an update takes besides gradients.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    /// Learning rate.
    pub learning_rate: f64,
    /// Global norm of the loss's own gradients.
    pub grad_norm: f64,
    /// What the loss was multiplied by, and with it the gradients.
    pub loss_scale: LossScale,
}

/// Moments of all parameters, and the settings of the update.
pub struct AdamW {
    /// First moments, in the order of the parameters.
    pub m: Vec<Tensor>,
    /// Second moments.
    pub v: Vec<Tensor>,
    /// Updates made; a step that was skipped is none.
    pub num_updates: u64,
    options: AdamWOptions,
}

impl AdamW {
    /// Zero moments for `params`.
    ///
    /// # Errors
    /// If there is no memory for them.
    pub fn new(
        device: &Device,
        params: &Params,
        options: AdamWOptions,
    ) -> Result<Self, DeviceError> {
        let zeros = |(_, _, value): (ParamId, &str, &Tensor)| {
            device.persistent(Category::Optimizer, DType::F32, value.shape())
        };
        let zeros = || params.iter().map(zeros).collect::<Result<_, _>>();
        Ok(Self { m: zeros()?, v: zeros()?, num_updates: 0, options })
    }

    /// Updates `params`; gradients are scaled down where their global norm is above the limit.
    ///
    /// # Errors
    /// If the device failed: it refused the update, which is one call, or lost everything.
    pub fn step(
        &mut self,
        device: &Device,
        params: &mut Params,
        gradients: &Gradients,
        step: Step,
    ) -> Result<(), DeviceError> {
        let AdamWOptions { beta1, beta2, epsilon, weight_decay, max_grad_norm } = self.options;
        let clip = clip_scale(step.grad_norm, max_grad_norm);
        let update = adamw::Update {
            learning_rate: step.learning_rate,
            beta1,
            beta2,
            epsilon,
            weight_decay,
            step: self.num_updates + 1,
            gradient_scale: (clip / step.loss_scale.factor()) as f32,
        };
        let bytes: usize = gradients.iter().map(Tensor::num_bytes).sum();
        if let Some(on) = device.begin(Cost::memory_bound("adamw", 7 * bytes)) {
            let moments = self.m.iter_mut().zip(&mut self.v);
            let all = params.values_mut().zip(gradients.iter()).zip(moments);
            on.adamw(&update, all.map(|((p, g), (m, v))| parameter(p, g, m, v)).collect());
        }
        device.settle()?;
        self.num_updates += 1;
        Ok(())
    }
}

fn parameter<'a>(
    value: &'a mut Tensor,
    gradient: &'a Tensor,
    m: &'a mut Tensor,
    v: &'a mut Tensor,
) -> adamw::Parameter<'a> {
    let (value, m, v) = (value.view_mut(), m.view_mut(), v.view_mut());
    adamw::Parameter { value, gradient: gradient.view(), m, v }
}

/// As `torch.nn.utils.clip_grad_norm_`.
fn clip_scale(grad_norm: f64, max_grad_norm: f64) -> f64 {
    if max_grad_norm == 0.0 { 1.0 } else { (max_grad_norm / (grad_norm + 1e-6)).min(1.0) }
}

/// How large gradients are.
#[derive(Clone, Debug)]
pub struct GradNorm {
    /// Global norm of all gradients, before the loss was multiplied; 0 on the dry device.
    pub global: f64,
    /// Whether each parameter's gradient is zero.
    pub is_zero: Vec<bool>,
}

/// The norms of gradients of a loss that was multiplied by `loss_scale`.
///
/// # Errors
/// If the device failed.
pub fn grad_norm(
    device: &Device,
    gradients: &Gradients,
    loss_scale: LossScale,
) -> Result<GradNorm, DeviceError> {
    let bytes = gradients.iter().map(Tensor::num_bytes).sum();
    let squares = device
        .begin(Cost::memory_bound("grad_norm", bytes))
        .map(|on| on.sum_of_squares(&gradients.iter().map(Tensor::view).collect::<Vec<_>>()));
    device.settle()?;
    let total = squares.as_ref().map_or(0.0, |squares| squares.total);
    let of_each = squares.into_iter().flat_map(|squares| squares.of_arrays);
    let is_zero = of_each.map(|squares| squares == 0.0).collect();
    Ok(GradNorm { global: total.sqrt() / loss_scale.factor(), is_zero })
}
