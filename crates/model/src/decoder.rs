//! The model, decoder or encoder: embedding, blocks of attention and MLP, norm, head.

mod attend;
mod blocks;
mod replace;

pub use blocks::Stream;
pub(crate) use replace::Part;

use crate::batch::Batch;
use crate::block_embeddings::BlockEmbedder;
use crate::cache::LayerCache;
use crate::config::{DecoderConfig, ExpertsConfig, LayerConfig};
use crate::encoder::EncoderWeights;
use crate::mixture::{Mixture, Mlp};
use crate::weights::{BlockNorm, DeltaPart, EncoderPart, Linear, Role};
use hone_tensor::ops::{self, Activation, LayerNorm, OutputHead, PagedRows, RmsNorm};
use hone_tensor::{DType, Lora, Offloaded, Projection, Sequence, Tape, Tensor, Var, Weight};
use std::collections::{BTreeMap, BTreeSet};

/// What the forward pass keeps for the backward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Recompute {
    /// All activations.
    None,
    /// The input of each block; everything else is recomputed.
    Block,
}

/// The weights of a decoder. Projections that read the same input are grouped.
#[derive(Clone)]
pub struct Decoder {
    /// The configuration.
    pub config: DecoderConfig,
    embed_tokens: Weight,
    /// What embeds for the blocks, if they are given embeddings.
    block_embedder: Option<BlockEmbedder>,
    pub(crate) layers: Vec<Layer>,
    /// `None`: the last block's output is normalised already.
    norm: Option<Weight>,
    /// `None`: tied to the embedding.
    lm_head: Option<Weight>,
    /// What an encoder has besides.
    encoder: Option<EncoderWeights>,
}

/// One block.
#[derive(Clone)]
pub(crate) struct Layer {
    /// Indexed by [`BlockNorm`]; `None` where the configuration has no such norm.
    norms: [Option<Weight>; BlockNorm::ALL.len()],
    /// Biases of the same norms.
    norm_biases: [Option<Weight>; BlockNorm::ALL.len()],
    /// q, k, v, or all in one; of a gated delta net what reads its input.
    qkv: Vec<Projection>,
    /// o.
    o: Vec<Projection>,
    /// Logits that take a share of attention.
    sinks: Option<Weight>,
    /// Factor of the output, in the host's memory.
    scalar: Option<Weight>,
    /// What a gated delta net has besides.
    delta: Option<DeltaWeights>,
    /// gate, up, or both in one, or up alone; none if there are only experts.
    gate_up: Vec<Projection>,
    /// down.
    down: Vec<Projection>,
    /// Gate of the block's embedding, what is made of it, and in the first block the projection
    /// that embeds for all; none where blocks have no embeddings.
    block_gate: Vec<Projection>,
    block_out: Vec<Projection>,
    block_projection: Vec<Projection>,
    /// The experts, if there are any; gate, up and down are then the shared one's.
    mixture: Option<Mixture>,
    /// The host copy of the projections' weights, if they are not kept on the device.
    pub(crate) offloaded: Option<Offloaded>,
}

/// Weights of a gated delta net besides matrices and a norm.
#[derive(Clone)]
struct DeltaWeights {
    conv: Weight,
    a_log: Weight,
    dt_bias: Weight,
}

impl Layer {
    /// Assembles block `i` from the weights that `config` requires, which it takes.
    ///
    /// # Panics
    /// If one of them is missing.
    pub(crate) fn new(
        i: usize,
        config: &LayerConfig,
        weights: &mut BTreeMap<Role, Weight>,
    ) -> Self {
        let linears: BTreeSet<Linear> = config.linears().collect();
        let of_router = [Role::RouterBias(i), Role::ExpertScales(i)];
        let of_router = of_router.map(|role| weights.remove(&role));
        let sinks = weights.remove(&Role::Sinks(i));
        let scalar = weights.remove(&Role::Scalar(i));
        let mut part = |part| weights.remove(&Role::Delta(i, part)).expect("every part");
        let delta = config.delta.map(|_| DeltaWeights {
            conv: part(DeltaPart::Conv),
            a_log: part(DeltaPart::ALog),
            dt_bias: part(DeltaPart::DtBias),
        });
        let mut group = |group: &[Linear]| {
            let projection = |&linear: &Linear| Projection {
                weight: weights.remove(&Role::Matrix(i, linear)).expect("every matrix"),
                bias: weights.remove(&Role::Bias(i, linear)),
                adapters: Vec::new(),
            };
            let there = group.iter().filter(|linear| linears.contains(linear));
            let mut projections: Vec<_> = there.map(projection).collect();
            // A mixture has thousands of lists, each of one or two.
            projections.shrink_to_fit();
            projections
        };
        Self {
            qkv: group(&QKV),
            o: group(&[Linear::O, Linear::DeltaOut]),
            sinks,
            scalar,
            delta,
            gate_up: group(&[Linear::Gate, Linear::Up, Linear::GateUp]),
            down: group(&[Linear::Down]),
            block_gate: group(&[Linear::BlockGate]),
            block_out: group(&[Linear::BlockOut]),
            block_projection: group(&[Linear::BlockProjection]),
            mixture: config.mlp.experts.as_ref().map(|mixture| {
                let num_experts = mixture.router.num_experts;
                Mixture::new(num_experts, &mut group, of_router)
            }),
            norms: BlockNorm::ALL.map(|norm| weights.remove(&Role::Norm(i, norm))),
            norm_biases: BlockNorm::ALL.map(|norm| weights.remove(&Role::NormBias(i, norm))),
            offloaded: None,
        }
    }

    pub(crate) fn projections(&self) -> impl Iterator<Item = &Projection> {
        let experts = self.mixture.iter().flat_map(Mixture::experts);
        self.groups().flatten().chain(experts)
    }

    /// Projections that all tokens pass, grouped by the input they read, in model order.
    fn groups(&self) -> impl Iterator<Item = &[Projection]> {
        let dense = [&self.qkv[..], &self.o, &self.gate_up, &self.down].into_iter();
        let embedding = [&self.block_gate[..], &self.block_out, &self.block_projection];
        dense.chain(embedding).chain(self.mixture.iter().flat_map(Mixture::groups))
    }

    pub(crate) fn projections_mut(&mut self) -> impl Iterator<Item = &mut Projection> {
        let attention = self.qkv.iter_mut().chain(&mut self.o);
        let dense = attention.chain(&mut self.gate_up).chain(&mut self.down);
        let embedding = self.block_gate.iter_mut().chain(&mut self.block_out);
        let embedding = embedding.chain(&mut self.block_projection);
        dense.chain(embedding).chain(self.mixture.iter_mut().flat_map(Mixture::projections_mut))
    }

    fn projection(&self, linear: Linear) -> Option<&Projection> {
        match linear {
            Linear::Q | Linear::Qkv => self.qkv.first(),
            Linear::K => self.qkv.get(1),
            Linear::V => self.qkv.get(2),
            Linear::DeltaQkv | Linear::DeltaQkvz => self.qkv.first(),
            Linear::DeltaZ | Linear::DeltaBa => self.qkv.get(1),
            Linear::DeltaB => self.qkv.get(2),
            Linear::DeltaA => self.qkv.get(3),
            Linear::O | Linear::DeltaOut => self.o.first(),
            Linear::Gate | Linear::GateUp => self.gate_up.first(),
            Linear::Up => self.gate_up.last(),
            Linear::Down => self.down.first(),
            Linear::BlockGate => self.block_gate.first(),
            Linear::BlockOut => self.block_out.first(),
            Linear::BlockProjection => self.block_projection.first(),
            of_mixture => self.mixture.as_ref()?.projection(of_mixture),
        }
    }

    /// A norm, if the configuration has it.
    fn norm(&self, norm: BlockNorm) -> Option<Norm<'_>> {
        let bias = self.norm_biases[norm as usize].as_ref();
        Some(Norm { weight: self.norms[norm as usize].as_ref()?, bias })
    }
}

/// Weights of a norm.
#[derive(Clone, Copy)]
struct Norm<'a> {
    weight: &'a Weight,
    /// Of a layer norm.
    bias: Option<&'a Weight>,
}

/// Projections that read a block's input first; a block has some of them.
const QKV: [Linear; 10] = [
    Linear::Q,
    Linear::K,
    Linear::V,
    Linear::Qkv,
    Linear::DeltaQkv,
    Linear::DeltaZ,
    Linear::DeltaB,
    Linear::DeltaA,
    Linear::DeltaQkvz,
    Linear::DeltaBa,
];

/// What goes before the rows of a pass.
enum Past<'a, 'c> {
    /// Nothing: these are whole sequences.
    None(&'a [Sequence]),
    /// What is in a cache.
    Cached { rows: &'c PagedRows, slots: &'c [u32], cache: &'c mut LayerCache },
}

impl Decoder {
    /// Assembles a decoder from its blocks and the other weights that `config` requires.
    ///
    /// # Panics
    /// If one of them is missing.
    pub(crate) fn new(
        config: DecoderConfig,
        layers: Vec<Layer>,
        mut weights: BTreeMap<Role, Weight>,
    ) -> Self {
        let embed_tokens = weights.remove(&Role::EmbedTokens).expect("an embedding");
        let block_embedder = BlockEmbedder::new(&mut weights);
        let norm = weights.remove(&Role::FinalNorm);
        let lm_head = weights.remove(&Role::LmHead);
        let encoder = config.encoder.as_ref().map(|_| EncoderWeights::new(&mut weights));
        Self { config, embed_tokens, block_embedder, layers, norm, lm_head, encoder }
    }

    /// The weight with this role; `None` if the configuration has none.
    pub(crate) fn part(&self, role: Role) -> Option<Part<'_>> {
        match role {
            Role::EmbedTokens => Some(Part::Plain(&self.embed_tokens)),
            Role::BlockTable => self.block_embedder.as_ref().map(|of| Part::Plain(&of.table)),
            Role::BlockTableNorm => self.block_embedder.as_ref().map(|of| Part::Plain(&of.norm)),
            Role::FinalNorm => self.norm.as_ref().map(Part::Plain),
            Role::LmHead => self.lm_head.as_ref().map(Part::Plain),
            Role::Norm(i, norm) => Some(Part::Plain(self.layers[i].norm(norm)?.weight)),
            Role::NormBias(i, norm) => self.layers[i].norm(norm)?.bias.map(Part::Plain),
            Role::Encoder(part) => self.encoder.as_ref()?.part(part).map(Part::Plain),
            Role::Delta(i, part) => {
                let delta = self.layers[i].delta.as_ref()?;
                Some(Part::Plain(match part {
                    DeltaPart::Conv => &delta.conv,
                    DeltaPart::ALog => &delta.a_log,
                    DeltaPart::DtBias => &delta.dt_bias,
                }))
            }
            Role::Sinks(i) => self.layers[i].sinks.as_ref().map(Part::Plain),
            Role::Scalar(i) => self.layers[i].scalar.as_ref().map(Part::Plain),
            Role::RouterBias(i) => self.layers[i].mixture.as_ref()?.bias.as_ref().map(Part::Plain),
            Role::ExpertScales(i) => {
                self.layers[i].mixture.as_ref()?.scales.as_ref().map(Part::Plain)
            }
            Role::Matrix(i, linear) => self.layers[i].projection(linear).map(Part::Matrix),
            Role::Bias(i, linear) => {
                self.layers[i].projection(linear)?.bias.as_ref().map(Part::Plain)
            }
        }
    }

    /// The head's weight `[vocab_size, hidden_size]`.
    pub fn head(&self) -> &Weight {
        self.lm_head.as_ref().unwrap_or(&self.embed_tokens)
    }

    /// Size in bytes, as stored, of the frozen projections of the largest block.
    pub fn projection_bytes(&self) -> usize {
        let bytes = |p: &Projection| match &p.weight {
            Weight::Frozen(tensor) => tensor.num_bytes(),
            Weight::Trained { .. } => 0,
        };
        let of_layer = |layer: &Layer| layer.projections().map(bytes).sum();
        self.layers.iter().map(of_layer).max().unwrap_or(0)
    }

    /// Module names (`model.layers.0.self_attn.q_proj`, …) and projections.
    pub fn projections(&self) -> impl Iterator<Item = (String, &Projection)> {
        let projections = self.layers.iter().flat_map(Layer::projections);
        self.config.module_names().zip(projections)
    }

    pub(crate) fn projections_mut(&mut self) -> impl Iterator<Item = (String, &mut Projection)> {
        let projections = self.layers.iter_mut().flat_map(Layer::projections_mut);
        self.config.module_names().zip(projections)
    }

    /// The parts of all adapters, by module name.
    pub fn adapters_mut(&mut self) -> impl Iterator<Item = (String, &mut Lora)> {
        let parts = |(name, p): (String, _)| {
            let Projection { adapters, .. }: &mut Projection = p;
            adapters.iter_mut().map(move |lora| (name.clone(), lora))
        };
        self.projections_mut().flat_map(parts)
    }

    /// Log-probabilities of a batch's targets: `[t]` f32, entry `i` for `batch.rows[i]`.
    pub fn log_probs<'a>(
        &'a self,
        tape: &mut Tape<'a>,
        batch: &'a Batch,
        recompute: Recompute,
    ) -> Var {
        let x = self.embedded(tape, batch);
        self.log_probs_from(tape, x, batch, recompute)
    }

    /// The same where the residual stream begins with `x [t, hidden_size]`.
    pub fn log_probs_from<'a>(
        &'a self,
        tape: &mut Tape<'a>,
        x: Var,
        batch: &'a Batch,
        recompute: Recompute,
    ) -> Var {
        let hidden = self.hidden_from(tape, x, batch, recompute);
        let hidden = self.head_input(tape, hidden);
        ops::log_probs(tape, hidden, self.output_head(), &batch.rows, &batch.targets)
    }

    /// Hidden states after the final norm, `[t, hidden_size]`.
    pub fn hidden<'a>(
        &'a self,
        tape: &mut Tape<'a>,
        batch: &'a Batch,
        recompute: Recompute,
    ) -> Var {
        let x = self.embedded(tape, batch);
        self.hidden_from(tape, x, batch, recompute)
    }

    /// The same where the residual stream begins with `x`.
    fn hidden_from<'a>(
        &'a self,
        tape: &mut Tape<'a>,
        mut x: Var,
        batch: &'a Batch,
        recompute: Recompute,
    ) -> Var {
        ops::round_adapters(tape, self.layers.iter().flat_map(Layer::groups));
        let embeddings = self.block_embeddings(tape, &x, &batch.tokens);
        let mut lent: BTreeMap<usize, Var> = BTreeMap::new();
        for (i, config) in self.config.layers.iter().enumerate() {
            let keys = config.attention.keys_of.map(|of| lent[&of].clone());
            let others = [keys, embeddings.clone()];
            let block = move |tape: &mut Tape<'a>, x: Var, others: [Option<Var>; 2]| {
                let mut past = Past::None(&batch.sequences);
                self.block(tape, i, &batch.angles, (x, others), &mut past)
            };
            let (y, keys) = match recompute {
                Recompute::Block => tape.recompute_with(x, others, block),
                Recompute::None => block(tape, x, others),
            };
            x = y;
            lent.extend(keys.map(|keys| (i, keys)));
        }
        self.normed(tape, &x, self.final_norm())
    }

    /// Hidden states `[t, hidden_size]` of the next tokens of several sequences. `rows` maps tokens
    /// to sequences and their pages, `slots` has the states of each sequence, and `caches` (one per
    /// layer) holds what precedes. Inference only.
    pub(crate) fn hidden_paged<'a>(
        &'a self,
        tape: &mut Tape<'a>,
        tokens: &'a [u32],
        angles: &'a [ops::Angles],
        (rows, slots): (&PagedRows, &[u32]),
        caches: &mut [LayerCache],
    ) -> Var {
        ops::round_adapters(tape, self.layers.iter().flat_map(Layer::groups));
        let mut x = self.token_embeddings(tape, tokens);
        let embeddings = self.block_embeddings(tape, &x, tokens);
        for (i, config) in self.config.layers.iter().enumerate() {
            let cache = &mut caches[config.attention.keys_of.unwrap_or(i)];
            let mut past = Past::Cached { rows, slots, cache };
            (x, _) = self.block(tape, i, angles, (x, [None, embeddings.clone()]), &mut past);
        }
        self.normed(tape, &x, self.final_norm())
    }

    /// Logits `[t, vocab_size]` of a whole batch, for comparisons. Inference only.
    pub fn logits<'a>(&'a self, tape: &mut Tape<'a>, batch: &'a Batch) -> Tensor {
        let hidden = self.head_inputs(tape, batch, Recompute::None);
        self.logits_of(tape, hidden.value())
    }

    /// What the head's products take of every token, `[t, hidden_size]`: see
    /// [`logits_of`](Self::logits_of).
    pub(crate) fn head_inputs<'a>(
        &'a self,
        tape: &mut Tape<'a>,
        batch: &'a Batch,
        recompute: Recompute,
    ) -> Var {
        let hidden = self.hidden(tape, batch, recompute);
        self.head_input(tape, hidden)
    }

    /// Logits `[t, vocab_size]` of what the head's products take: of a decoder, the hidden states
    /// after the final norm. Inference only.
    pub fn logits_of(&self, tape: &mut Tape<'_>, hidden: &Tensor) -> Tensor {
        ops::logits(tape, hidden, self.output_head())
    }

    pub(crate) fn output_head(&self) -> OutputHead<'_> {
        let bias = self.encoder.as_ref().and_then(|encoder| encoder.part(EncoderPart::LogitBias));
        OutputHead { weight: self.head(), bias, logits: self.config.logits }
    }

    /// What the products of the head take, given the hidden states.
    pub(crate) fn head_input<'a>(&'a self, tape: &mut Tape<'a>, hidden: Var) -> Var {
        match (&self.encoder, &self.config.encoder) {
            (Some(weights), Some(config)) => {
                weights.head_input(tape, hidden, config.head, self.config.norm.eps)
            }
            _ => hidden,
        }
    }

    fn final_norm(&self) -> Option<Norm<'_>> {
        let bias = self.encoder.as_ref().and_then(|e| e.part(EncoderPart::FinalNormBias));
        Some(Norm { weight: self.norm.as_ref()?, bias })
    }

    /// Embeddings of the blocks, if they are given any, from the start of the residual stream.
    fn block_embeddings<'a>(
        &'a self,
        tape: &mut Tape<'a>,
        x: &Var,
        tokens: &'a [u32],
    ) -> Option<Var> {
        let (embedder, first) = (self.block_embedder.as_ref()?, self.layers.first()?);
        Some(ops::with_offloaded(tape, first.offloaded.as_ref(), x.clone(), |tape, x| {
            embedder.embedded(tape, &x, tokens, &first.block_projection, self.norm())
        }))
    }

    /// Block `i`, given the residual stream, another block's queries, keys and values if it reads
    /// those, and the embeddings of all blocks. Gives its own queries, keys and values, too, if
    /// others read them.
    fn block<'a>(
        &'a self,
        tape: &mut Tape<'a>,
        i: usize,
        angles: &'a [ops::Angles],
        (x, [keys, embeddings]): (Var, [Option<Var>; 2]),
        past: &mut Past<'a, '_>,
    ) -> (Var, Option<Var>) {
        let layer = &self.layers[i];
        let mut lent = None;
        let y = ops::with_offloaded(tape, layer.offloaded.as_ref(), x, |tape, x| {
            let h = self.normed(tape, &x, layer.norm(BlockNorm::AttentionInput));
            let projected = ops::linear(tape, h, &layer.qkv, None);
            let attended = match &layer.delta {
                None => {
                    let (attended, own) = self.attend(tape, i, angles, (projected, keys), past);
                    lent = own;
                    attended
                }
                Some(weights) => self.delta(tape, i, weights, projected, past),
            };
            let x = self.add(tape, x, attended, &layer.o, layer.norm(BlockNorm::AttentionOutput));
            let x = self.mlp(tape, i, x);
            match embeddings {
                None => x,
                Some(embeddings) => self.add_embedding(tape, i, x, embeddings),
            }
        });
        let y = match &layer.scalar {
            None => y,
            Some(scalar) => {
                let is_dry = tape.device().is_dry();
                let by = if is_dry { 1.0 } else { tape.params().resolve(scalar).f32()[0] };
                ops::scaled(tape, y, by)
            }
        };
        (y, lent)
    }

    /// Adds what the MLP of block `i` makes of the residual stream `x`.
    fn mlp<'a>(&'a self, tape: &mut Tape<'a>, i: usize, x: Var) -> Var {
        let (layer, LayerConfig { mlp, .. }) = (&self.layers[i], &self.config.layers[i]);
        let h = self.normed(tape, &x, layer.norm(BlockNorm::MlpInput));
        let post_norm = layer.norm(BlockNorm::MlpOutput);
        if let (Some(mixture), Some(config)) = (&layer.mixture, &mlp.experts) {
            let options = (config, mlp.activation);
            let shared = Mlp { gate_up: &layer.gate_up, down: &layer.down };
            return match post_norm {
                None => mixture.apply(tape, shared, options, h, Some(x)),
                Some(Norm { weight, .. }) => {
                    let y = match config.is_parallel {
                        true => self.side_by_side(tape, layer, (mixture, options), (&x, h)),
                        false => mixture.apply(tape, shared, options, h, None),
                    };
                    ops::add_rms_norm(tape, y, weight, self.norm(), &x)
                }
            };
        }
        let gate_up = ops::linear(tape, h, &layer.gate_up, None);
        let activated = match mlp.gated {
            true => ops::glu(tape, gate_up, mlp.activation),
            false => ops::activation(tape, gate_up, mlp.activation),
        };
        self.add(tape, x, activated, &layer.down, post_norm)
    }

    /// What the MLP for every token makes of `h`, and what experts with norms of their own make of
    /// the residual stream `x`: the sum of both, normalised, in f32.
    fn side_by_side<'a>(
        &'a self,
        tape: &mut Tape<'a>,
        layer: &'a Layer,
        (mixture, options): (&'a Mixture, (&'a ExpertsConfig, Activation)),
        (x, h): (&Var, Var),
    ) -> Var {
        let weight = |norm| layer.norm(norm).expect("norms of both").weight;
        let gate_up = ops::linear(tape, h, &layer.gate_up, None);
        let activated = ops::glu(tape, gate_up, options.1);
        let shared = ops::linear_in_f32(tape, activated, &layer.down);
        let norm = weight(BlockNorm::SharedOutput);
        let shared = ops::rms_norm_in_f32(tape, &shared, norm, self.norm());
        let inputs = [BlockNorm::RouterInput, BlockNorm::ExpertsInput];
        let inputs = inputs.map(|norm| self.normed(tape, x, layer.norm(norm)));
        let y = mixture.apply_apart(tape, options, inputs);
        ops::add_rms_norm(tape, y, weight(BlockNorm::ExpertsOutput), self.norm(), &shared)
    }

    /// Adds what block `i` makes of its embedding.
    fn add_embedding<'a>(&'a self, tape: &mut Tape<'a>, i: usize, x: Var, embeddings: Var) -> Var {
        let (layer, config) = (&self.layers[i], &self.config.layers[i]);
        let count = config.embedding.map_or(0, |embedding| embedding.width);
        let h = ops::in_compute_type(tape, &x);
        let gate = ops::linear(tape, h, &layer.block_gate, None);
        let own = ops::Part { of: embeddings, first: i * count, count };
        let gated = ops::joined(tape, vec![ops::Part::whole(gate), own]);
        let gated = ops::glu(tape, gated, config.mlp.activation);
        self.add(tape, x, gated, &layer.block_out, layer.norm(BlockNorm::BlockOut))
    }

    /// The start of the residual stream, `[t, hidden_size]`.
    pub fn embedded<'a>(&'a self, tape: &mut Tape<'a>, batch: &'a Batch) -> Var {
        let x = self.token_embeddings(tape, &batch.tokens);
        match &self.encoder {
            Some(encoder) => encoder.embedded(tape, x, batch, self.config.norm.eps),
            None => x,
        }
    }

    fn token_embeddings<'a>(&'a self, tape: &mut Tape<'a>, tokens: &'a [u32]) -> Var {
        let scale = self.config.embedding_scale.factor(tape.dtype());
        ops::embedding(tape, &self.embed_tokens, tokens, scale)
    }

    fn norm(&self) -> RmsNorm {
        self.config.norm
    }

    /// The residual stream in the compute type, normalised if there is a norm.
    fn normed<'a>(&'a self, tape: &mut Tape<'a>, x: &Var, norm: Option<Norm<'a>>) -> Var {
        match (norm, &self.encoder) {
            (Some(norm), None) => ops::rms_norm(tape, x, norm.weight, self.norm()),
            (Some(norm), Some(_)) => {
                let dtype = tape.dtype();
                ops::layer_norm(tape, x.clone(), self.layer_norm(norm), dtype)
            }
            (None, _) => ops::in_compute_type(tape, x),
        }
    }

    fn layer_norm<'a>(&self, Norm { weight, bias }: Norm<'a>) -> LayerNorm<'a> {
        LayerNorm { weight, bias, eps: self.norm().eps }
    }

    /// Adds a projection of `h` to the residual stream `x`. If there is a norm, that is of what is
    /// added, or of the sum.
    fn add<'a>(
        &'a self,
        tape: &mut Tape<'a>,
        x: Var,
        h: Var,
        projection: &'a [Projection],
        post_norm: Option<Norm<'a>>,
    ) -> Var {
        let Some(norm) = post_norm else { return ops::linear(tape, h, projection, Some(x)) };
        if self.config.encoder.as_ref().is_some_and(|encoder| encoder.norms_sums) {
            let sum = ops::linear(tape, h, projection, Some(x));
            return ops::layer_norm(tape, sum, self.layer_norm(norm), DType::F32);
        }
        let projected = ops::linear(tape, h, projection, None);
        ops::add_rms_norm(tape, projected, norm.weight, self.norm(), &x)
    }
}
