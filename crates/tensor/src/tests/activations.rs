//! Activations, gated and plain.

use super::check_op::{Kind, Operands, Operation, check_op};
use crate::ops::{self, Activation};
use crate::{Category, Compute, Device, Params, Tape, Tensor, Var};
use hone_kernels::activation::reference;
use hone_kernels::cuda::Gpu;
use hone_kernels::glu;

struct Glu {
    given: Operands,
    activation: Activation,
    width: usize,
}

impl Operation for Glu {
    fn operands(&self) -> &Operands {
        &self.given
    }
    fn run<'a>(&'a self, tape: &mut Tape<'a>, mut leaves: Vec<Var>) -> Var {
        ops::glu(tape, leaves.remove(0), self.activation)
    }
    fn forward(&self, x: &[Vec<f64>]) -> Vec<f64> {
        glu::reference::forward(self.activation, &x[0], self.width)
    }
    fn backward(&self, x: &[Vec<f64>], d_y: &[f64]) -> Vec<Vec<f64>> {
        vec![glu::reference::backward(self.activation, &x[0], self.width, d_y)]
    }
}

#[test]
fn glu_passes() {
    for activation in Activation::ALL {
        for (tokens, width) in [(1, 1), (1, 17), (7, 33), (300, 40)] {
            let mut given = Operands::default();
            // So that some are beyond the clamp, if there is one.
            let spread = if activation == Activation::ClampedSilu { 4.0 } else { 1.0 };
            given.add_with(Kind::Activation, &[tokens, 2 * width], |_, x| spread * x);
            let case = format!("{activation:?} [{tokens}, {width}]");
            check_op(&case, &mut Glu { given, activation, width });
        }
    }
}

struct Activated {
    given: Operands,
    activation: Activation,
}

impl Operation for Activated {
    fn operands(&self) -> &Operands {
        &self.given
    }
    fn run<'a>(&'a self, tape: &mut Tape<'a>, mut leaves: Vec<Var>) -> Var {
        ops::activation(tape, leaves.remove(0), self.activation)
    }
    fn forward(&self, x: &[Vec<f64>]) -> Vec<f64> {
        x[0].iter().map(|&x| reference::value(self.activation, x)).collect()
    }
    fn backward(&self, x: &[Vec<f64>], d_y: &[f64]) -> Vec<Vec<f64>> {
        let slope = |x: f64| reference::slope(self.activation, x);
        vec![x[0].iter().zip(d_y).map(|(x, d)| d * slope(*x)).collect()]
    }
}

#[test]
fn activations_pass() {
    for activation in Activation::ALL {
        for (tokens, width) in [(1, 1), (7, 33), (300, 40)] {
            let mut given = Operands::default();
            given.add_with(Kind::Activation, &[tokens, width], |_, x| 3.0 * x);
            let case = format!("plain {activation:?} [{tokens}, {width}]");
            check_op(&case, &mut Activated { given, activation });
        }
    }
}

/// A loss that is no number is noticed, wherever it arose.
#[test]
fn what_is_no_number_stays_so() {
    let gpu = Gpu::for_tests().map(Device::cuda);
    for device in [Device::cpu(1)].into_iter().chain(gpu) {
        for activation in Activation::ALL {
            for at in 0..2 {
                let mut x = [1.0; 2];
                x[at] = f32::NAN;
                let params = Params::default();
                let mut tape = Tape::inference(&device, &params, Compute::F32);
                let x = device.upload(Category::Activations, &Tensor::from_f32(&x, &[1, 2]));
                let x = tape.leaf(x.unwrap(), false);
                let y = ops::glu(&mut tape, x, activation);
                assert!(y.value().to_vec_f32()[0].is_nan(), "{activation:?}, {at}");
            }
        }
    }
}
