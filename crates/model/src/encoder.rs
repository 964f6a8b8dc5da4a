//! What encoders have that decoders have not: learned positions and token types, layer norms, norms
//! after sums, and a head that predicts tokens in their own places.
//!
//! Heads for other tasks (a pooler, a classifier) are kept as their files have them.

use crate::batch::Batch;
use crate::config::{DecoderConfig, EncoderConfig, LearnedPositions, MaskedHead};
use crate::weights::{EncoderPart, Role, WeightSpec};
use hone_tensor::ops::{self, LayerNorm};
use hone_tensor::{DType, Projection, Tape, Var, Weight};
use std::collections::BTreeMap;

impl EncoderConfig {
    /// The name of one of a block's linear layers that a decoder would call `module`.
    pub(crate) fn module(&self, module: &str) -> &'static str {
        let found = self.names.modules.iter().find(|(decoder, _)| *decoder == module);
        found.expect("a name of every layer that the family has").1
    }

    /// The name of a part of the encoder itself.
    pub(crate) fn own(&self, name: &str, end: &str) -> String {
        format!("{}{name}.{end}", self.names.prefix)
    }

    /// Weights that are added to the token embedding, in model order.
    pub(crate) fn embedding_weights(&self, hidden_size: usize) -> Vec<WeightSpec> {
        let spec = |part, name, shape: &[usize]| WeightSpec {
            role: Role::Encoder(part),
            name,
            shape: shape.to_vec(),
        };
        let (names, h) = (self.names, hidden_size);
        let mut specs = Vec::new();
        if let Some(LearnedPositions { count, .. }) = self.positions {
            let name = self.own("embeddings.position_embeddings", "weight");
            specs.push(spec(EncoderPart::Positions, name, &[count, h]));
        }
        if self.num_token_types > 0 {
            let name = self.own("embeddings.token_type_embeddings", "weight");
            specs.push(spec(EncoderPart::TokenTypes, name, &[self.num_token_types, h]));
        }
        let norm = |end| self.own(names.embedding_norm, end);
        specs.push(spec(EncoderPart::EmbeddingNorm, norm("weight"), &[h]));
        if self.norm_bias {
            specs.push(spec(EncoderPart::EmbeddingNormBias, norm("bias"), &[h]));
        }
        specs
    }

    /// Weights of the final norm and of the head, in model order.
    pub(crate) fn head_weights(&self, config: &DecoderConfig) -> Vec<WeightSpec> {
        let (names, h, v) = (self.names, config.hidden_size, config.vocab_size);
        let spec = |part, name: String, shape: &[usize]| WeightSpec {
            role: Role::Encoder(part),
            name,
            shape: shape.to_vec(),
        };
        let mut specs = Vec::new();
        if let Some(name) = names.final_norm {
            let weight = self.own(name, "weight");
            specs.push(WeightSpec { role: Role::FinalNorm, name: weight, shape: vec![h] });
            if self.norm_bias {
                specs.push(spec(EncoderPart::FinalNormBias, self.own(name, "bias"), &[h]));
            }
        }
        let Some(MaskedHead { dense_bias, logit_bias, .. }) = self.head else { return specs };
        let part = |name: &str, end: &str| format!("{name}.{end}");
        let (dense, norm) = (names.head_dense, names.head_norm);
        specs.push(spec(EncoderPart::HeadDense, part(dense, "weight"), &[h, h]));
        if dense_bias {
            specs.push(spec(EncoderPart::HeadDenseBias, part(dense, "bias"), &[h]));
        }
        specs.push(spec(EncoderPart::HeadNorm, part(norm, "weight"), &[h]));
        if self.norm_bias {
            specs.push(spec(EncoderPart::HeadNormBias, part(norm, "bias"), &[h]));
        }
        if logit_bias {
            specs.push(spec(EncoderPart::LogitBias, names.logit_bias.to_owned(), &[v]));
        }
        if !config.tie_word_embeddings {
            let name = part(names.decoder, "weight");
            specs.push(WeightSpec { role: Role::LmHead, name, shape: vec![v, h] });
        }
        specs
    }
}

/// Whether a tensor is a table of numbers, 0 to the last position, which only older files hold.
pub(crate) fn is_buffer(name: &str) -> bool {
    ["embeddings.position_ids", "embeddings.token_type_ids"].iter().any(|end| name.ends_with(end))
}

/// An encoder's weights outside its blocks.
#[derive(Clone)]
pub(crate) struct EncoderWeights {
    /// All but the head's matrix and its bias.
    parts: BTreeMap<EncoderPart, Weight>,
    /// The head's matrix; empty without a head.
    dense: Vec<Projection>,
}

impl EncoderWeights {
    /// Takes them from the weights that `config` requires.
    pub(crate) fn new(weights: &mut BTreeMap<Role, Weight>) -> Self {
        let of_encoder = |role: &Role| match role {
            Role::Encoder(part) => Some(*part),
            _ => None,
        };
        let found: Vec<EncoderPart> = weights.keys().filter_map(of_encoder).collect();
        let take = |part| Some((part, weights.remove(&Role::Encoder(part))?));
        let mut parts: BTreeMap<EncoderPart, Weight> = found.into_iter().filter_map(take).collect();
        let dense = parts.remove(&EncoderPart::HeadDense).map(|weight| Projection {
            weight,
            bias: parts.remove(&EncoderPart::HeadDenseBias),
            adapters: Vec::new(),
        });
        Self { parts, dense: dense.into_iter().collect() }
    }

    pub(crate) fn part(&self, part: EncoderPart) -> Option<&Weight> {
        match part {
            EncoderPart::HeadDense => self.dense.first().map(|dense| &dense.weight),
            EncoderPart::HeadDenseBias => self.dense.first()?.bias.as_ref(),
            _ => self.parts.get(&part),
        }
    }

    /// The norm of a weight and its bias.
    pub(crate) fn norm(&self, weight: EncoderPart, bias: EncoderPart, eps: f32) -> LayerNorm<'_> {
        let weight = self.part(weight).expect("the configuration has it");
        LayerNorm { weight, bias: self.part(bias), eps }
    }

    /// The start of the residual stream: the sum of a token's embeddings, normalised.
    pub(crate) fn embedded<'a>(
        &'a self,
        tape: &mut Tape<'a>,
        mut x: Var,
        batch: &'a Batch,
        eps: f32,
    ) -> Var {
        if let Some(types) = self.part(EncoderPart::TokenTypes) {
            x = ops::add_embedding(tape, x, types, &batch.token_types);
        }
        if let Some(positions) = self.part(EncoderPart::Positions) {
            x = ops::add_embedding(tape, x, positions, &batch.positions);
        }
        let norm = self.norm(EncoderPart::EmbeddingNorm, EncoderPart::EmbeddingNormBias, eps);
        ops::layer_norm(tape, x, norm, DType::F32)
    }

    /// What the products with the embedding take.
    pub(crate) fn head_input<'a>(
        &'a self,
        tape: &mut Tape<'a>,
        hidden: Var,
        head: Option<MaskedHead>,
        eps: f32,
    ) -> Var {
        let Some(MaskedHead { activation, .. }) = head else { return hidden };
        let x = ops::linear(tape, hidden, &self.dense, None);
        let x = ops::activation(tape, x, activation);
        let norm = self.norm(EncoderPart::HeadNorm, EncoderPart::HeadNormBias, eps);
        let dtype = tape.dtype();
        ops::layer_norm(tape, x, norm, dtype)
    }
}
