//! One row of a tile per step.

use crate::cpu::{Cpu, Kernel};
use crate::math::{exp, max, sum_by};

/// Takes the logits `tile [t, width]` of vocabulary columns `first..first + width` into the running
/// softmax: `state [t, 3]` holds maximum, sum and the target's logit. The first tile sets it.
pub fn absorb_tile(
    cpu: &Cpu,
    tile: &[f32],
    width: usize,
    first: usize,
    targets: &[u32],
    state: &mut [f32],
) {
    cpu.rows(state, 3, 4 * width, |t, state| {
        let logits = &tile[t * width..(t + 1) * width];
        cpu.isa.run(Absorb { logits, first, target: targets[t] as usize, state });
    });
}

struct Absorb<'a> {
    logits: &'a [f32],
    first: usize,
    target: usize,
    state: &'a mut [f32],
}

impl Kernel for Absorb<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { logits, first, target, state } = self;
        if first == 0 {
            state.copy_from_slice(&[f32::NEG_INFINITY, 0.0, 0.0]);
        }
        let new_max = state[0].max(max(logits));
        let sum = sum_by(logits.len(), |i| exp(logits[i] - new_max));
        state[1] = state[1] * exp(state[0] - new_max) + sum;
        state[0] = new_max;
        if (first..first + logits.len()).contains(&target) {
            state[2] = logits[target - first];
        }
    }
}

/// `state [t, 3]` → `log_probs [t]` and `lse [t]`.
pub fn finish(state: &[f32], log_probs: &mut [f32], lse: &mut [f32]) {
    for ((state, log_prob), lse) in state.chunks_exact(3).zip(log_probs).zip(lse) {
        *lse = state[0] + state[1].ln();
        *log_prob = state[2] - *lse;
    }
}

/// Turns the logits of a tile into their gradients, in place:
/// `d = d_log_prob · (1[column = target] - p)`.
pub fn tile_gradient(
    cpu: &Cpu,
    tile: &mut [f32],
    width: usize,
    first: usize,
    targets: &[u32],
    (lse, d_log_probs): (&[f32], &[f32]),
) {
    cpu.rows(tile, width, 4 * width, |t, row| {
        cpu.isa.run(Gradient { row, lse: lse[t], d_log_prob: d_log_probs[t] });
        let target = targets[t] as usize;
        if (first..first + width).contains(&target) {
            row[target - first] += d_log_probs[t];
        }
    });
}

struct Gradient<'a> {
    row: &'a mut [f32],
    lse: f32,
    d_log_prob: f32,
}

impl Kernel for Gradient<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        for x in self.row {
            *x = -self.d_log_prob * exp(*x - self.lse);
        }
    }
}
