//! `bench families`: other models than Llama, and other ways to hold weights.

use super::cases::{
    Asked, Case, Data, EMBED, LIKE_HONE, NOTHING, Other, Peer, SHORT, lora, ratio_anywhere,
};

/// What stands above the table.
pub const HEAD: &str = "# Families and weight formats

<!-- Written by `cargo xtask bench families`; do not edit. -->

LoRA of rank 16 on all linear layers, experts' included, in bf16: forward, backward, clipping and
AdamW, on random weights. Where the peer is PyTorch (transformers, PEFT, sdpa attention and, for
experts, the fastest `experts_implementation`), both train in turn; L is Hone's ratio for the Llama
of 135 million in the same table. Where it is Hone, the rates are those of two models or two formats
of one. MiniLM's weights are its own; its peer pads 32 texts of banking77 to the longest, and embeds
by sentence-transformers in the fastest size of batches. Shapes of 135 million have Llama's sizes
(576/1536, 30 layers, 9 heads, 3 key-value heads, 49,152 tokens), so that equal rates are equal
FLOP/s. Otherwise as in [train.md](train.md).

";

const LONG: Data = Data::Words { len: 2048, rows: 1 };

/// A model of Llama's sizes, beside it.
const fn like_llama(key: &'static str, name: &'static str) -> Case {
    against_hone(key, name, key, "135M", SHORT, 0.9)
}

/// Hone with one model against Hone with another.
const fn against_hone(
    key: &'static str,
    name: &'static str,
    model: &'static str,
    other: &'static str,
    data: Data,
    least: f64,
) -> Case {
    let peer = Peer::Hone(Other { model: Some(other), ..LIKE_HONE });
    Case { model, peer, ..lora(key, name, data, ratio_anywhere(least)) }
}

/// A Llama of 1.1 billion with weights in these blocks, against itself in bf16.
const fn held_as(key: &'static str, name: &'static str, file: &'static str) -> Case {
    let case = against_hone(key, name, file, "1B", Data::Gsm8k, 0.95);
    Case { rounds: (3, 3), ..case }
}

/// all-MiniLM-L6-v2 with texts of unequal length, which the peer pads to the longest of a batch.
const fn minilm(key: &'static str, name: &'static str, texts: usize) -> Case {
    let data = Data::Banking77 { texts };
    Case { model: "masked", ..lora(key, name, data, ratio_anywhere(3.0)) }
}

pub const CASES: [Case; 21] = [
    lora("llama", "Llama, 135M", SHORT, NOTHING),
    Case {
        model: "qwen3-0.6B",
        ..lora(
            "qwen3",
            "Qwen3, 0.6B",
            SHORT,
            Asked { of_llama: Some(1.0), peak: Some(0.333), ..NOTHING },
        )
    },
    Case {
        model: "gemma3-270m",
        ..lora(
            "gemma3",
            "Gemma 3, 270M, GSM8K, peer padded",
            Data::Gsm8k,
            Asked { of_llama: Some(2.0), peak: Some(0.25), ..NOTHING },
        )
    },
    like_llama("gemma2", "Gemma 2 of 135M against Llama"),
    like_llama("phi3", "Phi-3 of 135M against Llama"),
    like_llama("olmo2", "OLMo 2 of 135M against Llama"),
    like_llama("smollm3", "SmolLM3 of 135M against Llama"),
    like_llama("glm4", "GLM-4 of 135M against Llama"),
    Case {
        model: "mixture",
        peer: Peer::Peft {
            dtype: "bf16",
            checkpointing: false,
            bf16_adapters: false,
            experts: Some("grouped_mm"),
        },
        ..lora(
            "mixture",
            "Qwen3-MoE, 8 of 64 experts, 384M, 87M active",
            SHORT,
            Asked { of_llama: Some(2.0), ..NOTHING },
        )
    },
    against_hone(
        "mixture-dense",
        "Qwen3-MoE against a dense model of as many FLOPs",
        "mixture",
        "mixture-dense",
        SHORT,
        0.7,
    ),
    Case {
        model: "qwen3_5",
        rounds: (3, 2),
        ..lora("qwen3_5", "Qwen3.5, 141M", LONG, Asked { of_llama: Some(2.0), ..NOTHING })
    },
    against_hone("qwen3_5-2048", "Qwen3.5, 141M, against Llama", "qwen3_5", "135M", LONG, 0.75),
    against_hone(
        "qwen3_5-8192",
        "Qwen3.5, 141M, against Llama",
        "qwen3_5",
        "135M",
        Data::Words { len: 8192, rows: 1 },
        0.75,
    ),
    minilm("minilm-masked", "MiniLM, 23M, masked tokens, peer padded", 320),
    Case {
        method: EMBED,
        peer: Peer::SentenceTransformers,
        ..minilm("minilm-embed", "MiniLM, 23M, embeddings, peer padded", 1000)
    },
    Case {
        settings: &["model.base_precision=nf4"],
        ..held_as("nf4", "Llama, 1.1B: NF4 against bf16", "1B")
    },
    held_as("Q4_K", "Llama, 1.1B: Q4_K against bf16", "1B-Q4_K.gguf"),
    held_as("Q5_0", "Llama, 1.1B: Q5_0 against bf16", "1B-Q5_0.gguf"),
    held_as("Q6_K", "Llama, 1.1B: Q6_K against bf16", "1B-Q6_K.gguf"),
    held_as("Q8_0", "Llama, 1.1B: Q8_0 against bf16", "1B-Q8_0.gguf"),
    held_as("MXFP4", "Llama, 1.1B: MXFP4 against bf16", "1B-MXFP4.gguf"),
];
