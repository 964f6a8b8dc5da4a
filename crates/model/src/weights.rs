//! Which weights a decoder has: the single description behind loading, export, adapter targets and
//! parameter counts. A weight's role says what it does; its name in files follows from that.

mod vectors;

use crate::config::{
    BlockEmbedding, DecoderConfig, DeltaConfig, ExpertLayout, ExpertsConfig, LayerConfig, QkNorm,
};
use hone_tensor::Place;
use hone_tensor::ops::DeltaHeads;
use std::borrow::Cow;

/// A weight that a configuration requires.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightSpec {
    /// What it does.
    pub role: Role,
    /// Its tensor name in Hugging Face checkpoints.
    pub name: String,
    /// `[out_features, in_features]` of a matrix, `[len]` of a norm or bias.
    pub shape: Vec<usize>,
}

/// A part of a tensor that holds the matrices or biases of all experts of a block.
pub(crate) struct Fused {
    /// The tensor's name.
    pub(crate) name: String,
    /// Its shape, experts first.
    pub(crate) shape: Vec<usize>,
    /// Which of its elements the part has.
    pub(crate) place: Place,
    /// The layout of the family's files.
    pub(crate) layout: ExpertLayout,
}

/// What a weight does in a decoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Token embedding.
    EmbedTokens,
    /// Matrix of a block's linear layer.
    Matrix(usize, Linear),
    /// Bias of a block's linear layer.
    Bias(usize, Linear),
    /// Logits that take a share of the softmax of a block's query heads.
    Sinks(usize),
    /// Factor of a block's output; never trained.
    Scalar(usize),
    /// What a block's router adds to its scores for the choice alone; never trained.
    RouterBias(usize),
    /// Factors of the weights of a block's experts.
    ExpertScales(usize),
    /// Weight of a block's norm.
    Norm(usize, BlockNorm),
    /// Bias of a block's norm, in encoders.
    NormBias(usize, BlockNorm),
    /// What a block's gated delta net has besides matrices and a norm.
    Delta(usize, DeltaPart),
    /// Norm before the head.
    FinalNorm,
    /// Table of the blocks' embeddings.
    BlockTable,
    /// Norm of the projection in the blocks' embeddings.
    BlockTableNorm,
    /// Output head, if it is not tied to the embedding.
    LmHead,
    /// What an encoder has besides, outside its blocks.
    Encoder(EncoderPart),
}

impl Role {
    /// The block that it is in.
    pub(crate) fn layer(self) -> Option<usize> {
        match self {
            Self::Matrix(layer, _)
            | Self::Bias(layer, _)
            | Self::Sinks(layer)
            | Self::Scalar(layer)
            | Self::RouterBias(layer)
            | Self::ExpertScales(layer)
            | Self::Norm(layer, _)
            | Self::NormBias(layer, _)
            | Self::Delta(layer, _) => Some(layer),
            Self::EmbedTokens
            | Self::BlockTable
            | Self::BlockTableNorm
            | Self::FinalNorm
            | Self::LmHead
            | Self::Encoder(_) => None,
        }
    }
}

/// Weights of an encoder outside its blocks, besides those of a decoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs)] // As in the configuration.
pub enum EncoderPart {
    Positions,
    TokenTypes,
    EmbeddingNorm,
    EmbeddingNormBias,
    FinalNormBias,
    HeadDense,
    HeadDenseBias,
    HeadNorm,
    HeadNormBias,
    LogitBias,
}

impl EncoderPart {
    /// Whether it is a matrix or table, which may be held in 16 bits.
    pub(crate) fn is_matrix(self) -> bool {
        matches!(self, Self::Positions | Self::TokenTypes | Self::HeadDense)
    }
}

/// Linear layers of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs)] // Established names.
pub enum Linear {
    Q,
    K,
    V,
    /// Queries, keys and values in one matrix.
    Qkv,
    O,
    /// Queries, keys and values of a gated delta net, before its convolution.
    DeltaQkv,
    /// Gate of its output.
    DeltaZ,
    /// How much it writes.
    DeltaB,
    /// How much it forgets.
    DeltaA,
    /// Queries, keys, values and output gates in one matrix, key head by key head.
    DeltaQkvz,
    /// How much it writes and forgets in one matrix, key head by key head.
    DeltaBa,
    DeltaOut,
    /// Of the MLP for every token: the only one, or the shared expert.
    Gate,
    Up,
    /// Gate and up in one matrix.
    GateUp,
    Down,
    /// Gate of the block's embedding.
    BlockGate,
    /// What the block makes of its gated embedding.
    BlockOut,
    /// The first embedding, projected for all blocks; in the first one.
    BlockProjection,
    /// Gate of the shared expert's output.
    SharedGate,
    /// Logits of experts.
    Router,
    /// Of an expert.
    Expert(usize, ExpertPart),
}

/// Linear layers of a gated delta net: those that read its input first.
const DELTA: [Linear; 5] =
    [Linear::DeltaQkv, Linear::DeltaZ, Linear::DeltaB, Linear::DeltaA, Linear::DeltaOut];
/// The same where several are one matrix.
const FUSED_DELTA: [Linear; 3] = [Linear::DeltaQkvz, Linear::DeltaBa, Linear::DeltaOut];

/// Linear layers of an expert.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs)] // Established names.
pub enum ExpertPart {
    Gate,
    Up,
    Down,
}

impl ExpertPart {
    /// All, in model order.
    pub const ALL: [Self; 3] = [Self::Gate, Self::Up, Self::Down];
}

impl Linear {
    /// Whether it decides which experts compute, or how much of one counts.
    pub fn is_router(self) -> bool {
        matches!(self, Self::Router | Self::SharedGate)
    }
}

/// What a gated delta net has besides matrices and a norm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DeltaPart {
    /// Weight of the convolution.
    Conv,
    /// Logarithms of the rates at which heads forget.
    ALog,
    /// Bias of what decides how much is forgotten.
    DtBias,
}

/// Norms of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum BlockNorm {
    /// Applied to the input of attention.
    AttentionInput,
    /// Applied to each query head.
    Q,
    /// Applied to each key head.
    K,
    /// Applied to each value head; all ones, and in no file.
    V,
    /// Applied to each head that a gated delta net gives.
    Delta,
    /// Applied to the output of attention.
    AttentionOutput,
    /// Applied to the input of the MLP.
    MlpInput,
    /// Applied to what the shared MLP gives, where experts have norms of their own.
    SharedOutput,
    /// Applied to the input of the router.
    RouterInput,
    /// Applied to the input of the experts.
    ExpertsInput,
    /// Applied to what the experts give.
    ExpertsOutput,
    /// Applied to the output of the MLP.
    MlpOutput,
    /// Applied to what the block makes of its embedding.
    BlockOut,
}

impl BlockNorm {
    /// All, in model order.
    pub const ALL: [Self; 13] = [
        Self::AttentionInput,
        Self::Q,
        Self::K,
        Self::V,
        Self::Delta,
        Self::AttentionOutput,
        Self::MlpInput,
        Self::SharedOutput,
        Self::RouterInput,
        Self::ExpertsInput,
        Self::ExpertsOutput,
        Self::MlpOutput,
        Self::BlockOut,
    ];
}

impl DecoderConfig {
    /// Every weight, in model order, which is also the order of trained parameters.
    pub fn weights(&self) -> impl Iterator<Item = WeightSpec> {
        let (v, h) = (self.vocab_size, self.hidden_size);
        let spec = |role, name: &str, shape: &[usize]| WeightSpec {
            role,
            name: name.to_owned(),
            shape: shape.to_vec(),
        };
        let (after_embedding, last) = match &self.encoder {
            Some(encoder) => (encoder.embedding_weights(h), encoder.head_weights(self)),
            None => {
                let norm = spec(Role::FinalNorm, "model.norm.weight", &[h]);
                let head = spec(Role::LmHead, &self.head_name(), &[v, h]);
                let head = (!self.tie_word_embeddings).then_some(head);
                let of_blocks = self.block_embeddings.map(|of| of.weights(self.layers.len()));
                let of_blocks = of_blocks.into_iter().flatten().collect();
                (of_blocks, [norm].into_iter().chain(head).collect())
            }
        };
        [spec(Role::EmbedTokens, &self.embedding_name(), &[v, h])]
            .into_iter()
            .chain(after_embedding)
            .chain((0..self.layers.len()).flat_map(|layer| self.layer_weights(layer)))
            .chain(last)
    }

    /// Name of the token embedding.
    pub(crate) fn embedding_name(&self) -> String {
        match &self.encoder {
            Some(encoder) => encoder.own(encoder.names.embedding, "weight"),
            None => "model.embed_tokens.weight".to_owned(),
        }
    }

    /// Name of the output head, which files may have although it is tied to the embedding.
    pub(crate) fn head_name(&self) -> String {
        match &self.encoder {
            Some(encoder) => format!("{}.weight", encoder.names.decoder),
            None => "lm_head.weight".to_owned(),
        }
    }

    /// What names of everything but heads begin with, with its dot.
    pub(crate) fn own_prefix(&self) -> &'static str {
        self.encoder.as_ref().map_or("model.", |encoder| encoder.names.prefix)
    }

    /// The module that holds the blocks, after [`Self::own_prefix`].
    pub(crate) fn blocks(&self) -> &'static str {
        self.encoder.as_ref().map_or("layers", |encoder| encoder.names.blocks)
    }

    /// What names within a block begin with.
    fn block_prefix(&self, layer: usize) -> String {
        format!("{}{}.{layer}", self.own_prefix(), self.blocks())
    }

    pub(crate) fn module_name(&self, layer: usize, linear: Linear) -> String {
        if linear == Linear::BlockProjection {
            return format!("model.{}", self.layers[layer].module(linear));
        }
        let module = match &self.encoder {
            Some(encoder) => encoder.module(&self.layers[layer].module(linear)).into(),
            None => self.layers[layer].module(linear),
        };
        format!("{}.{module}", self.block_prefix(layer))
    }

    fn layer_weights(&self, layer: usize) -> impl Iterator<Item = WeightSpec> {
        let (config, h) = (&self.layers[layer], self.hidden_size);
        let linears = config.linears().flat_map(move |linear| {
            let ([n, k], module) = (config.shape(h, linear), self.module_name(layer, linear));
            let name = format!("{module}.weight");
            let bias = WeightSpec {
                role: Role::Bias(layer, linear),
                name: format!("{module}.bias"),
                shape: vec![n],
            };
            [WeightSpec { role: Role::Matrix(layer, linear), name, shape: vec![n, k] }]
                .into_iter()
                .chain(config.has_bias(linear).then_some(bias))
        });
        let has_bias = self.encoder.as_ref().is_some_and(|encoder| encoder.norm_bias);
        let norms = BlockNorm::ALL.into_iter().flat_map(move |norm| {
            let spec = move |(role, end): (Role, &str)| {
                let module = config.norm_module(norm)?;
                let prefix = self.block_prefix(layer);
                let name = match norm {
                    // No module of its own.
                    BlockNorm::RouterInput => format!("{prefix}.{module}"),
                    _ => format!("{prefix}.{module}.{end}"),
                };
                Some(WeightSpec { role, name, shape: vec![config.norm_len(h, norm)] })
            };
            let bias = has_bias.then_some((Role::NormBias(layer, norm), "bias"));
            [(Role::Norm(layer, norm), "weight")].into_iter().chain(bias).filter_map(spec)
        });
        let sinks = (config.attention.sinks && config.delta.is_none()).then(|| WeightSpec {
            role: Role::Sinks(layer),
            name: format!("model.layers.{layer}.self_attn.sinks"),
            shape: vec![config.attention.heads.num_heads],
        });
        let scalar = config.scaled.then(|| WeightSpec {
            role: Role::Scalar(layer),
            name: format!("model.layers.{layer}.layer_scalar"),
            shape: vec![1],
        });
        let others = config.router_bias(layer).into_iter().chain(config.delta_parts(layer));
        let others = others.chain(scalar).chain(config.expert_scales(layer));
        linears.chain(sinks).chain(others).chain(norms)
    }

    /// Full names of the linear layers inside the blocks, in model order.
    pub fn module_names(&self) -> impl Iterator<Item = String> {
        self.modules().map(|(name, _)| name)
    }

    /// The linear layers inside the blocks, with their full names, in model order.
    pub fn modules(&self) -> impl Iterator<Item = (String, Linear)> {
        self.layers.iter().enumerate().flat_map(move |(layer, config)| {
            config.linears().map(move |linear| (self.module_name(layer, linear), linear))
        })
    }

    /// Where an expert's matrix or bias lies in files that hold those of all experts in one tensor.
    pub(crate) fn fused(&self, role: Role) -> Option<Fused> {
        let (layer, expert, part, is_bias) = match role {
            Role::Matrix(layer, Linear::Expert(expert, part)) => (layer, expert, part, false),
            Role::Bias(layer, Linear::Expert(expert, part)) => (layer, expert, part, true),
            _ => return None,
        };
        let LayerConfig { mlp, .. } = &self.layers[layer];
        let mixture = mlp.experts.as_ref()?;
        let (i, h, layout) = (mlp.intermediate_size, self.hidden_size, mixture.names.layout);
        let (name, rows, cols) = match part {
            ExpertPart::Gate | ExpertPart::Up => ("gate_up_proj", 2 * i, h),
            ExpertPart::Down => ("down_proj", h, i),
        };
        // The first of the part's rows, and how far the next is.
        let (first, step) = match (part, layout) {
            (ExpertPart::Down, _) | (ExpertPart::Gate, ExpertLayout::Rows) => (0, 1),
            (ExpertPart::Up, ExpertLayout::Rows) => (i, 1),
            (ExpertPart::Gate, ExpertLayout::Columns) => (0, 2),
            (ExpertPart::Up, ExpertLayout::Columns) => (1, 2),
        };
        let (num_experts, end) = (mixture.router.num_experts, if is_bias { "_bias" } else { "" });
        let (shape, row_step, col_step) = match (is_bias, layout) {
            (true, _) => (vec![num_experts, rows], 1, 1),
            (false, ExpertLayout::Rows) => (vec![num_experts, rows, cols], cols, 1),
            (false, ExpertLayout::Columns) => (vec![num_experts, cols, rows], 1, rows),
        };
        let of_expert: usize = shape[1..].iter().product();
        let first = expert * of_expert + first * row_step;
        Some(Fused {
            name: format!("model.layers.{layer}.{}.{name}{end}", mixture.names.experts),
            shape,
            place: Place { first, row_step: step * row_step, col_step },
            layout,
        })
    }

    /// The linear layers of a block's experts, with their full names, in model order.
    pub(crate) fn experts_of(&self, layer: usize) -> impl Iterator<Item = (String, Linear)> {
        let config = &self.layers[layer];
        let of_experts = config.linears().filter(|linear| matches!(linear, Linear::Expert(..)));
        of_experts.map(move |linear| (self.module_name(layer, linear), linear))
    }
}

impl LayerConfig {
    /// Whether it attends to another block's keys and values.
    pub(crate) fn shares_keys(&self) -> bool {
        self.attention.keys_of.is_some()
    }

    fn experts(&self) -> Option<&ExpertsConfig> {
        self.mlp.experts.as_ref()
    }

    /// The linear layers, in model order.
    pub(crate) fn linears(&self) -> impl Iterator<Item = Linear> {
        let mixture = self.experts();
        let shared = mixture.and_then(|mixture| mixture.shared.as_ref());
        let is_dense = mixture.is_none() || shared.is_some();
        let is_gated = shared.is_some_and(|shared| shared.gated);
        let attention: &[Linear] = match (&self.delta, self.attention.fused_qkv) {
            (Some(DeltaConfig { fused: false, .. }), _) => &DELTA,
            (Some(DeltaConfig { fused: true, .. }), _) => &FUSED_DELTA,
            (None, false) if self.shares_keys() => &[Linear::Q, Linear::O],
            (None, false) if self.attention.keys_as_values => &[Linear::Q, Linear::K, Linear::O],
            (None, false) => &[Linear::Q, Linear::K, Linear::V, Linear::O],
            (None, true) => &[Linear::Qkv, Linear::O],
        };
        let dense: &[Linear] = match self.mlp.fused {
            _ if !is_dense => &[],
            _ if !self.mlp.gated => &[Linear::Up, Linear::Down],
            false => &[Linear::Gate, Linear::Up, Linear::Down],
            true => &[Linear::GateUp, Linear::Down],
        };
        const EMBEDDING: [Linear; 3] =
            [Linear::BlockGate, Linear::BlockOut, Linear::BlockProjection];
        let embedding: &[Linear] = match &self.embedding {
            None => &[],
            Some(BlockEmbedding { projected: 0, .. }) => &EMBEDDING[..2],
            Some(_) => &EMBEDDING,
        };
        let num_experts = mixture.map_or(0, |mixture| mixture.router.num_experts);
        let of_expert = |expert| ExpertPart::ALL.map(|part| Linear::Expert(expert, part));
        attention
            .iter()
            .chain(dense)
            .chain(embedding)
            .copied()
            .chain(is_gated.then_some(Linear::SharedGate))
            .chain(mixture.map(|_| Linear::Router))
            .chain((0..num_experts).flat_map(of_expert))
    }

    /// Name of a linear layer's module within the block.
    fn module(&self, linear: Linear) -> Cow<'static, str> {
        let names = self.experts().map(|mixture| mixture.names);
        let of_mixture = || names.expect("only a mixture has it");
        let dense = |name: &'static str, part: usize| match names {
            None => Cow::Borrowed(name),
            Some(names) => format!("{}.{}", names.shared, names.parts[part]).into(),
        };
        match linear {
            Linear::Q => "self_attn.q_proj".into(),
            Linear::K => "self_attn.k_proj".into(),
            Linear::V => "self_attn.v_proj".into(),
            Linear::Qkv => "self_attn.qkv_proj".into(),
            Linear::O => "self_attn.o_proj".into(),
            Linear::DeltaQkv => "linear_attn.in_proj_qkv".into(),
            Linear::DeltaZ => "linear_attn.in_proj_z".into(),
            Linear::DeltaB => "linear_attn.in_proj_b".into(),
            Linear::DeltaA => "linear_attn.in_proj_a".into(),
            Linear::DeltaQkvz => "linear_attn.in_proj_qkvz".into(),
            Linear::DeltaBa => "linear_attn.in_proj_ba".into(),
            Linear::DeltaOut => "linear_attn.out_proj".into(),
            Linear::Gate => dense("mlp.gate_proj", 0),
            Linear::Up => dense("mlp.up_proj", 1),
            Linear::GateUp => "mlp.gate_up_proj".into(),
            Linear::Down => dense("mlp.down_proj", 2),
            Linear::BlockGate => "per_layer_input_gate".into(),
            Linear::BlockOut => "per_layer_projection".into(),
            Linear::BlockProjection => "per_layer_model_projection".into(),
            Linear::SharedGate => of_mixture().shared_gate.into(),
            Linear::Router => of_mixture().router.into(),
            Linear::Expert(expert, part) => {
                let names = of_mixture();
                format!("{}.{expert}.{}", names.experts, names.parts[part as usize]).into()
            }
        }
    }

    /// `[out_features, in_features]`.
    fn shape(&self, hidden_size: usize, linear: Linear) -> [usize; 2] {
        let (h, i, heads) = (hidden_size, self.mlp.intermediate_size, &self.attention.heads);
        let shared = self.experts().and_then(|mixture| mixture.shared.as_ref());
        let dense = shared.map_or(i, |shared| shared.intermediate_size);
        match linear {
            Linear::Q if self.attention.output_gate => [2 * heads.out_width(), h],
            Linear::Q => [heads.out_width(), h],
            Linear::K | Linear::V => [heads.num_kv_heads * heads.head_dim, h],
            Linear::Qkv => [heads.qkv_width(), h],
            Linear::O => [h, heads.out_width()],
            Linear::DeltaQkv => [self.delta_heads().qkv_width(), h],
            Linear::DeltaZ => [self.delta_heads().out_width(), h],
            Linear::DeltaB | Linear::DeltaA => [self.delta_heads().num_value_heads, h],
            Linear::DeltaQkvz => {
                let heads = self.delta_heads();
                [heads.qkv_width() + heads.out_width(), h]
            }
            Linear::DeltaBa => [2 * self.delta_heads().num_value_heads, h],
            Linear::DeltaOut => [h, self.delta_heads().out_width()],
            Linear::Gate | Linear::Up => [dense, h],
            Linear::GateUp => [2 * dense, h],
            Linear::Down => [h, dense],
            Linear::BlockGate => [self.embedding_width(), h],
            Linear::BlockOut => [h, self.embedding_width()],
            Linear::BlockProjection => [self.embedding.map_or(0, |of| of.projected), h],
            Linear::SharedGate => [1, h],
            Linear::Router => [self.experts().map_or(0, |mixture| mixture.router.num_experts), h],
            Linear::Expert(_, ExpertPart::Gate | ExpertPart::Up) => [i, h],
            Linear::Expert(_, ExpertPart::Down) => [h, i],
        }
    }

    fn has_bias(&self, linear: Linear) -> bool {
        match linear {
            Linear::Q | Linear::K | Linear::V | Linear::Qkv => self.attention.qkv_bias,
            Linear::O => self.attention.o_bias,
            Linear::Gate | Linear::Up | Linear::GateUp | Linear::Down | Linear::Expert(..) => {
                self.mlp.bias
            }
            Linear::Router => self.experts().is_some_and(|mixture| mixture.router_bias),
            Linear::SharedGate | Linear::BlockGate | Linear::BlockOut | Linear::BlockProjection => {
                false
            }
            Linear::DeltaQkv
            | Linear::DeltaZ
            | Linear::DeltaB
            | Linear::DeltaA
            | Linear::DeltaQkvz
            | Linear::DeltaBa
            | Linear::DeltaOut => false,
        }
    }

    /// Width of the block's embedding; 0 without one.
    fn embedding_width(&self) -> usize {
        self.embedding.map_or(0, |embedding| embedding.width)
    }

    /// Those of a block that has a gated delta net.
    fn delta_heads(&self) -> DeltaHeads {
        self.delta.expect("only a gated delta net has it").heads
    }

    /// Name of a norm's module within its block; `None` where there is no such norm.
    fn norm_module(&self, norm: BlockNorm) -> Option<&'static str> {
        let is_parallel = self.experts().is_some_and(|mixture| mixture.is_parallel);
        let has_qk = self.attention.qk_norm != QkNorm::None && self.delta.is_none();
        match norm {
            BlockNorm::AttentionInput => self.norms.attention_input,
            BlockNorm::Q => has_qk.then_some("self_attn.q_norm"),
            BlockNorm::K => (has_qk && !self.shares_keys()).then_some("self_attn.k_norm"),
            BlockNorm::V => None,
            BlockNorm::Delta => self.delta.map(|_| "linear_attn.norm"),
            BlockNorm::AttentionOutput => self.norms.attention_output,
            BlockNorm::MlpInput => self.norms.mlp_input,
            BlockNorm::SharedOutput => is_parallel.then_some("post_feedforward_layernorm_1"),
            BlockNorm::RouterInput => is_parallel.then_some("router.scale"),
            BlockNorm::ExpertsInput => is_parallel.then_some("pre_feedforward_layernorm_2"),
            BlockNorm::ExpertsOutput => is_parallel.then_some("post_feedforward_layernorm_2"),
            BlockNorm::MlpOutput => self.norms.mlp_output,
            BlockNorm::BlockOut => self.embedding.map(|_| "post_per_layer_input_norm"),
        }
    }

    fn norm_len(&self, hidden_size: usize, norm: BlockNorm) -> usize {
        let heads = &self.attention.heads;
        let of_rows = self.attention.qk_norm == QkNorm::Rows;
        match norm {
            BlockNorm::Q if of_rows => heads.num_heads * heads.head_dim,
            BlockNorm::K if of_rows => heads.num_kv_heads * heads.head_dim,
            BlockNorm::Q | BlockNorm::K => heads.head_dim,
            BlockNorm::Delta => self.delta_heads().value_dim,
            _ => hidden_size,
        }
    }
}
