//! The definition.

use super::Activation;

/// `act(x)`.
pub fn value(activation: Activation, x: f64) -> f64 {
    match activation {
        Activation::Silu => x * sigmoid(x),
        Activation::Gelu => x * normal_distribution(x),
        Activation::GeluTanh => 0.5 * x * (1.0 + gelu_argument(x).tanh()),
        Activation::ClampedSilu => x.min(7.0) * sigmoid(1.702 * x.min(7.0)),
    }
}

/// `act'(x)`.
pub fn slope(activation: Activation, x: f64) -> f64 {
    match activation {
        Activation::Silu => sigmoid(x) * (1.0 + x * (1.0 - sigmoid(x))),
        Activation::Gelu => {
            let density = (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt();
            normal_distribution(x) + x * density
        }
        Activation::GeluTanh => {
            let tanh = gelu_argument(x).tanh();
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (1.0 + 3.0 * 0.044_715 * x * x);
            // Where tanh saturates, `inner` may be infinite and its factor zero.
            let d_tanh = 1.0 - tanh * tanh;
            0.5 * (1.0 + tanh) + if d_tanh == 0.0 { 0.0 } else { 0.5 * x * d_tanh * inner }
        }
        Activation::ClampedSilu if x > 7.0 => 0.0,
        Activation::ClampedSilu => {
            let s = sigmoid(1.702 * x);
            s * (1.0 + 1.702 * x * (1.0 - s))
        }
    }
}

/// The other factor of a gated product, and its derivative.
pub fn factor(activation: Activation, x: f64) -> (f64, f64) {
    match activation {
        Activation::ClampedSilu if x.abs() > 7.0 => (x.clamp(-7.0, 7.0) + 1.0, 0.0),
        Activation::ClampedSilu => (x + 1.0, 1.0),
        Activation::Silu | Activation::Gelu | Activation::GeluTanh => (x, 1.0),
    }
}

fn gelu_argument(x: f64) -> f64 {
    (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x)
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// The share of the standard normal distribution below `x`: half plus the density's integral from
/// zero, whose series `φ(x) Σ x^(2n+1) / (1·3·5…(2n+1))` converges everywhere; beyond ±8 it is 0
/// or 1 to within 1e-15.
fn normal_distribution(x: f64) -> f64 {
    if x.abs() > 8.0 {
        return if x > 0.0 { 1.0 } else { 0.0 };
    }
    let (mut term, mut sum) = (x, x);
    for n in 1..200 {
        term *= x * x / f64::from(2 * n + 1);
        sum += term;
    }
    0.5 + sum * (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt()
}
