//! The definition.

use crate::attention::Sequence;

/// `x [t, channels]`, `weight [channels, width]`, `bias [channels]` → `y [t, channels]`.
pub fn forward(x: &[f64], weight: &[f64], bias: &[f64], sequences: &[Sequence]) -> Vec<f64> {
    let mut y = vec![0.0; x.len()];
    each(x, weight, bias, sequences, |at, _, sum| y[at] = sum / (1.0 + (-sum).exp()));
    y
}

/// Gradients of `x`, `weight` and `bias` for `d_y`.
pub fn backward(
    x: &[f64],
    weight: &[f64],
    bias: &[f64],
    sequences: &[Sequence],
    d_y: &[f64],
) -> [Vec<f64>; 3] {
    let channels = bias.len();
    let width = weight.len() / channels;
    let mut d_x = vec![0.0; x.len()];
    let (mut d_weight, mut d_bias) = (vec![0.0; weight.len()], vec![0.0; channels]);
    each(x, weight, bias, sequences, |at, index, sum| {
        let (c, s) = (at % channels, 1.0 / (1.0 + (-sum).exp()));
        let d = d_y[at] * s * (1.0 + sum * (1.0 - s));
        for lag in 0..width.min(index + 1) {
            d_x[at - lag * channels] += d * weight[c * width + width - 1 - lag];
            d_weight[c * width + width - 1 - lag] += d * x[at - lag * channels];
        }
        d_bias[c] += d;
    });
    [d_x, d_weight, d_bias]
}

/// Calls `body(element, index of its row in the sequence, sum)`.
fn each(
    x: &[f64],
    weight: &[f64],
    bias: &[f64],
    sequences: &[Sequence],
    mut body: impl FnMut(usize, usize, f64),
) {
    let channels = bias.len();
    let width = weight.len() / channels;
    for s in sequences {
        for (index, c) in (0..s.q_len).flat_map(|i| (0..channels).map(move |c| (i, c))) {
            let at = (s.q_start + index) * channels + c;
            let tap = |lag: usize| weight[c * width + width - 1 - lag] * x[at - lag * channels];
            body(at, index, bias[c] + (0..width.min(index + 1)).map(tap).sum::<f64>());
        }
    }
}
