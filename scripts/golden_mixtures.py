"""What the golden files of models with experts need beyond `goldens.py`.

On disk, and in PEFT's layout for modules, an expert has tensors of its own; in memory transformers
and PEFT keep those of all experts together. `per_expert` takes them apart.
"""

import re
import tempfile
from pathlib import Path

import torch
from safetensors import safe_open
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

# PEFT's names of experts' adapters in memory and, if asked by `target_parameters`, in files.
WRAPPED = re.compile(r"(.*\.experts)(\.base_layer)?\.lora_([AB])((?:\.default)?\.weight)")


FAMILIES = {
    "qwen3_moe": {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "hidden_act": "silu",
    },
    "qwen2_moe": {
        "architectures": ["Qwen2MoeForCausalLM"],
        "model_type": "qwen2_moe",
        "hidden_act": "silu",
    },
    "mixtral": {
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        "hidden_act": "silu",
    },
    "olmoe": {
        "architectures": ["OlmoeForCausalLM"],
        "model_type": "olmoe",
        "hidden_act": "silu",
    },
}
FAMILIES["qwen3_5_moe"] = {
    "architectures": ["Qwen3_5MoeForCausalLM"],
    "model_type": "qwen3_5_moe_text",
    "hidden_act": "silu",
}
FAMILIES["qwen3_next"] = {
    "architectures": ["Qwen3NextForCausalLM"],
    "model_type": "qwen3_next",
    "hidden_act": "silu",
}
FAMILIES["glm4_moe"] = {
    "architectures": ["Glm4MoeForCausalLM"],
    "model_type": "glm4_moe",
    "hidden_act": "silu",
}
FAMILIES["gpt_oss"] = {
    "architectures": ["GptOssForCausalLM"],
    "model_type": "gpt_oss",
    "hidden_act": "silu",
}
SIZES = {
    "vocab_size": 45,
    "hidden_size": 24,
    "intermediate_size": 11,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": False,
    "pad_token_id": None,
}
CASES = {
    "qwen3_moe": {
        "seed": 38,
        "family": "qwen3_moe",
        # The second block has no experts, and PEFT finds nothing to adapt in its MLP.
        "config": SIZES
        | {
            "head_dim": 10,
            "num_hidden_layers": 3,
            "mlp_only_layers": [1],
            "num_experts": 6,
            "moe_intermediate_size": 10,
            "num_experts_per_tok": 2,
            "norm_topk_prob": True,
            "rope_theta": 1000000.0,
        },
        "lengths": [4, 7, 12],
        "rope_spelling": "rope_theta alone",
        "optimizer": {"lr": 0.005},
        "full_gradients": True,
        "fused": True,
    },
    "qwen2_moe": {
        "seed": 39,
        "family": "qwen2_moe",
        # A window of 3 in the first of two blocks, and a shared expert beside four.
        "config": SIZES
        | {
            "num_experts": 4,
            "moe_intermediate_size": 7,
            "shared_expert_intermediate_size": 9,
            "num_experts_per_tok": 2,
            "use_sliding_window": True,
            "sliding_window": 3,
            "max_window_layers": 2,
            "rope_theta": 10000.0,
        },
        "lengths": [4, 7, 12],
        "rope_spelling": "rope_theta alone",
        "lora": {"target_modules": ["q_proj", "v_proj", "gate_proj", "up_proj", "down_proj"]},
        "optimizer": {"lr": 0.005},
        "full_gradients": True,
    },
    "mixtral": {
        "seed": 40,
        "family": "mixtral",
        "config": SIZES
        | {
            "num_local_experts": 3,
            "num_experts_per_tok": 2,
            "sliding_window": 5,
            "rope_theta": 1000000.0,
        },
        "lengths": [4, 7, 12],
        "rope_spelling": "rope_theta alone",
        "lora": {"target_modules": ["q_proj", "v_proj", "w1", "w2", "w3"]},
        "optimizer": {"lr": 0.005},
        "full_gradients": True,
        "fused": True,
    },
    "olmoe": {
        "seed": 43,
        "family": "olmoe",
        "config": SIZES
        | {
            "num_experts": 5,
            "num_experts_per_tok": 3,
            "rope_theta": 10000.0,
        },
        "lengths": [4, 7, 12],
        "rope_spelling": "rope_theta alone",
        "lora": {"target_modules": ["q_proj", "v_proj", "gate_proj", "up_proj", "down_proj"]},
        "optimizer": {"lr": 0.005},
        "full_gradients": True,
    },
}
CASES["glm4_moe"] = {
    "seed": 42,
    "family": "glm4_moe",
    # Four groups of two experts, of which three are chosen; the first block is dense.
    "config": SIZES
    | {
        "num_hidden_layers": 3,
        "head_dim": 12,
        "attention_bias": True,
        "use_qk_norm": True,
        "partial_rotary_factor": 0.5,
        "n_routed_experts": 8,
        "n_shared_experts": 2,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 5,
        "n_group": 4,
        "topk_group": 3,
        "first_k_dense_replace": 1,
        "norm_topk_prob": True,
        "routed_scaling_factor": 1.5,
        "rope_theta": 10000.0,
    },
    "lengths": [4, 7, 12],
    "rope_spelling": "rope_theta alone",
    "lora": {"target_modules": ["q_proj", "v_proj", "gate_proj", "up_proj", "down_proj"]},
    "optimizer": {"lr": 0.005},
    "full_gradients": True,
}
CASES["qwen3_5_moe"] = {
    "seed": 64,
    "family": "qwen3_5_moe",
    "config": SIZES
    | {
        "head_dim": 16,
        "layer_types": ["linear_attention", "full_attention"],
        "linear_conv_kernel_dim": 4,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 6,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "num_experts": 5,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 7,
        "shared_expert_intermediate_size": 9,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.25,
        },
    },
    "lengths": [4, 7, 12],
    "rope_spelling": "rope_parameters",
    "lora": {
        "target_modules": [
            *["q_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
            *["in_proj_qkv", "in_proj_z", "out_proj"],
        ]
    },
    "optimizer": {"lr": 0.001},
    "full_gradients": True,
    "fused": True,
    "fused_on_disk": True,
}
CASES["gpt_oss"] = {
    "seed": 71,
    "family": "gpt_oss",
    # A window of 3 in the first of two blocks; positions beyond those of pre-training.
    "config": SIZES
    | {
        "head_dim": 10,
        "attention_bias": True,
        "num_local_experts": 5,
        "num_experts_per_tok": 2,
        "sliding_window": 3,
        "layer_types": ["sliding_attention", "full_attention"],
        "swiglu_limit": 7.0,
        "rope_theta": 150000.0,
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 8.0,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "truncate": False,
            "original_max_position_embeddings": 8,
        },
    },
    "lengths": [4, 7, 12],
    "rope_spelling": "rope_theta and rope_scaling",
    # Gate and up projection are one parameter, whose adapter would share a matrix.
    "lora": {
        "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"],
        "target_parameters": ["mlp.experts.down_proj", "mlp.router.weight"],
    },
    "optimizer": {"lr": 0.005},
    "full_gradients": True,
    "fused": True,
    "fused_on_disk": True,
}
CASES["qwen3_next"] = {
    "seed": 47,
    "family": "qwen3_next",
    # The second block has no experts.
    "config": SIZES
    | {
        "head_dim": 16,
        "layer_types": ["linear_attention", "full_attention"],
        "linear_conv_kernel_dim": 3,
        "linear_key_head_dim": 4,
        "linear_value_head_dim": 6,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "num_experts": 4,
        "num_experts_per_tok": 3,
        "moe_intermediate_size": 7,
        "shared_expert_intermediate_size": 9,
        "mlp_only_layers": [1],
        "partial_rotary_factor": 0.25,
        "rope_theta": 10000.0,
    },
    "lengths": [4, 7, 12],
    "rope_spelling": "rope_theta alone",
    "lora": {
        "target_modules": [
            *["q_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
            *["in_proj_qkvz", "in_proj_ba", "out_proj"],
        ]
    },
    "optimizer": {"lr": 0.001},
    "full_gradients": True,
}
# An adapter of fused experts, as PEFT writes it.
FUSED = {
    "r": 3,
    "lora_alpha": 6,
    "target_modules": ["q_proj"],
    "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
}


def fused(case):
    """`FUSED` for a case's family."""
    within = "" if case.family == "gemma4" else "mlp."
    parameters = [f"{within}experts.{name}" for name in ("gate_up_proj", "down_proj")]
    return FUSED | {"target_parameters": parameters}


# The least difference between the logit of the last expert chosen and of the next.
MARGIN = 0.001


def experts_of(config):
    return getattr(config, "num_local_experts", getattr(config, "num_experts", 0))


def has_experts(model):
    return any(".experts." in name for name, _ in model.named_parameters())


def shapes_on_disk(model):
    """Name and shape of every tensor that `save_pretrained` writes."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        with safe_open(Path(folder) / "model.safetensors", "pt") as file:
            return {name: file.get_slice(name).get_shape() for name in file.keys()}


def of_modules(lora):
    """Keys of an adapter's configuration that names modules of experts, which PEFT reads too."""
    patterns = {key: lora.get(key, {}) for key in ("rank_pattern", "alpha_pattern")}
    return patterns | {"target_parameters": None, "target_modules": sorted(lora["target_modules"])}


def per_expert(tensors, model):
    """`tensors` with those of experts under the names that they have on disk."""
    num_experts, found = experts_of(model.config), {}
    for name, tensor in tensors.items():
        wrapped = WRAPPED.fullmatch(name)
        if wrapped:
            found |= adapters(wrapped, tensor, num_experts)
        elif ".experts." in name and model.config.model_type == "gpt_oss":
            found |= alternating(name, tensor)
        elif name.endswith(".experts.gate_up_proj"):
            found |= weights(name, tensor, ["gate_proj", "up_proj"])
        elif name.endswith(".experts.down_proj"):
            found |= weights(name, tensor, ["down_proj"])
        else:
            found[name] = tensor
    if model.config.model_type == "mixtral":
        return {on_disk_as_mixtral(name): tensor for name, tensor in found.items()}
    return found


def on_disk_as_mixtral(name):
    parts = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}
    name = name.replace(".mlp.", ".block_sparse_moe.")
    return re.sub(r"(\.experts\.\d+\.)(\w+)", lambda match: match[1] + parts[match[2]], name)


def weights(name, tensor, parts):
    """`[E, n, k]` → one matrix for each expert and part."""
    experts = name.rpartition(".")[0]
    return {
        f"{experts}.{expert}.{part}.weight": matrix
        for expert, fused in enumerate(tensor)
        for part, matrix in zip(parts, fused.chunk(len(parts)), strict=True)
    }


def alternating(name, tensor):
    """`[E, k, n]`, or biases `[E, n]`, whose gate and up parts alternate."""
    experts, _, of_all = name.rpartition(".")
    parts = ["gate_proj", "up_proj"] if of_all.startswith("gate_up") else ["down_proj"]
    kind = "bias" if of_all.endswith("bias") else "weight"
    return {
        f"{experts}.{expert}.{part}.{kind}": fused.transpose(0, -1)[i :: len(parts)].clone()
        for expert, fused in enumerate(tensor)
        for i, part in enumerate(parts)
    }


def adapters(wrapped, tensor, num_experts):
    """`A [E r, k]`, experts slowest, or `B [n, r E]`, experts fastest → matrices of each expert.

    Gate and up projection have one adapter of twice the rank, whose `B` has two blocks.
    """
    experts, inner, which, suffix = wrapped.groups()
    parts = ["gate_proj", "up_proj"] if inner else ["down_proj"]
    if which == "A":
        of_experts = tensor.view(num_experts, -1, tensor.shape[1])
    else:
        of_experts = tensor.view(tensor.shape[0], -1, num_experts).permute(2, 0, 1)
    found = {}
    for expert, fused in enumerate(of_experts):
        for i, (part, rows) in enumerate(zip(parts, fused.chunk(len(parts)), strict=True)):
            matrix = rows if which == "A" else rows.chunk(len(parts), dim=1)[i]
            found[f"{experts}.{expert}.{part}.lora_{which}{suffix}"] = matrix
    return found


def keep_apart(model):
    """Lets no gradient reach what lies between the blocks of gate and up projections."""
    for name, parameter in model.named_parameters():
        wrapped = WRAPPED.fullmatch(name)
        if wrapped and wrapped[2] and wrapped[3] == "B":
            blocks = (parameter != 0).to(parameter.dtype)
            parameter.register_hook(lambda gradient, blocks=blocks: gradient * blocks)


def balancing_goldens(model, ids):
    """The auxiliary loss of all sequences together, and its gradient by the routers' weights."""
    if any("e_score" in name for name, _ in model.named_buffers()):
        return {}, {}  # for transformers, the choice is the softmax's here too
    model.zero_grad()
    outputs = [model(input_ids=one[None], output_router_logits=True) for one in ids]
    logits = tuple(torch.cat(of_layer) for of_layer in zip(*(o.router_logits for o in outputs)))
    experts, top_k = experts_of(model.config), model.config.num_experts_per_tok
    loss = load_balancing_loss_func(logits, experts, top_k)
    loss.backward()
    ends = ("mlp.gate.weight", "mlp.router.weight")
    routers = {name: p for name, p in model.named_parameters() if name.endswith(ends)}
    found = {name: weight.grad.clone() for name, weight in routers.items()}
    tensors = {f"aux_grad.{name}": grad for name, grad in per_expert(found, model).items()}
    return tensors, {"router_aux_loss": loss.item()}


def check_margins(model, ids):
    """Refuses choices of experts that rounding might change."""

    def check(router, _, output):
        keys = output[0].float()
        if hasattr(router, "e_score_correction_bias"):
            keys = keys.sigmoid() + router.e_score_correction_bias
            groups = keys.view(len(keys), router.num_group, -1)
            scores = groups.topk(2, dim=-1).values.sum(-1)
            wide_enough(scores, router.topk_group)
            left_out = scores.argsort(-1, descending=True)[:, router.topk_group :]
            outside = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, left_out, True)
            keys = groups.masked_fill(outside[..., None], -10.0).flatten(1)
        config = getattr(router, "config", None)
        wide_enough(keys, router.top_k if config is None else config.top_k_experts)

    def wide_enough(keys, chosen):
        keys = keys.sort(-1, descending=True).values
        if chosen < keys.shape[1]:
            margin = (keys[:, chosen - 1] - keys[:, chosen]).min().item()
            assert margin > MARGIN, f"a choice is close: {margin:.1e}; take another seed"

    kinds = ("topkrouter", "textrouter")
    routers = [m for m in model.modules() if type(m).__name__.lower().endswith(kinds)]
    hooks = [router.register_forward_hook(check) for router in routers]
    with torch.no_grad():
        for one in ids:
            model(input_ids=one[None])
    for hook in hooks:
        hook.remove()
