use super::*;
use crate::cpu::Cpu;
use crate::cuda::{Gpu, Region};
use crate::element::DType;
use crate::memory::bytes_of;
use crate::random::Philox;

const UPDATE: Update = Update {
    learning_rate: 0.01,
    beta1: 0.9,
    beta2: 0.999,
    epsilon: 1e-8,
    weight_decay: 0.1,
    step: 1,
    gradient_scale: 0.5,
};

fn parameter<'a>(
    p: &'a mut [f32],
    g: &'a [f32],
    m: &'a mut [f32],
    v: &'a mut [f32],
) -> Parameter<'a> {
    let [value, m, v] = [p, m, v].map(ViewMut::F32);
    Parameter { value, gradient: View::F32(g), m, v }
}

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
        let update = Update { step, ..UPDATE };
        super::step(&cpu, &update, vec![parameter(&mut p, &g, &mut m, &mut v)]);
        for (e, &g) in exact.iter_mut().zip(&g) {
            let [p, m, v] = e;
            reference::step(&update, p, f64::from(g), m, v);
        }
    }
    for (p, e) in p.iter().zip(&exact) {
        assert!((f64::from(*p) - e[0]).abs() < 2e-6, "{p} against {}", e[0]);
    }
}

/// Arrays with lengths around the size of a piece, in one list of tasks, against each alone.
#[test]
fn many_parameters_are_updated_at_once() {
    let lens = [3, 0, 4096, 4097, 1, 10_000];
    let numbers = |i: usize, which: u64| -> Vec<f32> {
        let random = Philox::new(4, 4 * i as u64 + which);
        (0..lens[i] as u64).map(|at| random.normal(at).abs()).collect()
    };
    let arrays = || -> Vec<[Vec<f32>; 4]> {
        (0..lens.len()).map(|i| [0, 1, 2, 3].map(|which| numbers(i, which))).collect()
    };
    let (mut together, mut alone) = (arrays(), arrays());
    let all = |arrays: &mut [[Vec<f32>; 4]], threads| {
        let parameters = arrays.iter_mut().map(|[p, g, m, v]| parameter(p, g, m, v));
        step(&Cpu::new(threads), &UPDATE, parameters.collect());
    };
    all(&mut together, 3);
    alone.iter_mut().for_each(|arrays| all(std::slice::from_mut(arrays), 1));
    assert_eq!(together, alone);
}

/// Arrays with lengths around the size of a chunk, in one launch, against the CPU.
#[test]
fn a_gpu_updates_many_parameters_at_once() {
    let Some(gpu) = Gpu::for_tests() else { return };
    let (cpu, on) = (Cpu::new(1), Processor::Cuda(gpu.clone()));
    let lens = [1, 0, 7, 8192, 8193, 20_000, 3, 0];
    let numbers = |stream, len| -> Vec<f32> {
        let random = Philox::new(3, stream);
        (0..len as u64).map(|i| random.normal(i).abs()).collect()
    };
    let made = |i: usize, which: u64| numbers(4 * i as u64 + which, lens[i]);
    let arrays = |i: usize| [0, 1, 2, 3].map(|which| made(i, which));
    let regions: Vec<[Region; 4]> = (0..lens.len())
        .map(|i| {
            arrays(i).map(|values| {
                let region = Region::new(&gpu, 4 * values.len()).unwrap();
                region.write(0, bytes_of(View::F32(&values)));
                region
            })
        })
        .collect();
    let parameters = regions.iter().zip(lens).map(|(regions, len)| {
        let [value, gradient, m, v] =
            regions.each_ref().map(|region| region.slice(0, DType::F32, (len, len)));
        let [value, m, v] = [value, m, v].map(ViewMut::of_gpu);
        Parameter { value, gradient: View::Cuda(gradient), m, v }
    });
    on.begin();
    on.adamw(&UPDATE, parameters.collect());
    for (i, regions) in regions.iter().enumerate() {
        let [mut p, g, mut m, mut v] = arrays(i);
        step(&cpu, &UPDATE, vec![parameter(&mut p, &g, &mut m, &mut v)]);
        for (region, expected) in regions.iter().zip([&p, &g, &m, &v]) {
            let mut bytes = vec![0; region.len()];
            region.read(0, &mut bytes);
            let found: Vec<f32> =
                bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
            let close = |(a, b): (&f32, &f32)| (a - b).abs() <= 2e-6 * b.abs().max(1.0);
            assert!(found.iter().zip(expected).all(close), "array {i}");
        }
    }
}
