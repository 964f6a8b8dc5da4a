//! The configuration of a decoder or encoder, independent of the model family it was read from.

use crate::heads::{HeadNames, TaskHead};
use crate::rope::{RopeConfig, RopeScaling};
use hone_tensor::ops::{Activation, Angles, DeltaHeads, Logits, RmsNorm, Router};
use hone_tensor::{DType, Heads};

/// Architecture of a decoder, or of an encoder. Names are those of Hugging Face configurations.
#[derive(Clone, Debug, PartialEq)]
pub struct DecoderConfig {
    /// Size of the vocabulary, and rows of the embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// The blocks, from first to last.
    pub layers: Vec<LayerConfig>,
    /// Rotary position embeddings; each block's attention uses one of them.
    pub ropes: Vec<RopeConfig>,
    /// Settings shared by all norms; of an encoder's, only the number under the root.
    pub norm: RmsNorm,
    /// Multiplier of embeddings.
    pub embedding_scale: EmbeddingScale,
    /// How products with the head's weight become logits.
    pub logits: Logits,
    /// Longest sequence the model was made for.
    pub max_position_embeddings: usize,
    /// Whether the output head shares the embedding's weight.
    pub tie_word_embeddings: bool,
    /// Tokens that end a generation, according to the model's files.
    pub eos_token_ids: Vec<u32>,
    /// Whether the files hold other parts besides, such as a vision tower, which stay as they are.
    pub is_part: bool,
    /// What names of blocks begin with in the class of transformers that `architectures` names, and
    /// so in PEFT's adapters.
    pub class_prefix: &'static str,
    /// Whether the files hold blocks that predict tokens after the next, which are left out.
    pub has_mtp: bool,
    /// Embeddings of the blocks; `None`: tokens are embedded once.
    pub block_embeddings: Option<BlockEmbeddings>,
    /// What makes the model an encoder; `None`: a decoder.
    pub encoder: Option<EncoderConfig>,
    /// Labels that a classifier is to tell apart, if the configuration says so.
    pub num_labels: Option<usize>,
    /// Heads for other tasks that the files hold, which stay as they are.
    pub heads: Vec<TaskHead>,
    /// Whether nothing predicts tokens: the files hold no head for it, as those of classifiers and
    /// bare decoders, and it is not tied to the embedding.
    pub lacks_lm_head: bool,
}

/// Embeddings of tokens that each block is given besides the residual stream, as in Gemma 4: a row
/// of a table, and a projection of the first embedding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockEmbeddings {
    /// Tokens in the table.
    pub vocab_size: usize,
    /// Width of a block's embedding.
    pub width: usize,
}

/// Multiplier of embeddings.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum EmbeddingScale {
    /// As it is.
    Exact(f32),
    /// Rounded to the compute type, as Gemma was trained.
    Rounded(f32),
}

impl EmbeddingScale {
    /// The factor in a pass that computes in `dtype`.
    pub fn factor(self, dtype: DType) -> f32 {
        match self {
            Self::Exact(scale) => scale,
            Self::Rounded(scale) => dtype.rounded(scale),
        }
    }
}

/// One block: attention, then a gated MLP.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerConfig {
    /// Attention, unless `delta` takes its place.
    pub attention: AttentionConfig,
    /// A gated delta net.
    pub delta: Option<DeltaConfig>,
    /// The MLP.
    pub mlp: MlpConfig,
    /// Which norms there are around them.
    pub norms: NormNames,
    /// Its embedding of tokens besides the residual stream.
    pub embedding: Option<BlockEmbedding>,
    /// Whether the block's output is multiplied by a number in the files, which is not trained.
    pub scaled: bool,
}

/// What a block makes of its own embedding of tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockEmbedding {
    /// Its width.
    pub width: usize,
    /// Width of the projection that embeds for all blocks, which is the first one's; 0 in others.
    pub projected: usize,
}

/// Names of a block's norms in files; `None` where there is no such norm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NormNames {
    /// Of the input of attention.
    pub attention_input: Option<&'static str>,
    /// Of what attention adds to the residual stream.
    pub attention_output: Option<&'static str>,
    /// Of the input of the MLP.
    pub mlp_input: Option<&'static str>,
    /// Of what the MLP adds to the residual stream.
    pub mlp_output: Option<&'static str>,
}

impl NormNames {
    /// Before attention and MLP: most families.
    pub const PRE: Self = Self {
        attention_input: Some("input_layernorm"),
        attention_output: None,
        mlp_input: Some("post_attention_layernorm"),
        mlp_output: None,
    };
}

/// Attention of one block.
#[derive(Clone, Debug, PartialEq)]
pub struct AttentionConfig {
    /// Heads, their scale and window.
    pub heads: Heads,
    /// Index into [`DecoderConfig::ropes`]; `None`: positions are not embedded.
    pub rope: Option<usize>,
    /// What of queries and keys is normalised before their rotary embedding.
    pub qk_norm: QkNorm,
    /// Whether each query head comes with a gate of what it gives.
    pub output_gate: bool,
    /// Whether queries, keys and values are one matrix in files, and one target of adapters.
    pub fused_qkv: bool,
    /// Whether the query, key and value projections have biases.
    pub qkv_bias: bool,
    /// Whether the output projection has a bias.
    pub o_bias: bool,
    /// Whether each query head has a logit that takes a share of its softmax.
    pub sinks: bool,
    /// Whether values are the keys, before their norm and rotary embedding.
    pub keys_as_values: bool,
    /// Whether each value head is normalised by itself, without a weight.
    pub norms_values: bool,
    /// The earlier block whose keys and values, with norms and positions, take the place of its
    /// own; it has the same heads.
    pub keys_of: Option<usize>,
}

/// A gated delta net (Yang et al., 2024), as in Qwen3-Next, in place of attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeltaConfig {
    /// Its heads.
    pub heads: DeltaHeads,
    /// Tokens that the convolution before it sees, the present one included.
    pub conv_width: usize,
    /// Whether its projections are two matrices in files, whose rows go key head by key head, and
    /// two targets of adapters.
    pub fused: bool,
}

/// Norms of queries and keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QkNorm {
    /// None.
    None,
    /// Each head by itself; weights `[head_dim]`.
    Heads,
    /// All heads of a token as one row; weights `[num_heads * head_dim]`.
    Rows,
}

/// MLP of one block, or of each of its experts.
#[derive(Clone, Debug, PartialEq)]
pub struct MlpConfig {
    /// Width of the hidden layer.
    pub intermediate_size: usize,
    /// Activation applied to the gate, or to the hidden layer of an MLP without one.
    pub activation: Activation,
    /// Whether the hidden layer is a product of two projections, gate and up.
    pub gated: bool,
    /// Whether gate and up are one matrix in files, and one target of adapters.
    pub fused: bool,
    /// Whether the projections have biases.
    pub bias: bool,
    /// `None`: one MLP for every token.
    pub experts: Option<ExpertsConfig>,
}

/// A mixture of experts in place of one MLP.
#[derive(Clone, Debug, PartialEq)]
pub struct ExpertsConfig {
    /// How experts are chosen and weighted.
    pub router: Router,
    /// Whether the router's logits have a bias.
    pub router_bias: bool,
    /// Whether the router adds a bias to its scores for the choice alone.
    pub correction_bias: bool,
    /// An MLP for every token beside the experts.
    pub shared: Option<SharedExpertConfig>,
    /// Whether router and experts read the residual stream through norms of their own, what they
    /// and the shared MLP give is normalised before it is added up, and each expert has a factor
    /// of its weights, as in Gemma 4.
    pub is_parallel: bool,
    /// Names of their modules.
    pub names: &'static ExpertNames,
}

/// An MLP for every token beside the experts.
#[derive(Clone, Debug, PartialEq)]
pub struct SharedExpertConfig {
    /// Width of its hidden layer.
    pub intermediate_size: usize,
    /// Whether its output is multiplied by a sigmoid of the input.
    pub gated: bool,
}

/// Names of the modules of a mixture, within its block.
#[derive(Debug, PartialEq)]
pub struct ExpertNames {
    /// The router.
    pub router: &'static str,
    /// What the numbers of experts follow.
    pub experts: &'static str,
    /// Gate, up and down projection of an expert.
    pub parts: [&'static str; 3],
    /// The shared expert.
    pub shared: &'static str,
    /// The gate of the shared expert.
    pub shared_gate: &'static str,
    /// How files have the weights.
    pub layout: ExpertLayout,
}

/// How files have the weights of experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExpertLayout {
    /// `[out, in]` each, or all in one tensor, an expert's gate before its up projection.
    Rows,
    /// All in one tensor `[experts, in, out]`, columns of gate and up projection by turns.
    Columns,
}

impl ExpertNames {
    /// Those of Qwen, which most families share.
    pub const QWEN: Self = Self {
        router: "mlp.gate",
        experts: "mlp.experts",
        parts: ["gate_proj", "up_proj", "down_proj"],
        shared: "mlp.shared_expert",
        shared_gate: "mlp.shared_expert_gate",
        layout: ExpertLayout::Rows,
    };
}

/// An encoder's part of a configuration. Its norms are layer norms.
#[derive(Clone, Debug, PartialEq)]
pub struct EncoderConfig {
    /// Learned positions; `None`: rotary ones.
    pub positions: Option<LearnedPositions>,
    /// Rows of the table of token types, of which every token has the first; 0 without a table.
    pub num_token_types: usize,
    /// Whether norms have biases.
    pub norm_bias: bool,
    /// Whether a block normalises the residual stream after what it adds (Vaswani et al., 2017),
    /// rather than its own input.
    pub norms_sums: bool,
    /// The head that predicts masked tokens; `None`: the embedding's products alone.
    pub head: Option<MaskedHead>,
    /// Names of weights in files.
    pub names: &'static EncoderNames,
}

/// Learned positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LearnedPositions {
    /// Rows of their table.
    pub count: usize,
    /// The row of a sequence's first token.
    pub first: usize,
}

/// A head that transforms hidden states before their products with the embedding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MaskedHead {
    /// Activation after its matrix.
    pub activation: Activation,
    /// Whether the matrix has a bias.
    pub dense_bias: bool,
    /// Whether logits have a bias.
    pub logit_bias: bool,
}

/// Names of an encoder's weights in files, without `.weight` and `.bias`.
#[derive(Debug, PartialEq, Eq)]
pub struct EncoderNames {
    /// What the names of everything but heads begin with, with its dot; files of bare encoders
    /// omit it.
    pub prefix: &'static str,
    /// Token embedding.
    pub embedding: &'static str,
    /// Norm of the embeddings' sum.
    pub embedding_norm: &'static str,
    /// Blocks, before their number.
    pub blocks: &'static str,
    /// Linear layers of a block: a decoder's name, and the encoder's.
    pub modules: &'static [(&'static str, &'static str)],
    /// Norm after the last block.
    pub final_norm: Option<&'static str>,
    /// Matrix of the head for masked tokens.
    pub head_dense: &'static str,
    /// Norm after it.
    pub head_norm: &'static str,
    /// Bias of the logits, a whole name.
    pub logit_bias: &'static str,
    /// Products that give the logits, where they are not tied to the embedding.
    pub decoder: &'static str,
    /// Heads for other tasks.
    pub heads: &'static [HeadNames],
}

impl DecoderConfig {
    /// Number of blocks.
    pub fn num_hidden_layers(&self) -> usize {
        self.layers.len()
    }

    /// The heads of each block that makes keys and values.
    pub fn kept_heads(&self) -> impl Iterator<Item = &Heads> {
        let keeps = |layer: &&LayerConfig| layer.delta.is_none() && !layer.shares_keys();
        self.layers.iter().filter(keeps).map(|layer| &layer.attention.heads)
    }

    /// Whether later blocks read the keys and values of block `i`.
    pub(crate) fn lends_keys(&self, i: usize) -> bool {
        self.layers.iter().any(|layer| layer.attention.keys_of == Some(i))
    }

    /// The heads of each block that attends.
    pub fn heads(&self) -> impl Iterator<Item = &Heads> {
        let attends = self.layers.iter().filter(|layer| layer.delta.is_none());
        attends.map(|layer| &layer.attention.heads)
    }

    /// The first block in which a token attends to later ones, so that no token can be the next.
    pub fn looks_ahead(&self) -> Option<usize> {
        let looks_ahead = |layer: &LayerConfig| layer.attention.heads.ahead > 0;
        self.layers.iter().position(|layer| layer.delta.is_none() && looks_ahead(layer))
    }

    /// The gated delta nets of blocks that have one.
    pub fn deltas(&self) -> impl Iterator<Item = &DeltaConfig> {
        self.layers.iter().filter_map(|layer| layer.delta.as_ref())
    }

    /// Dimensions of the widest head.
    pub fn max_head_dim(&self) -> usize {
        self.heads().map(|heads| heads.head_dim).max().unwrap_or(0)
    }

    /// Dimensions of the widest key of a gated delta net; 0 without one.
    pub fn max_delta_key_dim(&self) -> usize {
        self.deltas().map(|delta| delta.heads.key_dim).max().unwrap_or(0)
    }

    /// Rows of a table of learned positions for tokens at `positions`; empty without a table.
    pub(crate) fn learned_positions(&self, positions: &[u32]) -> Vec<u32> {
        let learned = self.encoder.as_ref().and_then(|encoder| encoder.positions);
        let rows = |LearnedPositions { first, .. }| {
            positions.iter().map(|position| position + first as u32).collect()
        };
        learned.map_or_else(Vec::new, rows)
    }

    /// Longest sequence that the model supports; `None` if it supports any.
    pub fn longest(&self) -> Option<usize> {
        let is_dynamic = |rope: &RopeConfig| matches!(rope.scaling, RopeScaling::Dynamic { .. });
        (!self.ropes.iter().any(is_dynamic)).then_some(self.max_position_embeddings)
    }

    /// Whether the model supports sequences of `len` tokens.
    pub fn supports_len(&self, len: usize) -> bool {
        self.longest().is_none_or(|longest| len <= longest)
    }

    /// Tokens that end a generation: the model's own and those of its tokenizer.
    pub fn stop_ids(&self, tokenizer_ids: &[u32]) -> Vec<u32> {
        let mut ids = [&self.eos_token_ids, tokenizer_ids].concat();
        ids.sort_unstable();
        ids.dedup();
        ids
    }

    /// Number of parameters, counting tied ones once.
    pub fn num_parameters(&self) -> usize {
        self.weights().map(|weight| weight.shape.iter().product::<usize>()).sum()
    }

    /// Angles for each of [`Self::ropes`], for tokens at `positions` in sequences delimited by
    /// `cu_seqlens`.
    pub fn angles(&self, positions: &[u32], cu_seqlens: &[u32]) -> Vec<Angles> {
        self.ropes.iter().map(|rope| rope.angles(positions, cu_seqlens)).collect()
    }

    /// Size in bytes of what `num_tokens` tokens look up besides their embedding: types and learned
    /// positions.
    pub fn lookup_bytes(&self, num_tokens: usize) -> usize {
        let Some(encoder) = &self.encoder else { return 0 };
        let has_types = encoder.num_token_types > 0;
        let num_lists = usize::from(has_types) + usize::from(encoder.positions.is_some());
        num_lists * size_of::<u32>() * num_tokens
    }

    /// Size in bytes of the lists that say which of `num_tokens` tokens each expert computes.
    pub fn routing_bytes(&self, num_tokens: usize) -> usize {
        let lists = |layer: &LayerConfig| {
            let mixture = layer.mlp.experts.as_ref()?;
            // The experts of each token, the token of each row, the rows of each token; and the
            // experts again where their outputs are scaled.
            let num_lists = 3 + usize::from(mixture.is_parallel);
            Some(num_lists * mixture.router.top_k)
        };
        let of_token: usize = self.layers.iter().filter_map(lists).sum();
        of_token * size_of::<u32>() * num_tokens
    }

    /// Whether a sequence that grows from `len` tokens to `new_len` rotates its first ones by other
    /// angles than before.
    pub fn changes_angles(&self, len: usize, new_len: usize) -> bool {
        self.ropes.iter().any(|rope| rope.depends_on(new_len) && !rope.depends_on(len))
    }

    /// Size in bytes of the angles for `num_tokens` tokens.
    pub fn angle_bytes(&self, num_tokens: usize) -> usize {
        self.ropes.iter().map(|rope| rope.angle_bytes(num_tokens)).sum()
    }
}
