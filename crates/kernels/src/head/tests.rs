use super::*;
use crate::cpu::{Cpu, Isa};
use crate::random::Philox;

const ROWS: usize = 5;

/// The same logits walked in tiles of `width`: log-probabilities, then gradients.
fn walk(cpu: &Cpu, logits: &[f32], v: usize, width: usize, targets: &[u32]) -> [Vec<f32>; 2] {
    let tile = |first: usize| {
        let width = width.min(v - first);
        let row = |row: &[f32]| row[first..first + width].to_vec();
        (width, logits.chunks(v).flat_map(row).collect::<Vec<f32>>())
    };
    let mut state = vec![f32::NAN; 3 * ROWS];
    for first in (0..v).step_by(width) {
        let (width, tile) = tile(first);
        absorb_tile(cpu, &tile, width, first, targets, &mut state);
    }
    let (mut log_probs, mut lse) = (vec![0.0; ROWS], vec![0.0; ROWS]);
    finish(&state, &mut log_probs, &mut lse);
    let d_log_probs: Vec<f32> = (0..ROWS).map(|i| 1.0 - i as f32 * 0.7).collect();
    let mut d_logits = vec![f32::NAN; ROWS * v];
    for first in (0..v).step_by(width) {
        let (width, mut tile) = tile(first);
        tile_gradient(cpu, &mut tile, width, first, targets, (&lse, &d_log_probs));
        for (t, row) in tile.chunks(width).enumerate() {
            d_logits[t * v + first..][..width].copy_from_slice(row);
        }
    }
    [log_probs, d_logits]
}

fn check(logits: &[f32], v: usize, targets: &[u32], tolerance: f64) {
    let exact: Vec<f64> = logits.iter().map(|&x| f64::from(x)).collect();
    let d: Vec<f64> = (0..ROWS).map(|i| f64::from(1.0 - i as f32 * 0.7)).collect();
    let expected =
        [reference::log_probs(&exact, v, targets), reference::d_logits(&exact, v, targets, &d)];
    for width in [1, 16, 33, v] {
        let first = walk(&Cpu::with_isa(1, Isa::Scalar), logits, v, width, targets);
        for (isa, threads) in Isa::available().into_iter().flat_map(|i| [(i, 1), (i, 3)]) {
            assert!(walk(&Cpu::with_isa(threads, isa), logits, v, width, targets) == first);
        }
        for (found, exact) in first.iter().flatten().zip(expected.iter().flatten()) {
            let off = (f64::from(*found) - exact).abs();
            assert!(off <= tolerance, "{found} against {exact} in tiles of {width}");
        }
    }
}

#[test]
fn tiles_of_any_width_agree_with_the_reference() {
    let (v, random) = (67, Philox::new(4, 0));
    let logits: Vec<f32> = (0..(ROWS * v) as u64).map(|i| 3.0 * random.normal(i)).collect();
    // First and last of the vocabulary, and both sides of the tiles' edges.
    check(&logits, v, &[0, 66, 32, 33, 15], 3e-6);
}

#[test]
fn extreme_logits_neither_overflow_nor_vanish() {
    let v = 40;
    let mut logits = vec![0.0f32; ROWS * v];
    // Rising and falling maxima, far apart: the running sum is rescaled, never infinite.
    for (t, row) in logits.chunks_mut(v).enumerate() {
        for (i, x) in row.iter_mut().enumerate() {
            *x = match t {
                0 => 1e4 - 500.0 * i as f32,
                1 => 500.0 * i as f32,
                2 => -1e4,
                3 => f32::from(i == 20) * 1e4,
                _ => 80.0 * (i as f32).sin(),
            };
        }
    }
    check(&logits, v, &[0, 39, 5, 20, 8], 2e-3);
}
