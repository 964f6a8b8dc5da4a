"""Inverse frequencies and attention scaling of RoPE settings, as transformers computes them;
`goldens.py` writes them as `rope.json`."""

from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

ROPE_CONFIGS = {
    "default": (64, 4096, {"rope_type": "default"}, [None]),
    "linear": (32, 2048, {"rope_type": "linear", "factor": 4.0}, [None]),
    "dynamic": (32, 32, {"rope_type": "dynamic", "factor": 2.0}, [7, 32, 33, 100]),
    "llama3": (
        128,
        131072,
        {
            "rope_type": "llama3",
            "rope_theta": 500000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        [None],
    ),
    "yarn": (32, 131072, {"original_max_position_embeddings": 4096}, [None]),
    "yarn_attention_factor": (32, 131072, {"attention_factor": 0.7}, [None]),
    "yarn_mscale": (32, 131072, {"mscale": 1.0, "mscale_all_dim": 0.8}, [None]),
    "yarn_betas": (32, 131072, {"beta_fast": 16.0, "beta_slow": 2.0}, [None]),
    "yarn_untruncated": (32, 131072, {"truncate": False}, [None]),
}


def rope_goldens():
    """Inverse frequencies and attention scaling; `seq_len` null where it has no effect."""
    entries = []
    for name, (head_dim, max_positions, rope, lengths) in ROPE_CONFIGS.items():
        if name.startswith("yarn"):
            window = {"factor": 32.0, "original_max_position_embeddings": 4096}
            rope = {"rope_type": "yarn"} | window | rope
        rope = {"rope_theta": 10000.0} | rope
        config = LlamaConfig(
            hidden_size=4 * head_dim,
            num_attention_heads=4,
            head_dim=head_dim,
            max_position_embeddings=max_positions,
            rope_parameters=dict(rope),
        )
        compute = ROPE_INIT_FUNCTIONS.get(
            rope["rope_type"], LlamaRotaryEmbedding.compute_default_rope_parameters
        )
        for seq_len in lengths:
            inv_freq, scaling = compute(config, device="cpu", seq_len=seq_len)
            entries.append(
                {
                    "name": name,
                    "head_dim": head_dim,
                    "max_position_embeddings": max_positions,
                    "rope_parameters": rope,
                    "seq_len": seq_len,
                    "attention_scaling": scaling,
                    "inv_freq": [float(f"{f:.9g}") for f in inv_freq.tolist()],
                }
            )
    return entries
