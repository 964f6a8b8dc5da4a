//! Weights of projections, and the low-rank adapters on them.

use crate::{ParamId, StepKey, Tensor};
use std::ops::Range;

/// A weight: frozen in any storage format, or trained in `f32`.
#[derive(Clone, Debug)]
pub enum Weight {
    /// Never changes; has no gradient.
    Frozen(Tensor),
    /// Stored in [`crate::Params`].
    Trained {
        /// Which parameter.
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

    /// The tensor, if frozen, for replacing it.
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

/// Identifies one of a model's adapters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AdapterId(pub u32);

/// Rows of a pass that an adapter applies to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdapterRows {
    /// Consecutive rows of the batch; may extend beyond its last row.
    pub rows: Range<usize>,
    /// The adapter.
    pub adapter: AdapterId,
    /// Key of its dropout's random numbers. Positions are counted from the first of these rows, as
    /// in a pass over these rows alone. `None`: no dropout.
    pub dropout: Option<StepKey>,
}

impl AdapterRows {
    /// All rows, for the only adapter.
    pub fn all(dropout: Option<StepKey>) -> Self {
        Self { rows: 0..usize::MAX, adapter: AdapterId::default(), dropout }
    }
}

/// A low-rank adapter (Hu et al., "LoRA", 2021): `y += scale · B (A dropout(x))`.
#[derive(Clone, Debug)]
pub struct Lora {
    /// The model's adapter that this is a part of.
    pub id: AdapterId,
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
    /// Distinguishes the random numbers of this adapter's dropout from those of others.
    pub stream: u32,
}

/// A linear layer: `y = x Wᵀ + bias`, and its adapters, each for the rows that the tape assigns.
#[derive(Clone, Debug)]
pub struct Projection {
    /// `[out_features, in_features]`.
    pub weight: Weight,
    /// `[out_features]`.
    pub bias: Option<Weight>,
    /// Adapters, at most one of each [`AdapterId`].
    pub adapters: Vec<Lora>,
}

impl Projection {
    /// Number of output features.
    pub fn out_features(&self) -> usize {
        self.weight.shape()[0]
    }

    /// Number of input features.
    pub fn in_features(&self) -> usize {
        self.weight.shape()[1]
    }

    /// This layer's part of an adapter.
    pub fn adapter(&self, id: AdapterId) -> Option<&Lora> {
        self.adapters.iter().find(|lora| lora.id == id)
    }

    /// Whether anything here is trained.
    pub fn is_trained(&self) -> bool {
        let bias = self.bias.as_ref().and_then(Weight::param);
        self.weight.param().is_some() || bias.is_some() || !self.adapters.is_empty()
    }
}
