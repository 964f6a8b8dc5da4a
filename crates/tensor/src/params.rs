//! Trained parameters and their gradients.

use crate::{Category, DType, Device, DeviceError, Tensor, Weight};

/// Index of a trained parameter in [`Params`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ParamId(pub usize);

/// The trained parameters of a model, in `f32`, in a fixed order.
#[derive(Default)]
pub struct Params {
    names: Vec<String>,
    values: Vec<Tensor>,
}

impl Params {
    /// Adds a parameter.
    ///
    /// # Panics
    /// If the value is not `f32`: moments and updates are.
    pub fn add(&mut self, name: String, value: Tensor) -> ParamId {
        assert_eq!(value.dtype(), DType::F32);
        self.names.push(name);
        self.values.push(value);
        ParamId(self.values.len() - 1)
    }

    /// Number of parameters (tensors).
    pub fn len(&self) -> usize {
        self.values.len()
    }

    /// Whether nothing is trained.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// Total number of trained elements.
    pub fn num_elements(&self) -> usize {
        self.values.iter().map(Tensor::len).sum()
    }

    /// Name of a parameter.
    pub fn name(&self, id: ParamId) -> &str {
        &self.names[id.0]
    }

    /// Value of a parameter.
    pub fn value(&self, id: ParamId) -> &Tensor {
        &self.values[id.0]
    }

    /// All values in order, for writing.
    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut Tensor> {
        self.values.iter_mut()
    }

    /// Value of a parameter, for writing.
    pub fn value_mut(&mut self, id: ParamId) -> &mut Tensor {
        &mut self.values[id.0]
    }

    /// The tensor of a weight, frozen or trained.
    pub fn resolve<'a>(&'a self, weight: &'a Weight) -> &'a Tensor {
        match weight {
            Weight::Frozen(tensor) => tensor,
            Weight::Trained { param, .. } => self.value(*param),
        }
    }

    /// Names and values in order.
    pub fn iter(&self) -> impl Iterator<Item = (ParamId, &str, &Tensor)> {
        let pairs = self.names.iter().zip(&self.values);
        pairs.enumerate().map(|(i, (name, value))| (ParamId(i), name.as_str(), value))
    }
}

/// Accumulated gradients, one per parameter.
#[derive(Default)]
pub struct Gradients(Vec<Tensor>);

impl Gradients {
    /// Zero gradients for all of `params`.
    ///
    /// # Errors
    /// If there is no memory for them.
    pub fn zeros(device: &Device, params: &Params) -> Result<Self, DeviceError> {
        let zeros =
            |value: &Tensor| device.persistent(Category::Gradients, DType::F32, value.shape());
        params.values.iter().map(zeros).collect::<Result<_, _>>().map(Self)
    }

    /// The gradient of a parameter.
    pub fn get(&self, id: ParamId) -> &Tensor {
        &self.0[id.0]
    }

    /// The gradient of a parameter, for accumulating.
    pub fn get_mut(&mut self, id: ParamId) -> &mut Tensor {
        &mut self.0[id.0]
    }

    /// The gradients of different parameters, for accumulating.
    pub(crate) fn each_mut<const N: usize>(
        &mut self,
        ids: [Option<ParamId>; N],
    ) -> [Option<&mut Tensor>; N] {
        let mut found = [const { None }; N];
        for (i, gradient) in self.0.iter_mut().enumerate() {
            if let Some(place) = ids.iter().position(|id| *id == Some(ParamId(i))) {
                found[place] = Some(gradient);
            }
        }
        found
    }

    /// The gradients of these parameters in this order, for accumulating.
    ///
    /// # Panics
    /// If a parameter occurs twice.
    pub(crate) fn list_mut(&mut self, ids: &[ParamId]) -> Vec<&mut Tensor> {
        let mut order: Vec<usize> = (0..ids.len()).collect();
        order.sort_unstable_by_key(|&at| ids[at]);
        let mut found: Vec<Option<&mut Tensor>> = ids.iter().map(|_| None).collect();
        let (mut rest, mut next) = (&mut self.0[..], 0);
        for at in order {
            let skipped = ids[at].0.checked_sub(next).expect("each parameter once");
            let (own, after) =
                rest[skipped..].split_first_mut().expect("parameters have gradients");
            (found[at], rest, next) = (Some(own), after, ids[at].0 + 1);
        }
        found.into_iter().flatten().collect()
    }

    /// All gradients in the order of the parameters.
    pub fn iter(&self) -> impl Iterator<Item = &Tensor> {
        self.0.iter()
    }

    /// Sets all gradients to zero.
    pub fn clear(&mut self, device: &Device) {
        let bytes = self.0.iter().map(Tensor::num_bytes).sum();
        if let Some(on) = device.begin(crate::Cost::memory_bound("zero", bytes)) {
            on.zero_all(self.0.iter_mut().map(Tensor::view_mut).collect());
        }
    }
}
