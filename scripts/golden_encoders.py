"""Golden cases of encoders. Their token i is predicted at place i - 1, as those of decoders: the
weights' gradients do not ask what a place's target is, and so every test serves both.
"""

FAMILIES = {
    "bert": {
        "architectures": ["BertForMaskedLM"],
        "model_type": "bert",
        "hidden_act": "gelu",
    },
    "roberta": {
        "architectures": ["RobertaForMaskedLM"],
        "model_type": "roberta",
        "hidden_act": "gelu",
    },
    "xlm-roberta": {
        "architectures": ["XLMRobertaForMaskedLM"],
        "model_type": "xlm-roberta",
        "hidden_act": "gelu",
    },
    "distilbert": {
        "architectures": ["DistilBertForMaskedLM"],
        "model_type": "distilbert",
        "activation": "gelu",
    },
    "modernbert": {
        "architectures": ["ModernBertForMaskedLM"],
        "model_type": "modernbert",
        "hidden_activation": "gelu",
    },
}
# What other families call keys, and what these do.
KEYS = {
    "distilbert": {
        "hidden_size": "dim",
        "intermediate_size": "hidden_dim",
        "num_attention_heads": "n_heads",
        "num_hidden_layers": "n_layers",
    }
}
POST_NORM = {
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
}


def sizes(vocab, hidden, intermediate, heads, layers, positions):
    return {
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "max_position_embeddings": positions,
    }


CASES = {
    "bert": {
        "seed": 40,
        "family": "bert",
        "config": sizes(47, 24, 11, 3, 2, 20) | POST_NORM | {"pad_token_id": None},
        "lengths": [4, 7, 12],
        "rope_spelling": "none",
        "lora": {
            "target_modules": [
                *["query", "key", "value", "attention.output.dense"],
                *["intermediate.dense", "output.dense"],
            ]
        },
        "full_gradients": True,
    },
    "roberta": {
        "seed": 41,
        "family": "roberta",
        # Positions begin after the padding token, which no text has.
        "config": sizes(45, 24, 11, 2, 2, 18) | POST_NORM | {"pad_token_id": 2},
        "lengths": [5, 9, 13],
        "rope_spelling": "none",
        "lora": {"target_modules": ["query", "value", "intermediate.dense"]},
        "full_gradients": True,
    },
    "xlm_roberta": {
        "seed": 44,
        "family": "xlm-roberta",
        "config": sizes(44, 24, 11, 3, 2, 16)
        | POST_NORM
        | {"type_vocab_size": 1, "layer_norm_eps": 1e-5},
        "lengths": [4, 7, 11],
        "rope_spelling": "none",
        "lora": {"target_modules": ["key", "attention.output.dense", "output.dense"]},
        "optimizer": {"lr": 0.005},
        "full_gradients": True,
    },
    "distilbert": {
        "seed": 43,
        "family": "distilbert",
        "config": {
            "vocab_size": 46,
            "dim": 24,
            "hidden_dim": 11,
            "n_heads": 3,
            "n_layers": 2,
            "max_position_embeddings": 19,
            "dropout": 0.1,
            "attention_dropout": 0.1,
            "pad_token_id": None,
        },
        "lengths": [4, 8, 13],
        "rope_spelling": "none",
        "lora": {"target_modules": ["q_lin", "v_lin", "out_lin", "ffn.lin1", "ffn.lin2"]},
        "full_gradients": True,
    },
    "modernbert": {
        "seed": 42,
        "family": "modernbert",
        "config": sizes(43, 24, 11, 3, 4, 32)
        | {
            "pad_token_id": None,
            "global_attn_every_n_layers": 3,
            "local_attention": 6,
            "global_rope_theta": 5000.0,
            "local_rope_theta": 500.0,
            "norm_eps": 1e-5,
        },
        "lengths": [4, 9, 15],
        "rope_spelling": "global_rope_theta and local_rope_theta",
        "lora": {"target_modules": ["Wqkv", "Wo", "Wi"]},
        "optimizer": {"lr": 0.002},
        "full_gradients": True,
    },
}
