//! The head: log-probabilities and logits.

use super::check_op::{
    Kind, Operands, Operation, check_op, check_op_in, check_op_on_gpu, devices, normals, tensor_of,
};
use super::operations::WEIGHT_KINDS;
use crate::ops::{self, Logits, OutputHead, Softcap};
use crate::{
    Category, Compute, DType, Device, Gradients, Params, Storage, Tape, Target, Tensor, Var, Weight,
};
use hone_kernels::cuda::Gpu;
use hone_kernels::gemm::reference::{gemm, transpose};
use hone_kernels::{embedding, head};

pub(super) struct LogProbs {
    given: Operands,
    weight: Weight,
    bias: Option<Weight>,
    tokens: usize,
    rows: Vec<u32>,
    targets: Vec<u32>,
    logits: Logits,
}

impl LogProbs {
    /// Every row but each `skip`-th has a target.
    pub(super) fn new(
        kind: Kind,
        (tokens, h, v): (usize, usize, usize),
        skip: u32,
        input_grad: bool,
    ) -> Self {
        let mut given = Operands::default();
        match input_grad {
            true => given.add(Kind::Activation, &[tokens, h]),
            false => given.add_constant(Kind::Activation, &[tokens, h]),
        };
        let weight = given.add(kind, &[v, h]);
        let weight = given.weight(weight);
        let rows: Vec<u32> = (0..tokens as u32).filter(|t| (t + 1) % skip != 0).collect();
        // Both ends of the vocabulary, and both sides of a tile's edge, if there is one at `v - 5`.
        let edges = [0, v - 1, v / 2, v.saturating_sub(6)];
        let target = |t: &u32| (edges[*t as usize % 4] + *t as usize / 4) % v;
        let targets = rows.iter().map(|t| target(t) as u32).collect();
        Self { given, weight, bias: None, tokens, rows, targets, logits: Logits::PLAIN }
    }

    fn with_bias(mut self, kind: Kind) -> Self {
        let bias = self.given.add(kind, &[self.weight.shape()[0]]);
        self.bias = Some(self.given.weight(bias));
        self
    }

    fn head(&self) -> OutputHead<'_> {
        OutputHead { weight: &self.weight, bias: self.bias.as_ref(), logits: self.logits }
    }

    /// Rows with a target and all their logits.
    fn logits(&self, x: &[Vec<f64>]) -> (Vec<f64>, Vec<f64>) {
        let (v, h) = (self.weight.shape()[0], self.weight.shape()[1]);
        let rows = embedding::reference::forward(&x[0], h, &self.rows, 1.0);
        let products = gemm(self.rows.len(), v, h, &rows, &transpose(v, h, &x[1]));
        let mut logits = head::reference::logits(self.logits, &products);
        if let Some(bias) = x.get(2) {
            let rows = logits.chunks_mut(v);
            rows.for_each(|row| row.iter_mut().zip(bias).for_each(|(x, b)| *x += b));
        }
        (rows, logits)
    }
}

impl Operation for LogProbs {
    fn operands(&self) -> &Operands {
        &self.given
    }
    fn weights_mut(&mut self) -> Vec<&mut Weight> {
        [&mut self.weight].into_iter().chain(&mut self.bias).collect()
    }
    fn is_integer_in(&self, compute: Compute, target: Target) -> bool {
        let is_multiple = self.weight.shape()[1].is_multiple_of(4);
        compute == Compute::Int8 && target == Target::Cpu && is_multiple
    }
    fn run<'a>(&'a self, tape: &mut Tape<'a>, mut leaves: Vec<Var>) -> Var {
        let x = leaves.remove(0);
        ops::log_probs(tape, x, self.head(), &self.rows, &self.targets)
    }
    fn forward(&self, x: &[Vec<f64>]) -> Vec<f64> {
        let (_, logits) = self.logits(x);
        let mut y = head::reference::log_probs(&logits, self.weight.shape()[0], &self.targets);
        y.resize(self.tokens, 0.0);
        y
    }
    fn backward(&self, x: &[Vec<f64>], d_y: &[f64]) -> Vec<Vec<f64>> {
        let (v, h, n) = (self.weight.shape()[0], self.weight.shape()[1], self.rows.len());
        let (rows, logits) = self.logits(x);
        let mut d_logits = head::reference::d_logits(&logits, v, &self.targets, &d_y[..n]);
        let d_bias = self.bias.as_ref().map(|bias| match bias.param() {
            Some(_) => (0..v).map(|j| d_logits.iter().skip(j).step_by(v).sum()).collect(),
            None => vec![],
        });
        head::reference::d_products(self.logits, &logits, &mut d_logits);
        let d_rows = gemm(n, h, v, &d_logits, &x[1]);
        let mut d_x = vec![0.0; x[0].len()];
        for (d_row, &row) in d_rows.chunks(h).zip(&self.rows) {
            d_x[row as usize * h..][..h].copy_from_slice(d_row);
        }
        let d_w = match self.weight.param() {
            Some(_) => gemm(v, h, n, &transpose(n, v, &d_logits), &rows),
            None => vec![],
        };
        [d_x, d_w].into_iter().chain(d_bias).collect()
    }
}

fn plain(weight: &Weight) -> OutputHead<'_> {
    OutputHead { weight, bias: None, logits: Logits::PLAIN }
}

#[test]
fn log_probs_passes() {
    for kind in WEIGHT_KINDS {
        for (size, skip) in [((1, 1, 1), 2), ((9, 5, 13), 3), ((9, 6, 389), 3), ((5, 100, 98), 3)] {
            check_op(&format!("log_probs {size:?}"), &mut LogProbs::new(kind, size, skip, true));
        }
        let mut no_targets = LogProbs::new(kind, (4, 3, 5), 1, true);
        assert!(no_targets.rows.is_empty());
        check_op("log_probs of nothing", &mut no_targets);
    }
    for (scale, softcap) in [(0.5, None), (1.0, Some(Softcap(2.0))), (3.0, Some(Softcap(5.0)))] {
        let mut bounded = LogProbs::new(Kind::Trained, (9, 6, 389), 3, true);
        bounded.logits = Logits { scale, softcap };
        check_op(&format!("log_probs, {:?}", bounded.logits), &mut bounded);
    }
    for kind in [Kind::Frozen(DType::F32.into()), Kind::Trained] {
        for size in [(9, 5, 13), (9, 6, 389)] {
            let mut biased = LogProbs::new(kind, size, 3, true).with_bias(kind);
            check_op(&format!("log_probs with a bias {size:?}"), &mut biased);
        }
    }
    check_op("log_probs, weight only", &mut LogProbs::new(Kind::Trained, (9, 5, 13), 3, false));
}

/// A vocabulary of more than one of a GPU's panels.
#[test]
fn log_probs_passes_with_a_large_vocabulary() {
    for kind in WEIGHT_KINDS {
        check_op("log_probs in panels", &mut LogProbs::new(kind, (7, 16, 17_000), 3, true));
    }
}

/// Where a target's probability `p` is nearly one, `log p` and `1 - p` are as exact as elsewhere.
/// The other logits are zero; the second element of the hidden state's gradient is `1 - p`, and so
/// is the first of the weight's gradient for the target.
#[test]
fn what_nearly_certain_targets_lack_is_exact() {
    let devices: Vec<Device> =
        devices().into_iter().chain(Gpu::for_tests().map(Device::cuda)).collect();
    for (v, lacks) in [67, 25_000]
        .into_iter()
        .flat_map(|v| [1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-9].map(|lacks| (v, lacks)))
    {
        let (others, target) = ((v - 1) as f64, v - 2);
        let logit = (others * (1.0 - lacks) / lacks).ln() as f32;
        let mut w = vec![0.0; 2 * v];
        w[2 * target..].copy_from_slice(&[&[logit, 1.0][..], &[0.0, 0.0]].concat());
        let own = f64::from(logit).exp();
        let expected = [-(others / own).ln_1p(), others / (own + others)];
        for device in &devices {
            let hold = |x: &[f32], shape: &[usize]| {
                device.upload(Category::Activations, &Tensor::from_f32(x, shape)).unwrap()
            };
            let mut params = Params::default();
            let param = params.add("weight".into(), hold(&w, &[v, 2]));
            let weight = Weight::Trained { param, shape: vec![v, 2] };
            let mut gradients = Gradients::zeros(device, &params).unwrap();
            let targets = [target as u32];
            let mut tape = Tape::training(device, &params, Compute::F32, None);
            let x = tape.leaf(hold(&[1.0, 0.0], &[1, 2]), true);
            let y = ops::log_probs(&mut tape, x.clone(), plain(&weight), &[0], &targets);
            let log_prob = y.value().to_vec_f32()[0];
            let leaves = tape.backward(y, hold(&[1.0], &[1]), &mut gradients);
            let d_x = leaves.get(&x).expect("x requires a gradient").to_vec_f32();
            let d_w = gradients.get(param).to_vec_f32();
            let found = [log_prob, d_x[1], d_w[2 * target]];
            for (found, exact) in found.into_iter().zip([expected[0], expected[1], expected[1]]) {
                let error = (f64::from(found) / exact - 1.0).abs();
                assert!(error < 1e-5, "{v}, {lacks:e}: {found:e}, not {exact:e}");
            }
        }
    }
}

/// Logits of a vocabulary of more than one panel, which a GPU converts one at a time.
#[test]
fn logits_are_the_same_on_a_gpu() {
    let Some(gpu) = Gpu::for_tests().map(Device::cuda) else { return };
    let (t, h, v) = (3, 16, 17_000);
    let (x, w) = (normals(1, t * h), normals(2, v * h));
    for held in [DType::F32.into(), DType::Bf16.into(), DType::F16.into(), Storage::INT8] {
        let weight = tensor_of(&w, held, &[v, h]);
        let on = |device: &Device| {
            let params = Params::default();
            let mut tape = Tape::inference(device, &params, Compute::F32);
            let held = |x: &Tensor| device.upload(Category::Activations, x).unwrap();
            let (x, weight) = (held(&Tensor::from_f32(&x, &[t, h])), held(&weight));
            ops::logits(&mut tape, &x, plain(&Weight::Frozen(weight))).to_vec_f32()
        };
        let (found, expected) = (on(&gpu), on(&Device::cpu(2)));
        for (found, expected) in found.iter().zip(&expected) {
            assert!((found - expected).abs() < 1e-4, "{held:?}: {found}, on the CPU {expected}");
        }
    }
}

/// In integers; a length that is no multiple of four falls back to floats.
#[test]
fn log_probs_passes_in_integers() {
    for (size, skip) in [((9, 64, 205), 3), ((40, 32, 12_500), 5), ((7, 13, 300), 3)] {
        let mut op = LogProbs::new(Kind::Frozen(Storage::INT8), size, skip, true);
        check_op_in(&[Compute::Int8], &format!("log_probs {size:?}"), &op);
        check_op_on_gpu(Compute::Int8, &format!("log_probs {size:?}"), &mut op);
    }
}

#[test]
fn log_probs_passes_with_more_rows_than_one_chunk() {
    for kind in [Kind::Frozen(Storage::Float(DType::Bf16)), Kind::Trained] {
        check_op("log_probs in chunks", &mut LogProbs::new(kind, (4500, 5, 37), 9, true));
    }
}
