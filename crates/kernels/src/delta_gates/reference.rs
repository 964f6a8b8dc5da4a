//! The definition.

/// `b_a [t, 2 heads]`, `a_log [heads]`, `dt_bias [heads]` → `gates [t, 2 heads]`.
pub fn forward(b_a: &[f64], a_log: &[f64], dt_bias: &[f64]) -> Vec<f64> {
    let heads = a_log.len();
    let gate = |(i, x): (usize, &f64)| match i % (2 * heads) {
        h if h < heads => sigmoid(*x),
        h => -a_log[h - heads].exp() * (x + dt_bias[h - heads]).exp().ln_1p(),
    };
    b_a.iter().enumerate().map(gate).collect()
}

/// Gradients of `b_a`, `a_log` and `dt_bias` for `d_gates`.
pub fn backward(b_a: &[f64], a_log: &[f64], dt_bias: &[f64], d_gates: &[f64]) -> [Vec<f64>; 3] {
    let heads = a_log.len();
    let gates = forward(b_a, a_log, dt_bias);
    let [mut d_a_log, mut d_dt_bias] = [vec![0.0; heads], vec![0.0; heads]];
    let mut d_b_a = vec![0.0; b_a.len()];
    for (i, d) in d_b_a.iter_mut().enumerate() {
        let h = i % (2 * heads);
        if h < heads {
            *d = d_gates[i] * gates[i] * (1.0 - gates[i]);
        } else {
            let h = h - heads;
            *d = -d_gates[i] * a_log[h].exp() * sigmoid(b_a[i] + dt_bias[h]);
            d_a_log[h] += d_gates[i] * gates[i];
            d_dt_bias[h] += *d;
        }
    }
    [d_b_a, d_a_log, d_dt_bias]
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}
