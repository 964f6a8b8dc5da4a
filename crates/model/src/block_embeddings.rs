//! Embeddings of tokens for each block, as in Gemma 3n and 4 ("per-layer embeddings"): a row of a
//! table and a projection of the first embedding, which each block adds through a gate of its own.

use crate::config::BlockEmbeddings;
use crate::weights::{Role, WeightSpec};
use hone_tensor::ops::{self, RmsNorm};
use hone_tensor::{Projection, Tape, Var, Weight};
use std::collections::BTreeMap;
use std::f32::consts::FRAC_1_SQRT_2;

impl BlockEmbeddings {
    /// Weights outside the blocks; the projection is the first block's.
    pub(crate) fn weights(self, num_blocks: usize) -> [WeightSpec; 2] {
        let spec = |role, name: &str, shape: Vec<usize>| WeightSpec {
            role,
            name: format!("model.{name}.weight"),
            shape,
        };
        let table = vec![self.vocab_size, num_blocks * self.width];
        [
            spec(Role::BlockTable, "embed_tokens_per_layer", table),
            spec(Role::BlockTableNorm, "per_layer_projection_norm", vec![self.width]),
        ]
    }
}

/// Weights of what embeds for the blocks, but for the projection.
#[derive(Clone)]
pub(crate) struct BlockEmbedder {
    /// `[vocab_size, blocks · width]`.
    pub(crate) table: Weight,
    /// `[width]`.
    pub(crate) norm: Weight,
}

impl BlockEmbedder {
    pub(crate) fn new(weights: &mut BTreeMap<Role, Weight>) -> Option<Self> {
        let table = weights.remove(&Role::BlockTable)?;
        let norm = weights.remove(&Role::BlockTableNorm).expect("its norm");
        Some(Self { table, norm })
    }

    /// Of all blocks, `[t, blocks · width]` in the compute type, from the start of the residual
    /// stream, `x [t, hidden_size]`.
    pub(crate) fn embedded<'a>(
        &'a self,
        tape: &mut Tape<'a>,
        x: &Var,
        tokens: &'a [u32],
        projection: &'a [Projection],
        norm: RmsNorm,
    ) -> Var {
        let width = self.norm.shape()[0];
        // Rounded, as Gemma was trained.
        let scale = tape.dtype().rounded((width as f32).sqrt());
        let rows = ops::embedding(tape, &self.table, tokens, scale);
        let h = ops::in_compute_type(tape, x);
        let projected = ops::linear(tape, h, projection, None);
        // It is divided by √hidden_size first, which a norm undoes but for what keeps it finite.
        let hidden_size = x.value().shape()[1] as f32;
        let norm = RmsNorm { eps: norm.eps * hidden_size, ..norm };
        let sum = ops::add_rms_norm(tape, projected, &self.norm, norm, &rows);
        let mean = ops::scaled(tape, sum, FRAC_1_SQRT_2);
        ops::in_compute_type(tape, &mean)
    }
}
