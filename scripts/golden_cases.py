"""The cases of `goldens.py`: a tiny configuration of each family, and what it is run with."""

from dataclasses import dataclass, field

import golden_encoders
import golden_mixtures
import torch


@dataclass
class Case:
    """One golden case; `config` overrides `BASE_CONFIG`, `optimizer` overrides `OPTIMIZER`."""

    seed: int
    config: dict
    lengths: list
    rope_spelling: str
    lora: dict = field(default_factory=dict)
    optimizer: dict = field(default_factory=dict)
    saved_as: torch.dtype = torch.float32
    num_shards: int = 1
    full_gradients: bool = False
    family: str = "llama"
    fused: bool = False  # also an adapter of fused experts
    fused_on_disk: bool = False  # experts have one tensor in files too, as in the Hub's


BASE_CONFIG = {
    "num_hidden_layers": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FAMILIES = {
    "llama": {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "mlp_bias": False,
    },
    "qwen3": {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_act": "silu",
    },
    "qwen2": {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_act": "silu",
    },
    "qwen3_5": {
        "architectures": ["Qwen3_5ForCausalLM"],
        "model_type": "qwen3_5_text",
        "hidden_act": "silu",
    },
    "gemma2": {
        "architectures": ["Gemma2ForCausalLM"],
        "model_type": "gemma2",
        "hidden_activation": "gelu_pytorch_tanh",
    },
    "gemma4": {
        "architectures": ["Gemma4ForCausalLM"],
        "model_type": "gemma4_text",
        "hidden_activation": "gelu_pytorch_tanh",
    },
    "mistral": {
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "hidden_act": "silu",
    },
    "ministral3": {
        "architectures": ["Ministral3ForCausalLM"],
        "model_type": "ministral3",
        "hidden_act": "silu",
    },
    "phi3": {
        "architectures": ["Phi3ForCausalLM"],
        "model_type": "phi3",
        "hidden_act": "silu",
    },
    "smollm3": {
        "architectures": ["SmolLM3ForCausalLM"],
        "model_type": "smollm3",
        "hidden_act": "silu",
    },
    "olmo2": {
        "architectures": ["Olmo2ForCausalLM"],
        "model_type": "olmo2",
        "hidden_act": "silu",
    },
    "olmo3": {
        "architectures": ["Olmo3ForCausalLM"],
        "model_type": "olmo3",
        "hidden_act": "silu",
    },
    "granite": {
        "architectures": ["GraniteForCausalLM"],
        "model_type": "granite",
        "hidden_act": "silu",
    },
    "glm4": {
        "architectures": ["Glm4ForCausalLM"],
        "model_type": "glm4",
        "hidden_act": "silu",
    },
    "gemma3": {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "hidden_activation": "gelu_pytorch_tanh",
    },
}
OPTIMIZER = {"lr": 0.02, "betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.0}


def sizes(vocab, hidden, intermediate, heads, kv_heads):
    return {
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
    }


ROPES_OF_GEMMA4 = {
    "full_attention": {
        "rope_type": "proportional",
        "partial_rotary_factor": 0.25,
        "rope_theta": 1000000.0,
    },
    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
}

CASES = {
    "tied_gqa": Case(
        seed=1,
        config=sizes(53, 24, 11, 4, 2) | {"rope_theta": 10000.0},
        lengths=[4, 7, 12],
        rope_spelling="rope_theta alone",
        optimizer={"lr": 0.01},
        full_gradients=True,
    ),
    "untied_bias_linear": Case(
        seed=2,
        config=sizes(51, 24, 7, 3, 1)
        | {
            "tie_word_embeddings": False,
            "attention_bias": True,
            "mlp_bias": True,
            "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0,
            "rope_scaling": {"type": "linear", "factor": 2.5},
        },
        lengths=[5, 8, 11],
        rope_spelling="rope_scaling (kind under `type`) + rope_theta",
        optimizer={"weight_decay": 0.01},
        full_gradients=True,
    ),
    "headdim_llama3": Case(
        seed=3,
        config=sizes(43, 33, 9, 3, 1)
        | {
            "head_dim": 10,
            "max_position_embeddings": 512,
            "rope_theta": 500.0,
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        },
        lengths=[3, 6, 11],
        rope_spelling="rope_scaling (kind under `rope_type`) + rope_theta",
    ),
    "yarn": Case(
        seed=4,
        config=sizes(43, 32, 7, 4, 2)
        | {
            "rope_theta": 10000.0,
            "rope_scaling": {
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 16,
                "attention_factor": 1.3,
                "beta_fast": 2.0,
                "beta_slow": 0.25,
            },
        },
        lengths=[3, 13],
        rope_spelling="rope_scaling (kind under `rope_type`) + rope_theta",
        lora={"use_rslora": True, "r": 2, "lora_alpha": 3},
        saved_as=torch.float16,
    ),
    "dynamic": Case(
        seed=5,
        config=sizes(43, 32, 7, 4, 2)
        | {
            "max_position_embeddings": 8,
            "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0},
        },
        lengths=[5, 11, 13],
        rope_spelling="rope_parameters",
        lora={"target_modules": ["q_proj", "v_proj"]},
        saved_as=torch.bfloat16,
        num_shards=2,
    ),
    "qwen3": Case(
        seed=6,
        family="qwen3",
        config=sizes(45, 24, 11, 4, 2)
        | {
            "head_dim": 10,
            "rope_theta": 1000000.0,
            "tie_word_embeddings": False,
            "use_sliding_window": True,
            "sliding_window": 3,
            "max_window_layers": 1,
        },
        lengths=[4, 7, 12],
        rope_spelling="rope_theta alone",
        full_gradients=True,
    ),
    "gemma3": Case(
        seed=7,
        family="gemma3",
        # Some outputs of a narrower MLP nearly vanish, and the norm after it magnifies their
        # errors; a smaller `query_pre_attn_scalar` saturates softmaxes. Neither is bf16's doing.
        config=sizes(47, 12, 32, 2, 1)
        | {
            "head_dim": 256,
            "num_hidden_layers": 3,
            "pad_token_id": None,  # or this token's embedding has no gradient
            "query_pre_attn_scalar": 1024,
            "sliding_window": 4,
            "sliding_window_pattern": 3,
            "rope_theta": 1000000.0,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
            "rope_local_base_freq": 10000.0,
        },
        lengths=[4, 9, 14],
        rope_spelling="rope_theta, rope_scaling and rope_local_base_freq",
        saved_as=torch.bfloat16,
        full_gradients=True,
    ),
    "qwen2": Case(
        seed=8,
        family="qwen2",
        config=sizes(45, 24, 11, 4, 2)
        | {
            "num_hidden_layers": 3,
            "pad_token_id": None,
            "rope_theta": 1000000.0,
            "tie_word_embeddings": False,
            "use_sliding_window": True,
            "sliding_window": 4,
            "max_window_layers": 1,
        },
        lengths=[4, 7, 12],
        rope_spelling="rope_theta alone",
        full_gradients=True,
    ),
    "qwen3_5": Case(
        seed=17,
        family="qwen3_5",
        # The last row is longer than a chunk of the delta rule.
        config=sizes(45, 24, 11, 4, 2)
        | {
            "head_dim": 16,
            "num_hidden_layers": 3,
            "max_position_embeddings": 128,
            "pad_token_id": None,
            "tie_word_embeddings": False,
            "layer_types": ["linear_attention", "full_attention", "linear_attention"],
            "linear_conv_kernel_dim": 4,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 6,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "partial_rotary_factor": 0.25,
            },
        },
        lengths=[5, 9, 70],
        rope_spelling="rope_parameters",
        lora={
            "target_modules": [
                *["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
                *["in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a", "out_proj"],
            ]
        },
        optimizer={"lr": 0.001},
        full_gradients=True,
    ),
    "gemma2": Case(
        seed=9,
        family="gemma2",
        # Bounds so low that scores and logits feel them.
        config=sizes(47, 12, 32, 2, 1)
        | {
            "head_dim": 32,
            "num_hidden_layers": 3,
            "pad_token_id": None,
            "query_pre_attn_scalar": 64,
            "sliding_window": 4,
            "attn_logit_softcapping": 1.5,
            "final_logit_softcapping": 6.0,
            "rope_theta": 10000.0,
        },
        lengths=[4, 9, 14],
        rope_spelling="rope_theta alone",
        full_gradients=True,
    ),
    "gemma4": Case(
        seed=19,
        family="gemma4",
        # Blocks without a window have wider heads, of which a quarter is rotated, and their keys
        # are the values.
        config=sizes(47, 24, 32, 4, 2)
        | {
            "head_dim": 16,
            "global_head_dim": 32,
            "num_global_key_value_heads": 1,
            "attention_k_eq_v": True,
            "num_hidden_layers": 3,
            "pad_token_id": None,
            "hidden_size_per_layer_input": 0,
            "layer_types": ["full_attention", "sliding_attention", "full_attention"],
            "sliding_window": 4,
            "final_logit_softcapping": 6.0,
            "rope_parameters": ROPES_OF_GEMMA4,
        },
        lengths=[4, 9, 14],
        rope_spelling="rope_parameters by kind of attention",
        optimizer={"lr": 0.005},
        full_gradients=True,
    ),
    "gemma4_small": Case(
        seed=21,
        family="gemma4",
        # Embeddings of each block; the last two blocks, whose MLPs are twice as wide, read keys and
        # values of the last block before them that has a window and of the one that has none.
        config=sizes(43, 24, 20, 4, 2)
        | {
            "head_dim": 8,
            "global_head_dim": 16,
            "num_hidden_layers": 5,
            "num_kv_shared_layers": 2,
            "use_double_wide_mlp": True,
            "pad_token_id": None,
            "vocab_size_per_layer_input": 45,
            "hidden_size_per_layer_input": 12,
            "layer_types": [
                *["sliding_attention", "full_attention", "sliding_attention"],
                *["sliding_attention", "full_attention"],
            ],
            "sliding_window": 4,
            "final_logit_softcapping": 6.0,
            "use_bidirectional_attention": "vision",
            "rope_parameters": ROPES_OF_GEMMA4,
        },
        lengths=[4, 9, 14],
        rope_spelling="rope_parameters by kind of attention",
        lora={
            "target_modules": [
                *["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
                *["per_layer_input_gate", "per_layer_projection", "per_layer_model_projection"],
            ]
        },
        optimizer={"lr": 0.002},
        full_gradients=True,
    ),
    "gemma4_moe": Case(
        seed=23,
        family="gemma4",
        # Five experts besides the MLP of each block, of which two are chosen.
        config=sizes(43, 24, 20, 4, 2)
        | {
            "head_dim": 8,
            "global_head_dim": 16,
            "num_global_key_value_heads": 1,
            "attention_k_eq_v": True,
            "num_hidden_layers": 2,
            "pad_token_id": None,
            "hidden_size_per_layer_input": 0,
            "enable_moe_block": True,
            "num_experts": 5,
            "top_k_experts": 2,
            "moe_intermediate_size": 14,
            "layer_types": ["sliding_attention", "full_attention"],
            "sliding_window": 4,
            "rope_parameters": ROPES_OF_GEMMA4,
        },
        lengths=[4, 9, 14],
        rope_spelling="rope_parameters by kind of attention",
        # Gate and up projection are one parameter, whose adapter would share a matrix.
        lora={
            "target_modules": [
                *["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
                "router.proj",
            ],
            "target_parameters": ["experts.down_proj"],
        },
        optimizer={"lr": 0.002},
        full_gradients=True,
        fused=True,
        fused_on_disk=True,
    ),
    "mistral": Case(
        seed=10,
        family="mistral",
        config=sizes(43, 24, 11, 4, 2)
        | {
            "head_dim": 10,
            "pad_token_id": None,
            "rope_theta": 1000000.0,
            "sliding_window": 4,
        },
        lengths=[4, 7, 12],
        rope_spelling="rope_theta alone",
        full_gradients=True,
    ),
    "ministral3": Case(
        seed=18,
        family="ministral3",
        # Two rows are longer than the original length, from which on queries grow.
        config=sizes(43, 24, 11, 4, 2)
        | {
            "head_dim": 10,
            "pad_token_id": None,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "original_max_position_embeddings": 4,
                "beta_fast": 2.0,
                "beta_slow": 0.25,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
                "llama_4_scaling_beta": 0.4,
                "max_position_embeddings": 64,
            },
        },
        lengths=[4, 7, 14],
        rope_spelling="rope_parameters",
        full_gradients=True,
    ),
    "phi3": Case(
        seed=11,
        family="phi3",
        # Six of a head's eight dimensions are rotated, and two rows are longer than the original.
        config=sizes(45, 32, 11, 4, 2)
        | {
            "pad_token_id": None,
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.75,
            "original_max_position_embeddings": 8,
            "rope_scaling": {
                "type": "longrope",
                "short_factor": [1.0, 1.1, 1.5],
                "long_factor": [1.2, 2.5, 6.0],
            },
            "sliding_window": 6,
        },
        lengths=[5, 9, 14],
        rope_spelling="rope_scaling (kind under `type`) + rope_theta",
        lora={"target_modules": ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]},
        optimizer={"lr": 0.005},
        full_gradients=True,
    ),
    "smollm3": Case(
        seed=12,
        family="smollm3",
        config=sizes(43, 24, 11, 4, 2)
        | {
            "num_hidden_layers": 4,
            "pad_token_id": None,
            "rope_theta": 5000.0,
            "no_rope_layers": [1, 0, 1, 0],
            "no_rope_layer_interval": 2,
            "use_sliding_window": True,
            "sliding_window": 4,
        },
        lengths=[4, 7, 12],
        rope_spelling="rope_theta alone",
        full_gradients=True,
    ),
    "olmo2": Case(
        seed=13,
        family="olmo2",
        config=sizes(43, 24, 33, 4, 2) | {"pad_token_id": None, "rope_theta": 500000.0},
        lengths=[4, 7, 12],
        rope_spelling="rope_theta alone",
        full_gradients=True,
    ),
    "olmo3": Case(
        seed=14,
        family="olmo3",
        config=sizes(43, 24, 33, 4, 2)
        | {
            "num_hidden_layers": 4,
            "pad_token_id": None,
            "rope_theta": 500000.0,
            "sliding_window": 4,
            "rope_scaling": {
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 16,
                "attention_factor": 1.2,
                "beta_fast": 2.0,
                "beta_slow": 0.25,
            },
        },
        lengths=[4, 7, 12],
        rope_spelling="rope_scaling (kind under `rope_type`) + rope_theta",
        full_gradients=True,
    ),
    "granite": Case(
        seed=15,
        family="granite",
        config=sizes(43, 24, 11, 4, 2)
        | {
            "pad_token_id": None,
            "rope_theta": 10000.0,
            "attention_multiplier": 0.3,
            "embedding_multiplier": 2.0,
            "residual_multiplier": 0.4,
            "logits_scaling": 1.7,
        },
        lengths=[4, 7, 12],
        rope_spelling="rope_theta alone",
        full_gradients=True,
    ),
    "glm4": Case(
        seed=16,
        family="glm4",
        config=sizes(43, 24, 33, 4, 2)
        | {
            "head_dim": 12,
            "attention_bias": True,
            "pad_token_id": None,
            "tie_word_embeddings": False,
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.5,
        },
        lengths=[4, 7, 12],
        rope_spelling="rope_theta alone",
        lora={
            "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_up_proj", "down_proj"]
        },
        full_gradients=True,
    ),
}
FAMILIES |= golden_mixtures.FAMILIES | golden_encoders.FAMILIES
CASES |= {
    name: Case(**case)
    for name, case in (golden_mixtures.CASES | golden_encoders.CASES).items()
}
