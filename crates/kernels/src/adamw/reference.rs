//! The definition.

use super::Update;

/// Updates one parameter `p` and its moments `m`, `v` for the gradient `g`.
pub fn step(update: &Update, p: &mut f64, g: f64, m: &mut f64, v: &mut f64) {
    let (lr, b1, b2) = (update.learning_rate, update.beta1, update.beta2);
    let (correction1, correction2) = update.bias_corrections();
    let g = g * f64::from(update.gradient_scale);
    *p *= 1.0 - lr * update.weight_decay;
    *m = b1 * *m + (1.0 - b1) * g;
    *v = b2 * *v + (1.0 - b2) * g * g;
    *p -= lr / correction1 * *m / ((*v / correction2).sqrt() + update.epsilon);
}
