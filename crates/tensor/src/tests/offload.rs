//! Weights that visit a GPU: the same results, and no copy more than needed.

use super::check_op::normals;
use crate::device::Category;
use crate::ops::{self, RmsNorm};
use crate::{
    Compute, DType, Device, Gradients, Offloaded, Params, Projection, Tape, Target, Tensor,
    Transfer, Weight, offload,
};
use hone_kernels::cuda::Gpu;

const NORM: RmsNorm = RmsNorm { eps: 1e-5, plus_one: false };
const HIDDEN: usize = 24;
const TOKENS: usize = 20;

/// Residual blocks of a norm and a projection.
struct Stack {
    norm: Weight,
    blocks: Vec<([Projection; 1], Option<Offloaded>)>,
}

impl Stack {
    /// Weights of `num_blocks` on `device`, or offloaded from it.
    fn new(device: &Device, num_blocks: usize, offloaded: bool) -> Self {
        let vector = Tensor::from_f32(&normals(9, HIDDEN), &[HIDDEN]);
        let norm = Weight::Frozen(device.upload(Category::Weights, &vector).unwrap());
        let block = |i: usize| {
            let shape = [HIDDEN, HIDDEN];
            let weight = Tensor::from_f32(&normals(20 + i as u64, HIDDEN * HIDDEN), &shape);
            let weight = match offloaded {
                true => weight,
                false => device.upload(Category::Weights, &weight).unwrap(),
            };
            let weight = Weight::Frozen(weight);
            ([Projection { weight, bias: None, adapters: Vec::new() }], None)
        };
        let mut blocks: Vec<_> = (0..num_blocks).map(block).collect();
        if offloaded {
            let weights = blocks.iter_mut().map(|([p], _)| p.weight.frozen_mut().into_iter());
            let handles = offload(device, weights.map(Iterator::collect).collect()).unwrap();
            blocks.iter_mut().zip(handles).for_each(|(block, handle)| block.1 = Some(handle));
        }
        Self { norm, blocks }
    }

    fn apply<'a>(&'a self, tape: &mut Tape<'a>, mut x: crate::Var, recompute: bool) -> crate::Var {
        for (projection, offloaded) in &self.blocks {
            let block = move |tape: &mut Tape<'a>, x| {
                ops::with_offloaded(tape, offloaded.as_ref(), x, |tape, x| {
                    let h = ops::rms_norm(tape, &x, &self.norm, NORM);
                    ops::linear(tape, h, projection, Some(x))
                })
            };
            x = if recompute { tape.recompute(x, block) } else { block(tape, x) };
        }
        x
    }

    /// The output, and the gradient of the input after a backward pass.
    fn train(&self, device: &Device, recompute: bool) -> [Vec<f32>; 2] {
        let params = Params::default();
        let mut tape = Tape::training(device, &params, Compute::F32, None);
        let x = tape.leaf(filled(device, 1), true);
        let leaf = x.clone();
        let y = self.apply(&mut tape, x, recompute);
        let output = read(device, y.value());
        let mut gradients = Gradients::zeros(device, &params).unwrap();
        let leaves = tape.backward(y, filled(device, 2), &mut gradients);
        [output, read(device, leaves.get(&leaf).expect("a gradient flows to the input"))]
    }

    fn infer(&self, device: &Device) -> Vec<f32> {
        let params = Params::default();
        let mut tape = Tape::inference(device, &params, Compute::F32);
        let x = tape.leaf(filled(device, 1), false);
        read(device, self.apply(&mut tape, x, false).value())
    }
}

fn filled(device: &Device, stream: u64) -> Tensor {
    let mut x = device.alloc(Category::Activations, DType::F32, &[TOKENS, HIDDEN]);
    if !device.is_dry() {
        x.copy_from_f32(&normals(stream, TOKENS * HIDDEN));
    }
    x
}

fn read(device: &Device, tensor: &Tensor) -> Vec<f32> {
    if device.is_dry() { Vec::new() } else { tensor.to_vec_f32() }
}

/// The emulator copies only when awaited; until then the slot holds NaN.
#[test]
fn offloaded_weights_give_the_same_bits() {
    let Some(gpu) = Gpu::for_tests() else { return };
    let device = Device::cuda(gpu);
    for num_blocks in [1, 2, 3, 6] {
        let kept = Stack::new(&device, num_blocks, false);
        let offloaded = Stack::new(&device, num_blocks, true);
        for recompute in [false, true, false] {
            let expected = kept.train(&device, recompute);
            assert!(expected.iter().flatten().all(|x| x.is_finite()));
            assert_eq!(offloaded.train(&device, recompute), expected, "{num_blocks} blocks");
        }
        for _ in 0..2 {
            assert_eq!(offloaded.infer(&device), kept.infer(&device), "{num_blocks} blocks");
        }
    }
}

/// Number of copies, and how many of them run without concurrent computation.
fn copies(device: &Device, body: impl FnOnce()) -> (usize, usize) {
    device.take_costs();
    body();
    let of_costs: Vec<Transfer> =
        device.take_costs().into_iter().map(|cost| cost.transfer).collect();
    let is_start = |t: &&Transfer| matches!(t, Transfer::Start(_));
    let is_waited_for = |pair: &&[Transfer]| matches!(pair, [Transfer::Start(_), Transfer::Await]);
    (of_costs.iter().filter(is_start).count(), of_costs.windows(2).filter(is_waited_for).count())
}

#[test]
fn blocks_are_copied_ahead_and_only_when_they_are_not_there() {
    let device = Device::dry_as(Target::Cuda);
    let stack = Stack::new(&device, 5, true);
    let slots = 2 * 4 * HIDDEN * HIDDEN;
    assert_eq!(device.persistent_bytes(Category::Weights) as usize, slots + 4 * HIDDEN);
    assert_eq!(device.persistent_bytes(Category::Offloaded) as usize, 5 * 4 * HIDDEN * HIDDEN);
    for recompute in [false, true] {
        // Five in the forward pass; the last two are still there in the backward pass.
        let again = 2 * (5 - 2);
        let stack = Stack::new(&device, 5, true);
        let first = copies(&device, || drop(stack.train(&device, recompute)));
        assert_eq!(first, (again + 2, 1));
        // The next pass finds the first two where the last one left them.
        assert_eq!(copies(&device, || drop(stack.train(&device, recompute))), (again, 0));
    }
    // Forward only: the first has to be waited for.
    stack.infer(&device);
    assert_eq!(copies(&device, || drop(stack.infer(&device))), (5, 1));
}
