use super::*;
use crate::cpu::Isa;
use crate::element::bf16;

fn mask(probability: f32) -> Mask {
    Mask { random: Philox::new(9, 4), probability }
}

#[test]
fn as_many_are_dropped_as_asked_and_the_mean_stays() {
    let n = 100_000;
    for probability in [0.0, 0.05, 0.5, 0.9] {
        let mask = mask(probability);
        let (mut dropped, mut sum) = (0, 0.0);
        for i in 0..n {
            dropped += usize::from(mask.factor(i) == 0.0);
            sum += f64::from(mask.factor(i));
        }
        // Five standard deviations of a binomial count.
        let (p, n) = (f64::from(probability), n as f64);
        let spread = 5.0 * (n * p * (1.0 - p)).sqrt();
        assert!((dropped as f64 - n * p).abs() <= spread, "{dropped} dropped at {p}");
        assert!((sum - n).abs() <= spread / (1.0 - p) + 1e-2, "the sum is {sum} at {p}");
    }
    assert!((0..1000).all(|i| mask(0.0).factor(i) == 1.0));
}

#[test]
fn neighbours_are_dropped_independently() {
    let (n, mask) = (100_000, mask(0.5));
    for distance in [1, 2, 3, 4, 64] {
        let same = (0..n).filter(|&i| mask.factor(i) == mask.factor(i + distance)).count();
        assert!((same as f64 - n as f64 / 2.0).abs() < 5.0 * (n as f64 / 4.0).sqrt());
    }
}

#[test]
fn both_directions_use_the_same_mask_at_any_length() {
    let mask = mask(0.3);
    for len in [0, 1, 7, 2047, 2048, 2049, 5000] {
        let x: Vec<f32> = (0..len).map(|i| i as f32 * 0.25 - 3.0).collect();
        for (isa, threads) in Isa::available().into_iter().flat_map(|i| [(i, 1), (i, 3)]) {
            let cpu = Cpu::with_isa(threads, isa);
            let (mut y, mut narrow) = (vec![f32::NAN; len], vec![bf16::NAN; len]);
            apply(&cpu, mask, View::F32(&x), ViewMut::F32(&mut y));
            apply(&cpu, mask, View::F32(&x), ViewMut::Bf16(&mut narrow));
            let mut d_x = vec![1.0; len];
            add_masked(&cpu, mask, &x, ViewMut::F32(&mut d_x));
            for i in 0..len {
                let expected = x[i] * mask.factor(i);
                assert_eq!(y[i], expected);
                assert_eq!(narrow[i], bf16::from_f32(expected));
                assert_eq!(d_x[i], 1.0 + expected);
            }
        }
    }
}
