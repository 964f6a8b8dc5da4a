use super::*;
use crate::cpu::{Cpu, Isa};
use crate::random::Philox;
use crate::view::{View, ViewMut};

const ROWS: usize = 5;

fn sizes(vocab_size: usize) -> Sizes {
    Sizes { rows: ROWS, hidden_size: ROWS, vocab_size, dtype: DType::F32 }
}

/// Log-probabilities and directions for hidden states that pick a column of the weight each, so
/// that `logits [ROWS, v]` are what the weight holds.
fn run(cpu: &Cpu, logits: &[f32], v: usize, targets: &[u32]) -> [Vec<f32>; 2] {
    let x: Vec<f32> = (0..ROWS * ROWS).map(|i| f32::from(i % ROWS == i / ROWS)).collect();
    let weight: Vec<f32> = (0..v * ROWS).map(|i| logits[i % ROWS * v + i / ROWS]).collect();
    let mut workspace = vec![f32::NAN; workspace_len(Target::Cpu, sizes(v), true)];
    let (mut log_probs, mut lse) = (vec![f32::NAN; ROWS], vec![f32::NAN; ROWS]);
    let mut direction = vec![f32::NAN; ROWS * ROWS];
    let (x, weight) = (View::F32(&x), View::F32(&weight));
    let inputs = Inputs {
        x,
        weight,
        targets,
        hidden_size: ROWS,
        int8: false,
        logits: Logits::PLAIN,
        bias: None,
    };
    let outputs = Outputs {
        log_probs: ViewMut::F32(&mut log_probs),
        lse: ViewMut::F32(&mut lse),
        direction: Some(ViewMut::F32(&mut direction)),
    };
    forward(cpu, inputs, &mut workspace, outputs);
    let mut alone = vec![f32::NAN; ROWS];
    let (log_probs_alone, lse) = (ViewMut::F32(&mut alone), ViewMut::F32(&mut lse));
    let outputs = Outputs { log_probs: log_probs_alone, lse, direction: None };
    let mut workspace = vec![f32::NAN; workspace_len(Target::Cpu, sizes(v), false)];
    forward(cpu, inputs, &mut workspace, outputs);
    assert_eq!(alone, log_probs, "with and without directions");
    [log_probs, direction]
}

fn check(logits: &[f32], v: usize, targets: &[u32], tolerance: f64) {
    let exact: Vec<f64> = logits.iter().map(|&x| f64::from(x)).collect();
    let log_probs = reference::log_probs(&exact, v, targets);
    let d_logits = reference::d_logits(&exact, v, targets, &[1.0; ROWS]);
    let weighted = |t: usize, c: usize| -> f64 {
        (0..v).map(|i| d_logits[t * v + i] * exact[c * v + i]).sum()
    };
    let direction = (0..ROWS * ROWS).map(|i| weighted(i / ROWS, i % ROWS));
    let expected: Vec<f64> = log_probs.into_iter().chain(direction).collect();
    // Directions are differences of the weight's elements, which here are the logits.
    let largest = exact.iter().fold(1.0, |m: f64, x| m.max(x.abs()));
    let first = run(&Cpu::with_isa(1, Isa::Scalar), logits, v, targets);
    for (isa, threads) in Isa::available().into_iter().flat_map(|i| [(i, 1), (i, 3)]) {
        assert!(run(&Cpu::with_isa(threads, isa), logits, v, targets) == first);
    }
    for (found, exact) in first.iter().flatten().zip(&expected) {
        let off = (f64::from(*found) - exact).abs() / largest;
        assert!(off <= tolerance, "{found} against {exact}");
    }
}

#[test]
fn agrees_with_the_reference() {
    // Less than a tile, a tile, several tiles, several segments; sums of 13,000 terms in f32 are
    // good to some 1e-5.
    for (v, tolerance) in [(67, 1e-6), (192, 1e-6), (700, 2e-6), (13_000, 5e-5)] {
        let random = Philox::new(4, 0);
        let logits: Vec<f32> = (0..(ROWS * v) as u64).map(|i| 3.0 * random.normal(i)).collect();
        let last = v as u32 - 1;
        check(&logits, v, &[0, last, 32, last / 2, last.min(191)], tolerance);
    }
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
    check(&logits, v, &[0, 39, 5, 20, 8], 3e-6);
}

/// Hidden states that pick a column of the weight each make the weight's gradient that of the
/// logits. The last target is nearly certain, where the difference of its logit and `lse` is none.
#[test]
fn weight_gradients_agree_with_the_reference() {
    for v in [1, 67, 96, 300] {
        let random = Philox::new(4, 1);
        let mut logits: Vec<f32> = (0..(ROWS * v) as u64).map(|i| 3.0 * random.normal(i)).collect();
        let targets = [0, 66, 32, 33, 15].map(|target| target % v as u32);
        logits[(ROWS - 1) * v + targets[ROWS - 1] as usize] = 30.0;
        let exact: Vec<f64> = logits.iter().map(|&x| f64::from(x)).collect();
        let d_log_probs = [1.0, 0.3, -0.4, -1.1, -1.8];
        let expected = reference::d_logits(&exact, v, &targets, &d_log_probs.map(f64::from));
        let sums = exact.chunks(v).map(|row| row.iter().map(|x| x.exp()).sum::<f64>().ln() as f32);
        let lse: Vec<f32> = sums.collect();
        let log_probs = reference::log_probs(&exact, v, &targets);
        let log_probs: Vec<f32> = log_probs.into_iter().map(|x| x as f32).collect();
        let x: Vec<f32> = (0..ROWS * ROWS).map(|i| f32::from(i % ROWS == i / ROWS)).collect();
        let weight: Vec<f32> = (0..v * ROWS).map(|i| logits[i % ROWS * v + i / ROWS]).collect();
        let (x, weight) = (View::F32(&x), View::F32(&weight));
        let inputs = Inputs {
            x,
            weight,
            targets: &targets,
            hidden_size: ROWS,
            int8: false,
            logits: Logits::PLAIN,
            bias: None,
        };
        for isa in Isa::available() {
            // What was there before is added to.
            let was = |i: usize| if i % ROWS == ROWS - 1 { 0.0 } else { 2.0 };
            let mut d_w: Vec<f32> = (0..v * ROWS).map(was).collect();
            let mut workspace = vec![f32::NAN; weight_workspace_len(Target::Cpu, sizes(v))];
            let cpu = Cpu::with_isa(2, isa);
            let saved = Saved { log_probs: View::F32(&log_probs), lse: View::F32(&lse) };
            let gradients = (&mut d_w[..], None);
            backward_weight(&cpu, inputs, saved, &d_log_probs, &mut workspace, gradients);
            for (i, found) in d_w.iter().enumerate() {
                let gradient = expected[i % ROWS * v + i / ROWS];
                let exact = f64::from(was(i)) + gradient;
                let tolerance = if was(i) == 0.0 { 1e-5 * gradient.abs() } else { 3e-6 };
                assert!((f64::from(*found) - exact).abs() <= tolerance, "{found}, not {exact}");
            }
        }
    }
}
