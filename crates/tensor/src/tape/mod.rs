//! The coarse tape: what the forward pass leaves for the backward pass.
//!
//! Every operation has one output. It pushes a closure that turns the output's gradient into
//! gradients of its inputs and of trained parameters. The closure owns what it needs, so memory is
//! released as the backward pass goes. Nothing is recorded for an output that needs no gradient.

use crate::ops::RoundedAdapters;
use crate::{AdapterRows, Category, Cost, DType, Device, Gradients, Params, Tensor};
use hone_kernels::gemm::quantises_operands;
use std::collections::HashMap;
use std::sync::Arc;

/// What products are computed in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compute {
    /// `f32`.
    F32,
    /// bf16 operands, sums in `f32`.
    Bf16,
    /// f16 operands, sums in `f32`; on a GPU.
    F16,
    /// As [`Compute::Bf16`], but projections whose frozen weights are held as int8 in FP8, on a
    /// GPU: activations and weights as E4M3, gradients as E5M2, with a factor for each operand.
    Fp8,
    /// As [`Compute::Bf16`], but with frozen weights that are held as int8 in 8-bit integers: the
    /// other operand is quantised row by row.
    Int8,
}

impl Compute {
    /// Its name in run files and messages.
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

    /// Whether products with `weight` along dimensions of these lengths are in integers, which the
    /// CPU multiplies in fours. A GPU decides inside the operation, where operands are quantised.
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

/// Names the random numbers of a micro-batch.
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
    /// Which rows belong to which adapter.
    adapter_rows: Arc<[AdapterRows]>,
    recording: bool,
    nodes: Vec<Node<'a>>,
    num_vars: usize,
    adapters: RoundedAdapters,
}

impl<'a> Tape<'a> {
    /// A tape that records, with dropout if `step` is given. All rows are the only adapter's.
    pub fn training(
        device: &'a Device,
        params: &'a Params,
        compute: Compute,
        step: Option<StepKey>,
    ) -> Self {
        let (nodes, num_vars, adapters) = Default::default();
        let adapter_rows = Arc::new([AdapterRows::all(step)]);
        Self { device, params, compute, adapter_rows, recording: true, nodes, num_vars, adapters }
    }

    /// Gives an adapter to each of some ranges of rows, instead of the only one to all. Rows in
    /// none of them go without.
    ///
    /// # Panics
    /// If ranges overlap or do not ascend.
    pub fn set_adapter_rows(&mut self, adapter_rows: &[AdapterRows]) {
        let bounds =
            adapter_rows.iter().flat_map(|AdapterRows { rows, .. }| [rows.start, rows.end]);
        assert!(bounds.is_sorted(), "rows of adapters overlap or do not ascend");
        self.adapter_rows = adapter_rows.into();
    }

    /// A tape that records nothing.
    pub fn inference(device: &'a Device, params: &'a Params, compute: Compute) -> Self {
        Self { recording: false, ..Self::training(device, params, compute, None) }
    }

    /// The device that operations run on.
    pub fn device(&self) -> &'a Device {
        self.device
    }

    /// The trained parameters.
    pub fn params(&self) -> &'a Params {
        self.params
    }

    /// Element type of activations, and of products unless they are in integers.
    pub fn dtype(&self) -> DType {
        self.compute.dtype()
    }

    /// What products are computed in.
    pub(crate) fn compute(&self) -> Compute {
        self.compute
    }

    /// Which rows belong to which adapter.
    pub(crate) fn adapter_rows(&self) -> &Arc<[AdapterRows]> {
        &self.adapter_rows
    }

    /// Adapters that [`crate::ops::round_adapters`] rounded for this pass.
    pub(crate) fn adapters(&self) -> &RoundedAdapters {
        &self.adapters
    }

    /// Those of this pass from now on.
    pub(crate) fn set_adapters(&mut self, adapters: RoundedAdapters) {
        self.adapters = adapters;
    }

    /// A value that comes from outside.
    pub fn leaf(&mut self, value: Tensor, requires_grad: bool) -> Var {
        self.var(value, requires_grad)
    }

    /// Memory for an output or for what is kept for backward.
    pub(crate) fn activation(&self, dtype: DType, shape: &[usize]) -> Tensor {
        self.device.alloc(Category::Activations, dtype, shape)
    }

    /// Whether backward closures are kept.
    pub(crate) fn is_recording(&self) -> bool {
        self.recording
    }

    /// Makes `value` the output of an operation. `backward` is kept only if it will be needed.
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

    /// Runs `block` on `x` keeping only `x`; the backward pass runs it again (Chen et al.,
    /// "Training Deep Nets with Sublinear Memory Cost", 2016).
    pub fn recompute(&mut self, x: Var, block: impl Fn(&mut Tape<'a>, Var) -> Var + 'a) -> Var {
        if !self.recording {
            return block(self, x);
        }
        self.recording = false;
        let output = block(self, x.clone());
        self.recording = true;
        let (adapter_rows, compute) = (self.adapter_rows.clone(), self.compute);
        let requires_grad = output.requires_grad;
        self.push(output.into_value(), requires_grad, move |sweep, d_output| {
            let mut tape = Tape::training(sweep.device, sweep.params, compute, None);
            tape.adapter_rows = adapter_rows;
            tape.adapters = sweep.adapters.clone();
            let input = tape.leaf(x.value, x.requires_grad);
            let (input_id, input_grad) = (input.id, x.requires_grad);
            let output = block(&mut tape, input);
            let mut inner = tape.sweep_back(output, d_output, sweep.gradients);
            if let Some(d_input) = inner.take(input_id).filter(|_| input_grad) {
                sweep.add(x.id, d_input);
            }
        })
    }

    /// Sends `d_root` back from `root`; adds to `gradients`. Returns the gradients of leaves.
    pub fn sweep_back(self, root: Var, d_root: Tensor, gradients: &mut Gradients) -> LeafGradients {
        self.sweep_back_from([(root, d_root)], gradients)
    }

    /// Sends a gradient back from each of several roots in one pass: the objective's
    /// log-probabilities, an auxiliary loss, a value head. A root may be an input of another.
    pub fn sweep_back_from(
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
    /// The gradient of `leaf`, if any flowed to it.
    pub fn get(&self, leaf: &Var) -> Option<&Tensor> {
        self.0.get(&leaf.id)
    }

    pub(crate) fn take(&mut self, leaf: usize) -> Option<Tensor> {
        self.0.remove(&leaf)
    }
}

/// A backward pass under way.
pub(crate) struct Sweep<'s, 'a> {
    pub(crate) device: &'a Device,
    pub(crate) params: &'a Params,
    pub(crate) compute: Compute,
    pub(crate) gradients: &'s mut Gradients,
    pub(crate) adapters: RoundedAdapters,
    of_vars: HashMap<usize, Tensor>,
}

impl Sweep<'_, '_> {
    /// The gradient of a variable as far as it is known, to add to it.
    pub(crate) fn take(&mut self, var: usize) -> Option<Tensor> {
        self.of_vars.remove(&var)
    }

    /// Adds to the gradient of a variable.
    pub(crate) fn add(&mut self, var: usize, gradient: Tensor) {
        let Some(mut sum) = self.of_vars.remove(&var) else {
            self.of_vars.insert(var, gradient);
            return;
        };
        let bytes = sum.num_bytes() * 2 + gradient.num_bytes();
        if let Some(on) = self.device.begin(Cost::memory("add", bytes)) {
            on.add_assign(gradient.view(), sum.view_mut());
        }
        self.of_vars.insert(var, sum);
    }

    /// Element type of activations, and of products unless they are in integers.
    pub(crate) fn dtype(&self) -> DType {
        self.compute.dtype()
    }

    /// Memory for a gradient that flows on.
    pub(crate) fn activation(&self, dtype: DType, shape: &[usize]) -> Tensor {
        self.device.alloc(Category::Activations, dtype, shape)
    }

    /// Memory for use inside one operation.
    pub(crate) fn workspace(&self, dtype: DType, shape: &[usize]) -> Tensor {
        self.device.alloc(Category::Workspace, dtype, shape)
    }
}
