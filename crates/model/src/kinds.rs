//! Kinds of layers. Tables of what adapters reach have a line for each, and the tests of packing
//! demand a model of each.
//!
//! A kind is read off a block's configuration. Whoever gives a block a new field is asked by the
//! compiler, in [`LayerConfig::kind_of`], whether it makes another kind.

use crate::config::{AttentionConfig, LayerConfig, MlpConfig};
use crate::weights::Linear;
use hone_tensor::Heads;
use std::fmt;

/// Declares an enumeration with its names, and the list of all of them.
macro_rules! named {
    ($(#[$doc:meta])* $name:ident { $($(#[$of:meta])* $variant:ident = $text:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name {
            $($(#[$of])* $variant,)+
        }

        impl $name {
            /// All, in the order of tables.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// Its name in tables.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)+
                }
            }
        }
    };
}

named! {
    /// Parts of a block.
    Part {
        /// Softmax attention.
        Attention = "attention",
        /// A gated delta net with its convolution.
        LinearAttention = "linear attention",
        /// One MLP for every token.
        Mlp = "MLP",
        /// The block's own embedding of tokens.
        BlockEmbedding = "embedding of the block",
        /// The MLPs of a mixture.
        Experts = "experts",
        /// A mixture's MLP for every token.
        SharedExpert = "shared expert",
        /// What chooses experts, or says how much of one counts.
        Router = "router",
    }
}

named! {
    /// What sets layers of the same part apart, where it decides what a token sees or is given.
    Trait {
        /// Only the last keys are seen.
        Windowed = "windowed",
        /// Later keys are seen too.
        TwoSided = "two-sided",
        /// Queries and keys are not rotated by their positions.
        WithoutPositions = "without rotary positions",
        /// Heads come with a gate of what they give.
        Gated = "gated",
        /// Heads have a logit that takes a share of their softmax.
        Sinks = "with sinks",
        /// Keys and values are another block's.
        OthersKeys = "with another block's keys",
    }
}

/// A kind of layer.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LayerKind {
    /// The part of the block.
    pub part: Part,
    /// What sets it apart, in the order of [`Trait::ALL`].
    pub traits: Vec<Trait>,
}

impl fmt::Display for LayerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.part.name())?;
        self.traits.iter().try_for_each(|of| write!(f, ", {}", of.name()))
    }
}

impl LayerConfig {
    /// The kinds that a block has, in model order.
    pub fn kinds(&self) -> Vec<LayerKind> {
        let mut kinds: Vec<LayerKind> = Vec::new();
        for kind in self.linears().map(|linear| self.kind_of(linear)) {
            if !kinds.contains(&kind) {
                kinds.push(kind);
            }
        }
        kinds
    }

    /// The kind that one of a block's linear layers belongs to.
    pub fn kind_of(&self, linear: Linear) -> LayerKind {
        // What is read into one matrix, biases and norms leave tokens to themselves.
        let Self { attention, delta: _, mlp, norms: _, embedding: _, scaled: _ } = self;
        let part = match linear {
            Linear::Q | Linear::K | Linear::V | Linear::Qkv | Linear::O => {
                let traits = attention.traits();
                return LayerKind { part: Part::Attention, traits };
            }
            Linear::DeltaQkv
            | Linear::DeltaZ
            | Linear::DeltaB
            | Linear::DeltaA
            | Linear::DeltaQkvz
            | Linear::DeltaBa
            | Linear::DeltaOut => Part::LinearAttention,
            Linear::Gate | Linear::Up | Linear::GateUp | Linear::Down if has_experts(mlp) => {
                Part::SharedExpert
            }
            Linear::Gate | Linear::Up | Linear::GateUp | Linear::Down => Part::Mlp,
            Linear::BlockGate | Linear::BlockOut | Linear::BlockProjection => Part::BlockEmbedding,
            Linear::SharedGate | Linear::Router => Part::Router,
            Linear::Expert(..) => Part::Experts,
        };
        LayerKind { part, traits: Vec::new() }
    }
}

impl AttentionConfig {
    fn traits(&self) -> Vec<Trait> {
        let Self {
            heads,
            rope,
            qk_norm: _,
            output_gate,
            fused_qkv: _,
            qkv_bias: _,
            o_bias: _,
            sinks,
            keys_as_values: _,
            norms_values: _,
            keys_of,
        } = self;
        let Heads {
            num_heads: _,
            num_kv_heads: _,
            head_dim: _,
            scale: _,
            window,
            ahead,
            softcap: _,
        } = heads;
        let has = |of: &Trait| match of {
            Trait::Windowed => window.is_some(),
            Trait::TwoSided => *ahead > 0,
            Trait::WithoutPositions => rope.is_none(),
            Trait::Gated => *output_gate,
            Trait::Sinks => *sinks,
            Trait::OthersKeys => keys_of.is_some(),
        };
        Trait::ALL.iter().copied().filter(has).collect()
    }
}

/// Whether an MLP is a mixture, which sets it apart.
fn has_experts(mlp: &MlpConfig) -> bool {
    let MlpConfig { intermediate_size: _, activation: _, gated: _, fused: _, bias: _, experts } =
        mlp;
    experts.is_some()
}
