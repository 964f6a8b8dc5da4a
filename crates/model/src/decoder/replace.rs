//! A model's weights one by one, and others in place of its own.

use super::Decoder;
use crate::load::Model;
use crate::weights::Role;
use hone_tensor::{Projection, Tensor, Weight};

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

    /// Puts a frozen weight in the place of a matrix, the embedding or the head.
    ///
    /// # Panics
    /// If there is no such matrix, or it has another shape.
    fn replace(&mut self, role: Role, tensor: Tensor) {
        let weight = match role {
            Role::EmbedTokens => &mut self.embed_tokens,
            Role::LmHead => self.lm_head.as_mut().expect("a head of its own"),
            Role::Matrix(i, linear) => {
                let layer = &mut self.layers[i];
                let own = layer.projection(linear).expect("a matrix of the block");
                let is_it = |other: &Projection| std::ptr::eq(own, other);
                let at = layer.projections().position(is_it).expect("one of the block's");
                &mut layer.projections_mut().nth(at).expect("in the same order").weight
            }
            _ => panic!("{role:?} is no matrix"),
        };
        assert_eq!(weight.shape(), tensor.shape());
        *weight = Weight::Frozen(tensor);
    }
}

impl Model {
    /// The base model with these matrices instead of its own, which must be on its device. All
    /// other weights are shared.
    ///
    /// # Panics
    /// If weights of the base are trained, or a matrix is not there or has another shape.
    pub fn with_matrices(&self, matrices: impl IntoIterator<Item = (Role, Tensor)>) -> Self {
        let mut model = self.without_adapters();
        matrices.into_iter().for_each(|(role, tensor)| model.decoder.replace(role, tensor));
        model
    }
}
