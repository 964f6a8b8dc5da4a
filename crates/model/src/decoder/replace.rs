//! A model's weights one by one, and others in place of its own.

use super::Decoder;
use crate::load::Model;
use crate::weights::{Role, WeightSpec};
use hone_tensor::safetensors::load_as;
use hone_tensor::{Category, DType, Device, DeviceError, ParamId, Projection, Tensor, Weight};

/// A plain weight, or a projection, into whose matrix an adapter may have to be merged.
pub(crate) enum Part<'a> {
    Plain(&'a Weight),
    Matrix(&'a Projection),
}

impl Decoder {
    /// The projection with the matrix of this role; `None` if it is no projection's, or the
    /// configuration has none.
    pub fn projection(&self, role: Role) -> Option<&Projection> {
        match (role, self.part(role)?) {
            (Role::Matrix(..), Part::Matrix(projection)) => Some(projection),
            _ => None,
        }
    }

    /// The weight of this role, if it is a matrix, the embedding, the head or a norm's gain.
    fn weight_mut(&mut self, role: Role) -> Option<&mut Weight> {
        match role {
            Role::EmbedTokens => Some(&mut self.embed_tokens),
            Role::LmHead => self.lm_head.as_mut(),
            Role::FinalNorm => self.norm.as_mut(),
            Role::Norm(i, norm) => self.layers[i].norms[norm as usize].as_mut(),
            Role::Matrix(i, linear) => {
                let layer = &mut self.layers[i];
                let own = layer.projection(linear)?;
                let is_it = |other: &Projection| std::ptr::eq(own, other);
                let at = layer.projections().position(is_it)?;
                layer.projections_mut().nth(at).map(|projection| &mut projection.weight)
            }
            _ => None,
        }
    }

    /// Puts a frozen weight in the place of one.
    ///
    /// # Panics
    /// If there is no such matrix, embedding, head or norm, or it has another shape.
    fn replace(&mut self, role: Role, tensor: Tensor) {
        let Some(weight) = self.weight_mut(role) else { panic!("{role:?} is not there") };
        assert_eq!(weight.shape(), tensor.shape());
        *weight = Weight::Frozen(tensor);
    }
}

impl Model {
    /// The tensor that a weight is held in.
    pub fn weight(&self, role: Role) -> Option<&Tensor> {
        let weight = match self.decoder.part(role)? {
            Part::Plain(weight) => weight,
            Part::Matrix(projection) => &projection.weight,
        };
        Some(self.params.resolve(weight))
    }

    /// The base model with all that [`Self::with_weights`] can put in its place trained, in f32,
    /// and which parameters these are.
    ///
    /// # Errors
    /// If there is no memory.
    ///
    /// # Panics
    /// If weights of the base are trained.
    pub fn trained(&self, device: &Device) -> Result<(Self, Vec<(Role, ParamId)>), DeviceError> {
        let (mut model, mut trained) = (self.without_adapters(), Vec::new());
        for WeightSpec { role, name, .. } in self.decoder.config.weights() {
            let Some(weight) = model.decoder.weight_mut(role) else { continue };
            let Weight::Frozen(tensor) = &*weight else { continue };
            let shape = tensor.shape().to_vec();
            let value = load_as(device, Category::Parameters, tensor, DType::F32)?;
            let param = model.params.add(name, value);
            *weight = Weight::Trained { param, shape };
            trained.push((role, param));
        }
        Ok((model, trained))
    }

    /// The base model with these matrices, embeddings, heads or gains of norms instead of its own,
    /// which must be on its device. All other weights are shared.
    ///
    /// # Panics
    /// If weights of the base are trained, or one is not there or has another shape.
    pub fn with_weights(&self, weights: impl IntoIterator<Item = (Role, Tensor)>) -> Self {
        let mut model = self.without_adapters();
        weights.into_iter().for_each(|(role, tensor)| model.decoder.replace(role, tensor));
        model
    }
}
