use super::*;
use crate::cpu::{Cpu, Isa};
use crate::element::bf16;
use crate::random::Philox;
use crate::view::ViewMut;

const HEADS: Heads = Heads {
    num_heads: 4,
    num_kv_heads: 2,
    head_dim: 6,
    scale: 0.4,
    window: None,
    ahead: 0,
    softcap: None,
};

fn random(len: usize, stream: u64) -> Vec<f32> {
    let random = Philox::new(8, stream);
    (0..len as u64).map(|i| random.normal(i)).collect()
}

/// Output and gradient.
fn run(cpu: &Cpu, qkv: &[f32], d_out: &[f32], sequences: &[Sequence]) -> [Vec<f32>; 2] {
    run_with(cpu, &HEADS, qkv, d_out, sequences)
}

/// Causal, within a window on both sides, and everything.
fn masks() -> [Heads; 3] {
    [HEADS, HEADS.two_sided(Some(40)), HEADS.two_sided(None)]
}

fn run_with(
    cpu: &Cpu,
    heads: &Heads,
    qkv: &[f32],
    d_out: &[f32],
    sequences: &[Sequence],
) -> [Vec<f32>; 2] {
    let t = qkv.len() / heads.qkv_width();
    let mut out = vec![f32::NAN; t * heads.out_width()];
    let mut d_qkv = vec![f32::NAN; qkv.len()];
    let mut lse = vec![0.0; t * heads.num_heads];
    let mut workspace = vec![f32::NAN; workspace_len(Target::Cpu, heads, t)];
    let inputs = Inputs::packed(View::F32(qkv), heads);
    forward(cpu, inputs, heads, sequences, ViewMut::F32(&mut out), &mut lse);
    let saved = Saved { qkv: View::F32(qkv), out: View::F32(&out), lse: View::F32(&lse) };
    let (d_out, d) = (View::F32(d_out), ViewMut::F32(&mut d_qkv));
    let gradients = Gradients { d_qkv: d, sinks: None };
    backward(cpu, saved, heads, sequences, d_out, gradients, &mut workspace);
    [out, d_qkv]
}

#[test]
fn a_sequence_gives_the_same_bits_wherever_it_stands() {
    let (cu_seqlens, t) = ([0, 70, 71, 140, 140, 173], 180);
    let (qkv, d_out) = (random(t * HEADS.qkv_width(), 1), random(t * HEADS.out_width(), 2));
    for (isa, heads) in Isa::available().into_iter().flat_map(|isa| masks().map(|m| (isa, m))) {
        let cpu = Cpu::with_isa(2, isa);
        let packed = run_with(&cpu, &heads, &qkv, &d_out, &Sequence::packed(&cu_seqlens));
        for bounds in cu_seqlens.windows(2) {
            let part = |x: &[f32], width: usize| {
                x[bounds[0] as usize * width..bounds[1] as usize * width].to_vec()
            };
            let (wide, narrow) = (HEADS.qkv_width(), HEADS.out_width());
            let alone = [Sequence::new(0, (bounds[1] - bounds[0]) as usize)];
            let (qkv, d_out) = (part(&qkv, wide), part(&d_out, narrow));
            let [out, d_qkv] = run_with(&cpu, &heads, &qkv, &d_out, &alone);
            assert!(out == part(&packed[0], narrow) && d_qkv == part(&packed[1], wide));
        }
        let padding = |x: &[f32], width: usize| x[173 * width..].iter().all(|&x| x == 0.0);
        assert!(padding(&packed[0], HEADS.out_width()) && padding(&packed[1], HEADS.qkv_width()));
    }
}

/// Scores of some hundreds: only the greatest counts, nothing overflows.
#[test]
fn large_scores_stay_finite() {
    let t = 70;
    let qkv: Vec<f32> = random(t * HEADS.qkv_width(), 3).iter().map(|x| 20.0 * x).collect();
    let (d_out, sequences) = (random(t * HEADS.out_width(), 4), [Sequence::new(0, t)]);
    let wide = |x: &[f32]| x.iter().map(|&x| f64::from(x)).collect::<Vec<f64>>();
    let [out, d_qkv] = run(&Cpu::new(2), &qkv, &d_out, &sequences);
    let exact = reference::forward(&wide(&qkv), &HEADS, &[], &sequences);
    let (d_exact, _) = reference::backward(&wide(&qkv), &HEADS, &[], &sequences, &wide(&d_out));
    for (found, exact) in out.iter().zip(&exact).chain(d_qkv.iter().zip(&d_exact)) {
        assert!((f64::from(*found) - exact).abs() < 2e-2, "{found} against {exact}");
    }
}

#[test]
fn a_gap_between_sequences_is_refused() {
    let (qkv, d_out) = (random(9 * HEADS.qkv_width(), 5), random(9 * HEADS.out_width(), 6));
    let sequences = [Sequence::new(0, 4), Sequence::new(5, 4)];
    let attempt = || run(&Cpu::new(1), &qkv, &d_out, &sequences);
    assert!(std::panic::catch_unwind(attempt).is_err());
}

#[test]
fn pairs_are_counted() {
    for (q_len, k_len, (window, ahead), pairs) in [
        (0, 0, (None, 0), 0),
        (1, 1, (None, 0), 1),
        (5, 5, (None, 0), 15),
        (3, 9, (None, 0), 7 + 8 + 9),
        (1, 100, (None, 0), 100),
        (5, 5, (Some(2), 0), 1 + 2 * 4),
        (2, 9, (Some(100), 0), 8 + 9),
        (0, 0, (None, ALL_AHEAD), 0),
        (5, 5, (None, ALL_AHEAD), 25),
        (5, 5, (Some(2), 1), 2 + 3 + 3 + 3 + 2),
        (3, 9, (None, 1), 8 + 9 + 9),
    ] {
        let sequence = Sequence { q_start: 4, q_len, k_start: 0, k_len };
        assert_eq!(sequence.num_pairs(&Heads { window, ahead, ..HEADS }), pairs);
    }
}

/// Turing's blocks have too little shared memory for heads of 256 dimensions, by 128 bytes.
#[test]
fn heads_that_every_generation_serves() {
    let widest = |capability| max_head_dim(crate::cuda::Info::shared_bytes_of(capability));
    assert_eq!(widest((7, 5)), 255);
    for capability in [(8, 6), (8, 9), (12, 0)] {
        assert_eq!(widest(capability), 395, "{capability:?}");
    }
    for capability in [(8, 0), (9, 0), (10, 0)] {
        assert_eq!(widest(capability), 512, "{capability:?}");
    }
}

/// Several blocks of keys, handed from task to task: the gradients of one thread, which meets them
/// in order, also with more threads than cores, and those of the reference.
#[test]
fn long_rows_give_the_same_bits_with_any_number_of_threads() {
    let (t, sequences) = (640, [Sequence::new(0, 600), Sequence::new(600, 33)]);
    let (qkv, d_out) = (random(t * HEADS.qkv_width(), 7), random(t * HEADS.out_width(), 8));
    let windowed = [None, Some(40), Some(300)].map(|window| Heads { window, ..HEADS });
    let two_sided = [None, Some(270)].map(|reach| HEADS.two_sided(reach));
    for heads in windowed.into_iter().chain(two_sided) {
        let [_, first] = run_with(&Cpu::with_isa(1, Isa::Scalar), &heads, &qkv, &d_out, &sequences);
        for (isa, threads) in Isa::available().into_iter().flat_map(|i| [(i, 2), (i, 3), (i, 9)]) {
            let cpu = Cpu::with_isa(threads, isa);
            let [_, again] = run_with(&cpu, &heads, &qkv, &d_out, &sequences);
            assert!(again == first, "{isa:?}, {threads} threads, {heads:?}");
        }
        let f64s = |x: &[f32]| x.iter().map(|&x| f64::from(x)).collect::<Vec<f64>>();
        let (exact, _) = reference::backward(&f64s(&qkv), &heads, &[], &sequences, &f64s(&d_out));
        let greatest = exact.iter().fold(0.0, |m: f64, x| m.max(x.abs()));
        for (found, exact) in first.iter().zip(&exact) {
            assert!((f64::from(*found) - exact).abs() < 1e-5 * greatest, "{found}, {exact}");
        }
    }
}

/// Values, and gradients of the output, that are infinite or no numbers reach the same elements on
/// every instruction set, whatever the size of its tiles: what a mask leaves out is zero, but zero
/// times infinity is not.
#[test]
fn infinities_reach_the_same_elements_everywhere() {
    let (t, sequences) = (230, [Sequence::new(0, 150), Sequence::new(150, 80)]);
    let special = |stream, len| {
        let random = Philox::new(9, stream);
        let number = |i| match random.uniform(i) {
            x if x < 0.002 => f32::INFINITY,
            x if x < 0.003 => f32::NAN,
            _ => random.normal(i),
        };
        (0..len as u64).map(number).collect::<Vec<f32>>()
    };
    for heads in masks().into_iter().chain([HEADS.two_sided(Some(9))]) {
        let (qkv, d_out) = (special(1, t * heads.qkv_width()), special(2, t * heads.out_width()));
        let narrow = |x: &[f32]| x.iter().map(|&x| bf16::from_f32(x)).collect::<Vec<bf16>>();
        let halves = [narrow(&qkv), narrow(&d_out)];
        let run = |isa| {
            let cpu = Cpu::with_isa(2, isa);
            let wide = run_with(&cpu, &heads, &qkv, &d_out, &sequences);
            let narrow = run_in_bf16(&cpu, &heads, &halves[0], &halves[1], &sequences);
            let results = wide.into_iter().chain(narrow).flatten();
            let bits = results.map(|x| if x.is_nan() { f32::NAN.to_bits() } else { x.to_bits() });
            bits.collect::<Vec<u32>>()
        };
        let first = run(Isa::Scalar);
        for isa in Isa::available() {
            assert!(run(isa) == first, "{isa:?}, {heads:?}");
        }
    }
}

/// [`run_with`] in bf16.
fn run_in_bf16(
    cpu: &Cpu,
    heads: &Heads,
    qkv: &[bf16],
    d_out: &[bf16],
    sequences: &[Sequence],
) -> [Vec<f32>; 2] {
    let t = qkv.len() / heads.qkv_width();
    let mut out = vec![bf16::from_f32(f32::NAN); t * heads.out_width()];
    let mut d_qkv = vec![bf16::from_f32(f32::NAN); qkv.len()];
    let mut lse = vec![0.0; t * heads.num_heads];
    let mut workspace = vec![f32::NAN; workspace_len(Target::Cpu, heads, t)];
    let inputs = Inputs::packed(View::Bf16(qkv), heads);
    forward(cpu, inputs, heads, sequences, ViewMut::Bf16(&mut out), &mut lse);
    let saved = Saved { qkv: View::Bf16(qkv), out: View::Bf16(&out), lse: View::F32(&lse) };
    let gradients = Gradients { d_qkv: ViewMut::Bf16(&mut d_qkv), sinks: None };
    backward(cpu, saved, heads, sequences, View::Bf16(d_out), gradients, &mut workspace);
    [View::Bf16(&out).to_vec_f32(), View::Bf16(&d_qkv).to_vec_f32()]
}
