use super::*;
use crate::activation::Activation;
use crate::cpu::Cpu;
use crate::view::{View, ViewMut};

#[test]
fn saturated_gates_stay_finite() {
    let gates = [-1e30, -200.0, -88.5, -87.0, -20.0, -0.0, 0.0, 20.0, 89.0, 200.0, 1e30];
    let (n, cpu) = (gates.len(), Cpu::new(1));
    let gate_up = [gates, [1.5; 11]].concat();
    let exact: Vec<f64> = gate_up.iter().map(|&x| f64::from(x)).collect();
    for act in Activation::ALL {
        let (mut y, mut d) = (vec![0.0; n], vec![0.0; 2 * n]);
        forward(&cpu, act, View::F32(&gate_up), n, ViewMut::F32(&mut y));
        let d_y = vec![1.0; n];
        backward(&cpu, act, View::F32(&gate_up), n, View::F32(&d_y), ViewMut::F32(&mut d));
        let found = y.iter().chain(&d);
        let d_y = vec![1.0; n];
        let d = reference::backward(act, &exact, n, &d_y);
        let y = reference::forward(act, &exact, n);
        for (found, exact) in found.zip(y.iter().chain(&d)) {
            let off = (f64::from(*found) - exact).abs();
            assert!(off <= 1e-6 * exact.abs().max(1.0), "{act:?}: {found} against {exact}");
        }
    }
}
