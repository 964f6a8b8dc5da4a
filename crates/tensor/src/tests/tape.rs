//! The tape over whole blocks: sums of gradients, recomputation, and what is not recorded.

use super::check_op::{Found, Kind, Operands, STEP, devices, normals};
use crate::ops::{self, Activation, Angles, HeadNorms, Part, RmsNorm, Rotated};
use crate::{
    AdapterId, Arena, Category, Compute, Cost, DType, Device, Gradients, Heads, Layout, Lora,
    ParamId, Params, Projection, Sequence, StepKey, Tape, Tensor, Var, Weight,
};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

const NORM: RmsNorm = RmsNorm { eps: 1e-5, plus_one: false };
const HIDDEN: usize = 24;
const TOKENS: usize = 20;
const HEADS: Heads = Heads {
    num_heads: 4,
    num_kv_heads: 2,
    head_dim: 6,
    scale: 0.4,
    window: None,
    ahead: 0,
    softcap: None,
};

/// A decoder block over frozen weights, with adapters on some projections.
struct Block {
    norms: [Weight; 2],
    qkv: Vec<Projection>,
    output: Vec<Projection>,
    gate_up: Vec<Projection>,
    down: Vec<Projection>,
    angles: Angles,
    sequences: Vec<Sequence>,
    /// Norms of queries and keys, if they have any, and whether the backward pass prepares heads
    /// again.
    head_norms: Option<([Weight; 2], bool)>,
}

impl Block {
    /// `adapted`: whether q and down have an adapter, whose matrices are added to `params`.
    fn new(params: &mut Params, adapted: bool) -> Self {
        let mut frozen = Frozen(Operands::default());
        let kv = HEADS.num_kv_heads * HEADS.head_dim;
        let angles = normals(5, TOKENS * HEADS.head_dim / 2);
        let mut block = Self {
            norms: [frozen.weight(&[HIDDEN]), frozen.weight(&[HIDDEN])],
            qkv: [HEADS.out_width(), kv, kv].map(|n| frozen.projection(n, HIDDEN)).into(),
            output: vec![frozen.projection(HIDDEN, HEADS.out_width())],
            gate_up: [40, 40].map(|n| frozen.projection(n, HIDDEN)).into(),
            down: vec![frozen.projection(HIDDEN, 40)],
            angles: Angles::new(
                Rotated { dim: HEADS.head_dim, interleaved: false },
                angles.iter().map(|a| a.cos()).collect(),
                angles.iter().map(|a| a.sin()).collect(),
            ),
            sequences: vec![Sequence::new(0, 12), Sequence::new(12, 7)],
            head_norms: None,
        };
        if adapted {
            adapt(params, &mut block.qkv[0]);
            adapt(params, &mut block.down[0]);
        }
        block
    }

    fn apply<'a>(&'a self, tape: &mut Tape<'a>, x: Var) -> Var {
        self.apply_with(tape, x, [None]).0
    }

    /// With the keys and values of another block, if they are given; otherwise its own are the
    /// second output.
    fn apply_with<'a>(
        &'a self,
        tape: &mut Tape<'a>,
        x: Var,
        [others]: [Option<Var>; 1],
    ) -> (Var, Option<Var>) {
        let normed = ops::rms_norm(tape, &x, &self.norms[0], NORM);
        let qkv = ops::linear(tape, normed, &self.qkv, None);
        let prepare = |tape: &mut Tape<'a>, mut qkv: Var| {
            if let Some(([q, k], _)) = &self.head_norms {
                let norms = HeadNorms { q, k: Some(k), v: None };
                qkv = ops::norm_heads(tape, qkv, &HEADS, norms, NORM);
            }
            ops::rope(tape, qkv, &HEADS, &self.angles)
        };
        let mut own = None;
        let attended = match &self.head_norms {
            Some((_, true)) => {
                ops::attention_over(tape, qkv, prepare, &HEADS, None, &self.sequences)
            }
            _ => {
                let mut qkv = prepare(tape, qkv);
                match others {
                    None => own = Some(qkv.clone()),
                    Some(of) => {
                        let kv = HEADS.num_kv_heads * HEADS.head_dim;
                        let (first, count) = (HEADS.out_width(), 2 * kv);
                        let queries = Part { of: qkv, first: 0, count: first };
                        qkv = ops::joined(tape, vec![queries, Part { of, first, count }]);
                    }
                }
                ops::attention(tape, qkv, &HEADS, &self.sequences)
            }
        };
        let x = ops::linear(tape, attended, &self.output, Some(x));
        let normed = ops::rms_norm(tape, &x, &self.norms[1], NORM);
        let gate_up = ops::linear(tape, normed, &self.gate_up, None);
        let active = ops::glu(tape, gate_up, Activation::Silu);
        (ops::linear(tape, active, &self.down, Some(x)), own)
    }
}

struct Frozen(Operands);

impl Frozen {
    fn weight(&mut self, shape: &[usize]) -> Weight {
        let index = self.0.add(Kind::Frozen(DType::F32.into()), shape);
        self.0.weight(index)
    }

    fn projection(&mut self, n: usize, k: usize) -> Projection {
        Projection { weight: self.weight(&[n, k]), bias: None, adapters: Vec::new() }
    }
}

fn adapt(params: &mut Params, projection: &mut Projection) {
    let mut add = |shape: [usize; 2]| {
        let values = normals(100 + params.len() as u64, shape[0] * shape[1]);
        params.add(format!("{}", params.len()), Tensor::from_f32(&values, &shape))
    };
    let (a, b) = (add([2, projection.in_features()]), add([projection.out_features(), 2]));
    let stream = a.0 as u32;
    let id = AdapterId::default();
    projection.adapters.push(Lora { id, a, b, rank: 2, scale: 0.5, dropout: 0.2, stream });
}

/// A stack of blocks; the lowest `frozen` ones have no adapter.
struct Stack {
    params: Params,
    blocks: Vec<Block>,
    recompute: bool,
    /// Whether all but the first two blocks read the second one's keys and values.
    shares: bool,
}

impl Stack {
    fn new(num_blocks: usize, frozen: usize, recompute: bool) -> Self {
        let mut params = Params::default();
        let blocks = (0..num_blocks).map(|i| Block::new(&mut params, i >= frozen)).collect();
        Self { params, blocks, recompute, shares: false }
    }

    fn sharing(self) -> Self {
        Self { shares: true, ..self }
    }

    /// The same with norms of queries and keys, which are trained.
    fn with_head_norms(mut self, prepares_again: bool) -> Self {
        for block in &mut self.blocks {
            let norms = [(); 2].map(|()| {
                let values = normals(200 + self.params.len() as u64, HEADS.head_dim);
                let value = Tensor::from_f32(&values, &[HEADS.head_dim]);
                let param = self.params.add(format!("{}", self.params.len()), value);
                Weight::Trained { param, shape: vec![HEADS.head_dim] }
            });
            block.head_norms = Some((norms, prepares_again));
        }
        self
    }

    fn apply<'a>(&'a self, tape: &mut Tape<'a>, mut x: Var) -> Var {
        let mut kept = None;
        for (i, block) in self.blocks.iter().enumerate() {
            let others = [kept.clone().filter(|_| i > 1)];
            let (y, own) = match self.recompute {
                true => tape.recompute_with(x, others, |tape, x, o| block.apply_with(tape, x, o)),
                false => block.apply_with(tape, x, others),
            };
            x = y;
            kept = own.filter(|_| self.shares).or(kept);
        }
        x
    }

    /// Output, gradient of the input if it requires one, gradients of the parameters.
    fn train(&self, device: &Device, compute: Compute, input_grad: bool) -> Vec<Found> {
        let mut gradients = Gradients::zeros(device, &self.params).unwrap();
        let mut tape = Tape::training(device, &self.params, compute, Some(STEP));
        let x = tape.leaf(activation(device, 1), input_grad);
        let id = x.id();
        let y = self.apply(&mut tape, x);
        let output = Found::new(device, y.value());
        let mut of_leaves = tape.backward(y, activation(device, 2), &mut gradients);
        let d_x = of_leaves.take(id).map(|d| Found::new(device, &d));
        assert_eq!(d_x.is_some(), input_grad);
        let of_params = gradients.iter().map(|g| Found::new(device, g));
        [output].into_iter().chain(d_x).chain(of_params).collect()
    }

    /// Where a step's memory goes, and what its work is.
    fn plan(&self, input_grad: bool) -> (Layout, Vec<Cost>) {
        let dry = Device::dry();
        let (_, trace) = dry.trace(|| self.train(&dry, Compute::Bf16, input_grad));
        (Layout::of(trace), dry.take_costs())
    }
}

/// `[TOKENS, HIDDEN]` in step memory, filled where the device has any.
fn activation(device: &Device, stream: u64) -> Tensor {
    let mut x = device.alloc(Category::Activations, DType::F32, &[TOKENS, HIDDEN]);
    if !device.is_dry() {
        x.view_mut().copy_from_f32(&normals(stream, TOKENS * HIDDEN));
    }
    x
}

fn assert_identical(first: &[Found], again: &[Found]) {
    assert_eq!(first.len(), again.len());
    for (i, (first, again)) in first.iter().zip(again).enumerate() {
        assert!(first.is_identical(again), "result {i} differs");
    }
}

#[test]
fn recomputation_changes_memory_and_nothing_else() {
    let (kept, again) = (Stack::new(4, 0, false), Stack::new(4, 0, true));
    let sharing = [false, true].map(|recompute| Stack::new(4, 0, recompute).sharing());
    for compute in [Compute::F32, Compute::Bf16] {
        for [kept, again] in [[&kept, &again], [&sharing[0], &sharing[1]]] {
            let first = kept.train(&Device::cpu(2), compute, true);
            for device in devices() {
                assert_identical(&first, &again.train(&device, compute, true));
            }
        }
    }
    let peak = |stack: &Stack| stack.plan(true).0.at_peak().values().sum::<usize>();
    let (kept, again) = (peak(&kept), peak(&again));
    assert!(again * 2 < kept, "{again} bytes with recomputation, {kept} without");
}

#[test]
fn heads_that_are_prepared_again_take_no_memory_meanwhile() {
    let stack = |again| Stack::new(4, 0, false).with_head_norms(again);
    let (kept, again) = (stack(false), stack(true));
    for device in devices() {
        let first = kept.train(&device, Compute::Bf16, true);
        assert_identical(&first, &again.train(&device, Compute::Bf16, true));
    }
    let activations = |stack: &Stack| stack.plan(true).0.at_peak()[&Category::Activations];
    let of_heads = TOKENS * HEADS.qkv_width() * DType::Bf16.size();
    // All but those of the block whose backward pass is under way.
    let (kept, again) = (activations(&kept), activations(&again));
    assert!(again + 3 * of_heads <= kept, "{again} bytes, {kept} where they are kept");
}

#[test]
fn a_whole_stack_runs_in_its_planned_arena() {
    for (recompute, shares) in [(false, false), (true, false), (true, true)] {
        let stack = Stack { shares, ..Stack::new(3, 1, recompute) };
        let layout = Arc::new(stack.plan(false).0);
        let device = Device::cpu(2);
        let mut arena = Arena::new(&device, layout.bytes()).unwrap();
        let first = stack.train(&device, Compute::Bf16, false);
        let body = || stack.train(&device, Compute::Bf16, false);
        assert_identical(&first, &device.planned(&mut arena, &layout, body).unwrap());
    }
}

#[test]
fn nothing_flows_below_the_lowest_adapter() {
    for recompute in [false, true] {
        let (_, costs) = Stack::new(3, 2, recompute).plan(false);
        let count = |name: &str| costs.iter().filter(|c| c.name == name).count();
        assert_eq!(count("d_attention"), 1);
        assert_eq!(count("d_glu"), 1);
        // The first norm and the projections of q, k and v read what needs no gradient.
        assert_eq!(count("d_rms_norm"), 1);
        assert_eq!(count("d_linear"), 3);
        assert_eq!(count("d_lora_a"), 2);
        let forward = if recompute { 3 + 1 } else { 3 };
        assert_eq!(count("attention"), forward);
    }
}

#[test]
fn nothing_is_recorded_where_nothing_requires_a_gradient() {
    let stack = Stack::new(2, 2, false);
    let dry = Device::dry();
    // The trace fails if anything is held when the output has gone: the tape still lives then.
    let (mut tape, _) = dry.trace(|| {
        let mut tape = Tape::training(&dry, &stack.params, Compute::F32, None);
        let x = tape.leaf(activation(&dry, 1), false);
        let y = stack.apply(&mut tape, x);
        assert!(!y.requires_grad());
        tape
    });
    let mut gradients = Gradients::zeros(&dry, &stack.params).unwrap();
    dry.take_costs();
    let root = tape.leaf(activation(&dry, 1), false);
    tape.backward(root, activation(&dry, 2), &mut gradients);
    assert!(dry.take_costs().is_empty());
}

/// The gradient of `x Wᵀ` needs `x` only where `W` is trained or has an adapter.
#[test]
fn a_frozen_projection_keeps_no_input() {
    let mut params = Params::default();
    let frozen = Frozen(Operands::default()).projection(HIDDEN, HIDDEN);
    let mut adapted = frozen.clone();
    adapt(&mut params, &mut adapted);
    let device = Device::cpu(1);
    for (projections, keeps) in [([frozen], false), ([adapted], true)] {
        let mut tape = Tape::training(&device, &params, Compute::F32, None);
        let mut value = activation(&device, 1);
        let x = tape.leaf(value.clone(), true);
        let y = ops::linear(&mut tape, x, &projections, None);
        assert!(y.requires_grad());
        assert_eq!(!value.is_unique(), keeps);
    }
}

#[test]
fn an_inference_tape_gives_the_same_values_and_no_gradients() {
    let stack = Stack::new(2, 0, true);
    let device = Device::cpu(2);
    let mut training = Tape::training(&device, &stack.params, Compute::Bf16, None);
    let x = training.leaf(activation(&device, 1), true);
    let first = Found::new(&device, stack.apply(&mut training, x).value());
    let mut inference = Tape::inference(&device, &stack.params, Compute::Bf16);
    let x = inference.leaf(activation(&device, 1), true);
    let y = stack.apply(&mut inference, x);
    assert!(first.is_identical(&Found::new(&device, y.value())));
    let mut gradients = Gradients::zeros(&device, &stack.params).unwrap();
    let swept = catch_unwind(AssertUnwindSafe(|| {
        inference.backward(y, activation(&device, 2), &mut gradients);
    }));
    assert!(swept.is_err());
}

/// `y = x + W norm(x)`: both gradients of `x` arrive.
#[test]
fn gradients_of_a_variable_used_twice_add_up() {
    let mut frozen = Frozen(Operands::default());
    let (norm, projection) = (frozen.weight(&[HIDDEN]), [frozen.projection(HIDDEN, HIDDEN)]);
    let (device, params) = (Device::cpu(2), Params::default());
    let gradient = |with_residual: bool| {
        let mut gradients = Gradients::zeros(&device, &params).unwrap();
        let mut tape = Tape::training(&device, &params, Compute::F32, None);
        let x = tape.leaf(activation(&device, 1), true);
        let normed = ops::rms_norm(&mut tape, &x, &norm, NORM);
        let residual = with_residual.then(|| x.clone());
        let y = ops::linear(&mut tape, normed, &projection, residual);
        let leaves = tape.backward(y, activation(&device, 2), &mut gradients);
        leaves.get(&x).expect("x requires a gradient").f32().to_vec()
    };
    let (through_norm, both) = (gradient(false), gradient(true));
    let d_y = normals(2, TOKENS * HIDDEN);
    let sum: Vec<f32> = through_norm.iter().zip(&d_y).map(|(a, b)| a + b).collect();
    assert_eq!(both, sum);
}

/// A root and another that it is an input of: one sweep gives the sum of two.
#[test]
fn gradients_of_several_roots_add_up() {
    let stack = Stack::new(2, 0, true);
    let device = Device::cpu(2);
    let gradient = |of_lower: bool, of_upper: bool| {
        let mut gradients = Gradients::zeros(&device, &stack.params).unwrap();
        let mut tape = Tape::training(&device, &stack.params, Compute::F32, Some(STEP));
        let x = tape.leaf(activation(&device, 1), true);
        let lower = stack.blocks[0].apply(&mut tape, x.clone());
        let upper = stack.blocks[1].apply(&mut tape, lower.clone());
        let roots = [
            of_lower.then(|| (lower, activation(&device, 2))),
            of_upper.then(|| (upper, activation(&device, 3))),
        ];
        let leaves = tape.backward_from(roots.into_iter().flatten(), &mut gradients);
        let d_x = leaves.get(&x).expect("x requires a gradient").f32().to_vec();
        [d_x, gradients.iter().flat_map(|g| g.to_vec_f32()).collect()].concat()
    };
    let (lower, upper, both) = (gradient(true, false), gradient(false, true), gradient(true, true));
    // Sums of terms that cancel round by the size of the terms.
    let largest = both.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
    for ((a, b), both) in lower.iter().zip(&upper).zip(&both) {
        assert!((a + b - both).abs() <= 1e-5 * largest, "{a} + {b} is not {both}");
    }
    assert!(lower.iter().zip(&both).any(|(a, b)| a != b));
}

#[test]
fn a_second_micro_batch_adds_to_the_gradients() {
    let stack = Stack::new(1, 0, false);
    let device = Device::cpu(1);
    let once = stack.train(&device, Compute::F32, false);
    let mut gradients = Gradients::zeros(&device, &stack.params).unwrap();
    for _ in 0..2 {
        let mut tape = Tape::training(&device, &stack.params, Compute::F32, Some(STEP));
        let x = tape.leaf(activation(&device, 1), false);
        let y = stack.apply(&mut tape, x);
        tape.backward(y, activation(&device, 2), &mut gradients);
    }
    for (once, twice) in once[1..].iter().zip(gradients.iter()) {
        let doubled: Vec<f32> = once.values.iter().map(|g| g + g).collect();
        assert_eq!(doubled, twice.f32());
    }
    gradients.clear(&device);
    assert!(gradients.get(ParamId(0)).f32().iter().all(|&g| g == 0.0));
}

#[test]
fn dropout_differs_between_steps_micro_batches_and_adapters() {
    let mut params = Params::default();
    let mut frozen = Frozen(Operands::default());
    let mut projection = frozen.projection(HIDDEN, HIDDEN);
    adapt(&mut params, &mut projection);
    let device = Device::cpu(1);
    let output = |key, stream| {
        let mut projection = projection.clone();
        projection.adapters[0].stream = stream;
        let projections = [projection];
        let mut tape = Tape::training(&device, &params, Compute::F32, Some(key));
        let x = tape.leaf(activation(&device, 1), false);
        ops::linear(&mut tape, x, &projections, None).value().f32().to_vec()
    };
    let first = output(STEP, 0);
    assert_eq!(first, output(STEP, 0));
    let keys = [
        StepKey { seed: 12, ..STEP },
        StepKey { step: 4, ..STEP },
        StepKey { micro_batch: 3, ..STEP },
    ];
    assert!(keys.iter().all(|&key| output(key, 0) != first));
    assert_ne!(output(STEP, 1), first);
}

#[test]
fn only_the_sole_handle_of_memory_may_write() {
    let mut tensor = Tensor::from_f32(&[1.0, 2.0], &[2]);
    tensor.f32_mut()[0] = 5.0;
    let other = tensor.clone();
    assert!(!tensor.is_unique());
    assert!(catch_unwind(AssertUnwindSafe(|| tensor.f32_mut()[0] = 7.0)).is_err());
    assert_eq!(other.f32(), [5.0, 2.0]);
    drop(other);
    tensor.f32_mut()[0] = 7.0;
    assert_eq!(tensor.f32(), [7.0, 2.0]);
}

#[test]
fn a_tensor_has_as_many_bytes_as_its_shape() {
    let made = |shape: &[usize]| catch_unwind(|| Tensor::from_f32(&[0.0; 6], shape).len());
    assert_eq!(made(&[2, 3]).ok(), Some(6));
    assert!(made(&[5]).is_err() && made(&[7]).is_err());
    let dry = Device::dry().alloc(Category::Activations, DType::F32, &[3]);
    assert!(catch_unwind(AssertUnwindSafe(|| dry.view().len())).is_err());
}
