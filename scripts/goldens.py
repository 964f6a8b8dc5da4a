"""Writes the golden files of `crates/model/tests/goldens` with transformers and PEFT.

Each case is a tiny random model in Hugging Face layout, a LoRA adapter in PEFT layout, and what
PyTorch makes of them: logits, loss, gradients, twenty training steps. `rope.json` holds inverse
frequencies alone, for RoPE settings too many to deserve a model each. Everything runs in f32 with
eager attention unless its name says bf16. Rerunning on one machine gives identical files; the
`*_err` figures of bf16 depend on the instruction set that PyTorch finds.

Left out: data, tokenising and the training loop as a whole, which `parity.py` compares.

    target/bench-venv/bin/python scripts/goldens.py [CASE ...]
"""

import copy
import json
import math
import os
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before the imports below, which read it

import peft
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
    get_cosine_schedule_with_warmup,
)
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

GOLDENS = Path(__file__).resolve().parent.parent / "crates" / "model" / "tests" / "goldens"
ALL_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
NUM_STEPS, WARMUP_STEPS, MAX_GRAD_NORM = 20, 4, 1.0


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


CASES = {
    "tied_gqa": Case(
        seed=1,
        config=sizes(53, 24, 11, 4, 2) | {"rope_theta": 10000.0},
        lengths=[4, 7, 12],
        rope_spelling="rope_theta alone",
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
        optimizer={"lr": 0.03, "weight_decay": 0.01},
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
        config=sizes(47, 12, 9, 2, 1)
        | {
            "head_dim": 256,
            "num_hidden_layers": 3,
            "pad_token_id": None,  # or this token's embedding has no gradient
            "query_pre_attn_scalar": 64,
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
}


# -- models and adapters ---------------------------------------------------------------------------


def config_json(case):
    """The `config.json` written by hand, so that its spelling is the one chosen for the case."""
    name = str(case.saved_as).removeprefix("torch.")
    dtype_key = "dtype" if "rope_parameters" in case.config else "torch_dtype"
    return FAMILIES[case.family] | BASE_CONFIG | case.config | {dtype_key: name}


def random_weights(case):
    """State dict with every parameter away from its neutral value: norms not 1, biases not 0."""
    config = copy.deepcopy(config_json(case))  # nested tables are completed in place
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
    generator = torch.Generator().manual_seed(case.seed)
    weights = {}
    for name, parameter in sorted(model.named_parameters()):
        noise = torch.randn(parameter.shape, generator=generator)
        if "norm" in name:
            # Gemma's norms multiply by one plus the weight.
            weights[name] = (0 if case.family == "gemma3" else 1) + 0.2 * noise
        elif name.endswith("bias"):
            weights[name] = 0.3 * noise
        elif "embed" in name or "lm_head" in name:
            weights[name] = 0.5 * noise
        else:
            weights[name] = noise * 1.2 / math.sqrt(parameter.shape[-1])
    return {name: tensor.to(case.saved_as).contiguous() for name, tensor in weights.items()}


def write_model(case, folder):
    weights = random_weights(case)
    write_json(folder / "config.json", config_json(case))
    if case.num_shards == 1:
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        return
    weight_map, names = {}, sorted(weights)
    for shard in range(case.num_shards):
        file = f"model-{shard + 1:05}-of-{case.num_shards:05}.safetensors"
        part = {name: weights[name] for name in names[shard :: case.num_shards]}
        save_file(part, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    total = sum(tensor.nbytes for tensor in weights.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    write_json(folder / "model.safetensors.index.json", index)


def load_base(folder, dtype=torch.float32):
    """Loaded as users load it: RoPE's inverse frequencies stay f32 whatever the dtype."""
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, attn_implementation="eager", local_files_only=True
    ).eval()


def load_rounded(folder):
    """The base with its weights rounded to bf16 and run in f32: compute error set apart."""
    model = load_base(folder)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16())
    return model


def write_adapter(case, folder):
    """A PEFT adapter with A and B both random, so that no gradient vanishes."""
    settings = {"r": 4, "lora_alpha": 8, "target_modules": ALL_LINEAR} | case.lora
    model = get_peft_model(load_base(folder), LoraConfig(task_type="CAUSAL_LM", **settings))
    generator = torch.Generator().manual_seed(1000 + case.seed)
    with torch.no_grad():
        for _, parameter in sorted(trainable(model).items()):
            parameter.copy_(0.15 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(folder / "adapter")
    (folder / "adapter" / "README.md").unlink()
    path = folder / "adapter" / "adapter_config.json"
    config = json.loads(path.read_text())
    config["base_model_name_or_path"] = folder.name  # not a path of this machine
    config["target_modules"] = sorted(config["target_modules"])  # PEFT writes a set's order
    write_json(path, dict(sorted(config.items())))


def with_adapter(base, folder):
    return PeftModel.from_pretrained(base, folder / "adapter", is_trainable=True).eval()


def trainable(model):
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def peft_key(name):
    return name.replace(".default.weight", ".weight")


# -- what PyTorch makes of them --------------------------------------------------------------------


def sequences(case):
    """Token ids and target flags; flag i: token i is to be predicted (never the first)."""
    generator = torch.Generator().manual_seed(2000 + case.seed)
    ids, masks = [], []
    for length in case.lengths:
        ids.append(torch.randint(0, case.config["vocab_size"], (length,), generator=generator))
        mask = (torch.rand(length, generator=generator) < 0.6).to(torch.uint8)
        mask[0], mask[-1] = 0, 1
        masks.append(mask)
    return ids, masks


def logits_of(model, ids):
    """Sequences run one by one, short to long: a dynamic RoPE then holds no longer one's table."""
    with torch.no_grad():
        return [model(input_ids=one[None]).logits[0].float() for one in ids]


def loss_of(model, ids, masks):
    """Sum of -log p over the target tokens of all sequences, over their number."""
    total = 0.0
    for one, mask in zip(ids, masks, strict=True):
        log_p = model(input_ids=one[None]).logits[0].float().log_softmax(-1)
        token_log_p = log_p[:-1].gather(-1, one[1:, None])[:, 0]
        total = total - (token_log_p * mask[1:]).sum()
    return total / sum(int(mask.sum()) for mask in masks)


def gradients(model, ids, masks):
    model.zero_grad()
    loss = loss_of(model, ids, masks)
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in trainable(model).items()}


def train(model, settings, ids, masks):
    """Twenty steps on the same batch; a step's loss and norm are those before its update."""
    parameters = list(trainable(model).values())
    optimizer = torch.optim.AdamW(parameters, **settings)
    schedule = get_cosine_schedule_with_warmup(optimizer, WARMUP_STEPS, NUM_STEPS)
    losses, norms, rates = [], [], []
    for _ in range(NUM_STEPS):
        optimizer.zero_grad()
        loss = loss_of(model, ids, masks)
        loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(parameters, MAX_GRAD_NORM).item())
        losses.append(loss.item())
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert max(norms) > MAX_GRAD_NORM, f"no step was clipped: {norms}"
    return [torch.tensor(curve, dtype=torch.float32) for curve in (losses, norms, rates)]


def lora_goldens(folder, ids, masks, settings):
    model = with_adapter(load_base(folder), folder)
    tensors = numbered("logits_lora", logits_of(model, ids))
    loss, grads = gradients(model, ids, masks)
    assert set(map(peft_key, grads)) == set(get_peft_model_state_dict(model))
    tensors |= {f"grad.{peft_key(name)}": grad for name, grad in grads.items()}
    curves = train(with_adapter(load_base(folder), folder), settings, ids, masks)
    tensors |= dict(zip(["loss_curve", "grad_norm_curve", "lr_curve"], curves, strict=True))
    return tensors, {"loss": loss}


def full_goldens(folder, ids, masks, settings):
    loss, grads = gradients(load_base(folder), ids, masks)
    tensors = {f"full_grad.{name}": grad for name, grad in grads.items()}
    losses, norms, _ = train(load_base(folder), settings, ids, masks)
    tensors |= {"full_loss_curve": losses, "full_grad_norm_curve": norms}
    return tensors, {"full_loss": loss}


def bf16_goldens(folder, ids, masks):
    """PyTorch's own bf16 error; the yardstick that Hone's bf16 must not exceed."""
    exact = logits_of(load_rounded(folder), ids)
    loaded = logits_of(load_base(folder, torch.bfloat16), ids)
    cast = logits_of(load_base(folder).to(torch.bfloat16), ids)
    _, rounded = gradients(with_adapter(load_rounded(folder), folder), ids, masks)
    with torch.autocast("cpu", torch.bfloat16):
        model = with_adapter(load_base(folder, torch.bfloat16), folder)
        assert all(p.dtype == torch.float32 for p in trainable(model).values())
        _, bf16 = gradients(model, ids, masks)
    facts = errors("bf16", loaded, exact) | errors("bf16_to", cast, exact)
    facts["bf16_lora_grad_rel_err"] = relative_errors(bf16, rounded)
    return numbered("logits_bf16w", exact), facts


def errors(prefix, found, exact):
    difference = torch.cat([(a - b).flatten() for a, b in zip(found, exact, strict=True)])
    return {
        f"{prefix}_max_abs_err": rounded(difference.abs().max()),
        f"{prefix}_rms_err": rounded(difference.square().mean().sqrt()),
    }


def relative_errors(found, exact):
    """Relative L2 error of every parameter's gradient, under its PEFT key."""
    return {
        peft_key(name): rounded((found[name] - grad).norm() / grad.norm())
        for name, grad in exact.items()
    }


# -- RoPE alone ------------------------------------------------------------------------------------

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


# -- files -----------------------------------------------------------------------------------------


def rounded(value):
    return float(f"{float(value):.4g}")


def numbered(prefix, tensors):
    return {f"{prefix}_{i}": tensor for i, tensor in enumerate(tensors)}


def write_json(path, value):
    path.write_text(json.dumps(value, indent=1) + "\n")


NOTES = {
    "loss": "sum of -log p over target tokens of all sequences / number of target tokens",
    "ids_i, mask_i": "one unpadded sequence; mask 1: this token is predicted from those before",
    "logits_i, logits_lora_i": "f32, base alone and with the adapter; [T, V]",
    "logits_bf16w_i": "f32 run of the base with weights rounded to bf16",
    "bf16_*_err": "base loaded with dtype=bfloat16 (RoPE frequencies stay f32), no adapter, eager "
    "attention, absolute, against logits_bf16w_i, over all sequences",
    "bf16_to_*_err": "the same after model.to(bfloat16), which rounds RoPE frequencies as well",
    "bf16_lora_grad_rel_err": "base loaded with dtype=bfloat16, f32 adapters, forward and backward "
    "under torch.autocast('cpu', bfloat16), loss from f32 logits; relative L2 against the f32 "
    "gradient on the bf16-rounded base",
    "curves": "loss and gradient norm before each step's update and clip; lr used by that update",
    "rope dynamic": "each sequence by its own length",
}


def write_case(name, case):
    folder = GOLDENS / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write_model(case, folder)
    write_adapter(case, folder)
    ids, masks = sequences(case)
    settings = OPTIMIZER | case.optimizer
    tensors = numbered("ids", ids) | numbered("mask", masks)
    tensors |= numbered("logits", logits_of(load_base(folder), ids))
    parts = [lora_goldens(folder, ids, masks, settings), bf16_goldens(folder, ids, masks)]
    if case.full_gradients:
        parts.append(full_goldens(folder, ids, masks, settings))
    facts = {
        "case": name,
        "rope_spelling": case.rope_spelling,
        "saved_as": str(case.saved_as).removeprefix("torch."),
        "num_sequences": len(ids),
        "num_target_tokens": sum(int(mask.sum()) for mask in masks),
        "optimizer": settings | {"max_grad_norm": MAX_GRAD_NORM},
        "schedule": {"kind": "cosine", "warmup_steps": WARMUP_STEPS, "num_steps": NUM_STEPS},
    }
    for more_tensors, more_facts in parts:
        tensors |= more_tensors
        facts |= more_facts
    tensors = {key: tensor.contiguous() for key, tensor in tensors.items()}
    save_file(tensors, folder / "golden.safetensors")
    write_json(folder / "golden.json", facts)


def folder_size(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def main(names):
    unknown = set(names) - set(CASES)
    if unknown:
        sys.exit(f"no such case: {', '.join(sorted(unknown))}; there are {', '.join(CASES)}")
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    for name in names or CASES:
        write_case(name, CASES[name])
        print(f"{name}: {folder_size(GOLDENS / name)} bytes")
    versions = {m.__name__: m.__version__ for m in (torch, transformers, peft)}
    write_json(GOLDENS / "about.json", {"versions": versions, "notes": NOTES})
    compact = ",\n".join(json.dumps(entry) for entry in rope_goldens())
    (GOLDENS / "rope.json").write_text(f"[\n{compact}\n]\n")
    print(f"total: {folder_size(GOLDENS)} bytes")


if __name__ == "__main__":
    main(sys.argv[1:])
