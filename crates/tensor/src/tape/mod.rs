//! The coarse tape: what the forward pass records for the backward pass.
//!
//! Every operation has one output. It pushes a closure that computes the gradients of its inputs
//! and of trained parameters from that of the output. The closure owns what it needs, so memory is
//! released as the backward pass proceeds. Nothing is recorded for an output that needs no
//! gradient.

mod observer;

pub use observer::{Observer, Reader};

use crate::ops::{RoundedAdapters, Routers};
use crate::{AdapterRows, Category, Cost, DType, Device, Gradients, Params, Target, Tensor};
use hone_kernels::gemm::quantises_operands;
use std::collections::HashMap;
use std::sync::Arc;

/// Precision of matmuls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compute {
    /// `f32`.
    F32,
    /// bf16 operands, accumulation in `f32`.
    Bf16,
    /// f16 operands, accumulation in `f32`; only on a GPU.
    F16,
    /// As [`Compute::Bf16`], but FP8 for projections whose frozen weights are stored as int8, on a
    /// GPU: activations and weights in E4M3, gradients in E5M2, with a scale per operand.
    Fp8,
    /// As [`Compute::Bf16`], but int8 for frozen weights that are stored as int8: the other operand
    /// is quantised row by row.
    Int8,
}

impl Compute {
    /// Name in run files and messages.
    pub fn name(self) -> &'static str {
        match self {
            Compute::F32 => "f32",
            Compute::Bf16 => "bf16",
            Compute::F16 => "f16",
            Compute::Fp8 => "fp8",
            Compute::Int8 => "int8",
        }
    }

    /// Element type of activations.
    pub fn dtype(self) -> DType {
        match self {
            Compute::F32 => DType::F32,
            Compute::Bf16 | Compute::Fp8 | Compute::Int8 => DType::Bf16,
            Compute::F16 => DType::F16,
        }
    }

    /// Whether products with `weight` that contract over these lengths are in integers, on the CPU,
    /// which multiplies them in groups of four. A GPU decides inside the product.
    pub(crate) fn is_integer_for(
        self,
        device: &Device,
        weight: &Tensor,
        lengths: &[usize],
    ) -> bool {
        self == Compute::Int8
            && !quantises_operands(device.target())
            && weight.storage().is_int8()
            && lengths.iter().all(|n| n.is_multiple_of(4))
    }
}

/// Key of a micro-batch's random numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StepKey {
    /// The run's seed.
    pub seed: u64,
    /// Optimizer step.
    pub step: u64,
    /// Micro-batch within the step.
    pub micro_batch: u32,
}

/// The output of an operation.
#[derive(Clone, Debug)]
pub struct Var {
    id: usize,
    value: Tensor,
    requires_grad: bool,
}

impl Var {
    /// The value.
    pub fn value(&self) -> &Tensor {
        &self.value
    }

    /// Whether a gradient will flow to this value.
    pub fn requires_grad(&self) -> bool {
        self.requires_grad
    }

    pub(crate) fn id(&self) -> usize {
        self.id
    }

    pub(crate) fn into_value(self) -> Tensor {
        self.value
    }
}

type Backward<'a> = Box<dyn FnOnce(&mut Sweep<'_, 'a>, Tensor) + 'a>;

struct Node<'a> {
    output: usize,
    backward: Backward<'a>,
}

/// Records operations for one backward pass.
pub struct Tape<'a> {
    device: &'a Device,
    params: &'a Params,
    compute: Compute,
    /// Rows of each adapter.
    adapter_rows: Arc<[AdapterRows]>,
    recording: bool,
    /// Whether this is the second run of a block.
    is_second_run: bool,
    nodes: Vec<Node<'a>>,
    num_vars: usize,
    adapters: RoundedAdapters,
    routers: Routers,
    observer: Option<&'a dyn Observer>,
}

impl<'a> Tape<'a> {
    /// A tape that records, with dropout if `step` is given. All rows belong to the only adapter.
    pub fn training(
        device: &'a Device,
        params: &'a Params,
        compute: Compute,
        step: Option<StepKey>,
    ) -> Self {
        let (nodes, num_vars, adapters, routers) = Default::default();
        let (adapter_rows, recording) = (Arc::new([AdapterRows::all(step)]), true);
        Self {
            device,
            params,
            compute,
            adapter_rows,
            recording,
            is_second_run: false,
            nodes,
            num_vars,
            adapters,
            routers,
            observer: None,
        }
    }

    /// Assigns adapters to ranges of rows, instead of the only one to all. Other rows have none.
    ///
    /// # Panics
    /// If ranges overlap or are not sorted.
    pub fn set_adapter_rows(&mut self, adapter_rows: &[AdapterRows]) {
        let bounds =
            adapter_rows.iter().flat_map(|AdapterRows { rows, .. }| [rows.start, rows.end]);
        assert!(bounds.is_sorted(), "rows of adapters overlap or are not sorted");
        self.adapter_rows = adapter_rows.into();
    }

    /// A tape that records nothing.
    pub fn inference(device: &'a Device, params: &'a Params, compute: Compute) -> Self {
        Self { recording: false, ..Self::training(device, params, compute, None) }
    }

    /// A training tape for another run of what was run before, of which only the inputs are kept.
    pub fn second_run(device: &'a Device, params: &'a Params, compute: Compute) -> Self {
        Self { is_second_run: true, ..Self::training(device, params, compute, None) }
    }

    /// The device that operations run on.
    pub fn device(&self) -> &'a Device {
        self.device
    }

    /// The trained parameters.
    pub fn params(&self) -> &'a Params {
        self.params
    }

    /// Element type of activations, and of operands of matmuls unless they are quantised.
    pub fn dtype(&self) -> DType {
        self.compute.dtype()
    }

    /// Precision of matmuls.
    pub(crate) fn compute(&self) -> Compute {
        self.compute
    }

    /// Rows of each adapter.
    pub(crate) fn adapter_rows(&self) -> &Arc<[AdapterRows]> {
        &self.adapter_rows
    }

    /// Adapters that [`crate::ops::round_adapters`] rounded for this pass.
    pub(crate) fn adapters(&self) -> &RoundedAdapters {
        &self.adapters
    }

    /// Sets the rounded adapters of this pass.
    pub(crate) fn set_adapters(&mut self, adapters: RoundedAdapters) {
        self.adapters = adapters;
    }

    /// Tells the routers of this pass what they need to know.
    pub fn set_routers(&mut self, routers: Routers) {
        self.routers = routers;
    }

    /// What the routers of this pass are told.
    pub(crate) fn routers(&self) -> &Routers {
        &self.routers
    }

    /// Lets `observer` look at the linear layers of this pass.
    pub fn set_observer(&mut self, observer: &'a dyn Observer) {
        self.observer = Some(observer);
    }

    /// Who looks on, unless there is nothing to see.
    pub(crate) fn observer(&self) -> Option<&'a dyn Observer> {
        self.observer.filter(|_| !self.device.is_dry())
    }

    /// Tells the observer of a layer, the first time that it is run.
    pub(crate) fn observe(&self, x: &Tensor, readers: impl FnOnce() -> Vec<Reader<'a>>) {
        if let Some(observer) = self.observer().filter(|_| !self.is_second_run) {
            observer.input(x, &readers());
        }
    }

    /// An input of the tape.
    pub fn leaf(&mut self, value: Tensor, requires_grad: bool) -> Var {
        self.var(value, requires_grad)
    }

    /// Allocates an output, or a value saved for the backward pass.
    pub(crate) fn activation(&self, dtype: DType, shape: &[usize]) -> Tensor {
        self.device.alloc(Category::Activations, dtype, shape)
    }

    /// Whether backward closures are kept.
    pub(crate) fn is_recording(&self) -> bool {
        self.recording
    }

    /// Whether what an operation could compute again is to be kept: nothing is kept anyway, the
    /// block is run again already, or it would cost too much, as on a GPU, where small models are
    /// bound by their memory.
    pub(crate) fn keeps_what_is_cheap(&self) -> bool {
        !self.recording || self.is_second_run || self.device.target() == Target::Cuda
    }

    /// Makes `value` the output of an operation. `backward` is kept only if it is needed.
    pub(crate) fn push(
        &mut self,
        value: Tensor,
        requires_grad: bool,
        backward: impl FnOnce(&mut Sweep<'_, 'a>, Tensor) + 'a,
    ) -> Var {
        let var = self.var(value, requires_grad);
        if self.recording && requires_grad {
            self.nodes.push(Node { output: var.id, backward: Box::new(backward) });
        }
        var
    }

    fn var(&mut self, value: Tensor, requires_grad: bool) -> Var {
        self.num_vars += 1;
        Var { id: self.num_vars - 1, value, requires_grad }
    }

    /// Runs `block` on `x`, saving only `x`; the backward pass runs it again (Chen et al.,
    /// "Training Deep Nets with Sublinear Memory Cost", 2016).
    pub fn recompute(&mut self, x: Var, block: impl Fn(&mut Tape<'a>, Var) -> Var + 'a) -> Var {
        let (output, _) = self.recompute_with(x, [], move |tape, x, []| (block(tape, x), None));
        output
    }

    /// [`Tape::recompute`] of a block that reads `others` too, which are saved as well, and may
    /// give a second output on which the first depends, such as keys that later blocks read.
    ///
    /// Gradients are added up in the same order as without: the block goes on from what is known so
    /// far of those of `others` and of its second output.
    pub fn recompute_with<const N: usize>(
        &mut self,
        x: Var,
        others: [Option<Var>; N],
        block: impl Fn(&mut Tape<'a>, Var, [Option<Var>; N]) -> (Var, Option<Var>) + 'a,
    ) -> (Var, Option<Var>) {
        if !self.recording {
            return block(self, x, others);
        }
        let (output, second) = self.unrecorded(|tape| block(tape, x.clone(), others.clone()));
        let (adapter_rows, compute) = (self.adapter_rows.clone(), self.compute);
        let observer = self.observer;
        // Routers note what they do once.
        let routers = Routers { loads: None, ..self.routers.clone() };
        let requires_grad = output.requires_grad;
        let second_id = second.as_ref().map(Var::id);
        let output = self.push(output.into_value(), requires_grad, move |sweep, d_output| {
            let mut tape = Tape::second_run(sweep.device, sweep.params, compute);
            tape.adapter_rows = adapter_rows;
            tape.adapters = sweep.adapters.clone();
            tape.routers = routers;
            tape.observer = observer;
            let mut known = Vec::new();
            let mut leaves = Vec::new();
            let mut leaf_of = |tape: &mut Tape<'a>, var: Var| {
                let leaf = tape.leaf(var.value, var.requires_grad);
                if leaf.requires_grad {
                    leaves.push((leaf.id, var.id));
                }
                leaf
            };
            let input = leaf_of(&mut tape, x);
            let others = others.map(|other| {
                let leaf = leaf_of(&mut tape, other?);
                Some(leaf)
            });
            for leaf in others.iter().flatten() {
                let outer = leaves.iter().find(|(id, _)| *id == leaf.id).map(|(_, outer)| *outer);
                let gradient = outer.and_then(|outer| sweep.take(outer));
                known.extend(gradient.map(|gradient| (leaf.clone(), gradient)));
            }
            let (output, second) = block(&mut tape, input, others);
            let d_second = second_id.and_then(|id| sweep.take(id));
            let roots = [(output, d_output)].into_iter().chain(second.zip(d_second)).chain(known);
            let mut inner = tape.backward_from(roots, sweep.gradients);
            for (leaf, outer) in leaves {
                if let Some(gradient) = inner.take(leaf) {
                    sweep.add(outer, gradient);
                }
            }
        });
        (output, second)
    }

    /// Runs `body` without recording what it does.
    pub(crate) fn unrecorded<R>(&mut self, body: impl FnOnce(&mut Self) -> R) -> R {
        let recording = std::mem::replace(&mut self.recording, false);
        let result = body(self);
        self.recording = recording;
        result
    }

    /// Backpropagates `d_root` from `root`, accumulating into `gradients`. Returns the gradients of
    /// leaves.
    pub fn backward(self, root: Var, d_root: Tensor, gradients: &mut Gradients) -> LeafGradients {
        self.backward_from([(root, d_root)], gradients)
    }

    /// Backpropagates from several roots in one pass, such as the objective's log-probabilities, an
    /// auxiliary loss, a value head. A root may be an input of another.
    pub fn backward_from(
        self,
        roots: impl IntoIterator<Item = (Var, Tensor)>,
        gradients: &mut Gradients,
    ) -> LeafGradients {
        assert!(self.recording, "an inference tape has no backward pass");
        let mut sweep = Sweep {
            device: self.device,
            params: self.params,
            compute: self.compute,
            gradients,
            adapters: self.adapters,
            of_vars: HashMap::new(),
        };
        // The value may be released before the gradients are computed.
        roots.into_iter().for_each(|(root, d_root)| sweep.add(root.id, d_root));
        for node in self.nodes.into_iter().rev() {
            if let Some(d_output) = sweep.of_vars.remove(&node.output) {
                (node.backward)(&mut sweep, d_output);
            }
        }
        LeafGradients(sweep.of_vars)
    }
}

/// Gradients of the leaves of a tape.
pub struct LeafGradients(HashMap<usize, Tensor>);

impl LeafGradients {
    /// The gradient of `leaf`, if it has one.
    pub fn get(&self, leaf: &Var) -> Option<&Tensor> {
        self.0.get(&leaf.id)
    }

    pub(crate) fn take(&mut self, leaf: usize) -> Option<Tensor> {
        self.0.remove(&leaf)
    }
}

/// A backward pass in progress.
pub(crate) struct Sweep<'s, 'a> {
    pub(crate) device: &'a Device,
    pub(crate) params: &'a Params,
    pub(crate) compute: Compute,
    pub(crate) gradients: &'s mut Gradients,
    pub(crate) adapters: RoundedAdapters,
    of_vars: HashMap<usize, Tensor>,
}

impl Sweep<'_, '_> {
    /// Takes the gradient of a variable accumulated so far, to accumulate into it in place.
    pub(crate) fn take(&mut self, var: usize) -> Option<Tensor> {
        self.of_vars.remove(&var)
    }

    /// Takes the gradient of a variable accumulated so far, or zeros, to add to its columns.
    pub(crate) fn take_or_zeros(&mut self, var: &Var) -> Tensor {
        let (dtype, shape) = (var.value.dtype(), var.value.shape());
        self.take(var.id).unwrap_or_else(|| self.zeros(dtype, shape))
    }

    /// A gradient to add to the columns of.
    pub(crate) fn zeros(&self, dtype: DType, shape: &[usize]) -> Tensor {
        let mut zeros = self.activation(dtype, shape);
        if let Some(on) = self.device.begin(Cost::memory_bound("zero", zeros.num_bytes())) {
            on.zero(zeros.view_mut());
        }
        zeros
    }

    /// Adds to the gradient of a variable.
    pub(crate) fn add(&mut self, var: usize, gradient: Tensor) {
        let Some(mut sum) = self.of_vars.remove(&var) else {
            self.of_vars.insert(var, gradient);
            return;
        };
        let bytes = sum.num_bytes() * 2 + gradient.num_bytes();
        if let Some(on) = self.device.begin(Cost::memory_bound("add", bytes)) {
            on.add_assign(gradient.view(), sum.view_mut());
        }
        self.of_vars.insert(var, sum);
    }

    /// Element type of activations, and of operands of matmuls unless they are quantised.
    pub(crate) fn dtype(&self) -> DType {
        self.compute.dtype()
    }

    /// Allocates the gradient of an input.
    pub(crate) fn activation(&self, dtype: DType, shape: &[usize]) -> Tensor {
        self.device.alloc(Category::Activations, dtype, shape)
    }

    /// Allocates workspace of an operation.
    pub(crate) fn workspace(&self, dtype: DType, shape: &[usize]) -> Tensor {
        self.device.alloc(Category::Workspace, dtype, shape)
    }
}
