//! The check that every operation passes: [`check_op`].
//!
//! For one case it compares forward and gradients with the `f64` reference, the reference with
//! finite differences, every instruction set and number of threads with each other bit by bit, also
//! where operands are subnormal, infinite or no numbers, and a run inside the arena that the dry
//! device planned with a run on the heap.

use crate::device::Category;
use crate::safetensors::load_as;
use crate::{
    Arena, Compute, DType, Device, Gradients, Isa, Layout, ParamId, Params, Philox, StepKey,
    Storage, Tape, Target, Tensor, Var, Weight, Work,
};
use hone_kernels::cuda::Gpu;
use hone_kernels::{Processor, bf16, f16, memory, testing};
use std::sync::Arc;

/// Random numbers of the step in every check.
pub const STEP: StepKey = StepKey { seed: 11, step: 3, micro_batch: 2 };

/// Half the distance between bf16 numbers just above one: the largest relative rounding error.
const BF16_ROUNDING: f64 = 1.0 / 256.0;

/// The largest relative rounding error of f16.
const F16_ROUNDING: f64 = 1.0 / 2048.0;

/// An operation with everything it is applied to.
pub trait Operation {
    /// Inputs, weights and parameters.
    fn operands(&self) -> &Operands;
    /// Its weights, to be copied to the device that it runs on.
    fn weights_mut(&mut self) -> Vec<&mut Weight> {
        Vec::new()
    }
    /// Applies the operation to its leaves, which are in the order of the operands.
    fn run<'a>(&'a self, tape: &mut Tape<'a>, leaves: Vec<Var>) -> Var;
    /// Whether products are in integers with this compute type.
    fn is_integer_in(&self, _: Compute, _: Target) -> bool {
        false
    }
    /// The reference's output for values of all operands.
    fn forward(&self, x: &[Vec<f64>]) -> Vec<f64>;
    /// The reference's gradients, one per operand; empty for an operand without one.
    fn backward(&self, x: &[Vec<f64>], d_y: &[f64]) -> Vec<Vec<f64>>;
}

/// Kind of an operand.
#[derive(Clone, Copy, PartialEq)]
pub enum Kind {
    /// An input that is always `f32`: the residual stream.
    Stream,
    /// An input in the compute type.
    Activation,
    /// A trained parameter.
    Trained,
    /// A weight that has no gradient.
    Frozen(Storage),
}

struct Operand {
    kind: Kind,
    shape: Vec<usize>,
    values: Vec<f32>,
    requires_grad: bool,
    /// A frozen weight as it is stored: packing its values again may give different ones.
    held: Option<Tensor>,
}

/// The operands of one case, filled with standard normal numbers.
#[derive(Default)]
pub struct Operands(Vec<Operand>);

impl Operands {
    /// Adds an operand and returns its index.
    pub fn add(&mut self, kind: Kind, shape: &[usize]) -> usize {
        self.add_with(kind, shape, |_, x| x)
    }

    /// Adds an operand whose values are functions of their index and a standard normal number.
    pub fn add_with(
        &mut self,
        kind: Kind,
        shape: &[usize],
        value: impl Fn(usize, f32) -> f32,
    ) -> usize {
        let random = Philox::new(5, self.0.len() as u64);
        let len = shape.iter().product::<usize>();
        let values = (0..len).map(|i| value(i, random.normal(i as u64))).collect();
        let mut operand =
            Operand { kind, shape: shape.to_vec(), values, requires_grad: true, held: None };
        if let Kind::Frozen(storage) = kind {
            let held = match storage {
                Storage::Packed(format) if testing::is_of_files(format) => {
                    let matrix = [shape[0], shape[1]];
                    let bytes = testing::weights_of_file(format, matrix, self.0.len() as u64);
                    Tensor::from_bytes(&bytes, storage, shape)
                }
                _ => tensor_of(&operand.values, storage, shape),
            };
            operand.values = held.view().to_vec_f32();
            operand.requires_grad = false;
            operand.held = Some(held);
        }
        self.0.push(operand);
        self.0.len() - 1
    }

    /// Adds an input that requires no gradient.
    pub fn add_constant(&mut self, kind: Kind, shape: &[usize]) -> usize {
        let index = self.add(kind, shape);
        self.0[index].requires_grad = false;
        index
    }

    /// A frozen or trained operand as operations take it.
    pub fn weight(&self, index: usize) -> Weight {
        let Operand { shape, held, .. } = &self.0[index];
        match held {
            Some(held) => Weight::Frozen(held.clone()),
            None => Weight::Trained { param: self.param(index), shape: shape.clone() },
        }
    }

    /// The parameter that a trained operand is.
    pub fn param(&self, index: usize) -> ParamId {
        assert!(self.0[index].kind == Kind::Trained);
        ParamId(self.0[..index].iter().filter(|o| o.kind == Kind::Trained).count())
    }

    fn is_leaf(&self, index: usize) -> bool {
        matches!(self.0[index].kind, Kind::Stream | Kind::Activation)
    }

    fn leaf_dtype(&self, index: usize, compute: Compute) -> DType {
        if self.0[index].kind == Kind::Activation { compute.dtype() } else { DType::F32 }
    }

    /// Exactly what a run with this compute type starts from.
    fn values(&self, compute: Compute) -> Vec<Vec<f64>> {
        let values = |i: usize| f64s(&rounded(&self.0[i].values, self.leaf_dtype(i, compute)));
        (0..self.0.len()).map(values).collect()
    }

    pub fn params(&self, device: &Device) -> Params {
        self.special_params(device, as_it_is)
    }

    fn special_params(&self, device: &Device, special: Special) -> Params {
        let mut params = Params::default();
        for (i, o) in self.0.iter().enumerate().filter(|(_, o)| o.kind == Kind::Trained) {
            let values = specials(&o.values, special);
            params.add(format!("operand {i}"), on(device, &values, DType::F32, &o.shape));
        }
        params
    }
}

/// `values` after being packed and unpacked in an array of that shape.
pub fn stored(values: &[f32], storage: impl Into<Storage>, shape: &[usize]) -> Vec<f32> {
    tensor_of(values, storage, shape).view().to_vec_f32()
}

/// `values` rounded to `dtype`.
pub fn rounded(values: &[f32], dtype: DType) -> Vec<f32> {
    stored(values, dtype, &[values.len()])
}

/// A tensor of `values`, rounded to nearest.
pub fn tensor_of(values: &[f32], storage: impl Into<Storage>, shape: &[usize]) -> Tensor {
    let storage = storage.into();
    let Some(dtype) = storage.float() else {
        let values = Tensor::from_f32(values, shape);
        return load_as(&Device::cpu(1), Category::Weights, &values, storage).unwrap();
    };
    let bytes: Vec<u8> = match dtype {
        DType::F32 => memory::bytes_of(crate::View::F32(values)).to_vec(),
        DType::Bf16 => values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect(),
        DType::F16 => values.iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect(),
    };
    Tensor::from_bytes(&bytes, dtype, shape)
}

/// A tensor in the device's memory; on the dry device, only a shape.
fn on(device: &Device, values: &[f32], dtype: DType, shape: &[usize]) -> Tensor {
    match device.is_dry() {
        true => device.persistent(Category::Activations, dtype, shape).unwrap(),
        false => device.upload(Category::Activations, &tensor_of(values, dtype, shape)).unwrap(),
    }
}

/// Converts to f64.
pub fn f64s(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&v| f64::from(v)).collect()
}

/// Standard normal numbers.
pub fn normals(stream: u64, len: usize) -> Vec<f32> {
    let random = Philox::new(17, stream);
    (0..len as u64).map(|i| random.normal(i)).collect()
}

/// A result of a run: its type and shape, and its elements where the device has memory.
#[derive(Debug)]
pub struct Found {
    dtype: DType,
    shape: Vec<usize>,
    pub values: Vec<f32>,
}

impl Found {
    /// Copies a tensor.
    pub fn new(device: &Device, tensor: &Tensor) -> Self {
        let values = if device.is_dry() { Vec::new() } else { tensor.to_vec_f32() };
        Self { dtype: tensor.dtype(), shape: tensor.shape().to_vec(), values }
    }

    /// Type, shape and every bit.
    pub fn is_identical(&self, other: &Found) -> bool {
        let bits = |x: &Found| x.values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        self.has_shape_of(other) && bits(self) == bits(other)
    }

    fn has_shape_of(&self, other: &Found) -> bool {
        (self.dtype, &self.shape) == (other.dtype, &other.shape)
    }
}

/// The output, then the gradient of each operand, if it has one.
type Outcome = Vec<Option<Found>>;

/// Checks one case in `f32` and in `bf16` on the CPU, and on a GPU in `f16` as well.
pub fn check_op(name: &str, op: &mut dyn Operation) {
    let computes = [Compute::F32, Compute::Bf16];
    check_op_in(&computes, name, op);
    for compute in computes.into_iter().chain([Compute::F16]) {
        check_op_on_gpu(compute, name, op);
    }
}

/// Checks one case on a GPU.
pub fn check_op_on_gpu(compute: Compute, name: &str, op: &mut dyn Operation) {
    let gpu = match compute {
        Compute::Fp8 => Gpu::for_tests_in_fp8(),
        _ => Gpu::for_tests(),
    };
    if let Some(gpu) = gpu {
        check_on_gpu(compute, name, op, &Device::cuda(gpu));
    }
}

/// Checks one case on the CPU.
pub fn check_op_in(computes: &[Compute], name: &str, op: &dyn Operation) {
    check_reference(name, op);
    for &compute in computes {
        let name = format!("{name}, {compute:?}");
        let first = on_heap(op, &Device::cpu_with_isa(1, Isa::Scalar), compute);
        check_against_reference(&name, op, compute, &first);
        for device in devices() {
            let cpu = device.as_cpu().expect("a CPU");
            let name = format!("{name}, {:?} with {} threads", cpu.isa(), cpu.threads());
            check_identical(&name, &first, &on_heap(op, &device, compute));
        }
        check_plan(&name, op, compute, &first, &Device::cpu(2));
        for special in [subnormal, not_finite] {
            check_special(&name, op, compute, special);
        }
    }
}

/// Every instruction set gives the same bits for numbers that are no normal ones.
fn check_special(name: &str, op: &dyn Operation, compute: Compute, special: Special) {
    let run = |isa| {
        let device = Device::cpu_with_isa(2, isa);
        let params = op.operands().special_params(&device, special);
        let mut gradients = Gradients::zeros(&device, &params).unwrap();
        let mut found = step_with(op, &device, compute, (&params, special), &mut gradients);
        let nans = found.iter_mut().flatten().flat_map(|found| &mut found.values);
        // Which of two that meet is kept, IEEE 754 leaves open.
        nans.filter(|x| x.is_nan()).for_each(|x| *x = f32::NAN);
        found
    };
    let first = run(Isa::Scalar);
    for isa in Isa::available() {
        check_identical(&format!("{name}, special numbers, {isa:?}"), &first, &run(isa));
    }
}

/// Puts special numbers in the places of some, given their index.
type Special = fn(usize, f32) -> f32;

fn specials(values: &[f32], special: Special) -> Vec<f32> {
    values.iter().enumerate().map(|(i, x)| special(i, *x)).collect()
}

fn as_it_is(_: usize, x: f32) -> f32 {
    x
}

fn subnormal(i: usize, x: f32) -> f32 {
    match i % 5 {
        0 => x * 1e-39,
        1 => x * 1e-20,
        _ => x,
    }
}

fn not_finite(i: usize, x: f32) -> f32 {
    match i % 101 {
        17 => f32::INFINITY,
        53 => f32::NEG_INFINITY,
        71 => f32::NAN,
        _ => x,
    }
}

/// Checks one case on a GPU, which gives its own bits each time, not necessarily the CPU's.
fn check_on_gpu(compute: Compute, name: &str, op: &mut dyn Operation, gpu: &Device) {
    let name = format!("{name}, {compute:?} on a GPU");
    let held = |weight: &Weight| match weight {
        Weight::Frozen(tensor) => Weight::Frozen(gpu.upload(Category::Weights, tensor).unwrap()),
        trained => trained.clone(),
    };
    let on_host: Vec<Weight> = op.weights_mut().into_iter().map(|weight| weight.clone()).collect();
    op.weights_mut().into_iter().for_each(|weight| *weight = held(weight));
    let first = on_heap(op, gpu, compute);
    check_against_reference(&name, op, compute, &first);
    check_identical(&name, &first, &on_heap(op, gpu, compute));
    check_plan(&name, op, compute, &first, gpu);
    op.weights_mut().into_iter().zip(on_host).for_each(|(weight, old)| *weight = old);
}

/// Every instruction set with 1 and 3 threads, the best with 2 as well.
pub fn devices() -> Vec<Device> {
    let of_isa = |isa| [1, 3].map(|threads| Device::cpu_with_isa(threads, isa));
    Isa::available().into_iter().flat_map(of_isa).chain([Device::cpu(2)]).collect()
}

fn on_heap(op: &dyn Operation, device: &Device, compute: Compute) -> Outcome {
    let params = op.operands().params(device);
    step(op, device, compute, &params, &mut Gradients::zeros(device, &params).unwrap())
}

fn step(
    op: &dyn Operation,
    device: &Device,
    compute: Compute,
    params: &Params,
    gradients: &mut Gradients,
) -> Outcome {
    step_with(op, device, compute, (params, as_it_is), gradients)
}

fn step_with(
    op: &dyn Operation,
    device: &Device,
    compute: Compute,
    (params, special): (&Params, Special),
    gradients: &mut Gradients,
) -> Outcome {
    let given = op.operands();
    let mut tape = Tape::training(device, params, compute, Some(STEP));
    let (mut leaves, mut ids) = (Vec::new(), vec![None; given.0.len()]);
    for (i, operand) in given.0.iter().enumerate().filter(|&(i, _)| given.is_leaf(i)) {
        let dtype = given.leaf_dtype(i, compute);
        let leaf = on(device, &specials(&operand.values, special), dtype, &operand.shape);
        let leaf = tape.leaf(leaf, operand.requires_grad);
        ids[i] = Some(leaf.id());
        leaves.push(leaf);
    }
    let y = op.run(&mut tape, leaves);
    let output = Found::new(device, y.value());
    let d_y = specials(&normals(0, y.value().len()), special);
    let d_y = on(device, &d_y, output.dtype, &output.shape);
    let mut of_leaves = tape.backward(y, d_y, gradients);
    let gradient = |(i, id): (usize, Option<usize>)| match (given.0[i].kind, id) {
        (Kind::Trained, _) => Some(Found::new(device, gradients.get(given.param(i)))),
        (_, Some(id)) => of_leaves.take(id).map(|d| Found::new(device, &d)),
        _ => None,
    };
    let gradients = ids.into_iter().enumerate().map(gradient);
    std::iter::once(Some(output)).chain(gradients).collect()
}

fn check_identical(name: &str, first: &Outcome, again: &Outcome) {
    for (i, (first, again)) in first.iter().zip(again).enumerate() {
        let same = match (first, again) {
            (Some(first), Some(again)) => first.is_identical(again),
            (None, None) => true,
            _ => false,
        };
        assert!(same, "{name}: result {i} differs between devices");
    }
}

/// The dry device sees the same shapes, and the step runs in the memory that it planned.
fn check_plan(name: &str, op: &dyn Operation, compute: Compute, first: &Outcome, device: &Device) {
    let dry = Device::dry_as(device.target());
    let params = op.operands().params(&dry);
    let mut gradients = Gradients::zeros(&dry, &params).unwrap();
    let (counted, trace) = dry.trace(|| step(op, &dry, compute, &params, &mut gradients));
    for (i, pair) in first.iter().zip(&counted).enumerate() {
        let same = match pair {
            (Some(real), Some(dry)) => real.has_shape_of(dry),
            (real, dry) => real.is_none() && dry.is_none(),
        };
        assert!(same, "{name}: the dry device has another shape for result {i}: {pair:?}");
    }
    let costs = dry.take_costs();
    let in_integers = costs.iter().any(|cost| cost.executed_flops(Work::Int8) > 0);
    assert_eq!(
        in_integers,
        op.is_integer_in(compute, device.target()),
        "{name}: products in integers"
    );
    let layout = Arc::new(Layout::of(trace));
    assert!(layout.bytes() >= layout.at_peak().values().sum(), "{name}: more is live than fits");
    let mut arena = Arena::new(device, layout.bytes()).unwrap();
    let params = op.operands().params(device);
    for _ in 0..2 {
        let mut gradients = Gradients::zeros(device, &params).unwrap();
        let body = || step(op, device, compute, &params, &mut gradients);
        check_identical(name, first, &device.planned(&mut arena, &layout, body).unwrap());
    }
    if let Some(Processor::Cuda(gpu)) = device.processor() {
        let planned = costs.iter().map(|cost| cost.scratch_bytes).max().unwrap_or(0) as usize;
        let taken = gpu.max_scratch_bytes();
        assert!(taken <= planned + UPLOADS, "{name}: {taken} bytes inside, {planned} planned");
    }
}

/// Scratch bytes of an operation for uploads and alignment, in the largest case.
const UPLOADS: usize = 40 << 10;

fn check_against_reference(name: &str, op: &dyn Operation, compute: Compute, found: &Outcome) {
    let x = op.operands().values(compute);
    let output = found[0].as_ref().expect("there always is an output");
    let d_y = f64s(&rounded(&normals(0, output.values.len()), output.dtype));
    let tolerance = Tolerance::of(compute);
    tolerance.compare(&format!("{name}: output"), &output.values, &op.forward(&x));
    for (i, exact) in op.backward(&x, &d_y).iter().enumerate() {
        let name = format!("{name}: gradient of operand {i}");
        match &found[i + 1] {
            Some(found) => tolerance.compare(&name, &found.values, exact),
            None => assert!(!op.operands().0[i].requires_grad, "{name} is missing"),
        }
        let wanted = op.operands().0[i].requires_grad;
        assert!(wanted || found[i + 1].is_none(), "{name} is nobody's");
    }
}

/// The same operation, run again in the backward pass.
pub struct Recomputed<O>(pub O);

impl<O: Operation> Operation for Recomputed<O> {
    fn operands(&self) -> &Operands {
        self.0.operands()
    }
    fn weights_mut(&mut self) -> Vec<&mut Weight> {
        self.0.weights_mut()
    }
    fn run<'a>(&'a self, tape: &mut Tape<'a>, mut leaves: Vec<Var>) -> Var {
        tape.recompute(leaves.remove(0), |tape, x| self.0.run(tape, vec![x]))
    }
    fn forward(&self, x: &[Vec<f64>]) -> Vec<f64> {
        self.0.forward(x)
    }
    fn backward(&self, x: &[Vec<f64>], d_y: &[f64]) -> Vec<Vec<f64>> {
        self.0.backward(x, d_y)
    }
}

/// Tolerances, relative to the size of the reference.
#[derive(Clone, Copy)]
pub struct Tolerance {
    /// Of the norm.
    norm: f64,
    /// Of the worst element, relative to the largest.
    greatest: f64,
}

impl Tolerance {
    /// For bf16 and f16: operands, intermediate results and outputs are each rounded once, with an
    /// error of 0.41 of [`BF16_ROUNDING`] or [`F16_ROUNDING`] in the mean square; nothing here
    /// rounds more than five times in a row, and independent errors add as squares: 0.41 · √5 < 1.
    /// Cases of a few elements scatter by a factor of two; single elements get three.
    pub fn of(compute: Compute) -> Self {
        match compute {
            Compute::F32 => Self { norm: 2e-6, greatest: 4e-6 },
            // A row of normal numbers reaches 2 to 4, so a step is up to 4 / 127 and its error in
            // the mean square 0.29 of that; two operands may have it.
            Compute::Int8 => Self { norm: 0.02, greatest: 0.03 },
            // Rounding to three bits of mantissa is off by 0.026 in the mean square, to two bits,
            // as gradients are, by 0.052.
            Compute::Fp8 => Self { norm: 0.09, greatest: 0.12 },
            Compute::Bf16 => Self { norm: 2.0 * BF16_ROUNDING, greatest: 3.0 * BF16_ROUNDING },
            // A GPU rounds once more where an adapter's product is added: √6.
            Compute::F16 => Self { norm: 2.5 * F16_ROUNDING, greatest: 3.5 * F16_ROUNDING },
        }
    }

    /// Compares element by element and as a whole.
    pub fn compare(self, name: &str, found: &[f32], exact: &[f64]) {
        let (norm, greatest) = errors(name, found, exact);
        assert!(norm <= self.norm, "{name}: off by {norm:.2e} in norm, {:.2e} allowed", self.norm);
        let allowed = self.greatest;
        assert!(greatest <= allowed, "{name}: an element is off by {greatest:.2e}, {allowed:.2e}");
    }
}

/// Errors of the norm and of the worst element, relative to norm and largest element of `exact`.
fn errors(name: &str, found: &[f32], exact: &[f64]) -> (f64, f64) {
    assert_eq!(found.len(), exact.len(), "{name}: length");
    let (mut error, mut size) = ((0.0, 0.0f64), (0.0, 0.0f64));
    for (&found, &exact) in found.iter().zip(exact) {
        assert!(found.is_finite(), "{name}: {found} where {exact} belongs");
        let off = (f64::from(found) - exact).abs();
        error = (error.0 + off * off, error.1.max(off));
        size = (size.0 + exact * exact, size.1.max(exact.abs()));
    }
    if error.1 == 0.0 { (0.0, 0.0) } else { ((error.0 / size.0).sqrt(), error.1 / size.1) }
}

/// The reference's gradients along two random directions per operand, against central differences.
fn check_reference(name: &str, op: &dyn Operation) {
    let x = op.operands().values(Compute::F32);
    let d_y = f64s(&normals(0, op.forward(&x).len()));
    let loss = |x: &[Vec<f64>]| dot(&op.forward(x), &d_y);
    for (i, gradient) in op.backward(&x, &d_y).iter().enumerate() {
        if gradient.is_empty() {
            continue;
        }
        for stream in [1, 2] {
            let direction = f64s(&normals(stream, gradient.len()));
            let at = |h: f64| {
                let mut x = x.to_vec();
                x[i].iter_mut().zip(&direction).for_each(|(x, d)| *x += h * d);
                loss(&x)
            };
            const H: f64 = 1e-5;
            let difference = (at(H) - at(-H)) / (2.0 * H);
            let exact = dot(gradient, &direction);
            let size = (dot(gradient, gradient) * dot(&direction, &direction)).sqrt() + 1e-3;
            let error = (difference - exact).abs() / size;
            assert!(error < 1e-7, "{name}: reference gradient {i}: {difference} against {exact}");
        }
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// The bf16 tolerance lets rounding pass and nothing else.
#[test]
fn the_tolerance_is_not_vacuous() {
    let values = normals(3, 1000);
    let exact = f64s(&values);
    let tolerance = Tolerance::of(Compute::Bf16);
    tolerance.compare("rounded", &rounded(&values, DType::Bf16), &exact);
    let fails = |found: Vec<f32>| {
        std::panic::catch_unwind(|| tolerance.compare("wrong", &found, &exact)).is_err()
    };
    assert!(fails(values.iter().map(|v| v * 1.01).collect()), "a factor");
    let mut one_wrong = values.clone();
    one_wrong[500] += 0.05;
    assert!(fails(one_wrong), "one element");
    assert!(fails(vec![0.0; values.len()]), "nothing");
    assert!(fails(vec![f32::NAN; values.len()]), "NaN");
}
