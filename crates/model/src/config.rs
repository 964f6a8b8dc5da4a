//! What a decoder is made of, independent of the family whose `config.json` said so.

use crate::rope::{RopeConfig, RopeScaling};
use hone_tensor::Heads;
use hone_tensor::ops::{Activation, Angles, RmsNorm};

/// A decoder's shape. Names are those of Hugging Face configurations.
#[derive(Clone, Debug, PartialEq)]
pub struct DecoderConfig {
    /// Tokens in the vocabulary, rows of the embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// The blocks, first to last.
    pub layers: Vec<LayerConfig>,
    /// Rotary position embeddings; each block's attention names one of them.
    pub ropes: Vec<RopeConfig>,
    /// How norms work; all alike.
    pub norm: RmsNorm,
    /// What embeddings are multiplied by; rounded to the compute type.
    pub embedding_scale: f32,
    /// Longest sequence the model was made for.
    pub max_position_embeddings: usize,
    /// Whether the output head is the embedding.
    pub tie_word_embeddings: bool,
    /// Tokens that end a generation, as the model's files name them.
    pub eos_token_ids: Vec<u32>,
}

/// One block: attention, then a gated MLP.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerConfig {
    /// Attention.
    pub attention: AttentionConfig,
    /// The MLP.
    pub mlp: MlpConfig,
    /// Whether what attention and MLP give is normalised too before it is added to the stream.
    pub post_norms: bool,
}

/// Attention of one block.
#[derive(Clone, Debug, PartialEq)]
pub struct AttentionConfig {
    /// Heads, their scale and window.
    pub heads: Heads,
    /// Index into [`DecoderConfig::ropes`].
    pub rope: usize,
    /// Whether each head of queries and keys is normalised, before its rotary embedding.
    pub qk_norm: bool,
    /// Whether the projections of queries, keys and values have biases.
    pub qkv_bias: bool,
    /// Whether the output projection has a bias.
    pub o_bias: bool,
}

/// Gated MLP of one block.
#[derive(Clone, Debug, PartialEq)]
pub struct MlpConfig {
    /// Width between the projections.
    pub intermediate_size: usize,
    /// What the gate goes through.
    pub activation: Activation,
    /// Whether the projections have biases.
    pub bias: bool,
}

impl DecoderConfig {
    /// Number of blocks.
    pub fn num_hidden_layers(&self) -> usize {
        self.layers.len()
    }

    /// The heads of each block.
    pub fn heads(&self) -> impl Iterator<Item = &Heads> {
        self.layers.iter().map(|layer| &layer.attention.heads)
    }

    /// Dimensions of the widest head.
    pub fn max_head_dim(&self) -> usize {
        self.heads().map(|heads| heads.head_dim).max().unwrap_or(0)
    }

    /// Whether sequences of `len` tokens are what the model was made for.
    pub fn can_reach(&self, len: usize) -> bool {
        let is_dynamic = |rope: &RopeConfig| matches!(rope.scaling, RopeScaling::Dynamic { .. });
        len <= self.max_position_embeddings || self.ropes.iter().any(is_dynamic)
    }

    /// Tokens that end a generation: the model's own and those that its tokenizer knows of.
    pub fn stop_ids(&self, of_tokenizer: &[u32]) -> Vec<u32> {
        let mut ids = [&self.eos_token_ids, of_tokenizer].concat();
        ids.sort_unstable();
        ids.dedup();
        ids
    }

    /// Number of weights, tied ones once.
    pub fn num_parameters(&self) -> usize {
        self.weights().map(|weight| weight.shape.iter().product::<usize>()).sum()
    }

    /// Angles of each of [`Self::ropes`] for tokens at `positions` in sequences bounded by
    /// `cu_seqlens`.
    pub fn angles(&self, positions: &[u32], cu_seqlens: &[u32]) -> Vec<Angles> {
        self.ropes.iter().map(|rope| rope.angles(positions, cu_seqlens)).collect()
    }

    /// Bytes of the angles of `num_tokens` tokens.
    pub fn angle_bytes(&self, num_tokens: usize) -> usize {
        self.ropes.iter().map(|rope| size_of::<f32>() * rope.head_dim * num_tokens).sum()
    }
}
