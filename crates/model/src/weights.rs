//! Which weights a decoder has: the single description behind loading, export, adapter targets and
//! parameter counts. A weight's role says what it does; its name in files follows from that.

use crate::config::{DecoderConfig, LayerConfig};

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

/// What a weight does in a decoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Token embedding.
    EmbedTokens,
    /// Matrix of a block's linear layer.
    Matrix(usize, Linear),
    /// Bias of a block's linear layer.
    Bias(usize, Linear),
    /// Weight of a block's norm.
    Norm(usize, BlockNorm),
    /// Norm before the head.
    FinalNorm,
    /// Output head, if it is not tied to the embedding.
    LmHead,
}

/// Linear layers of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs)] // Established names.
pub enum Linear {
    Q,
    K,
    V,
    O,
    Gate,
    Up,
    Down,
}

impl Linear {
    /// All, in model order.
    pub const ALL: [Self; 7] =
        [Self::Q, Self::K, Self::V, Self::O, Self::Gate, Self::Up, Self::Down];

    /// Name of the module within its block.
    pub fn module(self) -> &'static str {
        match self {
            Self::Q => "self_attn.q_proj",
            Self::K => "self_attn.k_proj",
            Self::V => "self_attn.v_proj",
            Self::O => "self_attn.o_proj",
            Self::Gate => "mlp.gate_proj",
            Self::Up => "mlp.up_proj",
            Self::Down => "mlp.down_proj",
        }
    }
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
    /// Applied to the output of attention.
    AttentionOutput,
    /// Applied to the input of the MLP.
    MlpInput,
    /// Applied to the output of the MLP.
    MlpOutput,
}

impl BlockNorm {
    /// All, in model order.
    pub const ALL: [Self; 6] = [
        Self::AttentionInput,
        Self::Q,
        Self::K,
        Self::AttentionOutput,
        Self::MlpInput,
        Self::MlpOutput,
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
        let head = spec(Role::LmHead, "lm_head.weight", &[v, h]);
        [spec(Role::EmbedTokens, "model.embed_tokens.weight", &[v, h])]
            .into_iter()
            .chain((0..self.layers.len()).flat_map(|layer| self.layer_weights(layer)))
            .chain([spec(Role::FinalNorm, "model.norm.weight", &[h])])
            .chain((!self.tie_word_embeddings).then_some(head))
    }

    fn layer_weights(&self, layer: usize) -> impl Iterator<Item = WeightSpec> {
        let (config, h) = (&self.layers[layer], self.hidden_size);
        let linears = Linear::ALL.into_iter().flat_map(move |linear| {
            let ([n, k], module) = (config.shape(h, linear), module_name(layer, linear));
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
        let norms = BlockNorm::ALL.into_iter().filter_map(move |norm| {
            let name = format!("model.layers.{layer}.{}.weight", config.norm_module(norm)?);
            let is_per_head = matches!(norm, BlockNorm::Q | BlockNorm::K);
            let len = if is_per_head { config.attention.heads.head_dim } else { h };
            Some(WeightSpec { role: Role::Norm(layer, norm), name, shape: vec![len] })
        });
        linears.chain(norms)
    }

    /// Full names of the linear layers inside the blocks, in model order.
    pub fn module_names(&self) -> impl Iterator<Item = String> {
        self.weights().filter_map(|weight| match weight.role {
            Role::Matrix(layer, linear) => Some(module_name(layer, linear)),
            _ => None,
        })
    }
}

fn module_name(layer: usize, linear: Linear) -> String {
    format!("model.layers.{layer}.{}", linear.module())
}

impl LayerConfig {
    /// `[out_features, in_features]`.
    fn shape(&self, hidden_size: usize, linear: Linear) -> [usize; 2] {
        let (h, i, heads) = (hidden_size, self.mlp.intermediate_size, &self.attention.heads);
        match linear {
            Linear::Q => [heads.out_width(), h],
            Linear::K | Linear::V => [heads.num_kv_heads * heads.head_dim, h],
            Linear::O => [h, heads.out_width()],
            Linear::Gate | Linear::Up => [i, h],
            Linear::Down => [h, i],
        }
    }

    fn has_bias(&self, linear: Linear) -> bool {
        match linear {
            Linear::Q | Linear::K | Linear::V => self.attention.qkv_bias,
            Linear::O => self.attention.o_bias,
            Linear::Gate | Linear::Up | Linear::Down => self.mlp.bias,
        }
    }

    /// Name of a norm's module within its block; `None` where there is no such norm.
    fn norm_module(&self, norm: BlockNorm) -> Option<&'static str> {
        let (post, qk) = (self.post_norms, self.attention.qk_norm);
        match norm {
            BlockNorm::AttentionInput => Some("input_layernorm"),
            BlockNorm::Q => qk.then_some("self_attn.q_norm"),
            BlockNorm::K => qk.then_some("self_attn.k_norm"),
            BlockNorm::AttentionOutput => post.then_some("post_attention_layernorm"),
            // With post-norms, the same name refers to a different norm.
            BlockNorm::MlpInput if post => Some("pre_feedforward_layernorm"),
            BlockNorm::MlpInput => Some("post_attention_layernorm"),
            BlockNorm::MlpOutput => post.then_some("post_feedforward_layernorm"),
        }
    }
}
