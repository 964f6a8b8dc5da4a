//! cuDNN's graphs: tensors and operations on them, and plans to carry them out.
//!
//! Numbers and calls are those of NVIDIA's header `cudnn_graph.h` and of the chapter "Graph API" of
//! cuDNN's documentation.

use super::library::{Library, Opaque};
use std::ffi::c_void;

/// Kinds of descriptors.
pub(super) mod kind {
    pub(crate) const POINTWISE: i32 = 0;
    pub(crate) const ENGINE_CONFIG: i32 = 3;
    pub(crate) const HEURISTICS: i32 = 4;
    pub(crate) const PLAN: i32 = 5;
    pub(crate) const POINTWISE_OPERATION: i32 = 13;
    pub(crate) const GRAPH: i32 = 15;
    pub(crate) const VARIANT_PACK: i32 = 16;
    pub(crate) const TENSOR: i32 = 17;
    pub(crate) const MATMUL: i32 = 18;
    pub(crate) const MATMUL_OPERATION: i32 = 19;
    pub(crate) const REDUCTION: i32 = 21;
    pub(crate) const REDUCTION_OPERATION: i32 = 22;
    pub(crate) const RESHAPE_OPERATION: i32 = 31;
    #[cfg(test)]
    pub(crate) const DEVICE: i32 = 38;
}

/// Attributes of descriptors.
pub(super) mod attribute {
    pub(crate) const POINTWISE_MODE: i32 = 0;
    pub(crate) const POINTWISE_PRECISION: i32 = 1;
    pub(crate) const POINTWISE_AXIS: i32 = 9;
    pub(crate) const HEURISTICS_MODE: i32 = 200;
    pub(crate) const HEURISTICS_GRAPH: i32 = 201;
    pub(crate) const HEURISTICS_RESULTS: i32 = 202;
    #[cfg(test)]
    pub(crate) const HEURISTICS_DEVICE: i32 = 204;
    pub(crate) const PLAN_CONFIG: i32 = 401;
    pub(crate) const PLAN_WORKSPACE: i32 = 402;
    pub(crate) const POINTWISE_DESCRIPTOR: i32 = 750;
    pub(crate) const POINTWISE_X: i32 = 751;
    pub(crate) const POINTWISE_B: i32 = 752;
    pub(crate) const POINTWISE_Y: i32 = 753;
    pub(crate) const POINTWISE_T: i32 = 758;
    pub(crate) const GRAPH_HANDLE: i32 = 800;
    pub(crate) const GRAPH_OPERATIONS: i32 = 801;
    pub(crate) const TENSOR_ALIGNMENT: i32 = 900;
    pub(crate) const TENSOR_TYPE: i32 = 901;
    pub(crate) const TENSOR_DIMS: i32 = 902;
    pub(crate) const TENSOR_STRIDES: i32 = 903;
    pub(crate) const TENSOR_ID: i32 = 906;
    pub(crate) const TENSOR_IS_VIRTUAL: i32 = 907;
    pub(crate) const TENSOR_IS_BY_VALUE: i32 = 908;
    pub(crate) const TENSOR_STARTS: i32 = 913;
    pub(crate) const PACK_IDS: i32 = 1000;
    pub(crate) const PACK_POINTERS: i32 = 1001;
    pub(crate) const PACK_WORKSPACE: i32 = 1003;
    pub(crate) const MATMUL_PRECISION: i32 = 1500;
    pub(crate) const MATMUL_A: i32 = 1520;
    pub(crate) const MATMUL_B: i32 = 1521;
    pub(crate) const MATMUL_C: i32 = 1522;
    pub(crate) const MATMUL_DESCRIPTOR: i32 = 1523;
    pub(crate) const MATMUL_M: i32 = 1525;
    pub(crate) const MATMUL_N: i32 = 1526;
    pub(crate) const MATMUL_K: i32 = 1527;
    pub(crate) const REDUCTION_MODE: i32 = 1600;
    pub(crate) const REDUCTION_PRECISION: i32 = 1601;
    pub(crate) const REDUCTION_X: i32 = 1610;
    pub(crate) const REDUCTION_Y: i32 = 1611;
    pub(crate) const REDUCTION_DESCRIPTOR: i32 = 1612;
    pub(crate) const RESHAPE_X: i32 = 2200;
    pub(crate) const RESHAPE_Y: i32 = 2201;
    #[cfg(test)]
    pub(crate) const DEVICE_DESCRIPTION: i32 = 2702;
}

/// A value of an attribute.
///
/// # Safety
/// Values lie in memory as cuDNN reads those of type `TYPE`.
pub(super) unsafe trait Value: Copy {
    const TYPE: i32;
}

macro_rules! values {
    ($($(#[$doc:meta])* $name:ident($inner:ty) = $type:literal;)*) => { $(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(transparent)]
        pub(super) struct $name(pub(super) $inner);
        // SAFETY: the header says so.
        unsafe impl Value for $name { const TYPE: i32 = $type; }
    )* };
}

values! {
    /// cuDNN's state on a device.
    Handle(Opaque) = 0;
    /// Type of elements.
    Type(i32) = 1;
    /// A C `bool`.
    Flag(bool) = 2;
    /// On the device, or the host's for what is given by value.
    Pointer(u64) = 6;
    /// How to look for engines.
    Heuristics(i32) = 8;
    /// An operation on each element.
    Mode(i32) = 14;
    /// Another descriptor.
    Reference(Opaque) = 15;
    /// What elements are reduced by.
    Reduction(i32) = 18;
}

// SAFETY: the header says so.
unsafe impl Value for i64 {
    const TYPE: i32 = 3;
}
// SAFETY: the header says so.
#[cfg(test)]
unsafe impl Value for u8 {
    const TYPE: i32 = 24;
}

impl Type {
    pub(super) const F32: Self = Self(0);
    pub(super) const F16: Self = Self(2);
    pub(super) const I32: Self = Self(4);
    pub(super) const BF16: Self = Self(9);
    pub(super) const I64: Self = Self(10);
    pub(super) const BOOL: Self = Self(11);
}

impl Mode {
    pub(super) const ADD: Self = Self(0);
    pub(super) const MUL: Self = Self(1);
    pub(super) const DIV: Self = Self(6);
    pub(super) const SUB: Self = Self(9);
    pub(super) const EXP: Self = Self(13);
    pub(super) const LOG: Self = Self(15);
    pub(super) const IDENTITY: Self = Self(21);
    pub(super) const GREATER: Self = Self(302);
    pub(super) const GREATER_OR_EQUAL: Self = Self(303);
    pub(super) const LESS: Self = Self(304);
    pub(super) const AND: Self = Self(400);
    /// The position along an axis.
    pub(super) const INDEX: Self = Self(501);
    pub(super) const SELECT: Self = Self(601);
}

impl Reduction {
    pub(super) const ADD: Self = Self(0);
    pub(super) const MAX: Self = Self(3);
}

/// The mode that NVIDIA recommends.
const HEURISTICS: Heuristics = Heuristics(3);
/// Bytes that addresses are multiples of.
pub(super) const ALIGNMENT: u64 = 16;

/// What cuDNN describes things by.
pub(super) struct Descriptor {
    library: &'static Library,
    raw: Opaque,
}

impl Descriptor {
    pub(super) fn new(library: &'static Library, kind: i32) -> Result<Self, String> {
        let mut raw = std::ptr::null_mut();
        // SAFETY: writes the descriptor.
        let status = unsafe { (library.create_descriptor)(kind, &mut raw) };
        library.check("making a descriptor", status)?;
        Ok(Self { library, raw })
    }

    pub(super) fn set<T: Value>(&self, attribute: i32, values: &[T]) -> Result<(), String> {
        let len = values.len() as i64;
        // SAFETY: reads so many values of this type.
        let status = unsafe {
            (self.library.set_attribute)(self.raw, attribute, T::TYPE, len, values.as_ptr().cast())
        };
        self.library.check(&format!("setting attribute {attribute}"), status)
    }

    /// Sets an attribute to another descriptor.
    pub(super) fn refer(&self, attribute: i32, to: &Descriptor) -> Result<(), String> {
        self.set(attribute, &[to.reference()])
    }

    pub(super) fn reference(&self) -> Reference {
        Reference(self.raw)
    }

    /// Values of an attribute, up to `values.len()`; how many there are.
    fn get<T: Value>(&self, attribute: i32, values: &mut [T]) -> Result<usize, String> {
        let (mut count, room) = (0, values.len() as i64);
        let into: *mut c_void = match room {
            0 => std::ptr::null_mut(),
            _ => values.as_mut_ptr().cast(),
        };
        // SAFETY: writes no more values of this type than there is room for.
        let status = unsafe {
            (self.library.get_attribute)(self.raw, attribute, T::TYPE, room, &mut count, into)
        };
        self.library.check(&format!("reading attribute {attribute}"), status)?;
        Ok(count as usize)
    }

    pub(super) fn finalize(self) -> Result<Self, String> {
        // SAFETY: made above and not destroyed yet.
        let status = unsafe { (self.library.finalize)(self.raw) };
        self.library.check("finishing a descriptor", status)?;
        Ok(self)
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        // SAFETY: destroyed once.
        let _ = unsafe { (self.library.destroy_descriptor)(self.raw) };
    }
}

/// Where a graph is to run.
pub(super) enum Device {
    /// On the device of a handle.
    Handle(Handle),
    /// On one that is described and need not be there.
    #[cfg(test)]
    Described(Descriptor),
}

/// Number of a tensor in its graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tensor(usize);

/// Sizes and strides of the four axes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) dims: [i64; 4],
    pub(super) strides: [i64; 4],
}

impl Layout {
    /// With neighbours along the last axis, then the one before it.
    pub(super) fn dense(dims: [i64; 4]) -> Self {
        let [_, b, c, d] = dims;
        Self { dims, strides: [b * c * d, c * d, d, 1] }
    }

    /// The last two axes exchanged.
    pub(super) fn transposed(self) -> Self {
        let ([a, b, c, d], [e, f, g, h]) = (self.dims, self.strides);
        Self { dims: [a, b, d, c], strides: [e, f, h, g] }
    }
}

/// A number for each sequence, or one for all.
impl From<i64> for Layout {
    fn from(len: i64) -> Self {
        Self { dims: [len, 1, 1, 1], strides: [1; 4] }
    }
}

/// First number of tensors that are nowhere in memory.
pub(super) const FIRST_VIRTUAL: i64 = 1000;

/// A graph as it grows.
pub(super) struct Graph {
    library: &'static Library,
    /// With what says where sequences start.
    tensors: Vec<(Descriptor, Layout, Option<Tensor>)>,
    operations: Vec<Descriptor>,
    /// What operations refer to.
    others: Vec<Descriptor>,
}

/// What an element is computed from, beside the first operand.
#[derive(Clone, Copy, Default)]
pub(super) struct Operands {
    /// The second.
    pub(super) b: Option<Tensor>,
    /// What [`Mode::SELECT`] goes by.
    pub(super) t: Option<Tensor>,
    /// Of [`Mode::INDEX`].
    pub(super) axis: Option<i64>,
}

impl Graph {
    pub(super) fn new(library: &'static Library) -> Self {
        Self { library, tensors: Vec::new(), operations: Vec::new(), others: Vec::new() }
    }

    /// A tensor in memory, `id` in calls; `starts` says where each sequence is.
    pub(super) fn tensor(
        &mut self,
        id: i64,
        layout: Layout,
        of: Type,
        starts: Option<Tensor>,
    ) -> Result<Tensor, String> {
        self.add(id, (layout, starts), of, None)
    }

    /// A number of the host's, `id` in calls.
    pub(super) fn scalar(&mut self, id: i64) -> Result<Tensor, String> {
        let (layout, is_by_value) = (Layout::from(1), attribute::TENSOR_IS_BY_VALUE);
        self.add(id, (layout, None), Type::F32, Some(is_by_value))
    }

    /// A tensor that is nowhere in memory.
    pub(super) fn between(&mut self, layout: Layout, of: Type) -> Result<Tensor, String> {
        self.between_sequences(layout, of, None)
    }

    /// The same, of sequences that start where `starts` says.
    pub(super) fn between_sequences(
        &mut self,
        layout: Layout,
        of: Type,
        starts: Option<Tensor>,
    ) -> Result<Tensor, String> {
        let id = FIRST_VIRTUAL + self.tensors.len() as i64;
        self.add(id, (layout, starts), of, Some(attribute::TENSOR_IS_VIRTUAL))
    }

    fn add(
        &mut self,
        id: i64,
        (layout, starts): (Layout, Option<Tensor>),
        of: Type,
        flag: Option<i32>,
    ) -> Result<Tensor, String> {
        let tensor = Descriptor::new(self.library, kind::TENSOR)?;
        tensor.set(attribute::TENSOR_TYPE, &[of])?;
        tensor.set(attribute::TENSOR_DIMS, &layout.dims)?;
        tensor.set(attribute::TENSOR_STRIDES, &layout.strides)?;
        tensor.set(attribute::TENSOR_ID, &[id])?;
        tensor.set(attribute::TENSOR_ALIGNMENT, &[ALIGNMENT as i64])?;
        if let Some(flag) = flag {
            tensor.set(flag, &[Flag(true)])?;
        }
        if let Some(starts) = starts {
            tensor.refer(attribute::TENSOR_STARTS, &self.tensors[starts.0].0)?;
        }
        self.tensors.push((tensor.finalize()?, layout, starts));
        Ok(Tensor(self.tensors.len() - 1))
    }

    pub(super) fn layout(&self, tensor: Tensor) -> Layout {
        self.tensors[tensor.0].1
    }

    /// What says where its sequences start.
    pub(super) fn starts(&self, tensor: Tensor) -> Option<Tensor> {
        self.tensors[tensor.0].2
    }

    /// `y = mode(x, …)` of elements, computed in `precision`.
    pub(super) fn pointwise_into(
        &mut self,
        (mode, precision): (Mode, Type),
        x: Tensor,
        operands: Operands,
        y: Tensor,
    ) -> Result<(), String> {
        let how = Descriptor::new(self.library, kind::POINTWISE)?;
        how.set(attribute::POINTWISE_MODE, &[mode])?;
        how.set(attribute::POINTWISE_PRECISION, &[precision])?;
        if let Some(axis) = operands.axis {
            how.set(attribute::POINTWISE_AXIS, &[axis])?;
        }
        let how = how.finalize()?;
        let tensors = [
            (attribute::POINTWISE_X, Some(x)),
            (attribute::POINTWISE_B, operands.b),
            (attribute::POINTWISE_Y, Some(y)),
            (attribute::POINTWISE_T, operands.t),
        ];
        let descriptor = attribute::POINTWISE_DESCRIPTOR;
        self.operation(kind::POINTWISE_OPERATION, Some((descriptor, how)), &tensors)
    }

    /// The same with a result of its own that is nowhere in memory, of the type `of`.
    pub(super) fn pointwise(
        &mut self,
        how: (Mode, Type),
        x: Tensor,
        operands: Operands,
        of: Type,
    ) -> Result<Tensor, String> {
        let y = self.between(Layout::dense(self.layout(x).dims), of)?;
        self.pointwise_into(how, x, operands, y)?;
        Ok(y)
    }

    /// `mode(x, b)` in f32.
    pub(super) fn binary(&mut self, mode: Mode, x: Tensor, b: Tensor) -> Result<Tensor, String> {
        self.pointwise((mode, Type::F32), x, b.into(), Type::F32)
    }

    /// `c = a b`; of each sequence as many rows, columns and steps as `lengths` says.
    pub(super) fn matmul(
        &mut self,
        a: Tensor,
        b: Tensor,
        c: Tensor,
        lengths: [Option<Tensor>; 3],
    ) -> Result<(), String> {
        let how = Descriptor::new(self.library, kind::MATMUL)?;
        how.set(attribute::MATMUL_PRECISION, &[Type::F32])?;
        let how = how.finalize()?;
        let [m, n, k] = lengths;
        let tensors = [
            (attribute::MATMUL_A, Some(a)),
            (attribute::MATMUL_B, Some(b)),
            (attribute::MATMUL_C, Some(c)),
            (attribute::MATMUL_M, m),
            (attribute::MATMUL_N, n),
            (attribute::MATMUL_K, k),
        ];
        self.operation(kind::MATMUL_OPERATION, Some((attribute::MATMUL_DESCRIPTOR, how)), &tensors)
    }

    /// `y` is `x` reduced along the axes where it has fewer elements.
    pub(super) fn reduce(&mut self, by: Reduction, x: Tensor, y: Tensor) -> Result<(), String> {
        let how = Descriptor::new(self.library, kind::REDUCTION)?;
        how.set(attribute::REDUCTION_PRECISION, &[Type::F32])?;
        how.set(attribute::REDUCTION_MODE, &[by])?;
        let how = how.finalize()?;
        let tensors = [(attribute::REDUCTION_X, Some(x)), (attribute::REDUCTION_Y, Some(y))];
        let descriptor = attribute::REDUCTION_DESCRIPTOR;
        self.operation(kind::REDUCTION_OPERATION, Some((descriptor, how)), &tensors)
    }

    /// `y` is `x` seen otherwise.
    pub(super) fn reshape(&mut self, x: Tensor, y: Tensor) -> Result<(), String> {
        let tensors = [(attribute::RESHAPE_X, Some(x)), (attribute::RESHAPE_Y, Some(y))];
        self.operation(kind::RESHAPE_OPERATION, None, &tensors)
    }

    fn operation(
        &mut self,
        kind: i32,
        how: Option<(i32, Descriptor)>,
        tensors: &[(i32, Option<Tensor>)],
    ) -> Result<(), String> {
        let operation = Descriptor::new(self.library, kind)?;
        if let Some((attribute, how)) = how {
            operation.refer(attribute, &how)?;
            self.others.push(how);
        }
        for &(attribute, tensor) in tensors {
            if let Some(tensor) = tensor {
                operation.refer(attribute, &self.tensors[tensor.0].0)?;
            }
        }
        self.operations.push(operation.finalize()?);
        Ok(())
    }

    /// The first plan that can be made for a device of those that cuDNN suggests.
    pub(super) fn plan(self, device: &Device) -> Result<Plan, String> {
        let graph = Descriptor::new(self.library, kind::GRAPH)?;
        let operations: Vec<Reference> =
            self.operations.iter().map(Descriptor::reference).collect();
        let heuristics = Descriptor::new(self.library, kind::HEURISTICS)?;
        match device {
            Device::Handle(handle) => graph.set(attribute::GRAPH_HANDLE, &[*handle])?,
            #[cfg(test)]
            Device::Described(device) => heuristics.refer(attribute::HEURISTICS_DEVICE, device)?,
        }
        graph.set(attribute::GRAPH_OPERATIONS, &operations)?;
        let graph = graph.finalize()?;
        heuristics.refer(attribute::HEURISTICS_GRAPH, &graph)?;
        heuristics.set(attribute::HEURISTICS_MODE, &[HEURISTICS])?;
        let heuristics = heuristics.finalize()?;
        let mut failed = "cuDNN knows no way".to_owned();
        for config in self.configs(&heuristics)? {
            match self.plan_of(&config) {
                Ok((descriptor, workspace_bytes)) => {
                    let kept = (self, [graph, heuristics, config]);
                    return Ok(Plan { descriptor, workspace_bytes, _kept: kept });
                }
                Err(error) => failed = error,
            }
        }
        Err(failed)
    }

    /// Engines with their settings, best first.
    fn configs(&self, heuristics: &Descriptor) -> Result<Vec<Descriptor>, String> {
        let results = attribute::HEURISTICS_RESULTS;
        let count = heuristics.get::<Reference>(results, &mut [])?;
        let new = |_| Descriptor::new(self.library, kind::ENGINE_CONFIG);
        let mut configs = (0..count).map(new).collect::<Result<Vec<_>, _>>()?;
        if count > 0 {
            let mut into: Vec<Reference> = configs.iter().map(Descriptor::reference).collect();
            // Fewer may come than were announced.
            configs.truncate(heuristics.get(results, &mut into)?);
        }
        Ok(configs)
    }

    fn plan_of(&self, config: &Descriptor) -> Result<(Descriptor, usize), String> {
        let plan = Descriptor::new(self.library, kind::PLAN)?;
        plan.refer(attribute::PLAN_CONFIG, config)?;
        let plan = plan.finalize()?;
        let mut bytes = [0i64];
        plan.get(attribute::PLAN_WORKSPACE, &mut bytes)?;
        Ok((plan, bytes[0] as usize))
    }
}

impl From<Tensor> for Operands {
    fn from(b: Tensor) -> Self {
        Self { b: Some(b), ..Self::default() }
    }
}

/// A graph with the code that carries it out.
pub(super) struct Plan {
    descriptor: Descriptor,
    /// Bytes that it works in.
    pub(super) workspace_bytes: usize,
    /// What it was made of.
    _kept: (Graph, [Descriptor; 3]),
}

impl Plan {
    /// Asks for it with the tensors where `pointers` says, each with its number.
    pub(super) fn run(
        &self,
        handle: Handle,
        pointers: &[(i64, Pointer)],
        workspace: u64,
    ) -> Result<(), String> {
        let library = self.descriptor.library;
        let (ids, pointers): (Vec<i64>, Vec<Pointer>) = pointers.iter().copied().unzip();
        let pack = Descriptor::new(library, kind::VARIANT_PACK)?;
        pack.set(attribute::PACK_WORKSPACE, &[Pointer(workspace)])?;
        pack.set(attribute::PACK_POINTERS, &pointers)?;
        pack.set(attribute::PACK_IDS, &ids)?;
        let pack = pack.finalize()?;
        // SAFETY: all made above or by the library; the operations describe tensors inside memory
        // that they were given.
        let status = unsafe { (library.execute)(handle.0, self.descriptor.raw, pack.raw) };
        library.check("running attention", status)
    }
}
