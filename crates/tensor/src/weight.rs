//! Weights of projections, and the low-rank adapters on them.

use crate::{ParamId, Tensor};

/// A weight: frozen in whatever type it is held, or trained in `f32`.
#[derive(Clone, Debug)]
pub enum Weight {
    /// Never changes; has no gradient.
    Frozen(Tensor),
    /// Kept in [`crate::Params`].
    Trained {
        /// Where.
        param: ParamId,
        /// Shape, so that model code need not look it up.
        shape: Vec<usize>,
    },
}

impl Weight {
    /// Lengths of the dimensions: `[out_features, in_features]` for a projection.
    pub fn shape(&self) -> &[usize] {
        match self {
            Weight::Frozen(tensor) => tensor.shape(),
            Weight::Trained { shape, .. } => shape,
        }
    }

    /// The tensor, if frozen, to put another in its place.
    pub fn frozen_mut(&mut self) -> Option<&mut Tensor> {
        match self {
            Weight::Frozen(tensor) => Some(tensor),
            Weight::Trained { .. } => None,
        }
    }

    /// The parameter, if trained.
    pub fn param(&self) -> Option<ParamId> {
        match self {
            Weight::Frozen(_) => None,
            Weight::Trained { param, .. } => Some(*param),
        }
    }
}

/// A low-rank adapter (Hu et al., "LoRA", 2021): `y += scale · B (A dropout(x))`.
#[derive(Clone, Debug)]
pub struct Lora {
    /// `A [rank, in_features]`.
    pub a: ParamId,
    /// `B [out_features, rank]`.
    pub b: ParamId,
    /// Rank.
    pub rank: usize,
    /// `alpha / rank`, or `alpha / sqrt(rank)` when rank-stabilised.
    pub scale: f32,
    /// Probability of dropping an element of the input, in training.
    pub dropout: f32,
    /// Tells the random numbers of this adapter's dropout from those of others.
    pub stream: u32,
}

/// A linear layer: `y = x Wᵀ + bias`, and its adapter if it has one.
#[derive(Clone, Debug)]
pub struct Projection {
    /// `[out_features, in_features]`.
    pub weight: Weight,
    /// `[out_features]`.
    pub bias: Option<Weight>,
    /// Adapter.
    pub lora: Option<Lora>,
}

impl Projection {
    /// Length of an output row.
    pub fn out_features(&self) -> usize {
        self.weight.shape()[0]
    }

    /// Length of an input row.
    pub fn in_features(&self) -> usize {
        self.weight.shape()[1]
    }

    /// Whether anything here is trained.
    pub fn is_trained(&self) -> bool {
        let bias = self.bias.as_ref().and_then(Weight::param);
        self.weight.param().is_some() || bias.is_some() || self.lora.is_some()
    }
}
