use super::*;
use crate::cpu::Cpu;
use crate::random::Philox;

#[test]
fn ten_steps_agree_with_the_reference() {
    let cpu = Cpu::new(2);
    let random = Philox::new(3, 0);
    let n = 5000;
    let mut p: Vec<f32> = (0..n).map(|i| random.normal(i)).collect();
    let (mut m, mut v) = (vec![0.0; p.len()], vec![0.0; p.len()]);
    let mut exact: Vec<[f64; 3]> = p.iter().map(|&p| [f64::from(p), 0.0, 0.0]).collect();
    for step in 1..=10 {
        let g: Vec<f32> = (0..n).map(|i| random.normal(n * step + i)).collect();
        let update = Update {
            learning_rate: 0.01,
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            weight_decay: 0.1,
            step,
            gradient_scale: 0.5,
        };
        super::step(&cpu, &update, &mut p, &g, &mut m, &mut v);
        for (e, &g) in exact.iter_mut().zip(&g) {
            let [p, m, v] = e;
            reference::step(&update, p, f64::from(g), m, v);
        }
    }
    for (p, e) in p.iter().zip(&exact) {
        assert!((f64::from(*p) - e[0]).abs() < 2e-6, "{p} against {}", e[0]);
    }
}
